"""The arithmetic of a secure sum: bounds, ranges, derivatives, what travels."""

import math
import operator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fad
from fad import FadError
from fad.aggregators import Aggregator, chain
from fad.aggregators._chain import server_key
from fad.aggregators._clip import clip
from fad.aggregators._gaussian import gaussian_mean
from fad.aggregators._random_k import random_k
from fad.aggregators._secure_sum import secure_sum
from tests.aggregators.classical_runs import arguments, one_round, rounds
from tests.jaxprs import wire
from tests.subjects import on_mesh

N, SIZE = 7, 400


def values(bound, dtype, seed=0):
    """Of all magnitudes up to the bound, with both ends at all clients."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(-1, 1, (N, SIZE)) * 10 ** rng.uniform(-8, 0, (N, SIZE))
    x[:, 0], x[:, 1], x[:, 2] = 1, -1, 0
    return jnp.asarray(np.float32(bound) * x.astype(np.float32)).astype(dtype)


def finest(bound, clients, bits):
    """The step, from the condition on the range."""
    return next(
        2.0**e
        for e in range(-90, 90)
        if clients * (bound / 2.0**e + 0.5) < 2 ** (bits - 1)
    )


def code(secure):
    return operator.attrgetter("args")(secure.total)


def check_sum(x, bound, bits, step=None):
    """Compare with Python's integers, bit for bit, and with the float sum."""
    secure = secure_sum(bound=bound, clients=N, bits=bits, step=step)
    got = jax.jit(fad.program(secure.total))(fad.AtClients(x))
    assert got.dtype == x.dtype
    step = finest(bound, N, bits) if step is None else step
    wide = np.asarray(x, np.float64)
    whole = [[int(v) for v in row] for row in np.rint(wide / step)]
    half = 2 ** (bits - 1)
    added = [(sum(v % (2 * half) for v in c) + half) % (2 * half) - half
             for c in zip(*whole, strict=True)]  # fmt: skip
    narrow = np.float64 if x.dtype == np.float64 else np.float32
    want = jnp.asarray(np.array(added, narrow) * narrow(step)).astype(x.dtype)
    np.testing.assert_array_equal(got, want)
    rounding = np.abs(wide.sum(axis=0)) * float(jnp.finfo(x.dtype).eps)
    error = np.abs(np.asarray(got, np.float64) - wide.sum(axis=0))
    assert (error <= N * step / 2 + rounding).all()
    return error.max()


@pytest.mark.parametrize(
    ("bits", "dtype", "bound"),
    [(32, "float32", 1.0), (16, "bfloat16", 0.75), (8, "float32", 40.0)],
)
def test_equals_the_float_sum_to_the_stated_bound(bits, dtype, bound):
    assert check_sum(values(bound, dtype), bound, bits) > 0


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("bits", [32, 13])
def test_in_double_precision(bits):
    """Where JAX sums small integers in 64 bits; and a modulus that is no type's."""
    check_sum(values(0.5, "float64", seed=1), 0.5, bits)


def test_a_coarser_step():
    check_sum(values(1.0, "float32"), 1.0, 32, step=2.0**-9)


def test_nothing_is_cut_off():
    secure = secure_sum(bound=1.0, clients=4, bits=16)
    step = finest(1.0, 4, 16)
    total = jax.jit(fad.program(secure.total))

    def summed(*numbers):
        x = jnp.array([[v, 0.25] for v in numbers], jnp.float32)
        return total(fad.AtClients({"x": x}))["x"].tolist()

    assert summed(1, 1, -0.5) == [1.5, 0.75]
    assert summed(1 + step / 4, 1, 0) == [2, 0.75]  # to the same integer
    for wrong in (1 + step, -2, 1e30, 3e38, np.inf, np.nan):
        assert all(map(math.isnan, summed(0.5, wrong, 0.5)))


@pytest.mark.parametrize("clients", [1, 3, 10, 1000])
@pytest.mark.parametrize("bits", [12, 32])
@pytest.mark.parametrize("bound", [1.0, 0.7, 3e-9, 1e6])
def test_the_default_step_is_the_finest(clients, bits, bound):
    options = {"bound": bound, "clients": clients, "bits": bits}
    step = finest(bound, clients, bits)
    assert code(secure_sum(**options)) == code(secure_sum(**options, step=step))
    with pytest.raises(FadError, match="could leave its range"):
        secure_sum(**options, step=step / 2)


# ---- derivatives ---------------------------------------------------------------------


