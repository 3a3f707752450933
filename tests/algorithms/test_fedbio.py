"""FedBiO and FedBiOAcc on heterogeneous quadratics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from algorithms import fedbio as module
from algorithms.fedbio import Config, fedbio, fedbioacc
from algorithms.simfbo import simfbo
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
    directions,
    equals,
    gradient_is_plain,
    local_sums,
    masked,
    mean,
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
BOTH = pytest.mark.parametrize("make", [fedbio, fedbioacc])
MEMORY = {"momentum": 0.6, "decay": 0.5}


def averaged(xp, c, z, lrs, steps):
    """One round of FedBiO."""
    n = len(c.a)
    sums = local_sums(xp, c, z, lrs, [steps] * n)
    return descend(z, mean(xp, sums, [1] * n), lrs)


def accelerated(xp, c, carry, lrs, steps, t):
    """One round of FedBiOAcc, which keeps where its z came from."""
    n = len(c.a)
    before, z, w = (
        tuple(xp.broadcast_to(a, (n, a.shape[-1])) for a in v) for v in carry
    )
    scale = (1 + MEMORY["decay"] * t) ** (-1 / 3)
    keep = 1 - MEMORY["momentum"] * scale**2
    for k in range(steps):
        new, old = directions(xp, c, z), directions(xp, c, before)
        kept = 0.0 if t == k == 0 else keep
        w = tuple(a + kept * (b - d) for a, b, d in zip(new, w, old, strict=True))
        before, z = z, descend(z, w, lrs, scale)
    return tuple(tuple(a.mean(0) for a in v) for v in (before, z, w))


def test_a_step_of_fedbio_is_its_equations():
    data, problem, cohort = setting(steps=3)
    state, metrics = run(fedbio(problem, *START, **LRS), cohort, 1)
    equals(state, averaged(np, data.clients, Z, ordered(LRS), 3))
    np.testing.assert_allclose(metrics["upper_loss"], mean_upper(data, Z), **CLOSE)


def test_steps_of_fedbioacc_are_its_equations():
    data, problem, cohort = setting(steps=3)
    algorithm = fedbioacc(problem, *START, **LRS, **MEMORY)
    state, step = algorithm.init(jax.random.key(0)), jax.jit(algorithm.step)
    carry, metrics = (Z, Z, tuple(map(np.zeros_like, Z))), {}
    for t in range(3):
        state, metrics = step(state, cohort, jax.random.key(0))
        carry = accelerated(np, data.clients, carry, ordered(LRS), 3, t)
        equals(state, carry[1])
        same(tuple(state.w), carry[2])
    sizes = [np.linalg.norm(a) for a in carry[2]]
    names = ("hypergradient", "lower_residual", "linear_residual")
    np.testing.assert_allclose([metrics[n] for n in names], sizes, **CLOSE)


@BOTH
def test_reaches_the_optimum_with_one_step(make):
    reaches_the_optimum(make)


@BOTH
def test_copies_of_one_client_are_one(make):
    copies_of_one_client_are_one(make)


def test_without_memory_the_accelerated_one_is_fedbio():
    _, problem, cohort = setting(steps=3)
    cohort = masked(cohort, np.arange(3) < np.array([[3], [1], [2], [3]]))
    plain, _ = run(fedbio(problem, *START, **LRS), cohort, 3)
    state, _ = run(fedbioacc(problem, *START, **LRS, momentum=1.0), cohort, 3)
    same(state.z, plain)


def test_fedbio_is_simfbo_with_the_servers_step_one_and_no_ball():
    _, problem, cohort = setting(steps=3)
    other, _ = run(simfbo(problem, *START, **LRS, radius=np.inf), cohort, 3)
    same(run(fedbio(problem, *START, **LRS), cohort, 3)[0], other)


def test_the_momentum_lowers_the_noise():
    """With batches that differ, the accelerated one ends nearer to the optimum."""
    data, problem, cohort = setting()
    shift = jax.random.normal(jax.random.key(3), (400, 4, 3))

    def noisy(t):
        split = cohort.unsafe_gather()
        lower, upper = split.lower.examples, split.upper.examples
        own = 0.5 * shift[t][:, None, None]
        lower = lower._replace(a=lower.a + own[..., :1])
        upper = upper._replace(h=upper.h + own)
        split = split._replace(
            lower=split.lower._replace(examples=lower),
            upper=split.upper._replace(examples=upper),
        )
        return type(cohort)(split)

    def distance(make, **options):
        algorithm = make(problem, *START, **FAST, **options)

        def one(state, t):
            state, _ = algorithm.step(state, noisy(t), jax.random.key(0))
            return state, jnp.linalg.norm(state.x - data.optimum())

        @jax.jit
        def distances():
            start = algorithm.init(jax.random.key(0))
            return jax.lax.scan(one, start, jnp.arange(400))[1]

        return distances()[200:].mean()

    assert distance(fedbioacc, momentum=0.1) < 0.6 * distance(fedbio)


def test_the_gradient_of_fedbio_is_that_of_plain_jax():
    def plainly(c, z, lrs, _):
        return averaged(jnp, c, z, lrs, 2), None

    gradient_is_plain(fedbio, plainly, steps=2)


def test_the_gradient_of_fedbioacc_is_that_of_plain_jax():
    def plainly(c, z, lrs, memory):
        before, w, t = memory or (z, tuple(map(jnp.zeros_like, z)), 0)
        before, z, w = accelerated(jnp, c, (before, z, w), lrs, 2, t)
        return z, (before, w, t + 1)

    gradient_is_plain(fedbioacc, plainly, MEMORY, steps=2)


@BOTH
def test_one_round_of_the_variables_and_of_the_momenta(make):
    _, problem, cohort = setting(steps=2)
    sent = cost(make(problem, *START, **LRS), cohort)
    variables = 8 * (3 + 4 + 4) * (1 if make is fedbio else 2)
    assert sent.rounds == 1
    assert 0 <= sent.bytes_down - variables <= 32  # Scalars of the schedule.
    assert 0 <= sent.bytes_up - variables <= 32
    assert sent.client_state_bytes == 0


@BOTH
def test_hard_data(make):
    survives_hard_data(make)


@BOTH
def test_random_losses_get_keys(make):
    random_losses_get_keys(make)


@pytest.mark.parametrize("variant", ["fedbio", "fedbioacc"])
def test_builds(variant):
    builds(module, Config(variant=variant))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lower_lr": 0.0}, r"lower_lr: expected in \(0, inf\), got 0.0"),
        ({"linear_lr": 0.0}, r"linear_lr: expected in \(0, inf\), got 0.0"),
        ({"upper_lr": 0.0}, r"upper_lr: expected in \(0, inf\), got 0.0"),
        ({"momentum": 0.0}, r"momentum: expected in \(0, 1\], got 0.0"),
        ({"decay": -1.0}, r"decay: expected in \[0, inf\), got -1.0"),
    ],
)
def test_ranges(options, message):
    with pytest.raises(ValueError, match=message):
        Config(**options)
