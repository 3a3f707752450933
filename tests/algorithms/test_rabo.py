"""RABO: its hypergradient, slices against masks, coverage, and what a client spends."""

from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fad
from algorithms import rabo as module
from algorithms._bilevel import Variables
from algorithms._pruned import State, oracle_of
from algorithms._pruned_lifted import lifted
from algorithms._pruned_structured import Rule, _cut, structured
from algorithms.memfbo import memfbo
from algorithms.rabo import Config, client_work, rabo
from algorithms.rafbo import rafbo
from fad.estimators import Bilevel, Split, client_of
from fad.experiment import BilevelConfig, DataConfig, ModelConfig, make_bilevel_task
from tests.algorithms.bilevel_loops import (
    LRS,
    START,
    X,
    Y,
    directions,
    same,
    setting,
)
from tests.algorithms.pruned_loops import (
    RATES,
    arrays,
    cohort_of,
    masks,
    network,
    plainly,
    start,
    whole,
)

pytestmark = [pytest.mark.usefixtures("x64"), pytest.mark.once]
KEY = jax.random.key


def half(task):
    """Tiers of the whole model and of its first half."""
    rules: Any = {"rule": "static", "lower_rule": "static"}
    return [structured(task, w, w, **rules) for w in (1.0, 0.5)]


def tell(algorithm, metrics):
    """Give metrics to an algorithm, as a run does."""
    algorithm.check({name: float(x) for name, x in metrics.items()})


def test_with_all_keys_it_is_its_equations():
    task, levels = network(), arrays()
    algorithm = module.build(Config(widths=(1.0,), **LRS), task)
    state, step = algorithm.init(KEY(0)), jax.jit(algorithm.step)
    z, everything = start(), masks([np.arange(6)] * 4)
    before, metrics = z, {}
    for _ in range(5):
        state, metrics = step(state, cohort_of(levels), KEY(0))
        before, z = z, plainly(z, everything, levels, RATES, local=False)
    same(state.z, z, rtol=1e-12, atol=1e-12)
    assert state.params == (state.x, state.y)
    norm = np.sqrt(sum(((before[0][k] - z[0][k]) ** 2).sum() for k in z[0]))
    np.testing.assert_allclose(metrics["hypergradient"], norm / LRS["upper_lr"])


def test_the_gradient_is_that_of_masks():
    task, levels = network(), arrays(2, 1)
    each, tiers, cohort = masks([np.arange(3)] * 2), half(task)[1:], cohort_of(levels)

    def loss(x, y):
        return sum(jnp.sum(a**2) for a in jax.tree.leaves((x, y)))

    def by_fad(lr):
        rates = {**LRS, "upper_lr": lr}
        algorithm = rabo(tiers, task.init_upper, task.init_lower, **rates)

        def one(state, key):
            return algorithm.step(state, cohort, key)[0], None

        keys = jax.random.split(KEY(1), 3)
        return loss(*jax.lax.scan(one, algorithm.init(KEY(0)), keys)[0].params)

    def by_hand(lr):
        def one(z, _):
            return plainly(z, each, levels, (lr, *RATES[1:]), local=False), None

        return loss(*jax.lax.scan(one, start(), None, 3)[0][:2])

    got, want = (jax.jit(jax.value_and_grad(f))(0.2) for f in (by_fad, by_hand))
    same(got, want, rtol=1e-8, atol=1e-8)
    assert abs(want[1]) > 1e-3


def logistic():
    """Logistic regression below, on what the upper level begins."""
    rng = np.random.default_rng(0)

    def level():
        a = rng.normal(size=(3, 1, 5, 4))
        s = rng.choice([-1.0, 1.0], size=(3, 1, 5))
        mask = jnp.ones((3, 1, 5), bool)
        rows = {"a": jnp.asarray(a), "s": jnp.asarray(s)}
        return fad.local.Batches(rows, mask, jnp.arange(3))

    def upper(x, y, e):
        return jax.nn.softplus(-e["s"] * (e["a"] @ y)) + jnp.sin(x).sum()

    def lower(x, y, e):
        return jax.nn.softplus(-e["s"] * (e["a"] @ (x + y))) + y @ y / 4

    split = Split(level(), level())

    def mean(loss, batches):
        rows = jax.tree.map(lambda a: a.reshape(15, *a.shape[3:]), batches.examples)
        return lambda x, y: loss(x, y, rows).mean()

    f, g = mean(upper, split.upper), mean(lower, split.lower)
    return Bilevel(upper, lower), fad.AtClients(split), f, g


def solve(h):
    """Minimise by Newton's method."""

    def step(_, y):
        return y - jnp.linalg.solve(jax.hessian(h)(y), jax.grad(h)(y))

    return jax.lax.fori_loop(0, 10, step, jnp.zeros(4))