@pytest.mark.once
@pytest.mark.usefixtures("x64")
def test_the_derivative_is_that_of_the_float_sum():
    secure = secure_sum(bound=16.0, clients=5, bits=20)
    data = fad.AtClients(jnp.asarray(np.random.default_rng(0).normal(size=(5, 3))))

    def loss_with(total):
        @fad.program
        def loss(w, data):
            parts = fad.map(lambda x: (jnp.sin(w * x), x**2), data)
            moved, still = total(parts)
            return jnp.sum(2.0 * moved) + jnp.sum(still)

        return loss

    ours, plain = loss_with(secure.total), loss_with(fad.sum)
    w = jnp.array([0.3, -0.2, 0.7])
    assert 0 < abs(float(ours(w, data) - plain(w, data))) < 1e-2
    want = jax.jit(jax.grad(plain))(w, data)
    found = [
        jax.jit(jax.grad(ours)),
        jax.jit(jax.jacfwd(ours)),
        fad.jit(jax.grad(ours)),
    ]
    found += [jax.jit(fad.grad(ours, mode=m)) for m in ("forward", "reverse")]
    found += [fad.jit(jax.grad(ours), chunk=2)]
    for grad in found:
        np.testing.assert_allclose(grad(w, data), want, rtol=1e-14)
    second = jax.jit(jax.hessian(ours))(w, data)
    np.testing.assert_allclose(
        second, jax.jit(jax.hessian(plain))(w, data), rtol=1e-14, atol=1e-14
    )
    np.testing.assert_array_equal(fad.jit(ours, chunk=2)(w, data), ours(w, data))
    # Integers of two leaves and of what does not fit; floats where there is a tangent.
    assert wire(ours, w, data)[2] == 3
    assert wire(lambda w, d: jax.jvp(lambda w: ours(w, d), (w,), (w,)), w, data)[2] == 4
    assert wire(jax.grad(ours), w, data)[2] == 1


@pytest.mark.once
@pytest.mark.parametrize("mesh", ["auto_clients", "explicit_clients"])
def test_on_a_mesh(mesh):
    secure = secure_sum(bound=1.0, clients=8, bits=16)
    x = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (8, 4)), jnp.float32)

    def both(x):
        total = lambda v: fad.program(secure.total)(fad.AtClients(v))  # noqa: E731
        return total(x), jax.grad(lambda v: total(v).sum())(x)

    want = both(x)
    with on_mesh(mesh):
        jax.tree.map(np.testing.assert_array_equal, jax.jit(both)(x), want)


def test_many_sums_at_once():
    secure = secure_sum(bound=1.0, clients=3)
    x = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (2, 3, 4)), jnp.float32)
    each = fad.program(clients=3)(lambda v: secure.total(fad.AtClients(v)))
    got = jax.jit(jax.vmap(each))(x)
    np.testing.assert_array_equal(got, jnp.stack([each(v) for v in x]))


# ---- in a chain ----------------------------------------------------------------------


@pytest.mark.usefixtures("x64")
def test_clip_then_round_then_sum_securely_then_add_noise_equals_numpy():
    """In integers, with the same noise, in 20 rounds of some of the clients."""
    rng = np.random.default_rng(5)
    count, most, dim, bound = 20, 9, 6, 0.8
    updates = list(rng.normal(size=(count, most, dim)) * 0.5)
    updates[3][4] = np.nan
    weights = np.array([3.0, 1, 0, 2, 0, 1, 1, 5, 0.5])
    ids = [rng.permutation(most)[:5] for _ in range(count)]
    # Towards zero, so that no norm grows.
    shorten = Aggregator(client=lambda t, s, m, d, key: (jnp.trunc(d * 64) / 64, m))
    noise = gaussian_mean(noise_multiplier=0.6, bound=bound, clients=4)
    secure = secure_sum(bound=bound, clients=5, bits=8)
    done = rounds(chain(clip(bound), shorten, secure, noise), updates, weights, ids)
    size = finest(bound, 5, 8)
    for t, (some, step) in enumerate(zip(ids, done.steps, strict=True)):
        v = updates[t][some[weights[some] > 0]]
        v = v * np.minimum(1, bound / np.linalg.norm(v, axis=1))[:, None]
        v = np.trunc(v * 64) / 64
        key = server_key(jax.random.key(t), 3)
        drawn = noise.server((), (), jnp.zeros(dim), None, key)[0]
        want = np.rint(v / size).astype(int).sum(axis=0) * size / 4 + drawn
        np.testing.assert_allclose(step, want, rtol=1e-10, atol=1e-15)
        assert np.abs(want - v.sum(axis=0) / 4 - drawn).max() <= 5 * size / 2 / 4


