"""Aggregators that survive corrupted clients: values, derivatives, the claims."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fad
from fad import FadError
from fad.aggregators import Aggregator, aggregate, chain
from fad.aggregators._clip import clip
from fad.aggregators._geometric_median import geometric_median
from fad.aggregators._krum import krum, multi_krum
from fad.aggregators._secure_sum import secure_sum
from fad.aggregators._trimmed_mean import median, trimmed_mean
from tests.aggregators.classical_runs import arguments, one_round, rounds
from tests.algorithms.classical import quadratic, quadratic_loss

pytestmark = pytest.mark.once

NU = 0.8  # of some clients' distance
MAKERS = {
    "geometric_median": lambda: geometric_median(nu=NU),
    "trimmed_mean": lambda: trimmed_mean(0.29),
    "median": median,
    "krum": lambda: krum(1),
    "multi_krum": lambda: multi_krum(1),
    "multi_krum_keep": lambda: multi_krum(1, keep=3),
}
RAW = [name for name in MAKERS if name != "geometric_median"]


def _numpy(name, v, w):
    """The step ``[d]`` from updates ``[n, d]``, in plain NumPy."""
    if name == "geometric_median":
        z = w @ v / max(w.sum(), 1e-300)
        for _ in range(4 if w.any() else 0):
            b = w / np.maximum(NU, np.linalg.norm(z - v, axis=1))
            z = b @ v / b.sum()
        return z
    v = v[w > 0]
    m = len(v)
    if m == 0:
        return np.zeros(v.shape[1])
    if name == "median":
        return np.median(v, axis=0)
    if name == "trimmed_mean":
        drop = m * 29 // 100
        return np.sort(v, axis=0)[drop : m - drop].mean(axis=0)
    if m < 5:
        return np.zeros(v.shape[1])
    squares = ((v[:, None] - v[None]) ** 2).sum(axis=2)
    scores = np.sort(squares, axis=1)[:, 1 : m - 2].sum(axis=1)
    keep = {"krum": 1, "multi_krum": m - 1, "multi_krum_keep": 3}[name]
    return v[np.argsort(scores)[:keep]].mean(axis=0)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", MAKERS)
def test_values_equal_numpy(name):
    """Partial cohorts, of which some clients are not there, or nobody is."""
    rng = np.random.default_rng(0)
    count, most, size, dim = 20, 12, 8, 5
    updates = [rng.normal(size=(most, dim)) for _ in range(count)]
    weights = rng.uniform(1, 3, most) * (np.arange(most) % 3 != 0)
    ids = [rng.permutation(most)[:size] for _ in range(count - 1)]
    ids.append(np.array([0, 3, 6, 9] * 2))
    as_trees = [{"a": u[:, :2], "b": u[:, 2:].reshape(-1, 3, 1)} for u in updates]
    done = rounds(MAKERS[name](), as_trees, weights, ids)
    few = []
    for u, some, step in zip(updates, ids, done.steps, strict=True):
        expected = _numpy(name, u[some], weights[some])
        np.testing.assert_allclose(step["a"], expected[:2], rtol=1e-10, atol=1e-14)
        np.testing.assert_allclose(
            step["b"][:, 0], expected[2:], rtol=1e-10, atol=1e-14
        )
        few.append((weights[some] > 0).sum() < 5)
    if "krum" in name:
        assert 1 < sum(few) < count
        assert [float(m["too_few_clients"]) for m in done.metrics] == few


def _plain(name, v, nu):
    """The same for three clients of weight 1, 2, 1 and more of weight 1, in JAX."""
    if name == "geometric_median":
        w = jnp.array([1.0, 2.0, *[1.0] * (len(v) - 2)])
        z = w @ v / w.sum()
        for _ in range(4):
            b = w / jnp.maximum(nu, jnp.sqrt(((z[None] - v) ** 2).sum(axis=1)))
            z = b @ v / b.sum()
        return z
    ordered = jnp.sort(v, axis=0)
    if name == "median":
        return ordered[2]
    if name == "trimmed_mean":
        return ordered[1:4].mean(axis=0)
    squares = ((v[:, None] - v[None]) ** 2).sum(axis=2)
    best = jnp.argsort(jnp.sort(squares, axis=1)[:, :3].sum(axis=1))
    return v[best[: {"krum": 1, "multi_krum": 4, "multi_krum_keep": 3}[name]]].mean(0)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", MAKERS)
def test_derivative_equals_plain_jax(name):
    """After 3 rounds, by the clients' step, and by nu of the geometric median."""
    centres = jnp.asarray(np.random.default_rng(1).normal(size=(5, 3)))
    weights = fad.AtClients(jnp.array([1.0, 2.0, 1.0, 1.0, 1.0]))
    start = jnp.ones(3)

    @fad.program
    def loss(args, data):
        lr, nu = args
        made = geometric_median(nu=nu) if name == "geometric_median" else MAKERS[name]()

        def one_round(x, _):
            d = fad.map(lambda c: -lr * jnp.tanh(x - c), data)
            mean = made.combine(d, weights, made.total)
            return x + made.server((), (), mean, x, None)[0], None

        x, _ = jax.lax.scan(one_round, start, None, length=3)
        return fad.mean(fad.map(lambda c: jnp.sum((x - c) ** 2), data))

    def plain(args):
        x = start
        for _ in range(3):
            x = x + _plain(name, -args[0] * jnp.tanh(x[None] - centres), args[1])
        return jnp.mean(jnp.sum((x[None] - centres) ** 2, axis=1))

    args = (0.9, 0.6)
    found = jax.jit(jax.grad(loss))(args, fad.AtClients(centres))
    expected = jax.jit(jax.grad(plain))(args)
    np.testing.assert_allclose(found, expected, rtol=1e-8)
    assert abs(expected[0]) > 1e-3
    assert (abs(expected[1]) > 1e-3) == (name == "geometric_median")


