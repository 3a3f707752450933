"""Narrower models, and HeteroFL's scaler."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fad
from fad import models
from fad.models import narrow
from tests.models.subjects import SUBJECTS
from tests.subjects import assert_same

NARROWER = {
    "mlp": (models.Mlp((10, 3), 7), models.Mlp((3, 1), 7)),
    "fednest_mlp": (models.FedNestMlp(7, width=11), models.FedNestMlp(7, width=4)),
    # Each layer's own share: 6 is less than twice 4.
    "fedavg_cnn": (
        models.FedAvgCnn(7, width=11),
        models.FedAvgCnn(7, width=(4, 7, 53)),
    ),
    "fedsep_cnn": (models.FedSepCnn(7, width=11), models.FedSepCnn(7, width=4)),
    "resnet": (
        models.ResNet18(7, width=4),
        models.ResNet18(7, width=(2, 4, 6, 10)),
    ),
    "resnet_static": (
        models.ResNet18(7, "static_batch", width=4),
        models.ResNet18(7, "static_batch", width=(2, 3, 5, 10)),
    ),
    "char_lstm": (
        models.CharLstm(7, embedding=8, width=11),
        models.CharLstm(7, embedding=3, width=4),
    ),
}


@pytest.mark.parametrize(("model", "expected"), NARROWER.values(), ids=NARROWER)
def test_every_hidden_layer_keeps_its_share(model, expected):
    assert narrow(model, 0.3) == expected
    assert narrow(model, 1) is model


@pytest.mark.once
@pytest.mark.parametrize("name", NARROWER)
def test_a_narrow_model_has_the_shapes_of_the_units_that_are_kept(name):
    subject = SUBJECTS[name]
    model, x = subject.model, subject.examples()["x"]
    if name.startswith("resnet"):  # Both groups have channels to spare.
        model = model.clone(width=4)

    def shapes(model):
        return jax.eval_shape(model.init, jax.random.key(0), x)["params"]

    units = fad.submodels.find(
        lambda params, x: model.apply({"params": params}, x), shapes(model), x
    )
    assert units.groups
    units.check(shapes(narrow(model, 0.4)), units.kept(0.4))


def test_each_hidden_layer_may_have_its_own_share():
    assert narrow(models.Mlp((8, 6), 3), (1.0, 0.5)).hidden == (8, 3)
    assert narrow(models.FedAvgCnn(3, width=4), (0.5, 1.0, 0.25)).widths == (2, 8, 16)


def test_layers_of_their_own_widths_are_built():
    def kernels(model):
        x = jnp.ones((1, 8, 8, 1))
        params = jax.eval_shape(model.init, jax.random.key(0), x)["params"]
        return [leaf.shape for leaf in jax.tree.leaves(params) if leaf.ndim > 1]

    cnn = kernels(models.FedAvgCnn(7, width=(4, 7, 53)))
    assert cnn == [(5, 5, 1, 4), (5, 5, 4, 7), (2 * 2 * 7, 53), (53, 7)]
    resnet = kernels(models.ResNet18(7, width=(2, 6), blocks=(1, 1)))
    sizes = [(3, 3, 1, 2), (6, 7), (3, 3, 2, 2), (3, 3, 2, 2)]
    expected = [*sizes, (3, 3, 2, 6), (3, 3, 6, 6), (1, 1, 2, 6)]
    assert sorted(resnet) == sorted(expected)
    same = models.FedAvgCnn(7, width=(2, 4, 32)), models.FedAvgCnn(7, width=2)
    assert same[0].widths == same[1].widths == (2, 4, 32)
    assert models.ResNet18(7, width=4).widths == (4, 8, 16, 32)


@pytest.mark.once
@pytest.mark.parametrize("name", ["mlp", "fedavg_cnn", "fedsep_cnn"])
def test_a_scale_divides_hidden_outputs(name):
    """Weights and biases of the hidden layers are a quarter of what they are."""
    subject: Any = SUBJECTS[name]
    params, x = subject.params(), subject.examples()["x"]
    head = "Dense_0" if name == "fedsep_cnn" else "Dense_1"
    divided = {
        k: v if k == head else jax.tree.map(lambda a: a / 4, v)
        for k, v in params.items()
    }
    scaled = subject.model.clone(scale=4.0)
    out = scaled.apply({"params": params}, x)
    assert_same(out, subject.model.apply({"params": divided}, x), tol=1e-6)
    assert abs(out - subject.model.apply({"params": params}, x)).max() > 1e-2


@pytest.mark.once
@pytest.mark.parametrize("norm", ["group", "static_batch"])
def test_a_scale_divides_what_a_resnet_s_convolutions_give(norm):
    """So loud a scale is heard: variances are about the norms' epsilon."""
    subject: Any = SUBJECTS["resnet" if norm == "group" else "resnet_static"]
    params, x = subject.params(), subject.examples()["x"]

    def divided(path, a):
        return a / 500 if "Conv" in jax.tree_util.keystr(path) else a

    quiet = jax.tree_util.tree_map_with_path(divided, params)
    out = subject.model.clone(scale=500.0).apply({"params": params}, x)
    assert_same(out, subject.model.apply({"params": quiet}, x), tol=1e-5)
    assert abs(out - subject.model.apply({"params": params}, x)).max() > 1e-2
    scaled = narrow(models.ResNet18(7, norm, width=4), 0.5, scaled=True)
    assert scaled == models.ResNet18(7, norm, width=(2, 4, 8, 16), scale=0.5)


