"""Sums pulled through client work: the gradient of the mean, not the mean of gradients.

Every client has 2 rows of 11 numbers and the model is [11, 5], so that a value of the
shape [..., 11, 5] with more than one client is a model per client.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fad
from tests.compile.programs import check_same, shapes_made
from tests.subjects import assert_same

N, ROWS, MODEL = 6, 2, (11, 5)
pytestmark = pytest.mark.usefixtures("x64")


def _args():
    random = np.random.default_rng(0)
    data = {
        "x": jnp.asarray(random.normal(size=(N, ROWS, MODEL[0]))),
        "y": jnp.asarray(random.normal(size=(N, ROWS, MODEL[1]))),
    }
    weights = jnp.asarray([1.0, 2.0, 0.0, 3.0, 0.0, 1.0])
    params = jnp.asarray(random.normal(size=MODEL))
    return params, fad.AtClients(data), fad.AtClients(weights)


def _loss(w, d):
    return jnp.mean((jnp.tanh(d["x"] @ w) - d["y"]) ** 2)


def _per_client_models(fn, *args, chunk=3):
    found = shapes_made(fn, *args, chunk=chunk)
    sizes = {MODEL, MODEL[::-1]}
    return {s for s in found if s[-2:] in sizes and np.prod(s[:-2], dtype=int) > 1}


def _products(fn, *args):
    report = fad.jit(fn, chunk=3).explain(*args)
    assert not report.unstreamed
    return sum(s.products for s in report.sweeps)


# ---- what is pulled --------------------------------------------------------------


@fad.program
def fed_sgd(w, data, weights):
    """Average gradients."""
    del weights
    return fad.mean(fad.map(jax.grad(_loss), fad.broadcast(w), data))


@fad.program
def weighted_fed_sgd(w, data, weights):
    """Average gradients by weights."""
    return fad.weighted_mean(fad.map(jax.grad(_loss), fad.broadcast(w), data), weights)


@fad.program
def product(w, data, weights):
    """Return the mean Hessian times a vector."""
    hvp = lambda p, d: jax.jvp(lambda q: jax.grad(_loss)(q, d), (p,), (p * p,))[1]  # noqa: E731
    return fad.weighted_mean(fad.map(hvp, fad.broadcast(w), data), weights)


@fad.grad
@fad.program
def reverse(w, data, weights):
    """Differentiate the weighted mean of losses."""
    return fad.weighted_mean(fad.map(_loss, fad.broadcast(w), data), weights)


@fad.program
def one_step(w, data, weights):
    """Average models after one local step."""

    def local(p, d):
        step = lambda q, _: (q - 0.1 * jax.grad(_loss)(q, d), None)  # noqa: E731
        return jax.lax.scan(step, p, None, length=1)[0]

    return fad.weighted_mean(fad.map(local, fad.broadcast(w), data), weights)


@fad.program
def one_batch(w, data, weights):
    """Average what local training on one batch gives."""

    def local(p, d, mask):
        batches = fad.local.Batches(
            jax.tree.map(lambda v: v[None], d), mask[None], jnp.int32(0)
        )
        losses = lambda q, e: jnp.mean((jnp.tanh(e["x"] @ q) - e["y"]) ** 2, -1)  # noqa: E731
        sgd = optax.sgd(0.1)
        return fad.local.train(p, batches, loss=losses, optimizer=sgd).delta

    mask = fad.AtClients(jnp.arange(N * ROWS).reshape(N, ROWS) % 5 > 1)
    delta = fad.map(local, fad.broadcast(w), data, mask)
    return w + fad.weighted_mean(delta, weights)


PULLED = [fed_sgd, weighted_fed_sgd, product, reverse, one_step, one_batch]


@pytest.mark.parametrize("program", PULLED, ids=lambda f: f.__name__)
def test_pulled(program):
    args = _args()
    assert _products(program, *args) > 0
    assert not _per_client_models(program, *args)
    check_same(program, *args, chunks=(3, None))


def test_several_means_of_one_gradient_are_pulled():
    @fad.program
    def program(w, data, weights):
        g = fad.map(jax.grad(_loss), fad.broadcast(w), data)
        return fad.mean(g), fad.weighted_mean(g, weights)

    assert not _per_client_models(program, *_args())
    check_same(program, *_args(), chunks=(4,))


def test_vmap_over_models_is_pulled():
    w, data, weights = _args()
    run = jax.vmap(weighted_fed_sgd, (0, None, None))
    args = jnp.stack([w, 2 * w]), data, weights
    found = _per_client_models(run, *args)
    assert {s for s in found if np.prod(s[:-2]) > 2} == set()
    check_same(run, *args, chunks=(4,))


# ---- what is not ---------------------------------------------------------------------


@fad.program
def clipped(w, data, weights):
    """Average clipped gradients."""

    def work(p, d):
        g = jax.grad(_loss)(p, d)
        return g / jnp.maximum(1.0, jnp.linalg.norm(g))

    return fad.weighted_mean(fad.map(work, fad.broadcast(w), data), weights)


@fad.program
def with_norms(w, data, weights):
    """Return the gradients' norms too."""
    g = fad.map(jax.grad(_loss), fad.broadcast(w), data)
    norms = fad.map(jnp.linalg.norm, g)
    return fad.weighted_mean(g, weights), fad.mean(norms), norms