def test_geometric_median_is_differentiable_where_it_meets_an_update():
    @jax.jit
    @functools.partial(jax.grad, argnums=(0, 1))
    @fad.program
    def gradient(updates, weights):
        made = geometric_median(passes=2)
        return jnp.sum(made.combine(updates, weights, fad.sum) ** 2)

    updates = fad.AtClients(jnp.full((4, 3), 2.0))
    for weights in (np.ones(4), np.array([0, 1, 0, 0]), np.zeros(4)):
        w = fad.AtClients(jnp.asarray(weights, jnp.float32))
        found, by_weight = (x.unsafe_gather() for x in gradient(updates, w))
        share = weights[:, None] / max(weights.sum(), 1)
        np.testing.assert_allclose(found, 4 * share * np.ones((1, 3)), rtol=1e-5)
        assert jnp.isfinite(by_weight).all()


def test_geometric_median_is_of_sums_alone():
    made = geometric_median(passes=3)
    args = arguments(made, np.zeros((6, 5), np.float32), np.ones(6, np.float32))
    step = lambda *args: one_round(made)(*args).step  # noqa: E731
    cost = fad.plan(step)(*args).cost()
    assert cost.rounds == 1 + 3
    assert cost.same_cohort
    assert cost.bytes_down == 3 * 5 * 4
    # An update and a weight in each phase; and whether an update was not finite.
    assert cost.bytes_up == 4 * (5 * 4 + 4) + 4
    assert not fad.check(step)(*args).allowed


def test_geometric_median_sums_its_own_way_within_the_weights():
    """What a secure sum gets after the mean is bounded by the weight, however far."""
    seen = []

    def total(x):
        seen.append(x)
        return fad.sum(x)

    @fad.program
    def run(updates, weights):
        made = chain(geometric_median(passes=2), Aggregator(total=total))
        step = made.combine(updates, weights, made.total)
        return step, tuple(seen)

    rng = np.random.default_rng(0)
    far = rng.normal(size=(60, 1)) * 10.0 ** rng.integers(-20, 20, (60, 1))
    weights = jnp.linspace(0.1, 0.9, 60)
    args = fad.AtClients(jnp.asarray(far, jnp.float32)), fad.AtClients(weights)
    step, sent = run(*args)
    assert len(sent) == 3
    for pulls in sent[1:]:
        assert (abs(pulls.unsafe_gather()) <= weights[:, None]).all()
    usual = geometric_median(passes=2).combine
    expected = fad.program(functools.partial(usual, total=fad.sum))(*args)
    np.testing.assert_allclose(step, expected, rtol=1e-5)


