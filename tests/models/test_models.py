"""What each model is: its parameters, its shapes, and what depends on what."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fad import models
from tests.models.subjects import SUBJECTS
from tests.subjects import assert_same

GREY, COLOUR, TEXT = (2, 28, 28, 1), (2, 32, 32, 3), (2, 80)


@pytest.mark.parametrize(
    ("model", "shape", "count"),
    [
        (models.Mlp((), 10), (2, 784), 7_850),
        (models.Mlp((64, 64), 10), GREY, 55_050),
        (models.FedNestMlp(10), GREY, 159_010),
        (models.FedAvgCnn(10), GREY, 1_663_370),
        (models.FedSepCnn(10), GREY, 23_274),
        (models.FedSepCnn(10, width=64), COLOUR, 94_666),
        (models.ResNet18(10), COLOUR, 11_172_170),
        (models.ResNet18(10, norm="static_batch"), COLOUR, 11_172_170),
        (models.CharLstm(90), TEXT, 820_522),
        (models.CharTransformer(90), TEXT, 430_170),
    ],
    ids=lambda value: type(value).__name__ if hasattr(value, "apply") else None,
)
def test_parameters_and_logits(model, shape, count):
    x = jnp.zeros(shape, int if shape == TEXT else jnp.float32)
    logits, params = jax.eval_shape(model.init_with_output, jax.random.key(0), x)
    leaves = jax.tree.leaves(params)
    assert sum(leaf.size for leaf in leaves) == count
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype("float32")}
    assert logits.shape == ((2, 80, 90) if shape == TEXT else (2, 10))
    assert logits.dtype == jnp.float32
    assert f"{count:,}" in (model.__doc__ or "")


def test_an_mlp_starts_where_published_runs_did():
    params: Any = models.Mlp((4,), 3).init(jax.random.key(0), jnp.ones((1, 2)))
    params = params["params"]
    assert list(params) == ["Dense_0", "Dense_1"]
    first = [-1.1679986, 0.5335484, -0.97421646, -0.60247123]
    np.testing.assert_allclose(params["Dense_0"]["kernel"][0], first, rtol=1e-6)
    last = [0.23990232, 0.22072774, 0.32998407]
    np.testing.assert_allclose(params["Dense_1"]["kernel"][3], last, rtol=1e-6)


def test_fednests_levels_are_its_body_and_its_header():
    params = jax.eval_shape(
        models.FedNestMlp(10).init, jax.random.key(0), jnp.ones(GREY)
    )["params"]
    sizes = {k: sum(v.size for v in jax.tree.leaves(params[k])) for k in params}
    assert sizes == {"body": 157_000, "header": 2_010}


def test_dropout_needs_a_key():
    model = models.FedNestMlp(2, width=1_000)
    x = jnp.ones((1, 1))
    params: Any = {
        "body": {"kernel": jnp.ones((1, 1_000)), "bias": jnp.zeros(1_000)},
        "header": {"kernel": jnp.ones((1_000, 2)), "bias": jnp.zeros(2)},
    }
    evaluated: Any = model.apply({"params": params}, x)
    assert (evaluated == 1_000).all()
    trained: Any = model.apply(
        {"params": params}, x, rngs={"dropout": jax.random.key(0)}
    )
    # Half of the units, each doubled: within four standard deviations.
    assert (abs(trained - 1_000) < 2 * 4 * (1_000 / 4) ** 0.5).all()
    assert (trained != 1_000).all()


@pytest.mark.once
@pytest.mark.parametrize("name", ["resnet", "resnet_static"])
def test_what_an_image_depends_on(name):
    subject = SUBJECTS[name]
    params, x = subject.params(), jnp.asarray(subject.examples()["x"])
    apply: Any = jax.jit(lambda x, m: subject.model.apply({"params": params}, x, m))

    def change(mask):
        """Return how much the last image changes the logits of the others."""
        last_doubled = apply(x.at[3].multiply(2.0), mask)
        return jnp.abs(last_doubled - apply(x, mask))[:3].max()

    everyone = change(jnp.ones(4, bool))
    assert everyone > 1e-3 if name == "resnet_static" else everyone < 1e-5
    assert change(jnp.arange(4) < 3) < 1e-5


@pytest.mark.once
@pytest.mark.parametrize("name", ["char_lstm", "char_transformer"])
def test_a_character_depends_on_those_before_alone(name):
    subject = SUBJECTS[name]
    params, x = subject.params(), jnp.asarray(subject.examples()["x"])
    x = x.at[:2, :2].set(jnp.array([[0, 1], [1, 0]])).at[1, 2:].set(x[0, 2:])
    apply: Any = jax.jit(lambda x: subject.model.apply({"params": params}, x))
    logits = apply(x)
    changed = apply(x.at[:, 2].set((x[:, 2] + 1) % 3))
    moved = (jnp.abs(changed - logits) > 1e-6).any((0, 2))
    assert moved.tolist() == [False, False, True, True, True]
    # So padding after a text's end changes nothing.
    assert_same(apply(x.at[:, 3:].set(0))[:, :3], logits[:, :3], tol=1e-6)
    # The first two texts differ in the order of two characters.
    assert jnp.abs(logits[0, -1] - logits[1, -1]).max() > 1e-6


@pytest.mark.once
def test_the_forget_gate_starts_open():
    started: Any = models.CharLstm(2, width=3).init(jax.random.key(0), jnp.array([[0]]))
    for layer in ("_Lstm_0", "_Lstm_1"):
        bias = started["params"][layer]["input"]["bias"]
        assert bias.tolist() == [0] * 3 + [1] * 3 + [0] * 6


@pytest.mark.once
def test_an_lstm_is_flaxs():
    import flax.linen as nn

    subject, x = SUBJECTS["char_lstm"], jnp.array([[0, 1, 2, 1, 0]])
    params = subject.params()
    logits: Any = subject.model.apply({"params": params}, x)
    cell = nn.OptimizedLSTMCell(3)
    hidden = params["Embed_0"]["embedding"][x]
    for layer in ("_Lstm_0", "_Lstm_1"):
        own = params[layer]
        split = lambda v: jnp.split(v, 4, axis=-1)  # noqa: E731
        gates: Any = {}
        for gate, i, h, b in zip(
            "ifgo",
            split(own["input"]["kernel"]),
            split(own["recurrent"]),
            split(own["input"]["bias"]),
            strict=True,
        ):
            gates[f"i{gate}"] = {"kernel": i}
            gates[f"h{gate}"] = {"kernel": h, "bias": b}
        hidden = nn.RNN(cell).apply({"params": {"cell": gates}}, hidden)
    head = params["Dense_0"]
    assert_same(logits, hidden @ head["kernel"] + head["bias"][None, None], tol=1e-5)
