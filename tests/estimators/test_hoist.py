"""What clients keep of their lower losses changes no number, and what it costs."""

import functools
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fad

E = fad.estimators
CLIENTS, STEPS, BATCH, FEATURES, WIDTH = 4, 2, 3, 5, 2
SIZES = (6, 0, 1, 4)  # rows of the lower level; one client has none

pytestmark = pytest.mark.usefixtures("x64")


def network(x, y, e, *key):
    """A layer x, then a layer y: squared errors, with dropout where there is a key."""
    hidden = jnp.tanh(e["a"] @ x["w"] + x["b"][None])
    if key:
        hidden = jnp.where(jax.random.bernoulli(key[0], 0.5, hidden.shape), hidden, 0.0)
    return (hidden @ y - e["t"]) ** 2 + 0.1 * jnp.sum(y**2)


def make_problem(**options):
    return E.Bilevel(upper=network, lower=network, **options)


def make_cohorts(cohorts=1, *, padding=np.nan):
    rng = np.random.default_rng(0)
    shape = (cohorts, CLIENTS, STEPS, BATCH)
    mask = np.arange(STEPS * BATCH).reshape(STEPS, BATCH) < np.reshape(
        SIZES, (-1, 1, 1)
    )
    mask = np.broadcast_to(mask, shape)
    a, t = rng.normal(size=(*shape, FEATURES)), rng.normal(size=shape)
    rows = {
        "a": jnp.asarray(np.where(mask[..., None], a, padding)),
        "t": jnp.asarray(np.where(mask, t, padding)),
    }
    clients = jnp.broadcast_to(jnp.arange(CLIENTS), (cohorts, CLIENTS))
    batches = fad.local.Batches(rows, jnp.asarray(mask), clients)
    return fad.AtClients(E.Split(batches, batches))


X = {"w": np.linspace(-1, 1, FEATURES * WIDTH).reshape(FEATURES, WIDTH)}
X |= {"b": np.array([0.3, -0.2])}
Y = np.array([0.5, -1.0])


def first(cohorts):
    return jax.tree.map(lambda a: a[0], cohorts)


def estimate(estimator, x, cohorts, key):
    state = estimator.init(x, jnp.asarray(Y), first(cohorts))
    return estimator.estimate(x, state, cohorts, key)


@functools.partial(jax.jit, static_argnums=0)
def numbers(estimator, x, cohorts, key):
    return estimate(estimator, x, cohorts, key)._replace(report=None)


def aid(problem, keep, **options):
    solver = fad.solvers.svrg(0.1, passes=2)
    options = {"steps": 2, "solve": "neumann", "terms": 3, "step": 0.2} | options
    return E.aid(problem, solver, keep=keep, **options)


def aggitd(problem, keep):
    return E.aggitd(problem, steps=2, lr=0.1, keep=keep)


ESTIMATORS = {
    "aid": aid,
    "local": lambda problem, keep: aid(problem, keep, hessian="local"),
    "difference": lambda problem, keep: aid(problem, keep, products="difference"),
    "aggitd": aggitd,
}


@pytest.mark.once
@pytest.mark.parametrize(
    ("name", "weighting"),
    [
        ("aid", "uniform"),
        ("local", "examples"),
        ("difference", "uniform"),
        ("aggitd", "examples"),
    ],
)
def test_estimates_are_the_same(name, weighting):
    problem = make_problem(random=name != "difference", weighting=weighting)
    plain, kept = (
        numbers(ESTIMATORS[name](problem, k), X, make_cohorts(), jax.random.key(1))
        for k in (False, True)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), plain, kept)
    assert np.abs(kept.hypergradient["w"]).max() > 1e-3


@pytest.mark.once
def test_the_derivative_of_an_estimate_is_the_same():
    """By x too, on which depends what is kept."""

    @functools.partial(jax.jit, static_argnums=1)
    def value(x, keep):
        found = estimate(aggitd(make_problem(), keep), x, make_cohorts(), None)
        return found.value + jnp.sum(found.hypergradient["b"])

    plain, kept = (jax.grad(value)(X, keep) for keep in (False, True))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-11), plain, kept)


