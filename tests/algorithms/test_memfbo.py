"""MemFBO on heterogeneous quadratics, in both of its forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from algorithms import memfbo as module
from algorithms._bilevel import Variables, exact, subtract
from algorithms.fedbio import fedbio
from algorithms.memfbo import Config, differences, memfbo
from fad.estimators import Client
from tests.algorithms.bilevel_loops import (
    CLOSE,
    FAST,
    LRS,
    START,
    builds,
    copies_of_one_client_are_one,
    cost,
    descend,
    equals,
    gradient_is_plain,
    mean_upper,
    ordered,
    random_losses_get_keys,
    reaches_the_optimum,
    run,
    same,
    setting,
    survives_hard_data,
)
from tests.estimators.bilevel_truth import X, Y

pytestmark = [pytest.mark.usefixtures("x64"), pytest.mark.once]
FORMS = pytest.mark.parametrize("form", ["difference", "penalty"])
PENALTY = 5.0


def penalised(xp, c, z, lrs):
    """One round of one step of the penalty form."""
    x, y, v = z

    def lower(at):
        slope = xp.einsum("nij,j->i", c.A, at) + xp.einsum("nij,j->i", c.C, x)
        return slope / len(c.a) + c.a.mean(0)

    n = len(c.a)
    f_x = xp.einsum("nji,j->i", c.K, v) / n + c.H.mean(0) @ x + c.h.mean(0)
    f_y = c.F.mean(0) @ v + c.K.mean(0) @ x + c.f.mean(0)
    d_x = f_x + PENALTY * xp.einsum("nji,j->i", c.C, v - y) / n
    return descend(z, (d_x, lower(y), lower(v) + f_y / PENALTY), lrs)


def test_differences_are_exact_for_quadratics():
    _, problem, cohort = setting(steps=3)
    state, metrics = run(memfbo(problem, *START, **LRS, delta=0.1), cohort, 3)
    want, told = run(fedbio(problem, *START, **LRS), cohort, 3)
    equals(state, want)
    same(metrics, told)


def test_differences_are_off_by_the_square_of_delta():
    """Here ``grad_y g = y^3 + 3 x y^2`` and ``grad_x g = y^3``."""
    _, problem, cohort = setting(clients=1)

    def lower(x, y, examples):
        return (y**4 / 4 + x * y**3).sum() * jnp.ones(examples.a.shape[0])

    def upper(x, y, examples):
        return (x * y).sum() * jnp.ones(examples.a.shape[0])

    split = jax.tree.map(lambda a: a[0], cohort.unsafe_gather())
    client = Client(problem._replace(lower=lower, upper=upper), split, None)
    z = Variables(jnp.array([0.3]), jnp.array([0.7]), jnp.array([-2.0]))
    share = jnp.array(1.0)
    for delta in (0.1, 0.01):
        off = subtract(differences(delta)(client, z, share), exact(client, z, share))
        same(off, Variables(-z.v * delta**2, jnp.zeros(1), z.v * delta**2))


def test_a_step_of_the_penalty_form_is_its_equations():
    data, problem, cohort = setting()
    algorithm = memfbo(problem, *START, form="penalty", penalty=PENALTY, **LRS)
    state, metrics = run(algorithm, cohort, 2)
    z, value = (X, Y, Y), 0.0  # v begins as the lower variable that it is
    for _ in range(2):
        value, z = mean_upper(data, z), penalised(np, data.clients, z, ordered(LRS))
    equals(state, z)
    np.testing.assert_allclose(metrics["upper_loss"], value, **CLOSE)


def test_differences_reach_the_optimum_with_one_step():
    reaches_the_optimum(memfbo)


def test_the_penalty_form_is_off_by_one_over_the_penalty():
    data, problem, cohort = setting()

    @jax.jit
    def distance(penalty):
        lrs = {**FAST, "upper_lr": 0.4 / penalty}
        options = {"form": "penalty", "penalty": penalty}
        state, metrics = run(memfbo(problem, *START, **lrs, **options), cohort, 6000)
        return jnp.linalg.norm(state.x - data.optimum()), metrics["hypergradient"]

    near, far = distance(100.0), distance(10.0)
    assert max(near[1], far[1]) < 1e-3
    assert 7 < far[0] / near[0] < 13


@FORMS
def test_copies_of_one_client_are_one(form):
    copies_of_one_client_are_one(memfbo, {"form": form})


def test_the_gradient_of_the_penalty_form_is_that_of_plain_jax():
    def plainly(c, z, lrs, memory):
        z = z if memory else (z[0], z[1], z[1])
        return penalised(jnp, c, z, lrs), True

    options = {"form": "penalty", "penalty": PENALTY}
    gradient_is_plain(memfbo, plainly, options, at=0.05)


def test_the_gradient_through_differences_is_that_through_products():
    """Also at v = 0, where the direction of the difference has no length."""
    data, problem, cohort = setting(clients=2)
    mean = jax.tree.map(jnp.asarray, data.mean)

    def loss(make):
        def after(lr):
            algorithm = make(problem, *START, **{**LRS, "upper_lr": lr})
            state, _ = run(algorithm, cohort, 3)
            return mean.upper(state.x, state.y)

        return jax.jit(jax.value_and_grad(after))(0.2)

    same(loss(memfbo), loss(fedbio), rtol=1e-8)


@FORMS
def test_one_round_without_second_derivatives(form):
    _, problem, cohort = setting()
    algorithm = memfbo(problem, *START, form=form, **LRS)
    sent = cost(algorithm, cohort)
    assert sent.rounds == 1
    assert sent.bytes_down == 8 * (3 + 4 + 4)
    assert sent.client_state_bytes == 0


def test_second_derivatives_are_not_taken():
    _, problem, cohort = setting()

    def refuse(primals, tangents):
        raise AssertionError("a second derivative")

    def first(primals, tangents):
        return primals[0], one(primals[0]) * tangents[0]

    one = jax.custom_jvp(lambda y: jnp.ones(()))
    one.defjvp(refuse)
    once = jax.custom_jvp(lambda y: y)
    once.defjvp(first)

    def lower(x, y, examples):
        return problem.lower(x, once(y), examples)

    guarded = problem._replace(lower=lower)
    for form in ("difference", "penalty"):
        run(memfbo(guarded, *START, form=form, **LRS), cohort, 1)
    with pytest.raises(AssertionError, match="a second derivative"):
        run(fedbio(guarded, *START, **LRS), cohort, 1)


@FORMS
def test_hard_data(form):
    survives_hard_data(memfbo, {"form": form})


@FORMS
def test_random_losses_get_keys(form):
    random_losses_get_keys(memfbo, {"form": form})


@FORMS
def test_builds(form):
    builds(module, Config(form=form))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lower_lr": 0.0}, r"lower_lr: expected in \(0, inf\), got 0.0"),
        ({"linear_lr": 0.0}, r"linear_lr: expected in \(0, inf\), got 0.0"),
        ({"upper_lr": 0.0}, r"upper_lr: expected in \(0, inf\), got 0.0"),
        ({"delta": 0.0}, r"delta: expected in \(0, inf\), got 0.0"),
        ({"penalty": -1.0}, r"penalty: expected in \(0, inf\), got -1.0"),
    ],
)
def test_ranges(options, message):
    with pytest.raises(ValueError, match=message):
        Config(**options)
