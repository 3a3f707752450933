"""FedSep over learned sub-models against full arrays, masks and a search by hand."""

import dataclasses
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fad
from algorithms import fedsep_submodels as fedsep
from algorithms._mask_round import second_term
from algorithms._mask_search import Search
from algorithms._submodel_round import units_of
from benchmarks import client_cost
from fad import submodels
from tests.algorithms.test_fedprox import half
from tests.algorithms.test_submodel_fedavg import (
    STEPS,
    WIDTHS,
    C,
    D,
    H,
    loss_at,
    make_cohort,
    make_task,
    plain_round,
)

STEP, BETA, TAU, SEARCH = 0.3, 0.7, 0.8, 3  # of the mask network
KEPT = 3  # of 5 units at the width 1/2
OPTIONS = {
    "widths": WIDTHS,
    "mask_lr": STEP,
    "mask_steps": SEARCH,
    "beta": BETA,
    "temperature": TAU,
    "hidden": 4,
}


def first_memories(algorithm, state, clients):
    one = algorithm.init_client(state)
    return jax.tree.map(lambda x: jnp.stack([x] * clients), one)


def cohort_of(ids, empty=()):
    """Clients 2 and 3 of the four places are narrow."""
    batches = make_cohort(labels=[i % C for i in ids], empty=empty).unsafe_gather()
    shift = 0.1 * jnp.asarray(ids, float)[:, None, None, None]
    rows = {**batches.examples, "x": batches.examples["x"] + shift}
    return fad.AtClients(batches._replace(examples=rows, client=jnp.asarray(ids)))


# ------------------------------------------------------------------------------------
# The search by hand, of one client and the group "in" of 5 units.
# ------------------------------------------------------------------------------------


def scores_by_hand(phi):
    """A GRU of one step from zero, then a linear map."""
    gru, out = phi["params"]["GRUCell_0"], phi["params"]["Dense_0"]
    z = jax.random.normal(jax.random.key(17), (1, 4), jnp.float64)[0]

    def affine(layer, v):
        return v @ layer["kernel"] + layer.get("bias", 0)

    reset = jax.nn.sigmoid(affine(gru["ir"], z))
    update = jax.nn.sigmoid(affine(gru["iz"], z))
    state = (1 - update) * jnp.tanh(affine(gru["in"], z) + reset * gru["hn"]["bias"])
    return affine(out, state) + 3.0


def search_by_hand(phi, moments, params, rows, mask, key):
    """Adam on the masked loss and the share of operations, whose budget is 3 / 5."""

    def objective(phi, k):
        at = k % STEPS
        g = jax.random.gumbel(
            jax.random.fold_in(jax.random.fold_in(key, k), 0), (H,), float
        )
        soft = jax.nn.sigmoid((scores_by_hand(phi) + g) / TAU)
        a = jax.lax.stop_gradient(jnp.round(soft) - soft) + soft
        out = {**params["out"], "kernel": params["out"]["kernel"] * a[:, None]}
        each = loss_at(1.0)({**params, "out": out}, {n: v[at] for n, v in rows.items()})
        mean = jnp.sum(each * mask[at]) / jnp.sum(mask[at])
        share = a.sum() / KEPT
        return mean + BETA * jnp.where(share > 1.0001, jnp.log(share), 0.0)

    first, second, count = moments
    for k in range(SEARCH):
        g, count = jax.grad(objective)(phi, k), count + 1
        first = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, first, g)
        second = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g**2, second, g)
        phi = jax.tree.map(
            lambda p, m, v, n=count: (
                p
                - STEP
                * (m / (1 - 0.9**n))
                / (jnp.sqrt(v / (1 - 0.999**n) + 1e-16) + 1e-8)
            ),
            phi,
            first,
            second,
        )
    return phi, (first, second, count)