@pytest.mark.parametrize(("bits", "nbytes"), [(8, 1), (16, 2), (24, 4), (32, 4)])
def test_what_travels(bits, nbytes):
    one = chain(clip(1.0), secure_sum(bound=1.0, clients=4, bits=bits))
    one = chain(one, gaussian_mean(noise_multiplier=1.0, bound=1.0, clients=4))
    args = arguments(one, {"w": np.ones((4, 7), np.float32)}, np.ones(4, np.float32))
    step = one_round(one)
    cost = fad.plan(step)(*args).cost()
    fad.check(step)(*args)
    # And: who does not fit, whose update is not finite, who was clipped, out of whom.
    assert cost.bytes_up == 7 * nbytes + nbytes + 4 + 4 + 4
    assert cost.rounds == 1


def test_a_chain_that_sends_some_numbers_adds_noise_to_these_alone():
    """Of 7 numbers 3 travel, in 16 bits, and the noise is on these."""
    one = chain(
        clip(1.0),
        random_k(3, unbiased=False),
        secure_sum(bound=1.0, clients=4, bits=16),
        gaussian_mean(noise_multiplier=1.0, bound=1.0, clients=4),
    )
    updates = {"w": np.ones((4, 7), np.float32)}
    step, args = one_round(one), arguments(one, updates, np.ones(4, np.float32))
    fad.check(step)(*args)
    assert fad.plan(step)(*args).cost().bytes_up == 3 * 2 + 2 + 4 + 4 + 4
    assert int((jax.jit(step)(*args).step["w"] != 0).sum()) == 3


def test_a_weighted_mean_with_the_weights_within_the_bound():
    one = secure_sum(bound=6.0, clients=3)
    x = {"w": np.array([[1.0, -2], [0.5, 2], [np.nan, 0]], np.float32)}
    done = rounds(one, [x, x], np.array([1, 3, 0], np.float32), [[0, 1, 2]] * 2)
    np.testing.assert_allclose(done.steps[0]["w"], [0.625, 1.0], atol=1e-8)
    done = rounds(one, [x], np.array([4, 3, 0], np.float32), [[0, 1, 2]])
    assert np.isnan(done.steps[0]["w"]).all()  # 4 * -2 is above the bound


# ---- errors --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        (
            {"bits": 16, "step": 2.0**-13},
            r"10 \(1.0 / 0.0001220703125 \+ 1/2\) = 81925, expected below .* = 32768. "
            r"The finest step that fits 16 bits is 0.00048828125; .* give bits=18",
        ),
        (
            {"step": 2.0**-40},
            "finest .* fits 32 bits .* fewer clients or a smaller bound",
        ),
        ({"bits": 4, "clients": 20}, "too few for .*clients = 20: .* Give bits=6 or"),
        ({"bits": 5, "clients": 20}, "too few for .*clients = 20: .* Give bits=6 or"),
        ({"step": 2.0}, "step = 2.0 all numbers up to bound = 1.0 would be 0; .* 2.0"),
        (
            {"step": 1e-3},
            "step as a power of two, .*got 0.001. The finest that fits is 7",
        ),
        ({"step": -0.5}, "power of two"),
        ({"step": "1"}, "power of two"),
        ({"bound": 1e-30}, r"bound = 1e-30 the step is .* Scale the updates"),
        ({"bound": 0}, "secure_sum: expected bound as a finite number above 0"),
        ({"bound": np.inf}, "bound .*got inf"),
        ({"bits": 33}, "expected bits as an int, 1 to 32; got 33"),
        ({"clients": 2.5}, "clients as an int, at least 1; got 2.5"),
    ],
)
def test_what_is_refused(changed, match):
    with pytest.raises(FadError, match=match):
        secure_sum(**{"bound": 1.0, "clients": 10, **changed})


def test_a_refused_step_fits_the_bits_that_are_named():
    options = {"bound": 1.0, "clients": 10, "step": 2.0**-13}
    secure_sum(**options, bits=18)
    with pytest.raises(FadError, match="could leave its range"):
        secure_sum(**options, bits=17)
    secure_sum(bound=1.0, clients=20, bits=6)


@pytest.mark.parametrize(
    ("x", "match"),
    [
        (jnp.zeros((5, 2)), "the round has 5 clients; expected at most clients = 4"),
        (jnp.zeros((3, 2), jnp.int32), r"leaf int32\[3,2\]; expected floats"),
    ],
)
def test_what_a_round_refuses(x, match):
    total = fad.program(secure_sum(bound=1.0, clients=4).total)
    with pytest.raises(FadError, match=match):
        jax.eval_shape(total, fad.AtClients(x))


def test_only_one_may_say_how_to_sum():
    one = secure_sum(bound=1.0, clients=4)
    with pytest.raises(FadError, match=r"\[0, 1\] each have a total of their own"):
        chain(one, one)
    assert chain(one, clip(1.0)).total is one.total
