"""DP-FedAvg and adaptive clipping: values, noise, derivatives, what they cost."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import fad
from fad import FadError
from fad.aggregators import aggregate, chain
from fad.aggregators._accounting import epsilon, noise_multiplier_for
from fad.aggregators._adaptive_clip import Clipping, adaptive_clip
from fad.aggregators._chain import server_key
from fad.aggregators._clip import clip
from fad.aggregators._gaussian import dp_fedavg, gaussian_mean
from fad.aggregators._secure_sum import secure_sum
from fad.local import client_key
from tests.aggregators.classical_runs import arguments, one_round, rounds

ALL, DIM, COUNT = 9, 5, 20
Z, SB, M, RATE, QUANTILE = 0.8, 0.7, 6, 0.3, 0.6
Z_DELTA = (Z**-2 - (2 * SB) ** -2) ** -0.5


def normal(key, shape):
    """What is drawn from a key, as deviations."""
    unit = gaussian_mean(noise_multiplier=1.0, bound=1.0, clients=1)
    return unit.server((), (), jnp.zeros(shape), None, key)[0]


def cohorts():
    """Updates of rounds, weights of which some are zero, and who comes."""
    rng = np.random.default_rng(0)
    updates = [
        {"a": x[:, :2], "b": x[:, 2:].reshape(-1, 3, 1)}
        for x in rng.normal(size=(COUNT, ALL, DIM)) * rng.uniform(0.1, 2, (COUNT, 1, 1))
    ]
    weights = np.array([3.0, 1, 0, 2, 7, 0, 1, 5, 0.5])
    updates[4]["a"][2] = np.nan  # an empty client's
    ids = [rng.permutation(ALL)[:5] for _ in range(COUNT)]
    return updates, weights, ids


def flat(tree, lead=()):
    return np.concatenate([np.reshape(x, (*lead, -1)) for x in tree.values()], -1)


def clipped(v, bound):
    norms = np.linalg.norm(v, axis=-1)
    return v * np.minimum(1, bound / norms)[:, None], norms <= bound


@pytest.mark.usefixtures("x64")
def test_dp_fedavg_equals_numpy():
    updates, weights, ids = cohorts()
    done = rounds(
        dp_fedavg(bound=0.9, noise_multiplier=Z, clients=M), updates, weights, ids
    )
    for t, (some, step) in enumerate(zip(ids, done.steps, strict=True)):
        there = some[weights[some] > 0]
        kept, _ = clipped(flat(updates[t], (ALL,))[there], 0.9)
        noise = flat(dp_noise(jax.random.key(t)))
        want = (kept.sum(axis=0) + Z * 0.9 * noise) / M
        np.testing.assert_allclose(flat(step), want, rtol=1e-10, atol=1e-13)
    assert done.metrics[0] == {}


def dp_noise(key):
    unit = gaussian_mean(noise_multiplier=1.0, bound=1.0, clients=1)
    zeros = {"a": jnp.zeros(2), "b": jnp.zeros((3, 1))}
    return unit.server((), (), zeros, None, key)[0]


@pytest.mark.usefixtures("x64")
def test_adaptive_clip_equals_numpy():
    """What is kept and shown is made of the noised bits alone."""
    updates, weights, ids = cohorts()
    one = adaptive_clip(
        noise_multiplier=Z,
        clients=M,
        initial_bound=0.5,
        quantile=QUANTILE,
        rate=RATE,
        indicator_noise=SB,
    )
    done = rounds(one, updates, weights, ids)
    bound = 0.5
    for t, (some, step) in enumerate(zip(ids, done.steps, strict=True)):
        there = some[weights[some] > 0]
        kept, within = clipped(flat(updates[t], (ALL,))[there], bound)
        first, second = jax.random.split(jax.random.key(t))
        noise = flat(dp_noise(first))
        want = (kept.sum(axis=0) + Z_DELTA * bound * noise) / M
        np.testing.assert_allclose(flat(step), want, rtol=1e-10, atol=1e-13)
        bits = (within - 0.5).sum() + SB * float(normal(second, ()))
        share = bits / M + 0.5
        bound *= np.exp(-RATE * (share - QUANTILE))
        shown = {"clip_bound": bound, "clipped_fraction": 1 - share}
        assert done.metrics[t] == pytest.approx(shown, rel=1e-10)


@pytest.mark.once
def test_the_bound_follows_the_quantile():
    """Of the norms 1 to 8 the bound is to exceed 3/4, with noise about the bits."""
    norms = np.arange(1.0, 9.0, dtype=np.float32)
    one = adaptive_clip(
        noise_multiplier=0.5, clients=8, quantile=0.75, indicator_noise=0.4
    )
    # Everyone's update once, by one step of many rounds.
    times = 120
    done = rounds(one, [norms[:, None]] * times, np.ones(8), [np.arange(8)] * times)
    bounds = [float(m["clip_bound"]) for m in done.metrics]
    assert bounds[0] < 0.15
    assert 5.5 < np.median(bounds[60:]) < 7.5


@pytest.mark.once
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_variance_is_as_stated(dtype):
    """Chi-squared, of 20,000 draws; for the bits, of as many keys."""
    draws, key = 20_000, jax.random.key(11)
    zeros = {"a": jnp.zeros((draws // 2, 1), dtype), "b": jnp.zeros(draws // 2, dtype)}
    fixed = gaussian_mean(noise_multiplier=1.3, bound=0.7, clients=40)
    step, _ = fixed.server((), (), zeros, None, key)
    check_variance(step, 1.3 * 0.7 / 40)
    assert abs(np.corrcoef(step["a"][:, 0], step["b"])[0, 1]) < 0.05
    adaptive = adaptive_clip(noise_multiplier=Z, clients=M, indicator_noise=SB)
    state = Clipping(jnp.float32(0.7), jnp.float32(0))
    none = (zeros, jnp.float32(0))
    step, _ = adaptive.server((), state, none, None, key)
    check_variance(step, Z_DELTA * 0.7 / M)
    if dtype == "float32":
        keys = jax.random.split(key, draws)
        empty = ({}, jnp.float32(0))
        seen = lambda k: adaptive.server((), state, empty, None, k)[1].clipped  # noqa: E731
        check_variance({"bits": jax.vmap(seen)(keys) - 0.5}, SB / M)


def check_variance(tree, deviation):
    x = np.concatenate(
        [np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(tree)]
    )
    p = stats.chi2.cdf(((x / deviation) ** 2).sum(), x.size)
    assert 1e-4 < p < 1 - 1e-4
    assert 1e-4 < stats.norm.cdf(x.sum() / deviation / x.size**0.5) < 1 - 1e-4


def test_noise_is_fresh_and_no_clients():
    """Rounds, positions in a chain and clients share nothing of what is drawn."""
    key = jax.random.key(0)
    keys = [key, jax.random.key(1), *(client_key(key, jnp.int32(c)) for c in range(4))]
    noises = [float(normal(k, ())) for k in keys]
    others = [float(jax.random.normal(k)) for k in (*keys, *jax.random.split(key, 4))]
    assert len({*noises, *others}) == len(noises) + len({*others})


def test_the_whole_is_the_chain_but_for_what_it_shows():
    whole = dp_fedavg(bound=0.9, noise_multiplier=Z, clients=M)
    parts = chain(clip(0.9), gaussian_mean(bound=0.9, noise_multiplier=Z, clients=M))
    state = parts.init(jnp.zeros(3))
    assert set(parts.metrics(state)) == {"clipped_fraction"}
    assert whole.metrics(whole.init(jnp.zeros(3))) == {}
    update, none = jnp.array([1.0, -2.0, 0.5]), ((), ())
    message, _ = parts.client(none, state, none, update, None)
    sent, _ = whole.client((), (), (), update, None)
    np.testing.assert_array_equal(message.value, sent)
    assert whole.total is parts.total


# ---- derivatives ---------------------------------------------------------------------

FIXED_STEP = 2.0**-10
MAKERS = {  # of two hyper-parameters
    "fixed": lambda c, z: dp_fedavg(bound=c, noise_multiplier=z, clients=M),
    "adaptive": lambda c, rate: adaptive_clip(
        noise_multiplier=Z, clients=M, initial_bound=c, rate=rate, indicator_noise=SB
    ),
    "secure": lambda c, z: chain(
        clip(c),
        secure_sum(bound=1.0, clients=4, step=FIXED_STEP),
        gaussian_mean(noise_multiplier=z, bound=c, clients=M),
    ),
}


def plain_loss(name, h, targets, weights):
    """Three rounds in plain JAX."""
    there = (weights > 0).astype(float)

    def one_round(carry, key):
        x, bound = carry
        keys = jax.random.split(key)
        own = {"adaptive": keys[0], "secure": server_key(key, 2)}
        d = 0.5 * (targets - x[None])
        norms = jnp.sqrt((d**2).sum(axis=1))
        v = d * jnp.minimum(1, bound / norms)[:, None]
        if name == "secure":
            rounded = jnp.round(v / FIXED_STEP) * FIXED_STEP
            v = v + jax.lax.stop_gradient(rounded - v)
        z = Z_DELTA if name == "adaptive" else h[1]
        x = x + (there @ v + z * bound * normal(own.get(name, key), DIM)) / M
        if name == "adaptive":
            bits = there @ (jnp.where(norms <= bound, 0.5, -0.5))
            share = (bits + SB * normal(keys[1], ())) / M + 0.5
            bound = bound * jnp.exp(-h[1] * (share - 0.5))
        return (x, bound), None

    keys = jnp.stack([jax.random.key(t) for t in range(3)])
    (x, _), _ = jax.lax.scan(one_round, (jnp.zeros(DIM), h[0]), keys)
    return ((x[None] - targets) ** 2).sum() / len(targets)


@pytest.mark.once
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", MAKERS)
def test_derivative_equals_plain_jax(name):
    targets = jnp.asarray(np.random.default_rng(3).normal(size=(4, DIM)) + 1)
    weights = jnp.array([1.0, 2.0, 0.0, 3.0])

    @fad.program
    def loss(h, targets, weights, clients):
        one = MAKERS[name](*h)

        def one_round(carry, key):
            x, state = carry
            kept = fad.AtClients.tree_unflatten(None, (one.init_client(x),))
            done = aggregate(
                one,
                fad.map(lambda target: 0.5 * (target - x), targets),
                weights,
                theta=one.init_theta(None),
                state=state,
                memories=kept,
                params=x,
                key=key,
                clients=clients,
            )
            return (x + done.step, done.state), None

        keys = jnp.stack([jax.random.key(t) for t in range(3)])
        start = jnp.zeros(DIM), one.init(jnp.zeros(DIM))
        (x, _), _ = jax.lax.scan(one_round, start, keys)
        return fad.mean(fad.map(lambda target: ((x - target) ** 2).sum(), targets))

    h = (0.5, RATE) if name == "adaptive" else (0.9, Z)
    marked = [fad.AtClients(v) for v in (targets, weights, jnp.arange(4))]
    plain = jax.value_and_grad(lambda h: plain_loss(name, h, targets, weights))
    want, slopes = jax.jit(plain)(h)
    got = jax.jit(fad.value_and_grad(loss))(h, *marked)
    np.testing.assert_allclose(got[0], want, rtol=1e-8)
    np.testing.assert_allclose(got[1], slopes, rtol=1e-8)
    assert np.abs(slopes).min() > 1e-3


# ---- what travels, hard cohorts ------------------------------------------------------


def test_what_travels():
    updates = {"w": np.ones((4, 7), np.float32)}
    for one, up, down in (
        (dp_fedavg(bound=1.0, noise_multiplier=1.0, clients=4), 4 * 7, 0),
        (adaptive_clip(noise_multiplier=1.0, clients=40), 4 * 7 + 4, 4),
    ):
        args = arguments(one, updates, np.ones(4, np.float32))
        step = one_round(one)
        cost = fad.plan(step)(*args).cost()
        fad.check(step)(*args)
        # The round's key, and whether an update is finite, travel with any aggregator.
        assert (cost.rounds, cost.bytes_up) == (1, up + 4)
        assert cost.bytes_down == down


@pytest.mark.once
@pytest.mark.parametrize(
    ("make", "clients"), [(dp_fedavg, 3), (adaptive_clip, 1)], ids=["fixed", "adaptive"]
)
def test_hard_cohorts(make, clients):
    """Clients with NaN alone, one client alone, updates of zero; dtypes stay."""
    options = {"bound": 1.0} if make is dp_fedavg else {"indicator_noise": 0.0}
    one = make(noise_multiplier=0.0, clients=2, **options)
    updates = {
        "a": np.full((clients, 2), np.nan, np.float32),
        "b": np.zeros((clients, 2), jnp.bfloat16),
    }
    whole = {k: np.zeros_like(v) for k, v in updates.items()}
    weights, ids = np.ones(clients, np.float32), [np.arange(clients)] * 2
    done = rounds(one, [updates, whole], weights, ids, nonfinite="exclude")
    assert float(done.metrics[0]["excluded_clients"]) == clients
    for step in done.steps:
        assert (step["a"].dtype, step["b"].dtype) == (jnp.float32, jnp.bfloat16)
        assert all((x == 0).all() for x in jax.tree.leaves(step))
    if make is adaptive_clip:  # who does not come counts as half a bit
        assert float(done.metrics[0]["clip_bound"]) == pytest.approx(0.1)
        assert float(done.metrics[1]["clipped_fraction"]) == 1 - (0.5 / 2 + 0.5)


def test_a_bound_of_zero_stays_finite():
    one = adaptive_clip(noise_multiplier=1.0, clients=40)
    state = Clipping(jnp.float32(0), jnp.float32(0))
    (sent, bit), _ = one.client((), state, (), jnp.ones(2), None)
    step, state = one.server((), state, (sent, bit), None, jax.random.key(0))
    assert step.tolist() == [0, 0]
    assert float(state.bound) == 0
    assert np.isfinite(state.clipped)


# ---- accounting ----------------------------------------------------------------------

SETTINGS = [  # noise multiplier, clients, population, rounds, delta, accountant
    (1.0, 100, 10_000, 1000, 1e-5, "pld"),
    (5.0, 40, 40, 50, 1e-6, "pld"),
    (2.0, 20, 100, 500, 1e-8, "rdp"),
    (0.8, 12.5, 1000, 30, 1e-3, "rdp"),
    (0.7, 1, 500, 1, 1e-4, "pld"),
]
OPTIONS = {"clients": 100, "population": 5000, "rounds": 20, "delta": 1e-5}


@pytest.mark.once
@pytest.mark.parametrize("setting", SETTINGS)
def test_epsilon_is_the_librarys_own(setting):
    library = pytest.importorskip("dp_accounting")
    z, clients, population, count, delta, name = setting
    one = library.PoissonSampledDpEvent(
        clients / population, library.GaussianDpEvent(z)
    )
    known = {"pld": library.pld.PLDAccountant, "rdp": library.rdp.RdpAccountant}
    spent = known[name]().compose(library.SelfComposedDpEvent(one, count))
    got = epsilon(
        noise_multiplier=z,
        clients=clients,
        population=population,
        rounds=count,
        delta=delta,
        accountant=name,
    )
    assert got == spent.get_epsilon(delta)
    assert 0 < got < 30


@pytest.mark.once
def test_the_bits_of_adaptive_clipping_cost_nothing_more():
    """The library's account of both sums, each with its own noise."""
    library = pytest.importorskip("dp_accounting")
    both = [library.GaussianDpEvent(x) for x in (Z_DELTA, 2 * SB)]
    one = library.PoissonSampledDpEvent(0.02, library.ComposedDpEvent(both))
    spent = library.rdp.RdpAccountant().compose(library.SelfComposedDpEvent(one, 20))
    options = {**OPTIONS, "indicator_noise": SB, "accountant": "rdp"}
    got = epsilon(noise_multiplier=Z, **options)
    assert got == pytest.approx(spent.get_epsilon(1e-5), rel=1e-9)