class ByHand:
    """All clients' memories, and the rounds on full arrays times masks."""

    def __init__(self, networks, search):
        phi = jax.tree.map(lambda x: x[0], networks)
        zeros = jax.tree.map(jnp.zeros_like, phi)
        self.start, self.own, self.search = (phi, (zeros, zeros, 0.0)), {}, search

    def units(self, t, params, cohort, key, places=(2, 3)):
        """Return each place's units, after the searches of round t."""
        found = [np.arange(H)] * places[0]
        batches = cohort.unsafe_gather()
        for i in places:
            client = int(batches.client[i])
            due = t % 2 == 0 or client not in self.own
            if due and bool(batches.mask[i].any()):
                rows = {name: v[i] for name, v in batches.examples.items()}
                self.own[client] = self.search(
                    *self.own.get(client, self.start),
                    params,
                    rows,
                    batches.mask[i],
                    jax.random.fold_in(key, client),
                )
            phi, _ = self.own.get(client, self.start)
            found.append(jnp.sort(jnp.argsort(-scores_by_hand(phi))[:KEPT]))
        return found


@pytest.mark.once
def test_rounds_are_those_of_a_search_by_hand(x64):
    """20 rounds, two cohorts that share a client; one place is empty."""
    task = make_task()
    algorithm = fedsep.fedsep_submodels(
        task, client=optax.sgd(0.2), scaled=True, **OPTIONS
    )
    state, step = algorithm.init(jax.random.key(0)), jax.jit(algorithm.step)
    cohorts = [cohort_of([0, 1, 2, 3]), cohort_of([4, 3, 5, 6], empty=(3,))]
    memories = first_memories(algorithm, state, 7)
    hand = ByHand(memories.network, jax.jit(search_by_hand))
    options = {"lr": 0.2, "labels": False, "scales": [1, 1, 0.5, 0.5]}
    by_hand = [
        jax.jit(lambda p, u, c=c: plain_round(p, c, u, **options)) for c in cohorts
    ]
    params, chosen = state.params, set()
    for t in range(20):
        which, key = t % 3 // 2, jax.random.key(t)
        cohort = cohorts[which]
        ids = cohort.unsafe_gather().client
        own = fad.AtClients(jax.tree.map(lambda x, ids=ids: x[ids], memories))
        state, _, own = step(state, cohort, key, own)
        memories = jax.tree.map(
            lambda x, new, ids=ids: x.at[ids].set(new), memories, own.unsafe_gather()
        )
        units = hand.units(t, params, cohort, key)
        chosen.add(tuple(np.concatenate(units[2:]).tolist()))
        params = by_hand[which](params, units)
        for a, b in zip(*map(jax.tree.leaves, (state.params, params)), strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-10)
    assert len(chosen) > 3
    searches = memories.searches.tolist()
    assert searches[:2] == searches[4:5] * 2 == [0, 0]  # who has the whole model
    assert searches[6] == 0 < min(searches[2], searches[5])  # who has no example
    phi, (first, *_) = hand.own[2]
    for mine, own in ((phi, memories.network), (first, memories.optimizer[0].mu)):
        for a, b in zip(*map(jax.tree.leaves, (mine, own)), strict=True):
            np.testing.assert_allclose(a, b[2], rtol=0, atol=1e-10)


@pytest.mark.once
def test_the_derivative_by_the_client_step(x64):
    """Chosen units have no slope: the rounds' derivative is that at fixed masks."""
    task, cohort = make_task(), cohort_of([2, 5])
    options, keys = (
        {**OPTIONS, "widths": (0.5,)},
        jax.random.split(jax.random.key(9), 3),
    )

    def score(params):
        return loss_at(1.0)(params, jax.tree.map(jnp.asarray, task.test)).mean()

    def with_fad(lr, own):
        client = optax.sgd(lr)
        algorithm = fedsep.fedsep_submodels(task, client=client, **options)

        def step(carry, key):
            state, _, own = algorithm.step(carry[0], cohort, key, carry[1])
            return (state, own), own.unsafe_gather().scores["in"]

        start = algorithm.init(jax.random.key(0)), own
        (state, _), scores = jax.lax.scan(step, start, keys)
        return score(state.params), scores

    algorithm = fedsep.fedsep_submodels(task, client=optax.sgd(0.2), **options)
    params = algorithm.init(jax.random.key(0))
    own = first_memories(algorithm, params, 2)
    lr = jnp.asarray(0.2)
    found, scores = jax.jit(jax.grad(with_fad, has_aux=True))(lr, fad.AtClients(own))
    hand, params = ByHand(own.network, jax.jit(search_by_hand)), params.params

    @jax.jit
    def by_hand(params, slope, units):
        """A round, and the derivative of its params, moved by ``slope``, by lr."""

        def after(lr, params):
            return plain_round(
                params, cohort, units, lr=lr, labels=False, scales=[1.0] * 2
            )

        return jax.jvp(after, (lr, params), (jnp.ones_like(lr), slope))

    slope = jax.tree.map(jnp.zeros_like, params)
    for t, key in enumerate(keys):
        units = hand.units(t, params, cohort, key, places=(0, 1))
        params, slope = by_hand(params, slope, units)
        own = [scores_by_hand(hand.own[client][0]) for client in (2, 5)]
        np.testing.assert_allclose(scores[t], jnp.stack(own), atol=1e-10)
    np.testing.assert_allclose(found, jax.jvp(score, (params,), (slope,))[1], rtol=1e-8)


