"""Clients' weight decay, clipping and falls of the rate, against plain loops."""

import dataclasses
import json
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fad
from algorithms import (
    ALGORITHMS,
    _sparse_masks,
    dsfl,
    fedsep_submodels,
    heterofl,
    zerofl,
)
from algorithms._client_config import ClientConfig
from algorithms._distill import Distillation
from algorithms._falling import Falling, falling
from algorithms._optimizers import clipped
from algorithms._sparse_regrow import train_masked
from algorithms._sparse_swat import swat
from fad.experiment import load, run
from fad.experiment._tasks import build
from tests.algorithms import test_distillation as distillation
from tests.algorithms import test_sparse as sparse
from tests.algorithms.test_fedprox import assert_same, half
from tests.algorithms.test_submodel_fedavg import (
    STEPS,
    WIDTHS,
    C,
    N,
    loss_at,
    make_cohort,
    make_task,
    mask_of,
)

LR, MOMENTUM, DECAY, CLIP, FALL = 0.3, 0.7, 0.05, 0.8, 0.3
SGD: dict[str, Any] = {
    "client_momentum": MOMENTUM,
    "client_weight_decay": DECAY,
    "client_clip": CLIP,
    "client_lr_falls": (2, 4),
    "client_lr_fall": FALL,
}
CONFIG = heterofl.Config(widths=WIDTHS, client_lr=LR, **SGD)
SUBMODELS = ("heterofl", "federated_dropout", "fedrolex", "fedsep_submodels")
SPARSE = ("zerofl", "feddst", "flash")
DISTILLED = ("feddf", "dsfl", "fedet")
ROOT = Path(__file__).parents[2]


def ragged():
    """The client 0 has a batch of padding, and the client 3 nothing else."""
    batches = make_cohort(empty=(3,)).unsafe_gather()
    mask = batches.mask.at[0, 1].set(False)
    return fad.AtClients(batches._replace(mask=mask))


def nobody(cohort):
    batches = cohort.unsafe_gather()
    return fad.AtClients(batches._replace(mask=jnp.zeros_like(batches.mask)))


@jax.jit
def plain_step(z, v, lr, rows, on, mask, width):
    """One step of a client on full arrays, and the norm of its gradient."""

    def mean(z):
        held = jax.tree.map(lambda a, m: a * m, z, mask)
        each = loss_at(width)(held, rows)
        return jnp.where(on, each, 0).sum() / on.sum()

    g = jax.grad(mean)(z)
    norm = jnp.sqrt(sum((x**2).sum() for x in jax.tree.leaves(g)))
    g = jax.tree.map(lambda g: g * jnp.minimum(1, CLIP / norm), g)
    v = jax.tree.map(lambda v, g, z: MOMENTUM * v + g + DECAY * z, v, g, z)
    return jax.tree.map(lambda z, v: z - lr * v, z, v), v, norm


