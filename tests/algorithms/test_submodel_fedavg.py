"""HeteroFL, FedRolex and Federated Dropout against full arrays times masks."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fad
from algorithms import federated_dropout, fedrolex, heterofl
from algorithms._labels import last_layer
from algorithms._submodel_round import units_of

D, H, C, N, STEPS, ROWS = 3, 5, 4, 4, 2, 3  # features, hidden, classes, clients
WIDTHS = (1.0, 0.5)  # places 0, 1 and 2, 3; 5 and 3 hidden units


def init_at(width):
    hidden = fad.submodels.kept(H, width)

    def init(key):
        a, b = jax.random.split(key)
        return {
            "in": {
                "kernel": jax.random.normal(a, (D, hidden)),
                "bias": jnp.ones(hidden),
            },
            "out": {"kernel": jax.random.normal(b, (hidden, C)), "bias": jnp.zeros(C)},
        }

    return init


def outputs(params, x, scale=1.0):
    hidden = x @ params["in"]["kernel"] + params["in"]["bias"][None]
    return (
        jnp.maximum(hidden / scale, 0) @ params["out"]["kernel"]
        + params["out"]["bias"][None]
    )


def loss_at(scale):
    def loss(params, examples):
        logits = jax.nn.log_softmax(outputs(params, examples["x"], scale))
        return -jnp.take_along_axis(logits, examples["y"][:, None], 1)[:, 0]

    return loss


def make_task():
    rng = np.random.default_rng(0)
    examples = {"x": rng.normal(size=(8, D)), "y": np.arange(8, dtype=np.int32) % C}

    def at(width, scaled=False):
        return fad.data.Task(
            name="toy",
            train=fad.data.Federated(examples, np.array([0, 4, 8])),
            test=examples,
            init=init_at(width),
            loss=loss_at(width if scaled else 1.0),
            metrics=lambda params, e: {"loss": loss_at(1.0)(params, e)},
            narrow=at,
        )

    return at(1.0)


def make_cohort(labels=(0, 1, 2, 3), empty=()):
    """Clients with rows of two labels each; the last batch is half padding."""
    rng = np.random.default_rng(1)
    y = np.stack([rng.choice([k, (k + 1) % C], (STEPS, ROWS)) for k in labels])
    mask = np.ones((len(labels), STEPS, ROWS), bool)
    mask[:, -1, 1:] = False
    mask[list(empty)] = False
    x = rng.normal(size=(len(labels), STEPS, ROWS, D)) + 0.3 * y[..., None]
    rows = {"x": jnp.asarray(x), "y": jnp.asarray(y, jnp.int32)}
    ids = jnp.arange(len(labels), dtype=jnp.int32)
    return fad.AtClients(fad.local.Batches(rows, jnp.asarray(mask), ids))


def ones(params, value):
    return jax.tree.map(lambda p: jnp.full(p.shape, value, bool), params)


def mask_of(params, units, there):
    """The mask of one client: its hidden units, and its labels in the last layer."""
    hidden = jnp.zeros(H, bool).at[jnp.asarray(units)].set(True)
    return {
        "in": {
            "kernel": ones(params["in"]["kernel"], True) & hidden[None],
            "bias": hidden,
        },
        "out": {
            "kernel": hidden[:, None] & there[None],
            "bias": there,
        },
    }


def plain_round(params, cohort, units, *, lr, labels, scales):
    """One round on full arrays: each client's gradients times its mask."""
    batches = jax.tree.map(np.asarray, cohort.unsafe_gather())
    total = jax.tree.map(jnp.zeros_like, params)
    weight = jax.tree.map(jnp.zeros_like, params)
    for i in range(len(batches.mask)):
        real = batches.mask[i]
        if not real.any():
            continue
        y = batches.examples["y"][i][real]
        there = jnp.isin(jnp.arange(C), jnp.asarray(y)) if labels else jnp.ones(C, bool)
        mask = mask_of(params, units[i], there)
        own = start = jax.tree.map(lambda p, m: p * m, params, mask)

        def mean(p, k, i=i, mask=mask):
            p = jax.tree.map(lambda a, m: a * m, p, mask)
            rows = {name: v[i, k] for name, v in batches.examples.items()}
            each, on = loss_at(scales[i])(p, rows), batches.mask[i, k]
            return jnp.where(on, each, 0).sum() / max(on.sum(), 1)

        for k in range(STEPS):
            slope = jax.grad(mean)(own, k)
            own = jax.tree.map(lambda p, g: p - lr * g, own, slope)
        total = jax.tree.map(
            lambda t, a, b, m: t + (a - b) * m, total, own, start, mask
        )
        weight = jax.tree.map(lambda w, m: w + m, weight, mask)
    return jax.tree.map(
        lambda p, t, w: p + t / jnp.maximum(w, 1), params, total, weight
    )