@pytest.mark.once
def test_the_noise_multiplier_is_the_least():
    pytest.importorskip("dp_accounting")
    options = {**OPTIONS, "accountant": "rdp"}
    z = noise_multiplier_for(epsilon=1.5, indicator_noise=5.0, **options)
    assert epsilon(noise_multiplier=z, **options) <= 1.5
    assert epsilon(noise_multiplier=z - 1e-4, **options) > 1.5
    assert epsilon(noise_multiplier=0.0, **options) == float("inf")
    with pytest.raises(
        FadError, match=r"noise_multiplier_for: with noise_multip.*abov"
    ):
        noise_multiplier_for(epsilon=1.5, indicator_noise=0.1, **options)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    for call in (
        lambda: epsilon(noise_multiplier=1.0, **OPTIONS),
        lambda: noise_multiplier_for(epsilon=1.0, **OPTIONS),
    ):
        with pytest.raises(FadError, match=r'dp_accounting.*"fad\[private\]"'):
            call()


# ---- errors --------------------------------------------------------------------------

FIXED = {"noise_multiplier": 1.0, "bound": 1.0, "clients": 4}
ADAPTIVE = {"noise_multiplier": 1.0, "clients": 40}


@pytest.mark.parametrize(
    ("make", "options", "match"),
    [
        (gaussian_mean, {**FIXED, "noise_multiplier": -1}, "noise_multiplier .*from 0"),
        (
            gaussian_mean,
            {**FIXED, "bound": 0.0},
            "gaussian_mean: expected bound .*above",
        ),
        (gaussian_mean, {**FIXED, "bound": float("nan")}, "bound .*got nan"),
        (dp_fedavg, {**FIXED, "clients": "4"}, "clients as a finite number .*'4'"),
        (
            adaptive_clip,
            {**ADAPTIVE, "clients": 0},
            "adaptive_clip: .*clients .*above 0",
        ),
        (adaptive_clip, {**ADAPTIVE, "initial_bound": 0}, "initial_bound"),
        (
            adaptive_clip,
            {**ADAPTIVE, "quantile": 1.5},
            "quantile .*from 0 to 1, got 1.5",
        ),
        (adaptive_clip, {**ADAPTIVE, "rate": -0.1}, "rate"),
        (adaptive_clip, {**ADAPTIVE, "indicator_noise": -1}, "indicator_noise"),
        (adaptive_clip, {**ADAPTIVE, "indicator_noise": 0.5}, "above 0.5, half of it"),
        (adaptive_clip, {**ADAPTIVE, "clients": 4}, "got 0.2.* Usual is 0.05"),
        (epsilon, {**OPTIONS, "noise_multiplier": -1}, "epsilon: .*noise_multiplier"),
        (epsilon, {**OPTIONS, "noise_multiplier": 1, "indicator_noise": 0.1}, "half"),
    ],
)
def test_what_is_refused(make, options, match):
    with pytest.raises(FadError, match=match):
        make(**options)


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        ({"clients": 0}, "epsilon: expected clients"),
        ({"clients": 6000}, "population as a finite number from 6000"),
        ({"delta": 0}, "delta .*above 0"),
        ({"delta": 1.0}, "delta below 1"),
        ({"rounds": 0}, "rounds as an int from 1"),
        ({"accountant": "rpd"}, "no such accountant. Did you mean 'rdp'"),
    ],
)
def test_what_the_account_refuses(changed, match):
    pytest.importorskip("dp_accounting")
    with pytest.raises(FadError, match=match):
        epsilon(noise_multiplier=1.0, **{**OPTIONS, **changed})


def test_noise_needs_a_key():
    for one, mean in (
        (gaussian_mean(**FIXED), jnp.zeros(2)),
        (adaptive_clip(**ADAPTIVE), (jnp.zeros(2), jnp.zeros(()))),
    ):
        with pytest.raises(FadError, match="round's key for the noise, got None"):
            one.server((), one.init(None), mean, None, None)


def test_one_client_moves_a_sum_in_bfloat16_by_no_more_than_the_bound():
    """Rounded to bfloat16 on the way, 300 equal clients would move it sixfold."""
    mean = gaussian_mean(noise_multiplier=0.0, bound=1.0, clients=300)
    rows = jnp.full((300, 100), 0.099, jnp.bfloat16)
    everyone = jnp.ones(300)

    @jax.jit
    @fad.program
    def added(rows, weights):
        return 300 * mean.combine(rows, weights, fad.sum)

    whole = added(fad.AtClients(rows), fad.AtClients(everyone))
    for gone in (0, 7, 299):
        weights = fad.AtClients(everyone.at[gone].set(0))
        moved = jnp.linalg.norm(whole - added(fad.AtClients(rows), weights))
        assert float(moved) <= 1.0