@fad.program
def two_steps(w, data, weights):
    """Average models after two local steps."""

    def local(p, d):
        step = lambda q, _: (q - 0.1 * jax.grad(_loss)(q, d), None)  # noqa: E731
        return jax.lax.scan(step, p, None, length=2)[0]

    return fad.weighted_mean(fad.map(local, fad.broadcast(w), data), weights)


@fad.program
def unrolled_steps(w, data, weights):
    """Average models after masked local steps written one by one."""

    def local(p, d, weight):
        for i in range(5):
            p = jnp.where(weight > i / 3, p - 0.1 * jax.grad(_loss)(p, d), p)
        return p

    models = fad.map(local, fad.broadcast(w), data, weights)
    return fad.weighted_mean(models, weights)


@fad.program
def returned(w, data, weights):
    """Return every client's gradient too."""
    g = fad.map(jax.grad(_loss), fad.broadcast(w), data)
    return fad.weighted_mean(g, weights), g


NOT_PULLED = [clipped, with_norms, two_steps, unrolled_steps, returned]


@pytest.mark.parametrize("program", NOT_PULLED, ids=lambda f: f.__name__)
def test_not_pulled(program):
    args = _args()
    assert _per_client_models(program, *args)
    assert _products(program, *args) <= 1  # unrolled: the last step alone
    check_same(program, *args, chunks=(3, None))


# ---- the same numbers, whatever the operations ---------------------------------------


def _constant(v, w):
    return v * w + jnp.arange(3.0)


def _signs(v, w):
    return -(v - jnp.arange(3.0)) / 2.0 + jnp.float64(3.0)


def _picked(v, w):
    return jnp.where(w > 1, v, jnp.where(w < 1, -v, 2 * v))


def _picked_constants(v, w):
    return jnp.where(w > 1, jnp.arange(3.0), jnp.where(w < 1, jnp.inf, v) * 0 + 1)


def _deep(v, w):
    for _ in range(600):
        v = v + w
    return v


def _doubled(v, w):
    for _ in range(14):
        v = v + v
        v = jnp.where(w > 1, v, -v)
    return v


def _shapes(v, w):
    return (v.reshape(1, 3).T * w).squeeze(1) + jnp.broadcast_to(w, (3,))


def _outer(v, w):
    return jnp.outer(v, jnp.arange(2.0)) @ jnp.ones((2, 3)) * w


def _row_sums(v, w):
    return (v.reshape(1, 3) * w).sum(0), v.sum(), (v * w).sum()


WORK = [
    _constant,
    _signs,
    _picked,
    _deep,
    _doubled,
    _shapes,
    _outer,
    _row_sums,
]


@pytest.mark.parametrize("work", WORK, ids=lambda f: f.__name__[1:])
def test_rules(work):
    """The axes of features and of a chunk's clients are equally long."""

    @fad.program
    def program(x, weights):
        out = fad.map(work, x, weights)
        return fad.sum(out), fad.weighted_mean(out, weights)

    x = jnp.asarray(np.random.default_rng(0).normal(size=(7, 3)))
    weights = jnp.asarray([1.0, 2.0, 0.0, 3.0, 0.0, 1.0, 4.0])
    check_same(program, fad.AtClients(x), fad.AtClients(weights), chunks=(3, None))


# ---- numbers that are not finite -----------------------------------------------------


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
@pytest.mark.parametrize("program", [weighted_fed_sgd, one_step, one_batch, reverse])
def test_clients_of_weight_zero_that_are_not_finite(program, bad):
    w, data, weights = _args()
    broken = jax.tree.map(lambda v: v.at[2].set(bad), data)
    expected = jax.jit(program)(w, broken, weights)
    for chunk in (1, 3, None):
        actual = fad.jit(program, chunk=chunk)(w, broken, weights)
        assert_same(actual, expected, tol=1e-12)


@pytest.mark.parametrize("chunk", [1, 3, None])
def test_what_is_masked_out_everywhere_may_be_infinite(chunk):
    @fad.program
    def program(x, rate):
        masked = fad.map(lambda v: jnp.where(v > 100, v / rate, 0.0), x)
        return fad.sum(masked), fad.sum(fad.map(lambda v: jnp.where(v > 9, rate, v), x))

    x, rate = fad.AtClients(jnp.arange(7.0)), jnp.asarray(0.0)
    assert_same(
        fad.jit(program, chunk=chunk)(x, rate),
        (jnp.asarray(0.0), jnp.sum(jnp.arange(7.0))),
    )
    assert_same(
        fad.jit(program, chunk=chunk)(x, jnp.asarray(jnp.inf)),
        (jnp.asarray(0.0), jnp.asarray(21.0)),
    )
