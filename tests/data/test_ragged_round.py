"""One FedAvg round of clients of 0, 1, 7 and 1,000 examples, computed three ways."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fad
from fad.data import Federated

pytestmark = pytest.mark.once

SIZES, BATCH, EPOCHS, LR = (0, 1, 7, 1000), 16, 2, 0.05
CLASSES, FEATURES = 5, 6


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    offsets = np.cumsum([0, *SIZES])
    x = rng.standard_normal((offsets[-1], FEATURES)).astype(np.float32)
    y = rng.integers(0, CLASSES, offsets[-1]).astype(np.int32)
    return Federated({"x": x, "y": y}, offsets)


@pytest.fixture(scope="module")
def params():
    w = np.random.default_rng(1).standard_normal((FEATURES, CLASSES)) * 0.1
    return {"w": jnp.asarray(w, jnp.float32), "b": jnp.zeros(CLASSES)}


def loss(params, examples):
    logits = examples["x"] @ params["w"] + params["b"][None]
    return optax.softmax_cross_entropy_with_integer_labels(logits, examples["y"])


def result(server_lr, params, delta, data):
    """The params after the server's step, and their loss on all examples."""
    after = jax.tree.map(lambda p, d: p + server_lr * d, params, delta)
    return loss(after, jax.tree.map(jnp.asarray, data.pooled())).mean(), after


def by_fad(data, cohort):
    @fad.program
    def one_round(server_lr, params, cohort):
        def client(batches):
            return fad.local.train(params, batches, loss=loss, optimizer=optax.sgd(LR))

        local = fad.map(client, cohort)
        delta = fad.weighted_mean(local.delta, local.num_examples)
        return result(server_lr, params, delta, data)

    compiled = fad.jit(one_round)
    return lambda server_lr, params: compiled(server_lr, params, cohort)


def real_batches(data, cohort, i):
    """The batches of one client without padding, in the order of the cohort."""
    got = cohort.unsafe_gather()
    mask = got.mask[i]
    held = {name: x[i][mask] for name, x in got.examples.items()}
    rows = np.arange(EPOCHS * SIZES[i]).reshape(EPOCHS, SIZES[i])
    for epoch in rows:
        np.testing.assert_array_equal(
            np.sort(held["y"][epoch]), np.sort(data.client(i)["y"])
        )
        for start in range(0, SIZES[i], BATCH):
            yield {k: jnp.asarray(x[epoch[start:][:BATCH]]) for k, x in held.items()}


def by_loop(data, cohort):
    grad = jax.jit(jax.grad(lambda p, examples: loss(p, examples).mean()))

    def one_round(server_lr, params):
        total = jax.tree.map(jnp.zeros_like, params)
        for i, size in enumerate(SIZES):
            mine = params
            for batch in real_batches(data, cohort, i):
                mine = jax.tree.map(lambda p, g: p - LR * g, mine, grad(mine, batch))
            share = size / sum(SIZES)
            total = jax.tree.map(
                lambda t, p, q, share=share: t + share * (p - q), total, mine, params
            )
        return result(server_lr, params, total, data)

    return one_round


@pytest.fixture(scope="module")
def three_ways(data, params):
    key = jax.random.key(5)
    options = {"batch_size": BATCH, "epochs": EPOCHS}
    ragged = data.cohort(key, 4, **options)
    padded = data.cohort(key, 4, bucket_growth=None, **options)
    ways = [by_fad(data, ragged), by_fad(data, padded), by_loop(data, ragged)]
    lr = jnp.float32(0.7)
    return [jax.value_and_grad(way, has_aux=True)(lr, params) for way in ways]


@pytest.mark.parametrize("other", [1, 2], ids=["padded", "loop"])
def test_the_round_is_the_same(three_ways, other):
    (loss_of, after), _ = three_ways[0]
    (other_loss, other_after), _ = three_ways[other]
    np.testing.assert_allclose(loss_of, other_loss, atol=1e-6)
    for name, x in after.items():
        np.testing.assert_allclose(x, other_after[name], atol=1e-6)


@pytest.mark.parametrize("other", [1, 2], ids=["padded", "loop"])
def test_its_gradient_by_the_server_step_is_the_same(three_ways, other):
    slope, other_slope = three_ways[0][1], three_ways[other][1]
    assert abs(float(slope)) > 1e-3
    np.testing.assert_allclose(slope, other_slope, atol=1e-6)


def test_small_clients_among_themselves(data, params):
    """Without the largest, the cohort is in a smaller bucket than the federation."""
    options = {"batch_size": BATCH, "epochs": EPOCHS, "sampling": [1, 1, 1, 0]}
    key, lr = jax.random.key(6), jnp.float32(0.7)
    ragged = data.cohort(key, 3, **options)
    padded = data.cohort(key, 3, bucket_growth=None, **options)
    shapes = [x.unsafe_gather().mask.shape for x in (ragged, padded)]
    assert shapes == [(3, EPOCHS * 1, BATCH), (3, EPOCHS * 63, BATCH)]
    (one, _), (two, _) = (by_fad(data, x)(lr, params) for x in (ragged, padded))
    np.testing.assert_allclose(one, two, atol=1e-6)


def test_an_empty_place_changes_nothing(data, params):
    key, lr = jax.random.key(6), jnp.float32(0.7)
    options = {"batch_size": BATCH, "epochs": EPOCHS}
    away = np.array([True, True, True, False])
    three = data.cohort(key, 3, sampling=[1, 1, 1, 0], **options)
    four = data.cohort(key, 4, available=away, **options)
    assert four.unsafe_gather().client.tolist() == [0, 1, 2, -1]
    results = [by_fad(data, x)(lr, params)[0] for x in (three, four)]
    np.testing.assert_allclose(*results, atol=1e-6)