def test_a_scaled_mlp_is_heterofls(x64):
    model = narrow(models.Mlp((8, 6), 3), 0.5, scaled=True)
    assert (model.hidden, model.scale) == ((4, 3), 0.5)
    assert narrow(models.Mlp((8, 6), 3), 0.5).scale == 1
    draw = np.random.default_rng(0).normal
    sizes, params, x = (5, 4, 3, 3), {}, draw(size=(2, 5))
    for i in range(3):
        kernel, bias = draw(size=sizes[i : i + 2]), draw(size=sizes[i + 1])
        params[f"Dense_{i}"] = {"kernel": kernel, "bias": bias}
    out = x
    for i in range(3):
        layer = params[f"Dense_{i}"]
        out = out @ layer["kernel"] + layer["bias"]
        out = np.maximum(out / 0.5, 0) if i < 2 else out
    got: Any = model.apply({"params": params}, jnp.asarray(x))
    np.testing.assert_allclose(got, out, rtol=1e-12)
    half = jax.tree.map(lambda a: jnp.asarray(a, jnp.bfloat16), params)
    got = model.apply({"params": half}, jnp.asarray(x, jnp.bfloat16))
    assert got.dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("model", "options", "match"),
    [
        (
            models.Mlp((), 3),
            {},
            r"narrow\(Mlp, width=0\.5\): the model has no hidden layer that can be nar",
        ),
        (
            models.CharTransformer(3),
            {},
            r"narrow\(CharTransformer, width=0\.5\): the m",
        ),
        (
            models.FedNestMlp(3),
            {"scaled": True},
            r"narrow\(FedNestMlp, scaled=True\): the model has no scaler for that; "
            r"those with one, for one width, are Mlp, FedAvgCnn, FedSepCnn, ResNet18\.",
        ),
        (
            models.Mlp((4, 4), 3),
            {"width": (0.5, 1.0), "scaled": True},
            r"narrow\(Mlp, scaled=True\): the model has no scaler for that",
        ),
        (
            models.Mlp((4, 4), 3),
            {"width": (0.5,)},
            r"one for each of its 2 hidden layers; got 1",
        ),
        (models.FedSepCnn(3), {"width": (0.5,)}, r"expected one width, or for Mlp and"),
        (models.Mlp((4,), 3), {"width": 0}, r"kept\(width=.*\(0, 1\].*got"),
        (
            models.Mlp((4,), 3),
            {"width": 1.5},
            r"kept\(width=.*\(0, 1\].*got float 1",
        ),
    ],
)
def test_refuses(model, options, match):
    with pytest.raises(fad.FadError, match=match):
        narrow(model, **{"width": 0.5, **options})