def plain_round(params, cohort, lr):
    """One round of HeteroFL on full arrays; the norms of all gradients too."""
    batches, norms = jax.tree.map(np.asarray, cohort.unsafe_gather()), []
    total = weight = jax.tree.map(jnp.zeros_like, params)
    for i in range(N):
        if not batches.mask[i].any():
            continue
        width = WIDTHS[i // 2]
        y = batches.examples["y"][i][batches.mask[i]]
        units = np.arange(5 if width == 1 else 3)
        mask = mask_of(params, units, jnp.asarray(np.isin(np.arange(C), y)))
        z = start = jax.tree.map(lambda p, m: p * m, params, mask)
        v = jax.tree.map(jnp.zeros_like, z)
        for k in range(STEPS):
            on = batches.mask[i, k]
            if on.any():
                rows = {name: x[i, k] for name, x in batches.examples.items()}
                z, v, norm = plain_step(z, v, lr, rows, on, mask, width)
                norms.append(norm)
        total = jax.tree.map(lambda t, a, b, m: t + (a - b) * m, total, z, start, mask)
        weight = jax.tree.map(lambda w, m: w + m, weight, mask)
    params = jax.tree.map(
        lambda p, t, w: p + t / jnp.maximum(w, 1), params, total, weight
    )
    return params, norms


@pytest.mark.once
def test_rounds_are_those_of_a_plain_loop(x64):
    task, cohort, key, norms = make_task(), ragged(), jax.random.key(0), []
    algorithm = heterofl.build(CONFIG, task)
    state, step = algorithm.init(key), jax.jit(algorithm.step)
    params = state.params
    for lr in (LR, LR, FALL * LR, FALL * LR, FALL**2 * LR):
        state, _ = step(state, cohort, key)
        params, found = plain_round(params, cohort, lr)
        norms += found
        for a, b in zip(*map(jax.tree.leaves, (state.params, params)), strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-10)
    assert len(norms) == 5 * 5  # steps: 1, 2, 2 and 0 of the clients
    assert min(norms) < CLIP < max(norms)
    assert state.rounds == 5
    same, _ = step(state, nobody(cohort), key)
    assert_same(same.params, state.params)


@pytest.mark.once
def test_the_derivatives_by_the_rate_and_its_fall(x64):
    task, cohort, key = make_task(), ragged(), jax.random.key(0)
    config = dataclasses.replace(CONFIG, client_lr=1.0)

    def loss(params):
        return loss_at(1.0)(params, jax.tree.map(jnp.asarray, task.test)).mean()

    def with_fad(lr, factor):
        def make(scale=1.0):
            client = config.client(lr * scale)
            return heterofl.heterofl(task, client=client, **config.options())

        algorithm = falling(make, (1,), factor)
        state, _ = jax.lax.scan(
            lambda state, _: (algorithm.step(state, cohort, key)[0], None),
            algorithm.init(key),
            length=2,
        )
        return loss(state.params)

    def plainly(lr, factor):
        params = task.init(key)
        for t in range(2):
            params, _ = plain_round(params, cohort, lr * factor**t)
        return loss(params)

    found = jax.jit(jax.grad(with_fad, (0, 1)))(LR, FALL)
    expected = jax.grad(plainly, (0, 1))(LR, FALL)
    np.testing.assert_allclose(found, expected, rtol=1e-8)


def of_zerofl(client):
    return zerofl.zerofl(sparse.make_task(), client=client, densities=sparse.DENSITIES)


def of_dsfl(client):
    how = Distillation(optax.sgd(0.2), examples=4, batch=3, steps=2)
    task, widths = distillation.make_task(), distillation.WIDTHS
    return dsfl.dsfl(task, widths=widths, client=client, distillation=how)


def built(name, **more):
    """An algorithm by its config, and a cohort of its task."""
    module = ALGORITHMS[name]
    if name in SPARSE:
        options = {"densities": sparse.DENSITIES}
        task, cohort = sparse.make_task(), sparse.make_cohorts(1)[0][1]
    elif name in DISTILLED:
        options = {"widths": distillation.WIDTHS, "public_examples": 4}
        options |= {"public_batch": 3, "distill_steps": 2}
        options |= {"distill_lr": 0.2} if name == "dsfl" else {}
        task, cohort = distillation.make_task(), distillation.cohort_of((0, 1, 2, 3))
    else:
        options, task, cohort = {"widths": WIDTHS}, make_task(), make_cohort()
    return module.build(module.Config(**options, **more), task), cohort


def memories(algorithm, state):
    """The first memories of a cohort, as a step takes them; none for most."""
    if algorithm.init_client is None:
        return ()
    first = algorithm.init_client(state)
    return (fad.AtClients(jax.tree.map(lambda x: jnp.stack([x] * 4), first)),)


@pytest.mark.once
@pytest.mark.parametrize(("name", "make"), [("zerofl", of_zerofl), ("dsfl", of_dsfl)])
def test_rounds_are_those_of_runs_with_other_rates(x64, name, make):
    options = {"client_lr_falls": (1, 2), "client_momentum": 0.5}
    algorithm, cohort = built(name, client_lr=LR, **options)
    key, step = jax.random.key(0), jax.jit(algorithm.step)

    @jax.jit
    def with_rate(lr, *args):
        return make(optax.sgd(lr, momentum=0.5)).step(*args)

    state = algorithm.init(key)
    own = plain_own = memories(algorithm, state)
    plain = state.inner
    for lr in (LR, LR / 4, LR / 16):
        state, metrics, *own = step(state, cohort, key, *own)
        plain, expected, *plain_own = with_rate(lr, plain, cohort, key, *plain_own)
        found = (state.inner, metrics, own), (plain, expected, plain_own)
        for a, b in zip(*map(jax.tree.leaves, found), strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", SUBMODELS + SPARSE + DISTILLED)
def test_models_in_bfloat16_keep_their_dtype(name):
    """Without falls the state is the algorithm's own, with them it has rounds."""
    for falls in ((), (1,)):
        algorithm, cohort = built(name, **{**SGD, "client_lr_falls": falls})

        def rounds(key, algorithm=algorithm, cohort=cohort):
            state = half(algorithm.init(key))
            own = memories(algorithm, state)
            return (state, *own), algorithm.step(state, half(cohort), key, *own)

        before, (state, _, *own) = jax.eval_shape(rounds, jax.random.key(0))
        assert jax.tree.structure((state, *own)) == jax.tree.structure(before)
        dtypes = {x.dtype for x in jax.tree.leaves(state.params)}
        assert dtypes == {jnp.dtype(jnp.bfloat16)}
        assert isinstance(state, Falling) == bool(falls)


def test_decay_with_masks_and_of_weights_without_gradient(x64):
    (_, cohort), key = sparse.make_cohorts(1)[0], jax.random.key(0)
    batches = jax.tree.map(lambda x: x[0], cohort.unsafe_gather())
    batches = jax.tree.map(lambda x: x[:1] if x.ndim else x, batches)  # one step
    client, params = CONFIG.client(), sparse.init(key)
    mask = jax.random.bernoulli(key, 0.5, (sum(sparse.SIZES),))
    held = _sparse_masks.only(params, mask)
    local = train_masked(held, mask, batches, loss=sparse.loss, client=client)
    moved = _sparse_masks.split(local.delta)[0] != 0
    assert_same(moved, mask)

    def none(params, examples):
        return 0 * sparse.loss(params, examples)

    local = swat(params, batches, (4, 4), none, client)
    for a, b in zip(*map(jax.tree.leaves, (local.delta, params)), strict=True):
        np.testing.assert_allclose(a, -LR * DECAY * b, rtol=1e-14)


def test_without_options_it_is_plain_sgd():
    gradient = {"a": jnp.array([0.3, -1e-3]), "b": jnp.array(1 / 3)}
    for momentum in (0.0, 0.9):
        own = ClientConfig(client_momentum=momentum).client()
        plain = optax.sgd(0.1, momentum=momentum or None)
        states = own.init(gradient), plain.init(gradient)
        for _ in range(3):
            found, one = own.update(gradient, states[0], gradient)
            expected, other = plain.update(gradient, states[1], gradient)
            states = one, other
            assert_same(found, expected)


def test_clipping_of_mixed_dtypes_and_at_zero(x64):
    gradient = {"a": jnp.array([3.0], jnp.bfloat16), "b": jnp.array(4.0)}
    clip = clipped(2.5)

    def shrink(tree) -> Any:
        return clip.update(tree, clip.init(tree))[0]

    found = shrink(gradient)
    assert found["a"].dtype == jnp.bfloat16
    assert (found["a"][0], found["b"]) == (1.5, 2.0)
    at_zero = jax.jacobian(lambda x: shrink({"x": x})["x"])(jnp.zeros(2))
    assert_same(at_zero, jnp.eye(2))
    spoiled = shrink({**gradient, "b": jnp.array(jnp.nan)})
    assert np.isnan(spoiled["b"])
    many = shrink({"a": jnp.full(2000, 2.0, jnp.bfloat16)})["a"]  # |.| of 89.4
    np.testing.assert_allclose(many.astype(float), 2.5 / np.sqrt(2000), rtol=1e-2)


def test_what_a_builder_tells_comes_once():
    config = fedsep_submodels.Config(widths=(0.1,), client_lr_falls=(1,))
    task, cohort, key = make_task(), make_cohort(), jax.random.key(0)
    with pytest.warns(UserWarning, match=r"at the width 0\.1 no unit") as told:
        algorithm = fedsep_submodels.build(config, task)
    assert len(told) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")

        def rounds(key):
            state = algorithm.init(key)
            return algorithm.step(state, cohort, key, *memories(algorithm, state))

        jax.eval_shape(rounds, key)
    assert algorithm.check is not None
    with pytest.warns(UserWarning, match="held by no client"):
        algorithm.check({"uncovered": 1.0, "uncovered/Dense_0/kernel": 1.0})


def test_the_rate_is_sent_and_reveals_nothing():
    costs = []
    for falls in ((), (1,)):
        algorithm, cohort = built("heterofl", labels=False, client_lr_falls=falls)
        args = algorithm.init(jax.random.key(0)), cohort, jax.random.key(0)
        fad.check(algorithm.step, allow=("decode",))(*args)
        costs.append(fad.plan(algorithm.step)(*args).cost())
    assert costs[1].bytes_down - costs[0].bytes_down == 4
    assert costs[1].bytes_up == costs[0].bytes_up
    assert costs[1].rounds == costs[0].rounds


@pytest.mark.once
def test_a_run_resumes_through_a_fall(tmp_path):
    def go(folder, rounds, resume=False):
        path = ROOT / "configs" / "digits_heterofl.toml"
        values = {"rounds": rounds, "cohort": 4, "checkpoint_every": 1}
        values |= {"algorithm.widths": [1.0], "tiers": 1}
        values |= {"algorithm.client_lr_falls": [2]}
        experiment = load(path, ALGORITHMS, overrides=values)
        algorithm, task = build(ALGORITHMS, experiment)
        place = tmp_path / folder
        run(experiment, algorithm, task, place, resume=resume, progress=False)
        rows = (place / "metrics.jsonl").read_text().splitlines()
        return [json.loads(row)["train_loss"] for row in rows]

    go("part", 2)
    assert go("part", 3, resume=True) == go("whole", 3)


@pytest.mark.parametrize("config", [heterofl, zerofl, dsfl])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"client_lr": 0.0}, r"client_lr: expected in \(0, inf\), got 0.0"),
        ({"client_momentum": 1.0}, r"client_momentum: expected in \[0, 1\)"),
        ({"client_weight_decay": -1.0}, r"client_weight_decay: expected in \[0, inf"),
        ({"client_clip": -0.1}, r"client_clip: expected in \[0, inf\), got -0.1"),
        ({"client_lr_fall": 0.0}, r"client_lr_fall: expected in \(0, 1\], got 0.0"),
        ({"client_lr_falls": (0, 2)}, r"client_lr_falls: expected rising numbers of "),
        ({"client_lr_falls": (3, 3)}, r"from 1 on, got \(3, 3\)"),
    ],
)
def test_configs_are_checked(config, options, message):
    with pytest.raises(ValueError, match=message):
        config.Config(**options)