def test_x_is_sent_once_for_the_lower_level():
    def cost(keep):
        estimator, cohorts = aid(make_problem(), keep), make_cohorts()
        state = estimator.init(X, jnp.asarray(Y), first(cohorts))
        return fad.plan(estimator.estimate)(X, state, cohorts, None).cost()

    plain, kept = cost(False), cost(True)
    size = 8 * (FEATURES + 1) * WIDTH
    # Without: two rounds of each step, the residual's, three products.
    assert plain.bytes_down - kept.bytes_down == (2 * 2 + 3 - 1) * size
    assert plain.rounds == kept.rounds
    assert plain.bytes_up == kept.bytes_up


def test_the_clients_compute_it_once():
    def flops(keep, terms):
        def run(x, cohorts):
            return estimate(aid(make_problem(), keep, terms=terms), x, cohorts, None)[
                :2
            ]

        return fad.plan(run)(X, make_cohorts()).cost().client_flops

    plain, kept = (flops(k, 6) - flops(k, 2) for k in (False, True))
    assert kept < 0.5 * plain


@pytest.mark.parametrize(
    "lower",
    [
        lambda x, y, e: network({"w": X["w"], "b": X["b"]}, y, e) * x["b"][0],
        lambda x, y, e: jax.jit(network)(x, y, e),
    ],
    ids=["x alone", "inside a jit"],
)
def test_nothing_to_keep(lower):
    problem, cohorts = E.Bilevel(upper=network, lower=lower), make_cohorts()
    found, kept = E.hoist(problem, X, Y, cohorts)
    assert found is problem
    assert kept is cohorts


def test_each_of_several_cohorts_keeps_its_own():
    problem, cohorts = make_problem(), make_cohorts(2)
    values = E.hoist(problem, X, Y, cohorts)[1].unsafe_gather().lower.examples.values
    a = np.nan_to_num(cohorts.unsafe_gather().lower.examples["a"])
    np.testing.assert_allclose(values[0], np.tanh(a @ X["w"] + X["b"]), atol=1e-12)


def batch_loss(x, y, e):
    """A loss with a value of the whole batch, as long as the batch by chance."""
    scale = jnp.sum(e["a"]) * jnp.ones(BATCH) * x["b"][0]
    return network(x, y, e) + 0.0 * jnp.sum(scale) * y[0]


def test_what_is_of_a_batch_and_not_of_its_rows_is_not_kept():
    problem = E.Bilevel(upper=network, lower=batch_loss)
    kept = E.hoist(problem, X, Y, make_cohorts(padding=0.0))[1].unsafe_gather()
    assert [v.shape[-1] for v in kept.lower.examples.values] == [WIDTH]


@pytest.mark.once
def test_keys_of_the_old_kind():
    problem, key = make_problem(random=True), jax.random.PRNGKey(1)
    plain, kept = (
        numbers(aid(problem, keep), X, make_cohorts(), key) for keep in (False, True)
    )
    np.testing.assert_allclose(
        kept.hypergradient["w"], plain.hypergradient["w"], atol=1e-12
    )


def test_what_is_kept_is_finite_in_padding():
    kept = E.hoist(make_problem(), X, Y, make_cohorts())[1].unsafe_gather()
    (values,) = kept.lower.examples.values
    assert values.shape == (1, CLIENTS, STEPS, BATCH, WIDTH)
    assert np.isfinite(values).all()


@pytest.mark.once
def test_a_loss_that_closes_over_a_traced_number():
    @functools.partial(jax.jit, static_argnums=1)
    def value(scale, keep):
        def lower(x, y, e):
            return network(x, y, {**e, "a": scale * e["a"]})

        problem = E.Bilevel(upper=network, lower=lower)
        return estimate(aid(problem, keep), X, make_cohorts(), None).value

    plain, kept = (jax.grad(value)(1.5, keep) for keep in (False, True))
    np.testing.assert_allclose(kept, plain, atol=1e-12)
    assert abs(kept) > 1e-3


def test_errors():
    with pytest.raises(fad.FadError, match=r"fad\.estimators\.hoist: problem is None"):
        E.hoist(cast(Any, None), X, Y, make_cohorts())
    with pytest.raises(fad.FadError, match=r"hoist: cohorts\.lower\.mask is bool\[4"):
        E.hoist(make_problem(), X, Y, first(make_cohorts()))
