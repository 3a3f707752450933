"""FedNest, its variants, and FBO-AggITD on heterogeneous quadratics."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

import fad
from algorithms import aggitd, fednest
from tests.estimators.bilevel_truth import X, Y, implicit, make_data, series, upper

pytestmark = [pytest.mark.usefixtures("x64"), pytest.mark.once]
CLOSE: Any = {"rtol": 1e-10, "atol": 1e-10}
LRS = {"lower_lr": 0.3, "upper_lr": 0.2}


def make(name, problem, **options):
    """Build an algorithm that begins at X and Y."""
    start = (lambda key: jnp.asarray(X)), (lambda key: jnp.asarray(Y))
    if name == "aggitd":
        return aggitd.aggitd(problem, *start, **{**LRS, **options})
    options = {"neumann_step": 0.5, **LRS, **options}
    return fednest.fednest(problem, *start, variant=name, **options)


def setting(heterogeneity=1.0, steps=1, clients=4):
    data = make_data(heterogeneity, clients)
    problem, cohorts = fad.data.quadratic_problem(data, steps=steps)
    return data, problem, jax.tree.map(lambda a: a[0], cohorts)


def run(algorithm, cohort, epochs):
    key = jax.random.key(0)
    state, step = algorithm.init(key), jax.jit(algorithm.step)
    metrics = {}
    for t in range(epochs):
        state, metrics = step(state, cohort, jax.random.fold_in(key, t))
    return state, metrics


@pytest.mark.parametrize(
    ("name", "rounds"),
    [
        ("fednest", lambda t, n: 2 * t + n + 3),
        ("fednest-sgd", lambda t, n: t + n + 3),
        ("lfednest-svrg", lambda t, n: 2 * t + 1),
        ("lfednest", lambda t, n: t + 1),
        ("aggitd", lambda t, n: 2 * t + 2),
    ],
)
@pytest.mark.parametrize(("t", "n"), [(1, 5), (3, 2)])
def test_rounds_are_the_papers(name, rounds, t, n):
    _, problem, cohort = setting(steps=2)
    terms = {} if name == "aggitd" else {"terms": n}
    algorithm = make(name, problem, inner_steps=t, groups=2, **terms)
    state = algorithm.init(jax.random.key(0))
    cost = fad.plan(algorithm.step)(state, cohort, jax.random.key(0)).cost()
    assert cost.rounds == rounds(t, n)


@pytest.mark.parametrize("steps", [1, 3])
def test_an_epoch_of_fednest_is_its_equations(steps):
    data, problem, cohort = setting(steps=steps)
    algorithm = make("fednest", problem, inner_steps=2, terms=3)
    state, metrics = run(algorithm, cohort, 1)
    c, y = data.clients, Y
    for _ in range(2):
        q = data.mean.A @ y + data.mean.C @ X + data.mean.a
        local = np.broadcast_to(y, (4, 4))
        for _ in range(steps):
            local = local - 0.3 * (np.einsum("nij,nj->ni", c.A, local - y) + q)
        y = local.mean(0)
    v = series(data.mean.A, upper(data, y)[2], 3, 0.5)
    h = implicit(data, y, v)
    np.testing.assert_allclose(state.y, y, **CLOSE)
    # One upper batch: the first corrected step is along the hypergradient.
    np.testing.assert_allclose(state.x, X - 0.2 * h, **CLOSE)
    np.testing.assert_allclose(metrics["hypergradient"], np.linalg.norm(h), **CLOSE)
    np.testing.assert_allclose(metrics["upper_loss"], upper(data, y)[0], **CLOSE)
    assert metrics["growing"] == 0


def test_groups_of_a_cohort_take_the_rounds_in_turn():
    """Two of two clients: FedInn, the first product and the answer are the first's."""
    data, problem, cohort = setting()
    algorithm = make("fednest", problem, groups=2, terms=2)
    state, _ = run(algorithm, cohort, 1)
    c, y = data.clients, Y
    one, two = (
        jax.tree.map(lambda a, k=k: np.asarray(a)[k : k + 2].mean(0), c) for k in (0, 2)
    )
    y = y - 0.3 * (one.A @ y + one.C @ X + one.a)
    b = two.F @ y + two.K @ X + two.f
    v = 0.5 * b
    for own in (one, two):
        v = v - 0.5 * (own.A @ v - b)
    h = one.K.T @ y + one.H @ X + one.h - one.C.T @ v
    np.testing.assert_allclose(state.y, y, **CLOSE)
    np.testing.assert_allclose(state.x, X - 0.2 * h, **CLOSE)


@pytest.mark.parametrize("name", ["lfednest", "aggitd"])
def test_groups_that_are_alike_are_one_cohort(name):
    _, problem, cohort = setting(heterogeneity=0.0)
    twice = jax.tree.map(lambda a: jnp.concatenate([a, a]), cohort)
    found = [
        run(make(name, problem, groups=g, inner_steps=2), clients, 1)[0]
        for g, clients in ((1, cohort), (2, twice))
    ]
    np.testing.assert_allclose(found[0].x, found[1].x, **CLOSE)
    np.testing.assert_allclose(found[0].y, found[1].y, **CLOSE)


def test_groups_must_be_alike():
    _, problem, cohort = setting()
    algorithm = make("fednest", problem, groups=3)
    state = algorithm.init(jax.random.key(0))
    match = "groups: 4 clients cannot be divided into 3 groups alike. .* cohort of 6"
    with pytest.raises(fad.FadError, match=match):
        algorithm.step(state, cohort, jax.random.key(0))


