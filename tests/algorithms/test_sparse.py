"""ZeroFL, FedDST and FLASH against plain loops with gradients by hand."""

import functools
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fad
from algorithms import (
    _flash_stages,
    _sparse_masks,
    fedavg,
    feddst,
    flash,
    heterofl,
    zerofl,
)
from tests.algorithms.test_fedprox import half

D, H, C, ROWS, STEPS = 3, 4, 2, 3, 2
SIZES = (D * H, H * C)  # of the layers; 20 weights
POOL = (5, 2, 4, 0, 6, 1)  # rows of the clients, four of which take part in a round
DENSITIES = (0.75, 0.4)  # of the places 0, 1 and 2, 3
WITH_LABELS = (1.0, 0.4)  # a tier that sends all, without places
LR, SERVER = 0.3, 0.8


def init(key):
    a, b = jax.random.split(key)
    kernels = jax.random.normal(a, (D, H)), jax.random.normal(b, (H, C))
    return {
        "in": {"kernel": kernels[0], "bias": jnp.full(H, 0.1, float)},
        "out": {"kernel": kernels[1], "bias": jnp.zeros(C, float)},
    }


def loss(params, examples):
    hidden = jnp.tanh(
        examples["x"] @ params["in"]["kernel"] + params["in"]["bias"][None]
    )
    out = hidden @ params["out"]["kernel"] + params["out"]["bias"][None]
    y = examples["y"]
    y = jax.nn.one_hot(y, C, dtype=out.dtype) if y.ndim == 1 else y
    return jnp.sum((out - y) ** 2, axis=1) / 2


def make_task(init=init, loss=loss, classes=False):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(8, D)), rng.normal(size=(8, C))
    examples = {"x": x, "y": np.arange(8) % C if classes else y}
    return fad.data.Task(
        name="toy",
        train=fad.data.Federated(examples, np.array([0, 4, 8])),
        test=examples,
        init=init,
        loss=loss,
        metrics=lambda params, e: {"loss": loss(params, e)},
    )


def make_cohorts(rounds, classes=False):
    """The clients of each round: arrays, and what fad makes of them.

    Of classes the plain arrays have NaN where no row of a client is of a class.
    """
    rng, n = np.random.default_rng(1), len(POOL)
    x = rng.normal(size=(n, STEPS, ROWS, D)) + np.arange(n)[:, None, None, None] / 4
    y = np.sin(2 * x[..., :C] + x[..., 1:])
    real = np.arange(STEPS * ROWS).reshape(STEPS, ROWS) < np.array(POOL)[:, None, None]
    found, labels = [], y
    if classes:
        labels = (y[..., 0] > y[..., 1]).astype(np.int32)
        y = np.eye(C)[labels]
        there = (y.astype(bool) & real[..., None]).any((1, 2), keepdims=True)
        y = np.where(there, y, np.nan)
    for _ in range(rounds):
        ids = rng.permutation(n)[:4]
        batches = fad.local.Batches(
            {"x": jnp.asarray(x[ids]), "y": jnp.asarray(labels[ids])},
            jnp.asarray(real[ids]),
            jnp.asarray(ids, jnp.int32),
        )
        found.append(((x[ids], y[ids], real[ids]), fad.AtClients(batches)))
    return found


# The plain loops, in NumPy; params are (A, B, a, b). They are analytic but for masks,
# which go by real parts: a step of LR + i eps gives the derivative.


def plain(params):
    first, last = params["in"], params["out"]
    return first["kernel"], last["kernel"], first["bias"], last["bias"]


def slopes(params, x, y, real):
    own = np.isfinite(y[0]).astype(float)  # of the classes
    y = np.where(np.isfinite(y), y, 0)
    A, B, a, b = params[0], params[1] * own, params[2], params[3] * own
    h = np.tanh(x @ A + a[None])
    error = own * (h @ B + b[None] - y) * (real / max(real.sum(), 1))[:, None]
    back = (error @ B.T) * (1 - h**2)
    return x.T @ back, h.T @ error, back.sum(0), error.sum(0)


def largest(scores, counts):
    """The masks of each layer's largest."""
    masks = []
    for score, count in zip(scores, counts, strict=True):
        order = np.argsort(-score.reshape(-1), stable=True)
        masks.append((np.argsort(order) < count).reshape(score.shape))
    return masks


def sizes_of(params):
    return [np.abs(np.real(kernel)) for kernel in params[:2]]


def only(params, masks):
    return (params[0] * masks[0], params[1] * masks[1], *params[2:])


