"""The units that are found: those of every model, and none that cannot be cut."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from jax import lax

from fad import FadError
from fad.submodels import Units, find
from tests.submodels.models import PAIRS, shapes


def _found(units: Units) -> dict[str, list[str]]:
    """Write the groups as ``name size: leaf[axis] (before, after)``."""
    out = {}
    for group in units.groups:
        texts = []
        for leaf, axis, before, after in group.places:
            text = leaf[2:-2].replace("']['", "/") + f"[{axis}]"
            around = f" ({before}, {after})" if (before, after) != (1, 1) else ""
            texts.append(text + around)
        out[f"{group.name} {group.size}"] = texts
    return out


def _units(model: nn.Module, x, **kwargs) -> Units:
    def fn(params, x):
        return model.apply({"params": params}, x, **kwargs)

    return find(fn, shapes(model, x), x)


def _layer(*into: str, name: str, kernel: int) -> list[str]:
    return [f"{name}/bias[0]", f"{name}/kernel[{kernel}]", *into]


MODELS = {
    "mlp": {
        "Dense_0 6": _layer("Dense_1/kernel[0]", name="Dense_0", kernel=1),
        "Dense_1 4": _layer("Dense_2/kernel[0]", name="Dense_1", kernel=1),
    },
    "fednest_mlp": {
        "body 6": _layer("header/kernel[0]", name="body", kernel=1),
    },
    "fedavg_cnn": {
        "Conv_0 3": _layer("Conv_1/kernel[2]", name="Conv_0", kernel=3),
        "Conv_1 6": _layer("Dense_0/kernel[0] (4, 1)", name="Conv_1", kernel=3),
        "Dense_0 48": _layer("Dense_1/kernel[0]", name="Dense_0", kernel=1),
    },
    "fedsep_cnn": {
        f"Conv_{i} 5": _layer(following, name=f"Conv_{i}", kernel=3)
        for i, following in enumerate(
            [*(f"Conv_{i}/kernel[2]" for i in (1, 2, 3)), "Dense_0/kernel[0]"]
        )
    },
    "char_lstm": {
        "Embed_0 8": ["Embed_0/embedding[1]", "_Lstm_0/input/kernel[0]"],
        "_Lstm_0/input 5": [
            "_Lstm_0/input/bias[0] (4, 1)",
            "_Lstm_0/input/kernel[1] (4, 1)",
            "_Lstm_0/recurrent[0]",
            "_Lstm_0/recurrent[1] (4, 1)",
            "_Lstm_1/input/kernel[0]",
        ],
        "_Lstm_1/input 5": [
            "Dense_0/kernel[0]",
            "_Lstm_1/input/bias[0] (4, 1)",
            "_Lstm_1/input/kernel[1] (4, 1)",
            "_Lstm_1/recurrent[0]",
            "_Lstm_1/recurrent[1] (4, 1)",
        ],
    },
}


@pytest.mark.parametrize("name", MODELS)
def test_units_of_the_models(name):
    full, _, x = PAIRS[name]
    assert _found(_units(full, x)) == MODELS[name]


def test_dropout_leaves_the_units():
    full, _, x = PAIRS["fednest_mlp"]
    units = _units(full, x, rngs={"dropout": jax.random.key(0)})
    assert _found(units) == MODELS["fednest_mlp"]


@pytest.mark.parametrize(("norm", "before"), [("group", 2), ("static_batch", 1)])
def test_a_residual_network_ties_what_is_added(norm, before):
    """Two groups of channels lose the same ones; ``before`` is their number."""
    full, _, x = PAIRS[f"resnet18 {norm}"]
    units, width = _units(full, x), full.width // before
    assert units.sizes == {
        "Conv_0": width,
        "_Block_0/Conv_0": width,
        "_Block_1/Conv_0": 2 * width,
        "_Block_1/Conv_1": 2 * width,
        "_Block_2/Conv_0": 2 * width,
    }
    last = units.groups[3]
    around = {(place.before, place.after) for place in last.places}
    assert around == {(before, 1)}
    kind = "GroupNorm" if norm == "group" else "StaticBatchNorm"
    names = {place.leaf: place.axis for place in last.places}
    assert names == {
        "['Dense_0']['kernel']": 0,
        f"['{kind}_0']['bias']": 0,
        f"['{kind}_0']['scale']": 0,
        "['_Block_1']['Conv_1']['kernel']": 3,
        "['_Block_1']['Conv_2']['kernel']": 3,
        f"['_Block_2']['{kind}_0']['bias']": 0,
        f"['_Block_2']['{kind}_0']['scale']": 0,
        "['_Block_2']['Conv_0']['kernel']": 2,
        "['_Block_2']['Conv_1']['kernel']": 3,
    }


def test_a_transformers_heads_stay():
    full, _, x = PAIRS["char_transformer"]
    units = _units(full, x)
    assert units.sizes == {
        "Embed_0": 16,
        "_Block_0/Dense_0": 64,
        "_Block_0/MultiHeadDotProductAttention_0/key": 4,
        "_Block_0/MultiHeadDotProductAttention_0/value": 4,
        "_Block_1/Dense_0": 64,
        "_Block_1/MultiHeadDotProductAttention_0/key": 4,
        "_Block_1/MultiHeadDotProductAttention_0/value": 4,
    }
    assert len(units.groups[0].places) == 29


class _Convolutions(nn.Module):
    """Flax's own: convolution and windowed pooling primitives."""

    @nn.compact
    def __call__(self, x):
        x = nn.max_pool(nn.relu(nn.Conv(6, (3, 3))(x)), (2, 2), (2, 2))
        window = (1, 2, 2, 1)
        x = lax.reduce_window(x, 0.0, lax.add, window, window, "VALID")
        x = nn.Conv(4, (3, 3), strides=2)(x)
        x = nn.Conv(4, (3, 3), feature_group_count=2)(x)
        return nn.Dense(3)(x.reshape(x.shape[0], -1))