def windows(rule, t, key, units):
    """Each client's hidden units in round t."""
    found = []
    for i in range(N):
        count = units.kept(WIDTHS[i // 2])
        own = fad.local.client_key(key, jnp.int32(i))
        chosen = units.choose(rule, count, round=t, key=own)
        found.append(np.asarray(*chosen.values()))
    return found


CASES = [
    (heterofl.heterofl, "static", {"labels": True, "scaled": True}),
    (fedrolex.fedrolex, "rolling", {"labels": True}),
    (federated_dropout.federated_dropout, "random", {"scaled": True}),
]


@pytest.mark.once
@pytest.mark.parametrize(("build", "rule", "options"), CASES)
def test_rounds_are_those_of_full_arrays_times_masks(x64, build, rule, options):
    import optax

    task, cohort = make_task(), make_cohort(empty=(3,))
    algorithm = build(task, widths=WIDTHS, client=optax.sgd(0.3), **options)
    units, step = units_of(task), jax.jit(algorithm.step)
    state = algorithm.init(jax.random.key(0))
    params = state.params
    scales = [WIDTHS[i // 2] if options.get("scaled") else 1.0 for i in range(N)]
    for t in range(4):
        key = jax.random.key(t)
        state, metrics = step(state, cohort, key)
        held = windows(rule, t, key, units)
        labels = options.get("labels", False)
        params = plain_round(params, cohort, held, lr=0.3, labels=labels, scales=scales)
        for a, b in zip(*map(jax.tree.leaves, (state.params, params)), strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-12)
        assert np.isfinite(metrics["train_loss"])


def test_the_roll_index_for_index(x64):
    """FedRolex, section 3, for 5 units of which 3 are kept."""
    units = units_of(make_task())
    table = [[0, 1, 2], [1, 2, 3], [2, 3, 4], [3, 4, 0], [4, 0, 1], [0, 1, 2]]
    for t, window in enumerate(table):
        (found,) = units.choose("rolling", units.kept(0.5), round=t).values()
        assert found.tolist() == window


@pytest.mark.once
def test_the_derivative_by_the_client_step(x64):
    import optax

    task, cohort = make_task(), make_cohort()
    units = units_of(task)
    held = [windows("rolling", t, jax.random.key(t), units) for t in range(3)]

    def loss(params):
        rows = task.test
        return loss_at(1.0)(params, jax.tree.map(jnp.asarray, rows)).mean()

    def with_fad(lr):
        algorithm = fedrolex.fedrolex(task, widths=WIDTHS, client=optax.sgd(lr))
        keys = jax.vmap(jax.random.key)(jnp.arange(3))
        state, _ = jax.lax.scan(
            lambda state, key: (algorithm.step(state, cohort, key)[0], None),
            algorithm.init(jax.random.key(0)),
            keys,
        )
        return loss(state.params)

    def plainly(lr):
        params = init_at(1.0)(jax.random.key(0))
        for units in held:
            params = plain_round(
                params, cohort, units, lr=lr, labels=False, scales=[1.0] * N
            )
        return loss(params)

    found, expected = jax.jit(jax.grad(with_fad))(0.3), jax.grad(plainly)(0.3)
    np.testing.assert_allclose(found, expected, rtol=1e-8)


def test_what_a_client_may_reveal(x64):
    import optax

    task, cohort = make_task(), make_cohort()
    key = jax.random.key(0)
    for labels, needed in ((False, ("decode",)), (True, ("decode", "keys"))):
        algorithm = heterofl.heterofl(
            task, widths=WIDTHS, client=optax.sgd(0.1), labels=labels
        )
        args = algorithm.init(key), cohort, key
        fad.check(algorithm.step, allow=needed)(*args)
        with pytest.raises(fad.PlacementError, match=needed[-1]):
            fad.check(algorithm.step, allow=needed[:-1])(*args)


def test_slices_cost_their_share(x64):
    """A client of half the hidden units moves their weights and the last bias."""
    import optax

    task, cohort, key = make_task(), make_cohort(), jax.random.key(0)
    moved = []
    for width in (1.0, 0.5):
        algorithm = fedrolex.fedrolex(task, widths=(width,), client=optax.sgd(0.1))
        cost = fad.plan(algorithm.step)(algorithm.init(key), cohort, key).cost()
        moved.append(cost)
    weights = 8 * (D + 1 + C) * (H - fad.submodels.kept(H, 0.5))
    assert moved[0].bytes_up - moved[1].bytes_up == weights
    assert moved[0].bytes_down - moved[1].bytes_down == weights
    assert moved[1].client_flops < 0.8 * moved[0].client_flops


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"widths": (1.0, 0.0)}, r"widths: expected some in \(0, 1\]"),
        ({"widths": ()}, r"widths: expected some in \(0, 1\]"),
        ({"widths": (2.0,)}, r"widths: expected some in \(0, 1\]"),
        ({"client_lr": 0.0}, "client_lr: expected in"),
    ],
)
def test_configs_are_checked(config, message):
    with pytest.raises(ValueError, match=message):
        heterofl.Config(**config)