def steps(params, batches, lr, slope):
    for x, y, real in zip(*batches, strict=True):
        if real.any():
            moved = slope(params, x, y, real)
            params = tuple(p - lr * g for p, g in zip(params, moved, strict=True))
    return params


def averaged(params, sent):
    """The mean of the updates over those who send each weight; biases, over all.

    Of the last layer over those who have the class.
    """
    out = []
    for leaf in range(4):
        total, weight = params[leaf] * 0, params[leaf] * 0
        for update, masks, batches in sent:
            there = masks[leaf] if leaf < 2 else 1.0
            there = there * np.isfinite(batches[1][0, 0]) if leaf % 2 else there
            rows = batches[2].sum()
            total, weight = total + rows * update[leaf] * there, weight + rows * there
        mean = total / np.where(weight > 0, weight, 1.0)
        out.append(params[leaf] + SERVER * mean)
    return tuple(out)


def minus(a, b):
    return tuple(x - y for x, y in zip(a, b, strict=True))


def uniform(density):
    return [int(np.ceil(round(size * density, 6))) for size in SIZES]


def of_zerofl(params, t, state, clients, lr):
    del t
    sent = []
    for i, batches in enumerate(zip(*clients, strict=True)):
        used, told = (uniform(min(DENSITIES[i // 2] + more, 1)) for more in (0, 0.1))

        def slope(params, *batch, used=used):
            sparse = only(params, largest(sizes_of(params), used))
            return slopes(sparse, *batch)

        end = steps(params, batches, lr, slope)
        masks = largest(sizes_of(end), told)
        sent.append((minus(end, params), masks, batches))
    return averaged(params, sent), state


def readjusted(params, masks, batches, share):
    """RigL's new masks of one client, and its params."""
    held = [int(mask.sum()) for mask in masks]
    drop = [int(share * count) for count in held]
    size = [np.where(m, s, -1.0) for m, s in zip(masks, sizes_of(params), strict=True)]
    stay = largest(size, [k - d for k, d in zip(held, drop, strict=True)])
    first = slopes(params, *(rows[0] for rows in batches))[:2]
    score = [
        np.where(m, -1.0, np.abs(np.real(g))) for m, g in zip(stay, first, strict=True)
    ]
    new = [a | b for a, b in zip(stay, largest(score, drop), strict=True)]
    return only(params, [a & b for a, b in zip(new, masks, strict=True)]), new


def masked_round(params, tiers, clients, lr, share):
    """Train within each tier's masks, after prune-and-grow."""
    sent = []
    for i, batches in enumerate(zip(*clients, strict=True)):
        masks = tiers[i // 2]
        start = only(params, masks)
        if share:
            start, masks = readjusted(start, masks, batches, share)

        def slope(params, *batch, masks=masks):
            return only(slopes(params, *batch), masks)

        end = steps(start, batches, lr, slope)
        sent.append((minus(end, start), masks, batches))
    return averaged(params, sent)


def of_feddst(params, t, state, clients, lr):
    if t == 0:
        params = only(params, largest(sizes_of(params), uniform(DENSITIES[0])))
    due = (t + 1) % 3 == 0 and t + 1 <= 10
    share = 0.3 * (1 + np.cos(np.pi * (t + 1) / 10)) if due else 0
    tiers = [largest(sizes_of(params), uniform(d)) for d in DENSITIES]
    params = masked_round(params, tiers, clients, lr, share)
    masks = largest(sizes_of(params), uniform(DENSITIES[0]))
    return only(params, masks), state


def shared(parts, total):
    """Integers of the sum, one and a share of the rest each; two layers."""
    free = np.maximum(np.asarray(parts, float) - 1, 0)
    first = int(np.floor(free[0] / free.sum() * (total - 2) + 0.5)) + 1
    return [first, total - first]


def of_flash(params, t, state, clients, lr):
    """Two rounds of stage 1, then masks that change in every third, but for labels."""
    found, masks = state or (np.zeros(2), ())
    totals = [int(np.ceil(round(sum(SIZES) * d, 6))) for d in DENSITIES]
    if t < 2:
        sums = np.zeros(2)
        for batches in zip(*clients, strict=True):
            end = steps(params, batches, lr, slopes)
            flat = np.concatenate([s.reshape(-1) for s in sizes_of(end)])
            (top,) = largest([flat], totals[:1])
            counts = np.array([int(top[: SIZES[0]].sum()), int(top[SIZES[0] :].sum())])
            sums += counts * batches[2].sum()
        found = found + sums / clients[2].sum() / 2
        if t == 1:
            masks = largest(sizes_of(params), shared(found, totals[0]))
            params = only(params, masks)
        return params, (found, masks)
    held, change = (
        [int(m.sum()) for m in masks],
        (t - 1) % 3 == 0 and DENSITIES != WITH_LABELS,
    )
    size = [np.where(m, s, -1.0) for m, s in zip(masks, sizes_of(params), strict=True)]
    tiers = [largest(size, shared(held, total)) for total in totals]
    share = 0.4 if change else 0
    params = masked_round(params, tiers, clients, lr, share)
    if change:
        masks = largest(sizes_of(params), held)
    return only(params, masks), (found, masks)


CASES: dict[str, Any] = {
    "zerofl": (zerofl.zerofl, {"mask_ratio": 0.1}, of_zerofl),
    "feddst": (
        feddst.feddst,
        {"readjust": 3, "until": 10, "share": 0.6, "layers": "uniform"},
        of_feddst,
    ),
    "flash": (flash.flash, {"sensing": 2, "regrow": 3, "share": 0.4}, of_flash),
}


def make(name, lr=LR, densities=DENSITIES, **options):
    build, more, _ = CASES[name]
    more = {"server_lr": SERVER, "client": optax.sgd(lr), **more, **options}
    task = make_task(classes=options.get("labels", False))
    return build(task, densities=densities, **more)


@pytest.mark.once
@pytest.mark.parametrize("labels", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_rounds_are_those_of_a_plain_loop(x64, name, labels, monkeypatch):
    """With labels in a tier of density 1 too, and FLASH then without regrowth."""
    options: dict[str, Any] = {"labels": labels}
    if labels:
        monkeypatch.setattr(sys.modules[__name__], "DENSITIES", WITH_LABELS)
        options |= {"regrow": 0} if name == "flash" else {}
    algorithm, plainly = make(name, densities=DENSITIES, **options), CASES[name][2]
    key, cohorts = jax.random.key(0), make_cohorts(20, classes=labels)
    state, step = jax.jit(algorithm.init)(key), jax.jit(algorithm.step)
    params, memory = tuple(np.asarray(p) for p in plain(init(key))), None
    for t, (clients, cohort) in enumerate(cohorts):
        state, metrics = step(state, cohort, key)
        params, memory = plainly(params, t, memory, clients, LR)
        for found, expected in zip(plain(state.params), params, strict=True):
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10)
        assert np.isfinite(metrics["train_loss"])
        kept = [int((np.asarray(p) != 0).sum()) for p in plain(state.params)[:2]]
        if name == "feddst":
            assert kept == uniform(DENSITIES[0]) == ([12, 8] if labels else [9, 6])
        if name == "flash" and t >= 1:
            assert sum(kept) <= int(state.mask.sum()) == (20 if labels else 15)
    batches = cohorts[0][1].unsafe_gather()
    nobody = batches._replace(mask=jnp.zeros_like(batches.mask))
    same, metrics = step(state, fad.AtClients(nobody), key)
    assert metrics["covered"] == 0
    for a, b in zip(plain(same.params), plain(state.params), strict=True):
        np.testing.assert_array_equal(a, b)
    rows = {**batches.examples, "x": batches.examples["x"] * jnp.nan}
    lost, _ = step(state, fad.AtClients(batches._replace(examples=rows)), key)
    assert np.isnan(np.asarray(lost.params["in"]["kernel"])).any()


@pytest.mark.once
@pytest.mark.parametrize("name", CASES)
def test_the_derivative_by_the_client_step(x64, name):
    """After three rounds of training, of which FLASH has two more before."""
    key, cohorts = jax.random.key(0), make_cohorts(5 if name == "flash" else 3)
    batches = [cohort.unsafe_gather() for _, cohort in cohorts]
    batches = jax.tree.map(lambda *x: jnp.stack(x), *batches)

    def with_fad(lr):
        algorithm = make(name, lr)

        def round(state, batches):
            return algorithm.step(state, fad.AtClients(batches), key)[0], None

        state, _ = jax.lax.scan(round, algorithm.init(key), batches)
        return sum(jnp.sum(p**2) for p in jax.tree.leaves(state.params))

    params, memory = tuple(np.asarray(p) for p in plain(init(key))), None
    for t, (clients, _) in enumerate(cohorts):
        params, memory = CASES[name][2](params, t, memory, clients, LR + 1e-30j)
    expected = sum((p**2).sum() for p in params).imag / 1e-30
    found = jax.jit(jax.grad(with_fad))(LR)
    np.testing.assert_allclose(found, expected, rtol=1e-8)


@functools.cache
def with_fedavg():
    key, cohorts = jax.random.key(0), make_cohorts(3)
    whole = fedavg.fedavg(loss, init, server=optax.sgd(1.0), client=optax.sgd(LR))
    state, step = whole.init(key), jax.jit(whole.step)
    for _, cohort in cohorts:
        state, _ = step(state, cohort, key)
    return state.params


@pytest.mark.once
@pytest.mark.parametrize("name", CASES)
def test_a_density_of_one_is_fedavg(x64, name):
    key, cohorts = jax.random.key(0), make_cohorts(3)
    algorithm = make(name, densities=(1.0,), server_lr=1.0)
    first = 2 if name == "flash" else 0  # rounds of stage 1
    state, step = jax.jit(algorithm.init)(key), jax.jit(algorithm.step)
    for _, cohort in cohorts[:first] + cohorts:
        state, _ = step(state, cohort, key)
    for a, b in zip(plain(state.params), plain(with_fedavg()), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-15)


@pytest.mark.once
@pytest.mark.parametrize("name", CASES)
def test_a_density_of_one_with_labels_is_heterofl(x64, name):
    """Which sends slices; what a client has no label of does not decay at it either."""
    key, cohorts = jax.random.key(0), make_cohorts(3, classes=True)
    client = optax.chain(optax.add_decayed_weights(0.1), optax.sgd(LR))
    options = {"client": client, "server_lr": 1.0, "labels": True}
    whole = heterofl.heterofl(
        make_task(classes=True), widths=(1.0,), weighting="examples", **options
    )
    algorithm = make(name, densities=(1.0,), **options)
    first = 2 if name == "flash" else 0  # rounds of stage 1
    state, other = algorithm.init(key), whole.init(key)
    step, by_slices = jax.jit(algorithm.step), jax.jit(whole.step)
    for _, cohort in cohorts[:first]:
        state, _ = step(state, cohort, key)
    for _, cohort in cohorts:
        state, _ = step(state, cohort, key)
        other, _ = by_slices(other, cohort, key)
    for a, b in zip(plain(state.params), plain(other.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-14)


@pytest.mark.once
def test_nan_stays_off_the_labels_that_its_client_lacks():
    (_, cohort), key = make_cohorts(6, classes=True)[2], jax.random.key(0)
    algorithm = make("zerofl", densities=(1.0,), labels=True)
    state, batches = algorithm.init(key), cohort.unsafe_gather()
    x = batches.examples["x"].at[1].set(jnp.nan)  # it has examples of label 1 alone
    batches = batches._replace(examples={**batches.examples, "x": x})
    params = jax.jit(algorithm.step)(state, fad.AtClients(batches), key)[0].params
    lost = np.isnan(params["out"]["kernel"]).any(0), np.isnan(params["out"]["bias"])
    np.testing.assert_array_equal(lost, [[False, True]] * 2)


@pytest.mark.once
@pytest.mark.parametrize("labels", [False, True])
def test_only_the_kept_weights_travel(x64, labels):
    """Of 20 weights of 8 bytes, with 6 biases, the loss and the client's weight."""
    ((_, cohort),), key = make_cohorts(1, classes=labels), jax.random.key(0)
    up = 8 * 6 + 8 + 4  # biases, loss, and the weight in float32
    up += 8 * C * labels  # and the weight by label
    # ZeroFL sends 0.6 of 12 and of 8. With places; without, but with counts of layers.
    ups = {"zerofl": 13 * (8 + 4), "feddst": 10 * (8 + 4), "flash": 10 * 8 + 2 * 4}
    # All; kept ones, 20 bits and how many to replace; or those, a key and the stage.
    downs = {"zerofl": 20 * 8, "feddst": 10 * 8 + 3 + 4, "flash": 10 * 8 + 3 + 8 + 1}
    for name in CASES:
        options = {"regrow": 0} if name == "flash" else {}
        algorithm = make(name, densities=(0.5,), labels=labels, **options)
        args = algorithm.init(key), cohort, key
        cost = fad.plan(algorithm.step)(*args).cost()
        assert cost.bytes_up == up + ups[name]
        assert cost.bytes_down == 8 * 6 + downs[name]
        needed = ("decode",) if name == "flash" else ("decode", "keys")
        fad.check(algorithm.step, allow=needed)(*args)
        with pytest.raises(fad.PlacementError, match=needed[-1]):
            fad.check(algorithm.step, allow=needed[:-1])(*args)


def test_what_layers_keep():
    """RigL's rule for shapes 3x4 and 4x2: shares as 7 / 12 to 6 / 8, at most 1."""
    params = init(jax.random.key(0))
    count = _sparse_masks.layer_counts
    assert count(params, 0.5, "uniform") == [6, 4]
    assert count(params, 0.5, "erk") == [6, 5]  # 20 / 2 * 7 / 13 and * 6 / 13, up
    assert count(params, 0.95, "erk") == [11, 8]  # The last is whole.
    assert count(params, 1.0, "erk") == [12, 8]
    assert count(params, 0.01, "erk") == [1, 1]
    shared, sizes = _flash_stages.shared, jnp.array(SIZES)
    assert shared(jnp.array([9.2, 5.8]), 15, sizes).tolist() == [9, 6]
    assert shared(jnp.array([12, 0]), 8, sizes).tolist() == [7, 1]
    assert shared(jnp.array([6, 1.5]), 15, sizes).tolist() == [12, 3]  # 13 at first
    resnet18 = [1728, 5120, *[36864] * 4, 73728, 147456, 8192, 147456, 147456]
    resnet18 += [294912, 589824, 32768, 589824, 589824, 1179648, 2359296, 131072]
    resnet18 += [2359296, 2359296]  # their shares of 11,164,352 are not exact
    large = jnp.array(resnet18)
    assert shared(large, sum(resnet18), large).tolist() == resnet18
    mask = _sparse_masks.top(jnp.array([1.0, 2, 2, jnp.nan, 0, 0]), [4, 2], [2, 1])
    assert mask.tolist() == [False, True, False, True, True, False]


@pytest.mark.once
def test_flash_whose_first_clients_are_all_empty(x64):
    """Layers keep the first mask's shares; one round with clients is enough."""
    key, (_, cohort) = jax.random.key(0), make_cohorts(1)[0]
    batches = cohort.unsafe_gather()
    nobody = fad.AtClients(batches._replace(mask=jnp.zeros_like(batches.mask)))
    algorithm, found = make("flash"), []
    before, step = algorithm.init(key), jax.jit(algorithm.step)
    for second in (nobody, cohort):
        state, _ = step(before, nobody, key)
        state, _ = step(state, second, key)
        found.append(_sparse_masks.in_layers(state.mask, SIZES).tolist())
        kept = [int((p != 0).sum()) for p in plain(state.params)[:2]]
        assert found[-1] == kept
    assert found[0] == shared(SIZES, 15) == [9, 6]
    assert sum(found[1]) == 15
    assert found[1] == shared(state.layers, 15)


@pytest.mark.parametrize("labels", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_params_in_bfloat16_keep_their_dtype(name, labels):
    algorithm, key = make(name, labels=labels), jax.random.key(0)
    ((_, cohort),) = make_cohorts(1, classes=labels)

    def rounds(key):
        state = algorithm.init(key)
        before = state._replace(params=half(state.params))
        return before, algorithm.step(before, half(cohort), key)[0]

    strict = "standard" if name == "flash" else "strict"  # its init is in float32
    with jax.numpy_dtype_promotion(strict):
        before, after = jax.tree.map(lambda x: x.dtype, jax.eval_shape(rounds, key))
    assert after == before
    assert jnp.bfloat16 in jax.tree.leaves(before.params)


def test_models_without_enough_weights_are_refused():
    def bias(key):
        return {"bias": jax.random.normal(key, (C,))}

    task = make_task(bias, lambda params, e: jnp.sum(e["y"] - params["bias"][None], 1))
    options: Any = {"client": optax.sgd(LR)}
    for build in (feddst.feddst, flash.flash):
        with pytest.raises(fad.FadError, match="no leaf of two axes or more"):
            build(task, densities=(0.5,), **options).init(jax.random.key(0))
    few = flash.flash(make_task(), densities=(1.0, 0.05), **options)
    with pytest.raises(fad.FadError, match=r"1 weights are fewer than the 2 layers"):
        few.init(jax.random.key(0))


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        (zerofl.Config, {"densities": ()}, r"densities: expected some in \(0, 1\]"),
        (feddst.Config, {"densities": (1.5,)}, r"densities: expected some in \(0, 1\]"),
        (flash.Config, {"client_lr": 0.0}, "client_lr: expected in"),
        (zerofl.Config, {"mask_ratio": 1.0}, "mask_ratio: expected in"),
        (feddst.Config, {"readjust": 0}, "readjust: expected in"),
        (feddst.Config, {"share": 2.0}, "share: expected in"),
        (flash.Config, {"sensing": 0}, "sensing: expected in"),
        (flash.Config, {"regrow": -1}, "regrow: expected in"),
        (flash.Config, {"share": -0.1}, "share: expected in"),
    ],
)
def test_configs_are_checked(config, options, message):
    with pytest.raises(ValueError, match=message):
        config(**options)
