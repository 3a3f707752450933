"""SimFBO and ShroFBO on heterogeneous quadratics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fad
from algorithms import simfbo as module
from algorithms.simfbo import Config, project, simfbo
from tests.algorithms.bilevel_loops import (
    CLOSE,
    FAST,
    LRS,
    START,
    Z,
    builds,
    copies_of_one_client_are_one,
    cost,
    descend,
    equals,
    gradient_is_plain,
    keeps_dtype,
    local_sums,
    masked,
    mean,
    mean_upper,
    ordered,
    random_losses_get_keys,
    reaches_the_optimum,
    rows_in_one_batch,
    run,
    same,
    setting,
    survives_hard_data,
)

pytestmark = [pytest.mark.usefixtures("x64"), pytest.mark.once]
VARIANTS = pytest.mark.parametrize("variant", ["simfbo", "shrofbo"])
TAUS = (3, 1, 2, 3)


def by_hand(xp, c, z, lrs, taus, *, variant="simfbo", server_lr=1.0):
    sums = local_sums(xp, c, z, lrs, taus)
    steps = xp.asarray(taus, float)
    if variant == "shrofbo":
        sums = tuple(a / steps[:, None] * steps.mean() for a in sums)
    q = mean(xp, sums, [1] * len(taus))
    return descend(z, q, lrs, server_lr), q


@VARIANTS
def test_a_step_is_its_equations(variant):
    data, problem, cohort = setting(steps=3)
    real = np.arange(3) < np.array(TAUS)[:, None]
    options = {"variant": variant, "server_lr": 0.7}
    algorithm = simfbo(problem, *START, **LRS, **options)
    z, cohort = Z, masked(cohort, real)
    state, step = algorithm.init(jax.random.key(0)), jax.jit(algorithm.step)
    for _ in range(2):
        state, metrics = step(state, cohort, jax.random.key(0))
        before = z
        z, q = by_hand(np, data.clients, z, ordered(LRS), TAUS, **options)
        equals(state, z)
        norms = [np.linalg.norm(a) / np.mean(TAUS) for a in q]
        names = ("hypergradient", "lower_residual", "linear_residual")
        np.testing.assert_allclose([metrics[n] for n in names], norms, **CLOSE)
        value = mean_upper(data, before)
        np.testing.assert_allclose(metrics["upper_loss"], value, **CLOSE)
        np.testing.assert_allclose(
            metrics["linear_norm"], np.linalg.norm(z[2]), **CLOSE
        )


def test_upper_batches_with_real_rows_are_taken_in_turn():
    _, problem, cohort = setting(steps=3)
    split = cohort.unsafe_gather()

    def upper_of(factors, real):
        scale, n = jnp.asarray(factors), len(split.upper.mask)

        def one(a):
            wide = scale.reshape(1, -1, *[1] * (a.ndim - 2))
            return a * wide

        mask = jnp.broadcast_to(jnp.asarray(real)[None, :, None], (n, len(real), 1))
        examples = jax.tree.map(one, split.upper.examples)
        return fad.AtClients(
            split._replace(upper=split.upper._replace(examples=examples, mask=mask))
        )

    step = jax.jit(simfbo(problem, *START, **LRS).step)
    state = simfbo(problem, *START, **LRS).init(jax.random.key(0))
    padded = upper_of([jnp.nan, 1.0, 3.0], [False, True, True])
    spelled = upper_of([1.0, 3.0, 1.0], [True] * 3)
    same(*(step(state, c, jax.random.key(0))[0] for c in (padded, spelled)))


def test_chunks_of_clients_give_the_same_step():
    _, problem, cohort = setting(steps=2)
    algorithm = simfbo(problem, *START, **LRS)
    args = algorithm.init(jax.random.key(0)), cohort, jax.random.key(0)
    same(jax.jit(algorithm.step)(*args), fad.jit(algorithm.step, chunk=2)(*args))


@VARIANTS
def test_reaches_the_optimum_with_one_step(variant):
    reaches_the_optimum(simfbo, {"variant": variant})


@pytest.mark.parametrize("weighting", ["uniform", "examples"])
def test_the_levels_may_weigh_clients_otherwise(weighting):
    """Their rows differ, and a client has none of the upper level."""
    data, problem, cohort = setting()
    lower, upper = np.array([1, 2, 3, 3]), np.array([3, 0, 2, 1])
    cohort = rows_in_one_batch(cohort, lower, upper)
    problem = problem._replace(weighting=weighting)
    state, metrics = run(simfbo(problem, *START, **FAST), cohort, 500)
    if weighting == "uniform":
        lower, upper = lower > 0, upper > 0

    def weighted(part, w):
        return jax.tree.map(lambda a: np.einsum("n...,n->...", a, w / w.sum()), part)

    f, g = weighted(data.clients, upper), weighted(data.clients, lower)
    whole = f._replace(A=g.A, C=g.C, a=g.a)
    whole = type(data)(jax.tree.map(lambda a: a[None], whole))
    best = whole.optimum()
    np.testing.assert_allclose(state.x, best, rtol=1e-6, atol=1e-6)
    value = mean_upper(whole, (best, whole.solution(best)))
    np.testing.assert_allclose(metrics["upper_loss"], value, rtol=1e-6)


def test_clients_that_differ_drift_with_several_steps():
    data, problem, cohort = setting(steps=5)

    @jax.jit
    def distance(scale):
        lrs = {name: scale * lr for name, lr in FAST.items()}
        state, _ = run(simfbo(problem, *START, **lrs), cohort, 1500)
        return jnp.linalg.norm(state.x - data.optimum())

    assert distance(1.0) > 0.1
    assert distance(0.1) < distance(1.0) / 4


def test_normalised_is_the_same_where_clients_take_the_same_number_of_steps():
    _, problem, cohort = setting(steps=3)
    both = [
        simfbo(problem, *START, variant=variant, **LRS)
        for variant in ("simfbo", "shrofbo")
    ]
    state, steps = both[0].init(jax.random.key(0)), [jax.jit(a.step) for a in both]
    for taken in (1, 3):
        some = masked(cohort, np.arange(3) < np.full((4, 1), taken))
        same(*(step(state, some, jax.random.key(0)) for step in steps))


@VARIANTS
def test_copies_of_one_client_are_one(variant):
    copies_of_one_client_are_one(simfbo, {"variant": variant})


def test_v_stays_in_its_ball():
    _, problem, cohort = setting()
    after = jax.jit(lambda r: run(simfbo(problem, *START, radius=r, **LRS), cohort, 3))
    state, metrics = after(0.1)
    np.testing.assert_allclose(np.linalg.norm(state.v), 0.1, **CLOSE)
    np.testing.assert_allclose(metrics["linear_norm"], 0.1, **CLOSE)
    same(after(np.inf), after(50.0))


def test_the_projection_is_onto_the_ball():
    v = {"a": jnp.array([3.0, 0.0]), "b": jnp.array(4.0)}
    same(project(v, 10.0), v)
    same(project(v, 1.0), {"a": np.array([0.6, 0.0]), "b": 0.8})
    zero = jnp.zeros(2)
    np.testing.assert_array_equal(jax.jacobian(project)(zero, 1.0), np.eye(2))
    assert np.isnan(project(jnp.array([jnp.nan, 1.0]), 1.0)[0])


@VARIANTS
def test_the_gradient_is_that_of_plain_jax(variant):
    def plainly(c, z, lrs, _):
        return by_hand(jnp, c, z, lrs, (2, 2), variant=variant)

    gradient_is_plain(simfbo, plainly, {"variant": variant}, steps=2)


def test_the_gradient_through_unequal_steps_is_that_of_plain_jax():
    data, problem, cohort = setting(steps=3)
    cohort = masked(cohort, np.arange(3) < np.array(TAUS)[:, None])
    c, lrs = jax.tree.map(jnp.asarray, data.clients), ordered(LRS)

    def by_fad(scale):
        algorithm = simfbo(problem, *START, **LRS, variant="shrofbo", server_lr=scale)
        state = algorithm.init(jax.random.key(0))
        for _ in range(2):
            state, _ = algorithm.step(state, cohort, jax.random.key(0))
        return mean_upper(data, state)

    def plainly(scale):
        z = tuple(map(jnp.asarray, Z))
        for _ in range(2):
            z, _ = by_hand(jnp, c, z, lrs, TAUS, variant="shrofbo", server_lr=scale)
        return mean_upper(data, z)

    same(*(jax.jit(jax.value_and_grad(f))(0.8) for f in (by_fad, plainly)))


@VARIANTS
def test_one_round_of_the_three_variables(variant):
    _, problem, cohort = setting(steps=2)
    sent = cost(simfbo(problem, *START, variant=variant, **LRS), cohort)
    variables = 8 * (3 + 4 + 4)
    assert (sent.rounds, sent.bytes_down) == (1, variables)
    # The steps and the loss, and a float32 weight for each level.
    assert sent.bytes_up == variables + 2 * 8 + 2 * 4
    assert sent.client_state_bytes == 0


def test_hard_data():
    survives_hard_data(simfbo)
    keeps_dtype(simfbo, LRS, jnp.float32)


def test_random_losses_get_keys():
    random_losses_get_keys(simfbo)


@VARIANTS
def test_builds(variant):
    builds(module, Config(variant=variant))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lower_lr": 0.0}, r"lower_lr: expected in \(0, inf\), got 0.0"),
        ({"linear_lr": -1.0}, r"linear_lr: expected in \(0, inf\), got -1.0"),
        ({"upper_lr": np.inf}, r"upper_lr: expected in \(0, inf\), got inf"),
        ({"server_lr": 0.0}, r"server_lr: expected in \(0, inf\), got 0.0"),
        ({"radius": 0.0}, r"radius: expected in \(0, inf\], got 0.0"),
    ],
)
def test_ranges(options, message):
    with pytest.raises(ValueError, match=message):
        Config(**options)
