"""Adapting at a client: the split, the steps, the gain, and its spread over clients."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fad
from fad.local import (
    Batches,
    Spread,
    personalize,
    spread,
    support_query,
    take_steps,
)

pytestmark = pytest.mark.once


def loss(w, examples):
    return (w - examples["x"]) ** 2


def metrics(w, examples):
    return {"loss": loss(w, examples), "error": jnp.abs(w - examples["x"])}


def batches(values, batch=2, steps=3, client=0):
    """Return values as padded batches; the padding is not zero."""
    x = np.full(steps * batch, 99.0)
    x[: len(values)] = values
    mask = np.arange(steps * batch) < len(values)
    shape = (steps, batch)
    examples = {"x": jnp.asarray(x.reshape(shape))}
    return Batches(examples, jnp.asarray(mask.reshape(shape)), jnp.int32(client))


@pytest.mark.parametrize(
    ("size", "every", "support", "query"),
    [
        (0, 2, [], []),
        (1, 2, [0], []),
        (2, 2, [0], [1]),
        (5, 2, [0, 2, 4], [1, 3]),
        (2, 3, [0, 1], []),
        (6, 3, [0, 1, 3, 4], [2, 5]),
    ],
)
def test_support_and_query_share_the_real_rows(size, every, support, query):
    parts = support_query(batches(range(size)), every=every)
    for part, rows in zip(parts, (support, query), strict=True):
        assert np.flatnonzero(part.mask.reshape(-1)).tolist() == rows
        assert part.mask.shape == (3, 2)


def test_rows_are_counted_past_padding_between_passes():
    """Two passes over three rows: the padding of the first takes no turn."""
    mask = jnp.array([[True, True], [True, False], [True, True], [True, False]])
    support, query = support_query(Batches(mask, mask, jnp.int32(0)))
    assert support.mask.astype(int).tolist() == [[1, 0], [1, 0], [0, 1], [0, 0]]
    assert query.mask.astype(int).tolist() == [[0, 1], [0, 0], [1, 0], [1, 0]]


@pytest.mark.parametrize(
    ("size", "steps", "taken"),
    [
        (5, 2, [[0, 1], [2, 3]]),
        (5, 5, [[0, 1], [2, 3], [4], [0, 1], [2, 3]]),
        (1, 3, [[0], [0], [0]]),
        (0, 2, [[], []]),
    ],
)
def test_steps_come_again_from_the_first(size, steps, taken):
    got = take_steps(batches(range(size)), steps)
    rows = zip(got.examples["x"], got.mask, strict=True)
    assert [x[keep].tolist() for x, keep in rows] == taken


def by_hand(w, support, query, lr, steps):
    """Adapt and judge with numpy; ``support`` is a list of batches."""
    sent = w
    for k in range(steps if support else 0):
        w = w - lr * 2 * np.mean(w - np.array(support[k % len(support)]))

    def judge(w):
        error = np.abs(w - np.array(query or [w]))
        return {"loss": np.mean(error**2), "error": np.mean(error)}

    return judge(sent), judge(w)


CLIENTS = [
    ([1.0, 2.0, 4.0], [3.0, 1.0]),
    ([], [2.0]),  # nothing to adapt on
    ([5.0], []),  # nothing to judge by
    ([-1.0], [0.5, 0.0, -2.0]),
    ([], []),
]


@pytest.mark.parametrize("steps", [None, 1, 4])
def test_every_client_equals_a_loop_by_hand(x64, steps):
    def stack(part):
        made = [batches(c[part], client=i) for i, c in enumerate(CLIENTS)]
        return fad.AtClients(jax.tree.map(lambda *x: jnp.stack(x), *made))

    @fad.program
    def program(w, support, query):
        def work(support, query):
            return personalize(
                w,
                support,
                query,
                loss=loss,
                optimizer=optax.sgd(0.1),
                metrics=metrics,
                steps=steps,
            )

        return fad.map(work, support, query)

    got = jax.jit(program)(jnp.array(0.5), stack(0), stack(1)).unsafe_gather()
    for i, (support, query) in enumerate(CLIENTS):
        cut = [support[k : k + 2] for k in range(0, len(support), 2)]
        want = by_hand(0.5, cut, query, 0.1, len(cut) if steps is None else steps)
        for found, expected in zip((got.before, got.after), want, strict=True):
            assert found.keys() == expected.keys()
            for name, value in expected.items():
                np.testing.assert_allclose(found[name][i], value, rtol=1e-12)
    assert got.num_examples.tolist() == [2, 1, 0, 3, 0]


def test_differentiates_in_the_model(x64):
    def after(w):
        own = batches([1.0, 3.0]), batches([2.0])
        options = {"loss": loss, "optimizer": optax.sgd(0.1), "metrics": metrics}
        return personalize(w, *own, **options).after["loss"]

    # (1 - 2 lr) (w - 2) is the adapted error.
    np.testing.assert_allclose(jax.grad(after)(0.5), 2 * 0.8**2 * -1.5, rtol=1e-12)


def test_a_client_s_nan_stays_its_own():
    own = batches([np.nan]), batches([1.0])
    options = {"loss": loss, "optimizer": optax.sgd(0.1), "metrics": metrics}
    got = personalize(jnp.array(0.0), *own, **options)
    assert got.before["loss"] == 1
    assert np.isnan(got.after["loss"])


def test_spread():
    values = np.arange(20.0)
    counted = np.ones(20)
    counted[0] = 0  # its 0.0 says nothing
    got = spread(values, counted)
    assert got == Spread(10.0, float(np.std(values[1:])), 1.5, 19)
    assert spread(values, counted, lower_is_better=True).worst == 18.5
    assert spread(values, counted, worst=1.0).worst == 10
    assert spread([0.3], [7]) == Spread(0.3, 0.0, 0.3, 1)
    assert np.isnan(spread([1.0, np.nan], [1, 1])[:3]).all()
    assert spread([1.0, np.nan], [1, 0]).mean == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: support_query(batches([]), every=1),
            r"support_query: every must be an integer of at least 2, got 1\.",
        ),
        (
            lambda: take_steps(batches([]), 0),
            r"take_steps: steps must be an integer of at least 1, got 0\.",
        ),
        (
            lambda: take_steps(batches([]), 1.5),  # pyright: ignore
            r"steps must be an integer of at least 1, got 1\.5\.",
        ),
        (
            lambda: spread([1.0], [1, 2]),
            r"one number per client each, \[n\]; got float64\[1\] and int64\[2\]",
        ),
        (lambda: spread([1.0], [0]), "num_examples is 0 at every client"),
        (lambda: spread([1.0], [1], worst=0.0), r"worst must be in \(0, 1\], got 0.0"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(fad.FadError, match=message):
        call()