def small_search(**changes):
    task = make_task()
    params = task.init(jax.random.key(3))
    units = units_of(task)
    rows = {name: a[:2] for name, a in task.test.items()}
    costs = submodels.costs(task.loss, params, rows)
    options: dict[str, Any] = {
        "optimizer": optax.adam(STEP, eps_root=1e-16),
        "steps": SEARCH,
    }
    options |= {"beta": BETA, "temperature": TAU, "hidden": 4, **changes}
    batches = jax.tree.map(lambda x: x[2], make_cohort().unsafe_gather())
    return SimpleNamespace(
        params=params,
        units=units,
        batches=batches,
        search=Search(task.loss, units, costs, **options),
    )


@pytest.mark.once
def test_the_second_term_is_the_derivative_of_the_search(x64):
    """Against central differences of <d, a(omega) * omega_0> along some directions."""
    s = small_search(rounded=False)
    memory = s.search.init(s.params)
    chosen = {"in": jnp.array([0, 2, 3])}
    keys = s.units.keys(chosen)
    rng = np.random.default_rng(0)
    delta = jax.tree.map(
        lambda shape: jnp.asarray(rng.normal(size=shape.shape)),
        s.units.shapes({"in": 3}),
    )

    def masks(params):
        key, budget = jax.random.key(1), jnp.asarray(0.6)
        return s.search.relaxed(s.search.run(params, s.batches, memory, budget, key))

    found = jax.jit(lambda p: second_term(masks, s.units, p, keys, delta))(s.params)
    w0, at = s.params, np.array([0, 2, 3])
    each = np.zeros(H)  # sum over a unit's places of d * omega
    each[at] = (
        (delta["in"]["kernel"] * w0["in"]["kernel"][:, at]).sum(0)
        + delta["in"]["bias"] * w0["in"]["bias"][at]
        + (delta["out"]["kernel"] * w0["out"]["kernel"][at]).sum(1)
    )
    value = jax.jit(lambda params: each @ masks(params)["in"])
    for _ in range(3):
        v = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape)), w0)
        ends = [
            value(jax.tree.map(lambda p, d, e=e: p + e * d, w0, v))
            for e in (1e-5, -1e-5)
        ]
        slope = sum(jax.tree.leaves(jax.tree.map(lambda a, b: (a * b).sum(), found, v)))
        assert abs(slope) > 1e-4
        np.testing.assert_allclose((ends[0] - ends[1]) / 2e-5, slope, rtol=1e-6)


