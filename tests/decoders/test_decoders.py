"""Decoders at work: at clients, on hard data, at their limits; and bad input."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fad
from fad import FadError
from fad._compat import jaxprs_in_params
from fad.decoders import (
    gaussian,
    hadamard,
    identity,
    lasso,
    min_norm,
    minimiser,
    proximal,
)

pytestmark = pytest.mark.once

P, D = 6, 40
SKETCH = gaussian(P, D, 0)
SHARED = lasso(SKETCH, l1=0.1, share=True, capacity=10)
X = np.random.default_rng(1).normal(size=P).astype(np.float32)


def round_trip(decoder, x, own):
    y, encode = jax.vjp(lambda x: decoder.decode(x, own), x)
    return y, encode(y)[0], decoder.residual(x, y, own)


@pytest.mark.parametrize("kind", ["lasso", "min norm"])
def test_a_client_has_a_sketch_of_its_own(kind):
    if kind == "lasso":
        seeds = [1, 2, 3]
        own = lasso(lambda seed: gaussian(P, D, seed), l1=0.3, share=True, capacity=10)
    else:
        seeds, own = [4], min_norm(lambda seed: hadamard(P, D, seed))

    def encoded(x, seed):
        y, encode = jax.vjp(lambda x: own.decode(x, seed), x)
        return y, encode(y)[0]

    @fad.program
    def mean(x, seeds):
        return fad.mean(fad.map(lambda seed: encoded(x, seed), seeds))

    together = jax.jit(mean)(X, fad.AtClients(jnp.array(seeds)))
    apart = jax.jit(encoded)
    each = [apart(X, jnp.array(seed)) for seed in seeds]
    for i in range(2):
        truth = np.mean([one[i] for one in each], axis=0)
        np.testing.assert_allclose(together[i], truth, rtol=1e-3, atol=1e-5)


def shapes(jaxpr):
    """Yield the shapes of all that a program makes."""
    for eqn in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        yield from (v.aval.shape for v in eqn.outvars)
        for inner in jaxprs_in_params(eqn.params):
            yield from shapes(inner)


def test_what_all_clients_share_is_decoded_once():
    n = 17

    def encode(x, deltas):
        def one(own):
            y, back = jax.vjp(lambda x: SHARED.decode(x, own), x)
            return y, back(own)[0]

        return jax.vmap(one, out_axes=(None, 0))(deltas)

    made = set(shapes(jax.make_jaxpr(encode)(X, jnp.ones((n, D)))))
    assert (n, P) in made  # what is encoded
    assert (P, 10) in made  # a working set: one,
    assert (n, P, 10) not in made  # and not one per client


@jax.jit
def run(x, l1):
    """Return y, y encoded, and the residuals of y, of others, and of zero."""
    decoder = lasso(SKETCH, l1=l1, share=True, capacity=10)
    y, encode = jax.vjp(lambda x: decoder.decode(x, None), x)
    others = jnp.stack([y, 1.1 * y, 0 * y])
    return y, encode(y)[0], jax.vmap(lambda y: decoder.residual(x, y, None))(others)


@jax.jit
def run_min_norm(x):
    return round_trip(min_norm(SKETCH), x, None)


def test_nothing_decodes_to_nothing_and_nan_ends():
    for zero in (*run(jnp.zeros(P), 0.1), *run_min_norm(jnp.zeros(P))):
        np.testing.assert_array_equal(zero, 0)
    nan = jnp.full(P, jnp.nan)
    for made in (*run(nan, 0.1), *run_min_norm(nan)):
        assert jnp.isnan(made).any()


def test_residuals_begin_at_one_and_end_at_zero():
    solved, near, zero = run(X, 0.1)[2]
    assert solved < 1e-4 < 1e-2 < near < zero
    np.testing.assert_allclose(zero, 1, rtol=1e-6)


def test_a_large_penalty_leaves_nothing_to_encode():
    for made in run(X, 1.5):
        np.testing.assert_array_equal(made, 0)


def test_dtypes_are_kept():
    for decoder in (SHARED, lasso(hadamard(P, D, 0), l1=0.1), min_norm(SKETCH)):
        made = jax.eval_shape(
            lambda x, decoder=decoder: round_trip(decoder, x, None),
            jnp.ones(P, jnp.bfloat16),
        )
        assert {x.dtype for x in made} == {jnp.dtype(jnp.bfloat16)}


def test_16_bits_are_decoded_as_exactly_as_they_tell():
    half = jnp.asarray(X, jnp.bfloat16)
    got, want = run_min_norm(half), run_min_norm(half.astype(jnp.float32))
    for made, true in zip(got[:2], want[:2], strict=True):
        size = jnp.linalg.norm(true)
        assert jnp.linalg.norm(made.astype(jnp.float32) - true) < 0.006 * size
    assert got[2] < 0.004


def test_what_is_too_large_to_be_squared_does_not_decode_to_nothing():
    assert jnp.isnan(run_min_norm(1e25 * X)[0]).all()


def test_identity_is_exact():
    tree = {"a": jnp.ones(2), "b": jnp.zeros((), jnp.bfloat16)}
    y, _, residual = round_trip(identity(), tree, None)
    assert y is tree or jax.tree.all(jax.tree.map(jnp.array_equal, y, tree))
    assert float(residual) == 0


def slope(x, y, data):
    return y - x


def start(x, data):
    return x


def prox(x, y, data, step):
    return y


QUICK = {"steps": 3, "step": 0.1}
BOUND = "fad.decoders.lasso: step=0.5 is outside (0, 0.3), up to 2 / 6.66667, over"
BAD = {
    "steps": (
        lambda: minimiser(slope, start, steps=0, step=0.1),
        "minimiser: expected steps to be an int >= 1, got 0",
    ),
    "step": (
        lambda: minimiser(slope, start, steps=1, step=0.0),
        "minimiser: step=0.0 is outside (0, inf). Take a shorter step",
    ),
    "long step": (
        lambda: minimiser(slope, start, steps=1, step=1.0, largest=2.0),
        "minimiser: step=1.0 is outside (0, 1), up to 2 / 2, over the largest "
        "eigenvalue of the Hessian. Take a shorter step",
    ),
    "no eigenvalue": (
        lambda: minimiser(slope, start, steps=1, step=1.0, largest=0.0),
        "minimiser: expected the largest eigenvalue > 0 and finite, got 0.0",
    ),
    "long step of FISTA": (
        lambda: proximal(slope, prox, start, steps=1, step=0.6, largest=2.0),
        "proximal: step=0.6 is outside (0, 0.5], up to 1 / 2, over the largest",
    ),
    "tolerance": (
        lambda: minimiser(slope, start, **QUICK, tolerance=1.0),
        "minimiser: expected tolerance in [0, 1), got 1.0",
    ),
    "solve": (
        lambda: proximal(slope, prox, start, **QUICK, solve="lu"),  # type: ignore[arg-type]
        "solve='lu'; expected a function (matvec, b) -> v, or a name",
    ),
    "terms": (
        lambda: min_norm(SKETCH, terms=0),
        "min_norm: expected terms to be an int >= 1, got 0",
    ),
    "step of a sketch": (lambda: lasso(hadamard(6, 40, 0), l1=0.1, step=0.5), BOUND),
    "l1": (
        lambda: lasso(SKETCH, l1=0),
        "lasso: expected l1 > 0 and finite, got 0. Without a penalty the solution is "
        "not unique: take fad.decoders.min_norm.",
    ),
    "capacity": (
        lambda: lasso(SKETCH, l1=0.1, capacity=0),
        "lasso: expected capacity to be an int >= 1, got 0",
    ),
    "sketch": (
        lambda: lasso(jnp.ones((2, 3)), l1=0.1),  # type: ignore[arg-type]
        "lasso: sketch is float32[2,3]; expected a sketch, such as",
    ),
    "sketch of data": (
        lambda: min_norm(lambda data: data).decode(jnp.ones(2), 3),
        "min_norm: sketch(data) returned int 3; expected a sketch, such as",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused(name):
    make, match = BAD[name]
    with pytest.raises(FadError, match=re.escape(match)):
        make()


def test_a_gaussian_step_is_refused_by_its_own_eigenvalue():
    s = SKETCH.columns(jnp.arange(D))
    largest = float(jnp.linalg.eigvalsh(s @ s.T)[-1])
    with pytest.raises(FadError, match=rf"up to 2 / {int(largest)}\.\d+, over"):
        lasso(SKETCH, l1=0.1, step=2.2 / largest)
    # What is traced, or of the data, is not known here.
    jax.eval_shape(lambda seed: lasso(gaussian(P, D, seed), l1=0.1, step=9.0) and 0, 1)