class _Recurrent(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(nn.RNN(nn.OptimizedLSTMCell(6))(x))


class _DenseNet(nn.Module):
    """Concatenation of equal pieces ties them, of unequal ones keeps them."""

    @nn.compact
    def __call__(self, x):
        a = nn.relu(nn.Dense(4)(x))
        b = nn.relu(nn.Dense(6)(jnp.concatenate([x, a], -1)))
        c = nn.relu(nn.Dense(6)(b))
        return nn.Dense(3)(jnp.concatenate([b, c], -1))


class _Maxout(nn.Module):
    """The pieces of a unit stand inside, the image of a decoder outside."""

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(8)(x).reshape(x.shape[0], 4, 2).max(-1)
        x = nn.Dense(12)(x).reshape(-1, 2, 2, 3)
        return nn.Conv(3, (1, 1))(x)


class _Stack(nn.Module):
    """Layers of a scan, with remat."""

    @nn.compact
    def __call__(self, x):
        class Layer(nn.Module):
            @nn.compact
            def __call__(self, x, _):
                return nn.remat(nn.Dense)(4)(nn.relu(nn.Dense(6)(x))), None

        x = nn.Dense(4)(x)
        axes: Any = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
        layers = nn.scan(Layer, length=3, **axes)
        return nn.Dense(2)(layers()(x, None)[0])


def test_units_of_other_flax_layers():
    rows = jax.ShapeDtypeStruct((2, 5), jnp.float32)
    image = jax.ShapeDtypeStruct((2, 8, 8, 1), jnp.float32)
    text = jax.ShapeDtypeStruct((2, 8, 3), jnp.float32)
    # A grouped convolution is not followed: the layer into it stays.
    assert _units(_Convolutions(), image).sizes == {"Conv_0": 6}
    assert _units(_DenseNet(), rows).sizes == {"Dense_1": 6}
    assert _found(_units(_DenseNet(), rows))["Dense_1 6"][-1] == (
        "Dense_3/kernel[0] (2, 1)"
    )
    (lstm,) = _units(_Recurrent(), text).groups
    assert lstm.size == 6
    assert len(lstm.places) == 17
    maxout = _found(_units(_Maxout(), rows))
    assert maxout["Dense_0 4"][1] == "Dense_0/kernel[1] (1, 2)"
    assert maxout["Dense_1 3"][-1] == "Dense_1/kernel[1] (4, 1)"
    stack = _found(_units(_Stack(), rows))
    assert [*stack] == ["Dense_0 4", "ScanLayer_0/Dense_0 6"]


X, A, B = jnp.ones((2, 5)), jnp.ones((5, 4)), jnp.ones((4, 3))
KEPT = {
    "identity": lambda h: h,
    "sine": jnp.sin,
    "layer norm": lambda h: (h - h.mean(-1, keepdims=True)) / h.std(-1, keepdims=True),
    "softmax": jax.nn.softmax,
    "sort of rows": lambda h: jnp.sort(h, 0),
    "cond": lambda h: lax.cond(h.sum() > 0, jnp.sin, lambda v: v, h),
    "scan": lambda h: lax.scan(lambda c, r: (c + r, c), h[0], h)[0][None],
    "clip": lambda h: jnp.clip(h, -1, 1),
    "one row": lambda h: h[:1],
    "row by index": lambda h: h[jnp.array([1, 0])],
    "dynamic row": lambda h: lax.dynamic_slice_in_dim(h, 1, 1, 0),
    "row set": lambda h: lax.dynamic_update_slice_in_dim(h, h[:1], 1, 0),
    "pad rows": lambda h: jnp.pad(h, ((0, 1), (0, 0))),
    "squeeze": lambda h: lax.squeeze(h[None], (0,)),
    "barrier": lax.optimization_barrier,
    "running sum of rows": lambda h: lax.cumsum(h, 0),
    "stack of rows": lambda h: jnp.stack([h, h])[0],
    "row by row": lambda h: sum(jnp.unstack(h))[None],  # type: ignore
    "copies of rows": lambda h: jnp.tile(h, (2, 1)),
    "largest of rows": lambda h: h.max(0, keepdims=True),
}
PINNED = {
    "sort": lambda h: jnp.sort(h, -1),
    "running sum": lambda h: jnp.cumsum(h, -1),
    "reversal": lambda h: jnp.flip(h, -1),
    "roll": lambda h: jnp.roll(h, 1, -1),
    "arange": lambda h: h * jnp.arange(4.0)[None],
    "constant": lambda h: h * jnp.array([[1.0, 2.0, 3.0, 4.0]]),
    "mask": lambda h: jnp.where(jnp.arange(4)[None] < 2, h, 0.0),
    "one unit": lambda h: h + h[:, :1],
    "index": lambda h: h[:, jnp.array([0, 0, 1, 3])],
    "pad": lambda h: jnp.pad(h, ((0, 0), (1, 0)))[:, :4],
    "update": lambda h: lax.dynamic_update_slice_in_dim(h, h[:, :1], 1, 1),
    "unit by unit": lambda h: jnp.stack(jnp.unstack(h, axis=1), 1),
    "largest": lambda h: h + jnp.argmax(h, -1, keepdims=True).astype(h.dtype),
    "unequal pieces": lambda h: jnp.concatenate(jnp.split(h, [1], -1)[::-1], -1),
    "unknown primitive": lambda h: h @ jnp.linalg.inv(h.T @ h),
    "while": lambda h: lax.while_loop(lambda c: c.sum() < 9, lambda c: c + 1.0, h),
    "batch axis": lambda h: jnp.einsum("bh,hk->bh", h, jnp.ones((4, 2))),
}


def _between(middle):
    return find(lambda p, x: middle(x @ p["a"]) @ p["b"], {"a": A, "b": B}, X).sizes


@pytest.mark.parametrize("name", KEPT)
def test_what_keeps_units_apart_keeps_them(name):
    assert _between(KEPT[name]) == {"a": 4}


@pytest.mark.parametrize("name", PINNED)
def test_what_tells_units_apart_pins_them(name):
    assert _between(PINNED[name]) == {}


def test_what_is_not_seen_used_is_no_unit():
    def loss(p, x):
        unseen = jnp.sum(p["c"] ** 2)
        return jnp.sum(jnp.tanh(x @ p["a"]) @ p["b"]) + unseen

    params = {"a": A, "b": B, "c": jnp.ones((5, 4)), "d": jnp.ones(4)}
    # The result of a loss has no axes: the classes, summed, are no units either.
    assert find(loss, params, X).sizes == {"a": 4}
    assert find(lambda p, x: x @ p["a"], params, X).sizes == {}


def test_an_axis_of_two_units_is_kept_whole():
    def outer(p, x):
        h = x @ p["a"]
        return (h[:, :, None] * h[:, None]).reshape(2, 16) @ p["b"]

    assert find(outer, {"a": A, "b": jnp.ones((16, 3))}, X).sizes == {}


@pytest.mark.parametrize(
    "inputs",
    [
        lambda x: jnp.repeat(x, 2, axis=1),
        lambda x: jnp.cos(x @ jax.random.normal(jax.random.key(0), (5, 10))),
        lambda x: jnp.ones((2, 10)),
    ],
)
def test_what_the_program_makes_of_its_size_is_no_unit(inputs):
    assert (
        find(lambda p, x: inputs(x) @ p["b"], {"b": jnp.ones((10, 3))}, X).sizes == {}
    )


def test_groups_in_two_levels_and_in_a_derivative():
    def loss(z, x):
        upper, lower = z
        return jnp.mean((jnp.tanh(x @ upper["a"]) @ lower["b"] - x[:, :3]) ** 2)

    def after_a_step(z, x):
        step = jax.tree.map(lambda v, g: v - 0.1 * g, z, jax.grad(loss)(z, x))
        return loss(step, x)

    for fn in (loss, after_a_step):
        (group,) = find(fn, ({"a": A}, {"b": B}), X).groups
        assert (group.name, group.size) == ("0", 4)
        assert [p.leaf for p in group.places] == ["[0]['a']", "[1]['b']"]


def test_two_groups_of_one_layer_have_two_names():
    params = {"layer": {"w": jnp.ones((4, 6)), "v": jnp.ones((5, 4))}}
    params["layer"]["u"] = jnp.ones((6, 3))

    def fn(p, x):
        p = p["layer"]
        return jnp.tanh(jnp.tanh(x @ p["v"]) @ p["w"]) @ p["u"]

    assert find(fn, params, X).sizes == {"layer": 4, "layer.1": 6}


def test_parameters_are_arrays():
    with pytest.raises(FadError, match=r"find\(params=.*at least one; got none\."):
        find(lambda p: 0.0, {})
    with pytest.raises(FadError, match=r"got params\['a'\], which is none"):
        find(lambda p: 0.0, {"a": 1.0})