def test_a_task_of_one_width_and_a_model_without_one_last_layer():
    task = make_task()
    single = fad.data.Task(
        name="one",
        train=task.train,
        test=task.test,
        init=task.init,
        loss=task.loss,
        metrics=task.metrics,
    )
    with pytest.raises(fad.FadError, match="narrow"):
        heterofl.build(heterofl.Config(), single)

    def with_two(key):
        return init_at(1.0)(key) | {"more": {"bias": jnp.zeros(C)}}

    def loss(params, examples):
        return task.loss(params, examples) + params["more"]["bias"].sum()

    two = fad.data.Task(
        name="two",
        train=task.train,
        test=task.test,
        init=with_two,
        loss=loss,
        metrics=task.metrics,
    )
    with pytest.raises(fad.FadError, match="one bias without hidden units"):
        heterofl.build(heterofl.Config(widths=(1.0,)), two)


@pytest.mark.parametrize("y", [np.zeros((8, 2), np.int32), np.full(8, C), np.ones(8)])
def test_labels_are_one_class_for_each_example(y):
    task = make_task()
    model = jax.eval_shape(task.init, jax.random.key(0))
    with pytest.raises(fad.FadError, match="labels: expected one of 4 classes for eac"):
        last_layer(units_of(task), model, y)


@pytest.mark.parametrize("names", [("last", "b"), (0, "bias"), ("last", 0)])
def test_the_last_layer_is_a_dict_with_a_bias(names):
    model: Any = jnp.ones(C)
    for name in reversed(names):
        model = {name: model} if isinstance(name, str) else [model]
    none = fad.submodels.Units((), {})
    with pytest.raises(fad.FadError, match=r'as params\[layer\]\["bias"\]; found'):
        last_layer(none, model, np.arange(C))


def test_a_layer_of_one_unit_is_not_the_last_one():
    model = {"norm": {"bias": jnp.ones(1), "scale": jnp.ones(1)}}
    model["last"] = {"kernel": jnp.ones((1, C)), "bias": jnp.ones(C)}
    none = fad.submodels.Units((), model)
    assert last_layer(none, model, np.arange(C)) == "last"


@pytest.mark.once
def test_units_that_nobody_has_are_told(x64):
    import optax

    task, cohort, key = make_task(), make_cohort(labels=(0, 1)), jax.random.key(0)
    algorithm = heterofl.heterofl(
        task, widths=(0.5,), client=optax.sgd(0.1), labels=True
    )
    state = algorithm.init(key)
    found, metrics = jax.jit(algorithm.step)(state, cohort, key)
    np.testing.assert_array_equal(
        found.params["in"]["kernel"][:, 3:], state.params["in"]["kernel"][:, 3:]
    )
    told = {k: float(v) for k, v in metrics.items() if k.startswith("uncovered")}
    assert told.pop("uncovered") == 2 + 2 * D + 1 + (3 + 2 * C)  # label 3 of 3 units
    assert told == {"uncovered/['in']['bias']": 2, "uncovered/['in']['kernel']": 2 * D}
    assert algorithm.check is not None
    with pytest.warns(UserWarning, match=r"\['in'\]\['(bias|kernel)'\]: [26] of its"):
        algorithm.check(told)
    algorithm.check(told)  # It warned once.