@pytest.mark.parametrize("name", RAW)
def test_raw_updates_are_refused_unless_allowed(name):
    made = chain(clip(1.0), MAKERS[name]())
    args = arguments(made, np.zeros((6, 5), np.float32), np.ones(6, np.float32))
    step = lambda *args: one_round(made)(*args).step  # noqa: E731
    with pytest.raises(fad.PlacementError, match="a client value reaches the server"):
        fad.check(step)(*args)
    report = fad.check(step, allow="unsafe_gather")(*args)
    assert {a.kind for a in report.allowed} == {"unsafe_gather"}


@pytest.mark.parametrize("name", RAW)
@pytest.mark.parametrize(
    ("other", "named"),
    [
        (secure_sum(bound=1.0, clients=6), r"_secure_sum\._"),
        (Aggregator(total=lambda x: fad.sum(x)), r"test_robust\.<lambda>"),
    ],
)
def test_raw_updates_are_refused_over_a_sum_of_its_own(name, other, named):
    made = chain(MAKERS[name](), other)
    args = arguments(made, np.zeros((6, 5), np.float32), np.ones(6, np.float32))
    call = name.removesuffix("_keep")
    match = rf"fad\.aggregators\.{call}\(.* of its own, total=\S*{named}"
    with pytest.raises(FadError, match=match):
        jax.eval_shape(one_round(made), *args)


def test_geometric_median_under_a_secure_sum():
    """Clipped to 1 and with weights of 1, all that is summed is at most 1."""
    rng = np.random.default_rng(0)
    updates = rng.normal(size=(6, 5)) * 10.0 ** rng.integers(-3, 3, (6, 1))
    makers = (
        chain(clip(1.0), geometric_median(passes=3)),
        chain(clip(1.0), geometric_median(passes=3), secure_sum(bound=1.0, clients=6)),
    )
    args = ([updates.astype(np.float32)], np.ones(6, np.float32), [range(6)])
    plain, secure = (rounds(made, *args).steps[0] for made in makers)
    np.testing.assert_allclose(secure, plain, atol=1e-6)


@pytest.mark.parametrize("name", MAKERS)
def test_hard_cohorts(name):
    """A client that is not finite is left out, the dtypes stay, a tree may be mixed."""
    rng = np.random.default_rng(0)
    updates = {
        "a": jnp.asarray(rng.normal(size=(7, 3)), "bfloat16").at[2, 1].set(jnp.nan),
        "b": jnp.asarray(rng.normal(size=7), "float32").at[4].set(jnp.inf),
    }
    weights = np.ones(7, np.float32)
    made = chain(clip(100.0), MAKERS[name]())
    some = np.array([0, 1, 3, 5, 6])
    done = rounds(made, [updates] * 2, weights, [range(7)] * 2, nonfinite="exclude")
    assert all(float(m["excluded_clients"]) == 2 for m in done.metrics)
    joined = [np.asarray(x[some], np.float64).reshape(5, -1) for x in updates.values()]
    expected = _numpy(name, np.concatenate(joined, axis=1), np.ones(5))
    for step in done.steps:
        assert (step["a"].dtype, step["b"].dtype) == ("bfloat16", "float32")
        found = [*np.asarray(step["a"], np.float64), float(step["b"])]
        np.testing.assert_allclose(found, expected, atol=0.02)


def test_krum_with_too_few_clients():
    made, updates = krum(1), np.ones((4, 2), np.float32)
    args = arguments(made, updates, np.ones(4, np.float32))
    match = r"krum\(corrupted=1\): Krum n < 2f \+ 3: the cohort has n = 4 .* takes 5"
    with pytest.raises(FadError, match=match):
        jax.eval_shape(one_round(made), *args)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: trimmed_mean(0.5), r"trimmed_mean\(fraction\): .* got 0\.5"),
        (lambda: trimmed_mean(-0.1), r"expected a number in \[0, 1/2\)"),
        (lambda: trimmed_mean(False), "got False"),
        (lambda: trimmed_mean(float("nan")), "got nan"),
        (lambda: krum(-1), "krum: expected corrupted as an int, at least 0; got -1"),
        (lambda: krum(1.0), r"got 1\.0"),  # type: ignore
        (
            lambda: multi_krum(True),
            r"krum: expected corrupted as .* got True",
        ),
        (
            lambda: multi_krum(1, keep=0),
            "expected keep as an int, at least 1; got 0",
        ),
        (
            lambda: geometric_median(passes=-1),
            "expected passes as an int, at least 0",
        ),
        (lambda: geometric_median(nu=0.0), "expected nu as a finite number above 0"),
    ],
)
def test_what_is_refused(make, match):
    with pytest.raises(FadError, match=match):
        make()


