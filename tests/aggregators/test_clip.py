"""Clipping and zeroing: never above the bound, values, derivatives."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fad
from fad import FadError
from fad.aggregators import Aggregator, chain
from fad.aggregators._clip import clip, clip_to, zero_above
from tests.aggregators.classical_runs import arguments, one_round, rounds


def _norms(tree):
    """The norms of trees ``[m, *s]``, in a precision with room for all of it."""
    flat = [np.asarray(x, np.longdouble).reshape(len(x), -1) for x in tree]
    return np.sqrt((np.concatenate(flat, axis=1) ** 2).sum(axis=1))


def _draw(size, bound, dtype, seed):
    """Updates of all scales, many of them of a norm that is almost the bound."""
    rng = np.random.default_rng(seed)
    v = rng.normal(size=(120, size)) * np.exp(rng.normal(size=(120, 1)))
    v[:20] = np.sign(v[:20])  # sums that round the same way each time
    v[20:40] = np.where(rng.random((20, size)) < 3 / size, v[20:40], 1e-9)
    v /= np.linalg.norm(v, axis=1, keepdims=True)
    near = bound * (1 + rng.integers(-40, 40, 80) * float(jnp.finfo(dtype).eps) / 4)
    far = 10.0 ** rng.uniform(-30, 30, 36)
    scale = np.concatenate([near, far, [0.0, bound / 2, 1e-38, 2e38]])
    most = float(jnp.finfo(dtype).max)
    return np.clip(v * scale[:, None], -most, most).astype(dtype)


@functools.cache
def _clip_many(bound):
    return jax.jit(jax.vmap(lambda tree: clip_to(tree, bound)))


@pytest.mark.parametrize(
    ("dtype", "size", "bound"),
    [
        *(("float32", 40, bound) for bound in (0.1, 1.0, 3e-12, 7e25)),
        ("float32", 40, 2e-38),
        ("float32", 1, 0.1),
        ("float32", 30_000, 0.3),
        ("bfloat16", 3, 0.1),
        ("bfloat16", 3000, 1.0),
        ("float16", 3000, 0.1),
    ],
)
def test_no_norm_is_above_the_bound(dtype, size, bound):
    """In exact arithmetic, of what has been rounded to the dtype."""
    v = _draw(size, bound, jnp.dtype(dtype), 0)
    tree = {"a": v[:, : size // 3], "b": v[:, size // 3 :]}
    out, above = _clip_many(bound)(tree)
    before, after = _norms(tree.values()), _norms(out.values())
    assert (after <= bound).all()
    assert {x.dtype for x in out.values()} == {jnp.dtype(dtype)}
    above = np.asarray(above)
    assert above[before > bound].all()
    if bound > 1e-30:  # below, what is flushed to zero may have been of that size
        assert not above[before < bound * (1 - 5e-5)].any()
        slack = 2e-5 if dtype == "float32" else 8e-3
        assert (after[above] > bound * (1 - slack)).all()
    for name, x in tree.items():
        np.testing.assert_array_equal(np.asarray(out[name])[~above], x[~above])
        assert (np.asarray(out[name], float) * x.astype(float) >= 0).all()


@pytest.mark.usefixtures("x64")
def test_no_norm_is_above_the_bound_in_float64():
    v = _draw(500, 0.1, jnp.dtype("float64"), 1)
    out, above = _clip_many(0.1)({"a": v})
    assert (_norms(out.values()) <= np.longdouble(0.1)).all()
    assert (_norms(out.values())[np.asarray(above)] > 0.1 * (1 - 1e-13)).all()


@pytest.mark.once
def test_many_equal_numbers_are_summed_exactly_enough():
    """One sum after the other would stop growing at 2^24 in float32."""
    ones = jnp.ones((1, 2**24 + 2**22), jnp.bfloat16)
    ((out,), above) = _clip_many(4000.0)((ones,))
    assert above.all()
    assert np.sqrt(ones.size) * float(out[0, 0]) <= 4000
    assert (out == out[0, 0]).all()


@pytest.mark.once
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", ["clip", "l2", "linf"])
def test_values_equal_numpy(name):
    make = {
        "clip": lambda: clip(2.0),
        "l2": lambda: zero_above(2.0),
        "linf": lambda: zero_above(1.0, norm="linf"),
    }[name]
    rng = np.random.default_rng(0)
    updates = [rng.normal(size=(9, 4)) for _ in range(20)]
    weights = rng.uniform(1, 3, 9) * (np.arange(9) != 4)
    ids = [rng.permutation(9)[:5] for _ in range(19)] + [np.array([4])]
    as_trees = [{"a": u[:, :1], "b": u[:, 1:].reshape(9, 3, 1)} for u in updates]
    done = rounds(make(), as_trees, weights, ids)
    shown = {"clip": "clipped_fraction"}.get(name, "zeroed_fraction")
    for t, (u, some) in enumerate(zip(updates, ids, strict=True)):
        v, w = u[some], weights[some]
        if name == "linf":
            above = abs(v).max(axis=1) > 1.0
        else:
            above = np.linalg.norm(v, axis=1) > 2.0
        kept = 2 / np.linalg.norm(v, axis=1) if name == "clip" else 0.0
        v = v * np.where(above, kept, 1.0)[:, None]
        mean = w @ v / max(w.sum(), 1e-300)
        step = np.concatenate([done.steps[t]["a"], done.steps[t]["b"][:, 0]])
        np.testing.assert_allclose(step, mean, rtol=1e-10, atol=1e-14)
        fraction = above[w > 0].mean() if w.any() else 0.0
        assert float(done.metrics[t][shown]) == pytest.approx(fraction, abs=1e-6)


@pytest.mark.once
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", ["clip", "zero_above"])
def test_derivative_equals_plain_jax(name):
    """After 3 rounds of training, by the bound and by the clients' step."""
    centres = jnp.asarray(np.random.default_rng(1).normal(size=(5, 3)) * 2)
    weights = jnp.array([1.0, 2.0, 1.0, 0.0, 1.0])

    @fad.program
    def loss(args, data, weights):
        made = clip(args[0]) if name == "clip" else zero_above(args[0])

        def one_round(x, _):
            d = fad.map(lambda c: -args[1] * (x - c), data)
            d = fad.map(lambda d: made.client((), (), (), d, None)[0].value, d)
            return x + made.combine(d, weights, made.total), None

        x, _ = jax.lax.scan(one_round, jnp.ones(3), None, length=3)
        return fad.mean(fad.map(lambda c: jnp.sum((x - c) ** 2), data))

    def plain(args):
        x = jnp.ones(3)
        for _ in range(3):
            d = -args[1] * (x[None] - centres)
            size = jnp.sqrt((d**2).sum(axis=1, keepdims=True))
            over = args[0] / size if name == "clip" else 0.0
            d = d * jnp.where(size > args[0], over, 1.0)
            x = x + weights @ d / weights.sum()
        return jnp.mean(jnp.sum((x[None] - centres) ** 2, axis=1))

    args = (1.1, 0.5)
    gradient = jax.jit(jax.grad(loss))
    found = gradient(args, fad.AtClients(centres), fad.AtClients(weights))
    expected = jax.jit(jax.grad(plain))(args)
    np.testing.assert_allclose(found, expected, rtol=1e-8)
    assert (abs(expected[0]) > 1e-3) == (name == "clip")
    assert abs(expected[1]) > 1e-3