@pytest.mark.parametrize("name", ["fednest", "lfednest", "aggitd"])
def test_passes_are_local_steps_that_come_again(name):
    found = []
    for passes, steps in ((2, 1), (1, 2)):
        _, problem, cohort = setting(steps=steps)
        state, _ = run(make(name, problem, passes=passes, inner_steps=2), cohort, 2)
        found.append(state)
    np.testing.assert_allclose(found[0].x, found[1].x, **CLOSE)
    np.testing.assert_allclose(found[0].y, found[1].y, **CLOSE)


def test_an_epoch_of_lfednest_is_its_equations():
    data, problem, cohort = setting(steps=2)
    algorithm = make("lfednest", problem, inner_steps=1, terms=3)
    state, _ = run(algorithm, cohort, 1)
    c, local = data.clients, np.broadcast_to(Y, (4, 4))
    for _ in range(2):
        slope = np.einsum("nij,nj->ni", c.A, local) + c.C @ X + c.a
        local = local - 0.3 * slope
    y = local.mean(0)
    moved = []
    for i in range(4):
        one = jax.tree.map(lambda a, i=i: a[i], c)
        p = series(one.A, one.F @ y + one.K @ X + one.f, 3, 0.5)
        h = one.K.T @ y + one.H @ X + one.h - one.C.T @ p
        moved.append(X - 0.2 * h)
    np.testing.assert_allclose(state.y, y, **CLOSE)
    np.testing.assert_allclose(state.x, np.mean(moved, 0), **CLOSE)


@pytest.mark.parametrize("name", ["fednest", "aggitd"])
def test_corrected_ones_reach_the_optimum(name):
    data, problem, cohort = setting(steps=2)
    more = {"inner_steps": 20} if name == "aggitd" else {"inner_steps": 3, "terms": 40}
    state, metrics = run(make(name, problem, **more, lower_lr=0.5), cohort, 300)
    np.testing.assert_allclose(state.x, data.optimum(), rtol=1e-4, atol=1e-4)
    assert metrics["hypergradient"] < 1e-4
    assert metrics["lower_residual"] < 1e-4


@pytest.mark.parametrize("name", ["fednest-sgd", "lfednest-svrg", "lfednest"])
def test_uncorrected_ones_stop_elsewhere_where_clients_differ(name):
    options = {"inner_steps": 3, "terms": 40, "lower_lr": 0.5}
    distance = {}
    for heterogeneity in (0.0, 1.0):
        data, problem, cohort = setting(heterogeneity, steps=5)
        state, _ = run(make(name, problem, **options), cohort, 300)
        distance[heterogeneity] = np.linalg.norm(state.x - data.optimum())
    assert distance[0.0] < 1e-2  # Equal lower Hessians: nothing is lost.
    assert distance[1.0] > 0.05


def test_a_random_length_is_in_the_mean_the_sum():
    _, problem, cohort = setting()
    exact, _ = run(make("lfednest", problem, terms=2), cohort, 1)
    drawn = make("lfednest", problem, terms=3, random=True)
    state, step = drawn.init(jax.random.key(0)), jax.jit(drawn.step)
    keys = jax.random.split(jax.random.key(1), 300)
    xs = np.stack([step(state, cohort, k)[0].x for k in keys])
    spread = xs.std(0) / np.sqrt(len(keys))
    assert (abs(xs.mean(0) - exact.x) < 4 * spread + 1e-9).all()


@pytest.mark.parametrize("name", ["fednest", "lfednest", "aggitd"])
def test_the_loss_after_epochs_has_a_gradient_by_the_steps(name):
    data, problem, cohort = setting(clients=2)
    mean = jax.tree.map(jnp.asarray, data.mean)

    def loss(lrs):
        more = {} if name == "aggitd" else {"terms": 2}
        algorithm = make(name, problem, lower_lr=lrs[0], upper_lr=lrs[1], **more)
        state = algorithm.init(jax.random.key(0))
        for t in range(2):
            state, _ = algorithm.step(state, cohort, jax.random.key(t))
        return mean.upper(state.x, state.y)

    check_grads(jax.jit(loss), (jnp.array([0.3, 0.2]),), 1, ("fwd", "rev"), eps=1e-5)


@pytest.mark.parametrize("name", ["fednest", "lfednest", "aggitd"])
def test_nothing_but_sums_reaches_the_server(name):
    _, problem, cohort = setting(clients=2)
    algorithm = make(name, problem)
    state = algorithm.init(jax.random.key(0))
    fad.check(algorithm.step)(state, cohort, jax.random.key(0))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            functools.partial(fednest.Config, lower_lr=0.0),
            "lower_lr: expected",
        ),
        (
            functools.partial(fednest.Config, neumann_step=-1.0),
            "neumann_step: exp",
        ),
        (functools.partial(fednest.Config, terms=0), r"terms: expected in \[1, inf\)"),
        (functools.partial(aggitd.Config, inner_steps=0), "inner_steps: expected"),
        (functools.partial(fednest.Config, passes=0), "passes: expected"),
        (functools.partial(aggitd.Config, passes=0), "passes: expected"),
        (functools.partial(aggitd.Config, step=0.0), "step: expected in"),
    ],
)
def test_options_out_of_range_are_refused(config, message):
    with pytest.raises(ValueError, match=message):
        config()