def test_without_outer_pruning_the_hypergradient_is_exact_up_to_delta_squared():
    problem, cohort, f, g = logistic()
    x = jnp.array([-1.0, -0.5, 0.0, 0.5])
    still = {"lower_lr": 1e-30, "linear_lr": 1e-30, "upper_lr": 1.0}

    def step(y, v, **options):
        algorithm = rabo([whole(problem)], *START, **still, **options)
        state, _ = algorithm.step(
            State(Variables(x, y, v), jnp.asarray(0)), cohort, KEY(0)
        )
        return x - state.x

    @jax.jit
    def errors(delta, penalty):
        y, close = (
            solve(lambda y: g(x, y)),
            solve(lambda y: g(x, y) + f(x, y) / penalty),
        )
        f_x, f_y = jax.grad(f, (0, 1))(x, y)
        v = jnp.linalg.solve(jax.hessian(g, 1)(x, y), f_y)
        exact = f_x - jax.jvp(lambda y: jax.grad(g)(x, y), (y,), (v,))[1]
        one, other = (
            step(y, v, delta=delta),
            step(y, close, form="penalty", penalty=penalty),
        )
        off = jnp.linalg.norm(one - exact), jnp.linalg.norm(other - exact)
        return *off, jnp.linalg.norm(jax.grad(g, 1)(x, y))

    ways, penalties = [0.4, 0.2, 0.1, 0.05], [100.0, 200.0, 400.0, 800.0]
    by_delta, by_penalty, unsolved = zip(*map(errors, ways, penalties), strict=True)
    assert max(unsolved) < 1e-12
    assert min(by_delta) > 1e-9
    assert abs(np.polyfit(np.log(ways), np.log(by_delta), 1)[0] - 2) < 0.1
    assert abs(np.polyfit(np.log(penalties), np.log(by_penalty), 1)[0] + 1) < 0.1


def test_a_coordinate_follows_who_holds_it_or_stays():
    """Client 0 holds x[0] and x[1], the others x[0], and all the last two of y."""
    data, problem, cohort = setting()
    x_keys, y_keys = jnp.array([[0, 1]] + [[0, -1]] * 3), jnp.array([2, 3])

    def keys(z, rounds, key):
        return lambda split: (x_keys[split.lower.client], {0: y_keys})

    tier = lifted(problem, keys, (X, Y))

    algorithm = rabo([tier], *START, **LRS)
    state = algorithm.init(KEY(0))
    state, metrics = jax.jit(algorithm.step)(state, cohort, KEY(0))
    of_x = np.array([[1.0, 1, 0]] + [[1, 0, 0]] * 3)
    of_y = np.array([0.0, 0, 1, 1])
    z = X * of_x, np.tile(Y * of_y, (4, 1)), np.zeros((4, 4))
    _, *lower = directions(np, data.clients, z)
    d_y, d_v = (d * of_y for d in lower)
    z = z[0], z[1] - LRS["lower_lr"] * d_y, z[2] - LRS["linear_lr"] * d_v
    way = LRS["upper_lr"] * directions(np, data.clients, z)[0]
    want = X - [way[:, 0].mean(), way[0, 1], 0]
    np.testing.assert_allclose(state.x, want, rtol=1e-10)
    np.testing.assert_allclose(state.z.v, z[2].mean(0), rtol=1e-10)
    assert (metrics["coverage_x"], metrics["coverage_y"]) == (0, 0)
    assert (metrics["uncovered/x"], metrics["uncovered/y"]) == (1, 2)
    assert metrics["uncovered"] == 3
    with pytest.warns(UserWarning, match=r"^[xy]: [12] of its entries are held by no "):
        tell(algorithm, metrics)
    tell(algorithm, metrics)  # It warned once.