@pytest.mark.once
def test_one_client_that_lacks_labels_with_both_terms(x64):
    """The second moves units that nobody holds, but no column of other labels."""
    task, cohort = make_task(), cohort_of([2])
    options = {**OPTIONS, "widths": (0.5,), "client": optax.sgd(0.2), "refresh": 100}
    algorithm = fedsep.fedsep_submodels(task, encode="both", labels=True, **options)
    before, step = algorithm.init(jax.random.key(0)), jax.jit(algorithm.step)
    own = fad.AtClients(first_memories(algorithm, before, 1))
    batches, moved = cohort.unsafe_gather(), []
    there = np.unique(batches.examples["y"][batches.mask])
    lacks = np.setdiff1d(np.arange(C), there)
    assert len(lacks)
    args = before, cohort, jax.random.key(0), own
    for t in (0, 1):  # with a search, and without
        after, metrics, own = step(before, cohort, jax.random.key(t), own)
        bare = np.argsort(-own.unsafe_gather().scores["in"][0])[KEPT:]
        change = jax.tree.map(lambda a, b: a - b, after.params, before.params)
        moved.append(np.abs(change["in"]["kernel"][:, bare]).max())
        assert (change["out"]["kernel"][:, lacks] == 0).all()
        assert (change["out"]["kernel"][:, there] != 0).any()
        held = KEPT * (D + 1) + len(there) * (KEPT + 1)
        assert metrics["uncovered"] == H * (D + 1) + C * (H + 1) - held
        before = after
    assert moved[0] > 0 == moved[1]
    fad.check(algorithm.step, allow=("decode", "keys"))(*args)
    with pytest.raises(fad.PlacementError, match="keys"):
        fad.check(algorithm.step, allow="decode")(*args)


@pytest.mark.once
def test_a_search_leaves_out_the_labels_of_no_batch(x64):
    """Not those that only the batch of its step lacks."""
    s = small_search(head="out")
    y, task = np.asarray(s.batches.examples["y"][s.batches.mask]), make_task()
    assert len(set(y[3:])) < len(set(y)) < C
    there = np.isin(np.arange(C), y)

    def known(params, rows):
        out = jax.tree.map(
            lambda x: jnp.where(there.reshape(*[1] * (x.ndim - 1), -1), x, 0),
            params["out"],
        )
        return task.loss({**params, "out": out}, rows)

    def scores(search):
        memory, key = search.init(s.params), jax.random.key(0)
        args = (s.params, s.batches, memory, jnp.asarray(0.6), key)
        return jax.jit(search.run)(*args).scores["in"]

    plain = dataclasses.replace(s.search, loss=known, head="")
    np.testing.assert_allclose(scores(s.search), scores(plain), rtol=0, atol=1e-12)


def test_what_is_not_finite_makes_scores_that_are_not(x64):
    """So that the loop, which looks at memories, ends the run."""
    s = small_search()
    memory = s.search.init(s.params)
    bad = {**s.batches.examples, "x": s.batches.examples["x"] * jnp.nan}
    args = (s.params, s.batches._replace(examples=bad), memory, jnp.asarray(0.6))
    found = jax.jit(s.search.run)(*args, jax.random.key(0))
    assert np.isnan(found.scores["in"]).all()
    assert found.searches == 1


@pytest.mark.parametrize("encode", ["first", "both"])
def test_precisions(encode):
    """Clients' networks are float32 beside a model in bfloat16."""
    options = {**OPTIONS, "client": optax.sgd(0.2), "labels": True}
    algorithm = fedsep.fedsep_submodels(make_task(), encode=encode, **options)

    def rounds(key):
        state = algorithm.init(key)
        before = state._replace(params=half(state.params))
        own, cohort = first_memories(algorithm, before, 4), half(cohort_of(range(4)))
        after, _, new = algorithm.step(before, cohort, key, fad.AtClients(own))
        return (before, own), (after, new.unsafe_gather())

    with jax.numpy_dtype_promotion("standard"):  # optax's Adam
        found = jax.eval_shape(rounds, jax.random.key(0))
    before, after = jax.tree.map(lambda x: x.dtype, found)
    assert after == before
    state, own = before
    assert set(jax.tree.leaves(state.params)) == {jnp.dtype(jnp.bfloat16)}
    assert own.scores["in"] == jnp.float32


def test_precision_of_masks(x64):
    s = small_search()
    for dtype in (jnp.float32, jnp.float64):
        params = jax.tree.map(lambda x, dtype=dtype: x.astype(dtype), s.params)
        memory = jax.eval_shape(s.search.init, params)
        assert memory.scores["in"].dtype == dtype


# ------------------------------------------------------------------------------------
# What a client's round costs.
# ------------------------------------------------------------------------------------