def test_multi_krum_cannot_keep_more_than_the_others():
    made = multi_krum(1, keep=6)
    args = arguments(made, np.ones((6, 2), np.float32), np.ones(6, np.float32))
    with pytest.raises(FadError, match="expected keep of at most n - f = 5 for"):
        jax.eval_shape(one_round(made), *args)


def test_krum_stands_after_or_before_others_in_a_chain():
    updates = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    weights, ids = np.ones(5, np.float32), [range(5)]
    makers = (chain(clip(1.0), krum(1)), chain(krum(1), clip(1.0)))
    first, second = (rounds(m, [updates], weights, ids) for m in makers)
    assert (np.linalg.norm(updates, axis=1) > 1).any()
    np.testing.assert_array_equal(first.steps[0], second.steps[0])
    assert set(first.metrics[0]) == {"clipped_fraction", "too_few_clients"}


@functools.cache
def _federation():
    """Ten clients whose optima are 10 times closer together than in ``quadratic``."""
    made = quadratic(steps=(3,) * 10)
    optima = np.stack([np.linalg.solve(*ab) for ab in zip(made.a, made.b, strict=True)])
    optima = optima.mean(axis=0) + 0.1 * (optima - optima.mean(axis=0))
    b = np.einsum("nij,nj->ni", made.a, optima)
    batches = made.cohort.unsafe_gather()
    like = batches.examples["b"]
    examples = {**batches.examples, "b": np.broadcast_to(b[:, None, None], like.shape)}
    cohort = fad.AtClients(batches._replace(examples=examples))
    return cohort, made.a, b, optima


def _distance(aggregator, corrupted, corrupt):
    """How far from the honest clients' optimum 30 rounds of FedAvg end, and they."""
    cohort, a, b, optima = _federation()
    a, b, optima = (np.delete(x, corrupted, axis=0) for x in (a, b, optima))
    optimum = np.linalg.solve(
        np.einsum("nij,nik->jk", a, a), np.einsum("nij,ni->j", a, b)
    )
    bad = jnp.isin(jnp.arange(10), jnp.asarray(corrupted))

    @jax.jit
    @fad.program
    def step(x, state, cohort):
        def work(batches):
            own = fad.local.train(
                x, batches, loss=quadratic_loss, optimizer=optax.sgd(0.1)
            ).delta
            sent = jnp.where(bad[batches.client], corrupt(own), own)
            return sent, jnp.ones(()), batches.client, ()

        updates, weights, clients, memories = fad.map(work, cohort)
        done = aggregate(
            aggregator,
            updates,
            weights,
            theta=(),
            state=state,
            memories=memories,
            params=x,
            key=jax.random.key(0),
            clients=clients,
        )
        return x + done.step, done.state

    x, state = jnp.zeros(3), aggregator.init(jnp.zeros(3))
    for _ in range(30):
        x, state = step(x, state, cohort)
    spread = np.linalg.norm(optima - optimum, axis=1).mean()
    return np.linalg.norm(np.asarray(x) - optimum), spread


def _opposite(update):
    return -10 * update


def _constant(update):
    return jnp.full_like(update, 100.0)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("make", "corrupted", "corrupt", "least", "most"),
    [
        (Aggregator, [2, 5, 8], _opposite, 1e5, np.inf),
        (Aggregator, [3, 7], _opposite, 1e3, np.inf),
        (Aggregator, [3, 7], _constant, 200, 300),
        (geometric_median, [2, 5, 8], _opposite, 0, 0.8),
        (lambda: geometric_median(passes=20), [2, 5, 8], _constant, 0, 0.6),
        # A share of 3/7 of a distance is left by each pass: few do not do.
        (geometric_median, [2, 5, 8], _constant, 10, 20),
        (lambda: trimmed_mean(0.3), [2, 5, 8], _opposite, 0, 0.8),
        (lambda: krum(2), [3, 7], _opposite, 0, 0.8),
        (lambda: krum(2), [3, 7], _constant, 0, 0.8),
        (lambda: multi_krum(2), [3, 7], _opposite, 0, 0.05),
    ],
)
def test_survives_what_breaks_the_mean(make, corrupted, corrupt, least, most):
    """The start is 4.3 from the optimum, the honest clients' optima about 1.2."""
    found, spread = _distance(make(), corrupted, corrupt)
    assert 1.1 < spread < 1.3
    assert least <= found <= most