_jacobian = jax.jit(jax.jacobian(lambda x, bound: clip_to(x, bound)[0]))


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1.0, 1e30])
def test_derivative_is_finite_at_all_scales(scale):
    """``b (I - u u^T) / |x|``, with ``u`` the direction of the update; or 1."""
    x = scale * jnp.array([0.6, 0.0, 0.8])
    bound = 0.5 * scale if scale else 1.0
    found = _jacobian(x, bound)
    u = np.array([0.6, 0.0, 0.8])
    expected = 0.5 * (np.eye(3) - np.outer(u, u)) if scale else np.eye(3)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_an_update_at_the_bound_stays():
    update = {"a": jnp.array([3.0]), "b": jnp.array([4.0], jnp.bfloat16)}
    largest = functools.partial(zero_above, norm="linf")
    for made, kept in [(zero_above(5.0), 1), (largest(4.0), 1), (largest(3.9), 0)]:
        sent, _ = made.client((), (), (), update, None)
        assert float(sent.value["b"][0]) == 4 * kept
        assert sent.value["b"].dtype == jnp.bfloat16


def test_what_is_not_finite_is_above_every_bound():
    for made in (zero_above(5.0), zero_above(5.0, norm="linf")):
        for bad in (jnp.nan, jnp.inf):
            sent, _ = made.client((), (), (), jnp.array([1.0, bad]), None)
            assert sent.value.tolist() == [0, 0]


@pytest.mark.parametrize("nonfinite", ["exclude", "refuse"])
def test_clients_that_are_not_finite(nonfinite):
    updates = np.array([[3.0, 4.0], [np.nan, 1.0], [0.3, 0.4]], np.float32)
    made = chain(clip(1.0), Aggregator())
    done = rounds(made, [updates], np.ones(3, "f4"), [range(3)], nonfinite=nonfinite)
    if nonfinite == "refuse":
        assert np.isnan(done.steps[0]).all()
    else:
        np.testing.assert_allclose(done.steps[0], [0.45, 0.6], rtol=1e-5)
        assert float(done.metrics[0]["clipped_fraction"]) == 0.5


def test_a_chain_clips_by_sums_alone_and_shows_both():
    updates = np.array([[3.0, 4.0], [30.0, 40.0], [0.3, 0.4]], np.float32)
    made = chain(zero_above(10.0), clip(1.0))
    done = rounds(made, [updates], np.ones(3, "f4"), [range(3)])
    np.testing.assert_allclose(done.steps[0], [0.3, 0.4], rtol=1e-5)
    shown = {k: round(float(v), 4) for k, v in done.metrics[0].items()}
    assert shown == {"zeroed_fraction": 0.3333, "clipped_fraction": 0.3333}
    args = arguments(made, updates, np.ones(3, "f4"))
    outputs = lambda *args: one_round(made)(*args)[::3]  # noqa: E731
    assert not fad.check(lambda *a: outputs(*a)[0])(*args).allowed
    cost = fad.plan(lambda *a: one_round(made)(*a).metrics)(*args).cost()
    assert cost.bytes_up == 4 + 4 + 4  # two reports, and who counts


@pytest.mark.parametrize("bound", [0.0, -1.0, float("inf"), float("nan"), "1", None])
@pytest.mark.parametrize("make", [clip, zero_above])
def test_the_bound_is_positive(make, bound):
    match = rf"{make.__name__}\(bound\): expected bound as a finite number above 0, got"
    with pytest.raises(FadError, match=match):
        make(bound)


def test_there_is_no_other_norm():
    with pytest.raises(FadError, match=r"zero_above\(norm=\.\.\.\): .* got 'l1'"):
        zero_above(1.0, norm="l1")  # type: ignore