@pytest.mark.once
def test_a_clients_work_and_traffic_fall_with_its_kernels():
    """Of the convolutions, within 1.3 of the products of the shares of kernels kept."""
    task = client_cost.task(size=8, blocks=(1, 1))
    examples = task.test
    model = jax.eval_shape(task.init, jax.random.key(0))
    units, rows = units_of(task), {k: v[:2] for k, v in examples.items()}
    costs, whole = submodels.costs(task.loss, model, rows), []
    rows = {k: jnp.asarray(v)[:, None, None] for k, v in rows.items()}
    ids = jnp.arange(2, dtype=jnp.int32)
    cohort = fad.AtClients(fad.local.Batches(rows, jnp.ones((2, 1, 1), bool), ids))
    for width in (1, 1 / 2, 1 / 4, 1 / 8, 1 / 16):
        options = {"widths": (width,), "client": optax.sgd(0.1)}
        algorithm = fedsep.fedsep_submodels(task, refresh=0, hidden=2, **options)
        state = jax.eval_shape(algorithm.init, jax.random.key(0))
        assert algorithm.init_client is not None
        one = jax.eval_shape(algorithm.init_client, state)
        own = jax.tree.map(lambda x: jax.ShapeDtypeStruct((2, *x.shape), x.dtype), one)
        args = state, cohort, jax.random.key(0), fad.AtClients(own)
        cost = fad.plan(algorithm.step)(*args).cost()
        kept = units.kept(width)
        leaves = jax.tree.leaves(units.shapes(kept))
        rest = 4 * sum(x.size for x in leaves if x.ndim < 4)
        kernels = 4 * sum(x.size for x in leaves if x.ndim == 4)
        shares = {name: kept[name] / size for name, size in units.sizes.items()}
        whole = whole or [cost.client_flops, kernels]
        assert kernels / whole[1] < 1.3 * max(
            width**2, costs.flops(shares) / costs.total
        )
        for sent in (cost.bytes_down, cost.bytes_up):
            assert 1 <= (sent - rest) / kernels < 1.3
        work = (cost.client_flops / whole[0]) / (costs.flops(shares) / costs.total)
        assert 1 / 1.3 < work < 1.3


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"mask_steps": 0}, r"mask_steps: expected in \(0, inf\), got 0"),
        ({"mask_lr": 0.0}, "mask_lr: expected in"),
        ({"temperature": 0.0}, "temperature: expected in"),
        ({"hidden": 0}, "hidden: expected in"),
        ({"beta": -1.0}, "beta: expected in"),
        ({"refresh": -1}, "refresh: expected in"),
        ({"encode": "second"}, "encode: expected 'first' or 'both', got 'second'"),
        ({"widths": ()}, "widths: expected some in"),
    ],
)
def test_configs_are_checked(config, message):
    with pytest.raises(ValueError, match=message):
        fedsep.Config(**config)


def test_a_width_that_leaves_no_unit_is_told():
    with pytest.warns(UserWarning, match="at the width 0.1 no unit of in would be"):
        fedsep.build(fedsep.Config(widths=(1.0, 0.1)), make_task())


def test_an_unknown_encode_and_a_model_without_units_are_refused():
    options = {"widths": (1.0,), "client": optax.sgd(0.1)}
    with pytest.raises(fad.FadError, match=r"encode='second'.*'first'.*or 'both'"):
        fedsep.fedsep_submodels(make_task(), encode="second", **options)  # type: ignore
    x, y = np.ones((4, D)), np.arange(4, dtype=np.int32) % C
    linear = fad.data.Task(
        name="linear",
        train=fad.data.Federated({"x": x, "y": y}, np.array([0, 2, 4])),
        test={"x": x, "y": y},
        init=lambda key: jnp.zeros((D, C)),
        loss=lambda params, e: (e["x"] @ params).sum(1),
        metrics=lambda params, e: {"sum": (e["x"] @ params).sum(1)},
    )
    with pytest.raises(fad.FadError, match="'linear' has no hidden units"):
        fedsep.fedsep_submodels(linear, **options)