def test_an_empty_client_holds_nothing():
    task, levels = network(), arrays(2)
    task.problem = task.problem._replace(weighting="examples")
    narrow = task.at_width(0.5)
    narrow.problem = task.problem
    task.at_width = lambda width: narrow
    tiers = half(task)
    state = State(Variables(*start()), jnp.zeros((), jnp.int32))

    def make(tiers):
        return rabo(tiers, task.init_upper, task.init_lower, **LRS)

    algorithm, cohort = make(tiers), cohort_of(levels, [False, True])
    found, metrics = jax.jit(algorithm.step)(state, cohort, KEY(0))
    second = jax.tree.map(lambda a: a[1:], cohort)
    alone, _ = jax.jit(make(tiers[1:]).step)(state, second, KEY(0))
    same(found.z, alone.z, rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(found.x["b"][3:], state.x["b"][3:])
    assert (found.x["b"][:3] != state.x["b"][:3]).all()
    assert metrics["coverage_x"] == metrics["coverage_y"] == 0
    assert metrics["uncovered"] == 3 * 3 + 3 + 3 * 2
    with pytest.warns(UserWarning, match="held by no client") as record:
        tell(algorithm, metrics)
    paths = [str(w.message).split(":")[0] for w in record]
    assert paths == ["x['b']", "x['w']", "y['w']"]


def entries_task():
    """Data cleaning of a linear model: a client reads its own entries of x."""

    def lower(x, y, e):
        errors = (e["a"] @ y - e["t"][:, 0]) ** 2
        return jax.nn.sigmoid(x[e["id"]]) * errors + y @ y / 10

    def upper(x, y, e):
        return (e["a"] @ y - e["t"][:, 0]) ** 2 + 0 * x.sum()

    low, up = arrays(2, 1)
    low["id"] = jnp.array([4, 1, 0, 2, 3, 5]).reshape(2, 1, 3)
    task = SimpleNamespace(
        problem=Bilevel(upper, lower),
        init_upper=lambda key: jnp.zeros(7),
        init_lower=lambda key: jnp.ones(3),
        upper_keys=lambda split: jnp.sort(split.lower.examples["id"].reshape(-1)),
    )
    return task, (low, up)


def test_entries_of_x_are_those_that_a_client_reads():
    task, levels = entries_task()
    cohort = cohort_of(levels)
    start = task.init_upper, task.init_lower

    def after(algorithm):
        state, step = algorithm.init(KEY(0)), jax.jit(algorithm.step)
        state, _ = step(state, cohort, KEY(0))
        return step(state, cohort, KEY(1))

    def tiers(width):
        return [structured(task, width, 1.0, rule="static", lower_rule="static")]

    naive, _ = after(rafbo(tiers(1.0), *start, average="naive", **LRS))
    plain, _ = after(memfbo(task.problem, *start, **LRS))
    same(naive.z, plain, rtol=1e-12, atol=1e-12)
    algorithm = rabo(tiers(0.5), *start, **LRS)
    state, metrics = after(algorithm)
    assert np.flatnonzero(state.x).tolist() == [0, 1, 2, 3]  # two of three of each
    assert metrics["uncovered"] == 3
    assert not {name for name in metrics if name.startswith("uncovered/x")}
    args = algorithm.init(KEY(0)), cohort, KEY(0)
    with pytest.raises(fad.PlacementError, match="the server learns the keys"):
        fad.check(algorithm.step, allow="decode")(*args)
    fad.check(algorithm.step, allow=("decode", "keys"))(*args)


def test_a_share_of_the_entries():
    entries = jnp.array([-1, 3, 5, -1, 9, 12])

    def cut(width, rule: Rule, rounds=0, key=0):
        return _cut(entries, width, rule, jnp.asarray(rounds), KEY(key)).tolist()

    assert cut(0.5, "static") == [3, 5, -1]
    assert cut(0.5, "rolling", 3) == [12, 3, -1]
    assert cut(1.0, "static") == [3, 5, 9, 12, -1, -1]
    chosen = {tuple(cut(0.5, "random", key=k)) for k in range(4)}
    assert len(chosen) > 1
    assert all({*c[:2]} < {3, 5, 9, 12} and c[2] == -1 for c in chosen)
    entries = jnp.full(6, -1)
    assert cut(0.5, "static") == [-1] * 3


def test_units_by_rule():
    task, cohort = network(), cohort_of(arrays())
    x, y, v = start()
    splits = [jax.tree.map(lambda a, i=i: a[i], cohort.unsafe_gather()) for i in (0, 1)]

    def chosen(rule: Rule, rounds=0):
        tier = structured(task, 0.5, 0.5, rule="static", lower_rule=rule)
        of = tier.keys(Variables(x, y, v), jnp.asarray(rounds), KEY(0))
        found = [of(split) for split in splits]
        for x_keys, y_keys in found:  # a unit is the same in all of its places
            assert x_keys["w"][1].tolist() == x_keys["b"][0].tolist()
            assert x_keys["b"][0].tolist() == y_keys["w"][0].tolist()
        return [x_keys["b"][0].tolist() for x_keys, _ in found]

    norms = (x["w"] ** 2).sum(0) + x["b"] ** 2 + (y["w"] ** 2).sum(1)
    largest = sorted(np.argsort(norms)[3:].tolist())
    assert chosen("magnitude") == [largest] * 2
    assert chosen("rolling", 5) == [[5, 0, 1]] * 2
    assert chosen("static", 5) == [[0, 1, 2]] * 2
    one, other = chosen("random")
    assert one != other
    assert chosen("random") == [one, other]


def test_each_level_has_its_own_widths():
    """Of 6 and 5 hidden units, the last in y too, clients hold 3 and 2."""
    task = make_bilevel_task(
        DataConfig(clients=10),
        ModelConfig(hidden=(6, 5)),
        BilevelConfig(task="hyper_representation", header="Dense_2"),
    )
    tier = structured(task, 0.5, 0.4, rule="rolling", lower_rule="random")
    x, y = task.init_upper(KEY(0)), task.init_lower(KEY(1))
    rows = {name: a[:2] for name, a in task.lower.examples.items()}
    split: Any = SimpleNamespace(lower=SimpleNamespace(client=jnp.asarray(3)))
    keys = tier.keys(Variables(x, y, y), jnp.asarray(4), KEY(2))(split)
    first, second = keys[0]["Dense_0"]["bias"][0], keys[0]["Dense_1"]["bias"][0]
    assert first.tolist() == [4, 5, 0]
    assert (second.size, keys[1]["kernel"][0].tolist()) == (2, second.tolist())

    def held(a, key):
        for axis, units in (key or {}).items():
            a = jnp.take(a, units, axis)
        return a

    def masked(a, key):
        for axis, units in (key or {}).items():
            on = jnp.isin(jnp.arange(a.shape[axis]), units)
            a = jnp.where(
                jnp.expand_dims(on, [d for d in range(a.ndim) if d != axis]), a, 0
            )
        return a

    def each(fn):
        return jax.tree.map(fn, (x, y), keys)

    for level in ("lower", "upper"):
        narrow, full = getattr(tier.problem, level), getattr(task.problem, level)
        same(narrow(*each(held), rows), full(*each(masked), rows), rtol=1e-6)


@pytest.mark.parametrize("quick", [False])
def test_a_quarter_of_the_width_costs_a_third_at_most(quick):
    sizes = (784, 200, 10)
    task, cohort = network(sizes), cohort_of(arrays(2, 2, sizes))
    split = jax.tree.map(lambda a: a[0], cohort.unsafe_gather())
    held = sum(a.nbytes for a in jax.tree.leaves(split))
    work = client_work(oracle_of("difference", 5e-3, 10.0), Variables(*RATES))

    def spent(width):
        algorithm = module.build(Config(widths=(width,)), task)
        cost = fad.plan(algorithm.step)(algorithm.init(KEY(0)), cohort, KEY(0)).cost()
        narrow = task.at_width(width)
        y = narrow.init_lower(None)
        z = Variables(narrow.init_upper(None), y, y)

        def client(z, split):
            return work(client_of(narrow.problem, split, None), z)

        memory: Any = jax.jit(client).lower(z, split).compile().memory_analysis()
        size = memory.temp_size_in_bytes + memory.argument_size_in_bytes
        size += memory.output_size_in_bytes - held  # data is the same for all
        return cost.client_flops, cost.bytes_down, cost.bytes_up, size

    full, quarter = spent(1.0), spent(0.25)
    shares = [a / b for a, b in zip(quarter, full, strict=True)]
    assert max(shares) < 0.35, shares


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lower_lr": 0.0}, r"lower_lr: expected in \(0, inf\), got 0.0"),
        ({"penalty": -1.0}, r"penalty: expected in \(0, inf\), got -1.0"),
        ({"widths": (1.0, 1.5)}, r"^widths: expected shares in \(0, 1\], got \(1.0, 1"),
        ({"lower_widths": (0.0,) * 4}, r"lower_widths: expected shares in \(0, 1\]"),
        ({"widths": ()}, r"widths: expected one for each tier, .* got \(\) and \(\)"),
        ({"lower_widths": (1.0,)}, r"as many lower_widths or none; got .* \(1.0,\)"),
    ],
)
def test_ranges(options, message):
    with pytest.raises(ValueError, match=message):
        Config(**options)


def test_what_does_not_fit_is_refused():
    bare = SimpleNamespace(problem=None)
    with pytest.raises(fad.FadError, match=r"widths: SimpleNamespace has one model o"):
        Config(widths=(1.0, 0.5)).tiers(bare)
    task, _ = entries_task()
    with pytest.raises(fad.FadError, match=r'"magnitude": a client does not know the'):
        structured(task, 0.5, 1.0, rule="magnitude", lower_rule="static")
    task = network()
    with pytest.raises(fad.FadError, match=r"0.5 and .* units have a part in y"):
        structured(task, 0.5, 1.0, rule="static", lower_rule="static")
    task.at_width = lambda width: network((3, 5, 2))
    with pytest.raises(fad.FadError, match=r"\['w'\]: the slice is float64\[3,3\]"):
        structured(task, 0.5, 0.5, rule="static", lower_rule="static")
