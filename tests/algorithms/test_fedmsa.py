"""FedMSA on heterogeneous quadratics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from algorithms import fedmsa as module
from algorithms.fedmsa import Config, fedmsa
from tests.algorithms.bilevel_loops import (
    CLOSE,
    LRS,
    START,
    Z,
    builds,
    copies_of_one_client_are_one,
    cost,
    descend,
    directions,
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

pytestmark = [pytest.mark.usefixtures("x64"), pytest.mark.once]
RHO = 0.4


def combine(a, b, c, scale=1.0):
    """``a + scale (b - c)`` of triples."""
    return tuple(x + scale * (y - z) for x, y, z in zip(a, b, c, strict=True))


def epoch(xp, c, z, before, h, lrs, steps, first):
    """One epoch; ``h`` is the momentum, ``before`` where the last epoch began."""
    new, old = (tuple(a.mean(0) for a in directions(xp, c, at)) for at in (z, before))
    h = new if first else combine(new, h, old, 1 - RHO)
    n = len(c.a)
    own, local = (tuple(xp.broadcast_to(a, (n, len(a))) for a in v) for v in (z, h))
    for _ in range(steps):
        last, own = own, descend(own, local, lrs)
        local = combine(local, directions(xp, c, own), directions(xp, c, last))
    return tuple(a.mean(0) for a in own), h


@pytest.mark.parametrize("steps", [1, 3])
def test_epochs_are_its_equations(steps):
    data, problem, cohort = setting(steps=steps)
    algorithm = fedmsa(problem, *START, **LRS, rho=RHO)
    state, step = algorithm.init(jax.random.key(0)), jax.jit(algorithm.step)
    z, before, h = Z, Z, None
    for t in range(3):
        value = mean_upper(data, z)
        state, metrics = step(state, cohort, jax.random.key(0))
        new, h = epoch(np, data.clients, z, before, h, ordered(LRS), steps, t == 0)
        before, z = z, new
        equals(state, z)
        np.testing.assert_allclose(metrics["upper_loss"], value, **CLOSE)
        sizes = [np.linalg.norm(a) for a in h]
        names = ("hypergradient", "lower_residual", "linear_residual")
        np.testing.assert_allclose([metrics[n] for n in names], sizes, **CLOSE)


@pytest.mark.parametrize(("steps", "rho"), [(1, 1.0), (3, 0.5)])
def test_reaches_the_optimum(steps, rho):
    """With several steps too, however clients differ: they are corrected."""
    reaches_the_optimum(fedmsa, {"rho": rho, "upper_lr": 0.2}, steps=steps)


def test_with_one_step_it_is_the_mean_direction():
    data, problem, cohort = setting()
    state, _ = run(fedmsa(problem, *START, **LRS), cohort, 1)
    h = tuple(a.mean(0) for a in directions(np, data.clients, Z))
    equals(state, descend(Z, h, ordered(LRS)))


def test_copies_of_one_client_are_one():
    copies_of_one_client_are_one(fedmsa)


def test_the_gradient_is_that_of_plain_jax():
    def plainly(c, z, lrs, memory):
        before, h = memory or (z, None)
        new, h = epoch(jnp, c, z, before, h, lrs, 2, h is None)
        return new, (z, h)

    gradient_is_plain(fedmsa, plainly, {"rho": RHO}, steps=2, at=0.1)


def test_two_rounds():
    _, problem, cohort = setting(steps=2)
    sent = cost(fedmsa(problem, *START, **LRS), cohort)
    variables = 8 * (3 + 4 + 4)
    assert sent.rounds == 2
    assert 0 <= sent.bytes_down - 4 * variables <= 16
    assert 0 <= sent.bytes_up - 2 * variables <= 32


def test_a_new_key_for_each_round():
    """Both rounds of an epoch see noise of their own, the same at z and z'."""
    _, problem, cohort = setting()
    seen = []

    def lower(x, y, examples, key):
        jax.debug.callback(
            lambda k: seen.append(tuple(np.asarray(k))), jax.random.key_data(key)
        )
        return problem.lower(x, y, examples)

    def upper(x, y, examples, key):
        return problem.upper(x, y, examples)

    noisy = problem._replace(upper=upper, lower=lower, random=True)
    run(fedmsa(noisy, *START, **LRS), jax.tree.map(lambda a: a[:1], cohort), 1)
    assert len(set(seen)) == 2


def test_hard_data():
    survives_hard_data(fedmsa)


def test_random_losses_get_keys():
    random_losses_get_keys(fedmsa)


def test_builds():
    builds(module)


def test_without_memory_the_first_epochs_do_not_count():
    _, problem, cohort = setting()
    state, _ = run(fedmsa(problem, *START, **LRS, rho=1.0), cohort, 2)
    algorithm = fedmsa(problem, *START, **LRS, rho=1.0)
    fresh = algorithm.init(jax.random.key(0))._replace(z=state.z)
    after, _ = run(algorithm, cohort, 1, state)
    same(after.z, run(algorithm, cohort, 1, fresh)[0].z)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lower_lr": 0.0}, r"lower_lr: expected in \(0, inf\), got 0.0"),
        ({"linear_lr": 0.0}, r"linear_lr: expected in \(0, inf\), got 0.0"),
        ({"upper_lr": 0.0}, r"upper_lr: expected in \(0, inf\), got 0.0"),
        ({"rho": 0.0}, r"rho: expected in \(0, 1\], got 0.0"),
    ],
)
def test_ranges(options, message):
    with pytest.raises(ValueError, match=message):
        Config(**options)
