"""Models by name, and what models refuse."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest

import fad
from fad import models
from fad._errors import ConfigError

_KEY = jax.random.key(0)
_GREY: Any = jnp.ones((2, 28, 28))
_IDS: Any = jnp.zeros((2, 5), jnp.int32)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mlp", models.Mlp((64, 64), 10)),
        ("logistic", models.Mlp((), 10)),
        ("fednest_mlp", models.FedNestMlp(10)),
        ("fedavg_cnn", models.FedAvgCnn(10)),
        ("fedsep_cnn", models.FedSepCnn(10)),
        ("resnet18", models.ResNet18(10)),
        ("char_lstm", models.CharLstm(10)),
        ("char_transformer", models.CharTransformer(10)),
    ],
)
def test_without_options_a_name_means_the_models_defaults(name, expected):
    assert models.make(name, classes=10) == expected


def test_every_name_is_documented_and_tested():
    documented = models.make.__doc__ or ""
    assert all(f"``{name}``" in documented for name in models.MODELS)
    table: Any = test_without_options_a_name_means_the_models_defaults
    assert [name for name, _ in table.pytestmark[0].args[1]] == list(models.MODELS)


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("mlp", {"hidden": (5, 6)}, models.Mlp((5, 6), 10)),
        ("fednest_mlp", {"width": 5}, models.FedNestMlp(10, width=5)),
        ("fedavg_cnn", {"width": 5}, models.FedAvgCnn(10, width=5)),
        ("fedsep_cnn", {"width": 5}, models.FedSepCnn(10, width=5)),
        (
            "resnet18",
            {"width": 4, "norm": "static_batch", "blocks": (1, 1)},
            models.ResNet18(10, norm="static_batch", width=4, blocks=(1, 1)),
        ),
        (
            "char_lstm",
            {"width": 4, "layers": 3},
            models.CharLstm(10, width=4, layers=3),
        ),
        (
            "char_transformer",
            {"width": 4, "layers": 3},
            models.CharTransformer(10, width=4, layers=3),
        ),
    ],
)
def test_options_reach_the_model(name, options, expected):
    assert models.make(name, classes=10, **options) == expected


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: models.make("fedavg_cn", classes=10),
            r"make\(name='fedavg_cn'\): there is no such model. Did you mean "
            r"'fedavg_cnn'\? Known models: char_lstm, char_transformer, fedavg_cnn",
        ),
        (
            lambda: models.make("resnet18", classes=10, widht=4),
            r"make\('resnet18', widht=...\): there is no such option. Did you mean "
            r"'width'\? Known options of resnet18: blocks, norm, width.",
        ),
        (
            lambda: models.make("logistic", classes=10, hidden=(3,)),
            r"make\('logistic', hidden=...\): .* Known options of logistic: none.",
        ),
        (
            lambda: models.make("fedavg_cnn", classes=0),
            r"FedAvgCnn\(classes=...\): expected a positive int; got 0",
        ),
        (
            lambda: models.make("fedsep_cnn", classes=3, width=1.5),
            r"FedSepCnn\(width=...\): expected a positive int; got 1.5",
        ),
        (
            lambda: models.make("char_lstm", classes=3, layers=True),
            r"CharLstm\(layers=...\): expected a positive int; got True",
        ),
        (
            lambda: models.make("mlp", classes=3, hidden=64),
            r"Mlp\(hidden=...\): expected a tuple of positive ints; got 64. A tuple of "
            r"one is \(64,\)",
        ),
        (
            lambda: models.Mlp((3, -1), 2),
            r"Mlp\(hidden=...\): expected a tuple of positive ints.*got \(3, -1\)",
        ),
        (
            lambda: models.FedNestMlp(3, dropout=1.0),
            r"FedNestMlp\(dropout=...\): expected a share in \[0, 1\); got 1.0",
        ),
        (
            lambda: models.make("resnet18", classes=3, norm="batch"),
            r"ResNet18\(norm=...\): expected one of 'group', 'static_batch'; got 'bat",
        ),
        (
            lambda: models.ResNet18(3, width=5),
            r"ResNet18\(width=...\): expected an even int, for two groups.*got 5",
        ),
        (
            lambda: models.ResNet18(3, blocks=(2, 0)),
            r"ResNet18\(blocks=...\): expected a tuple of positive ints; got \(2, 0\)",
        ),
        (
            lambda: models.ResNet18(3, width=(2, 4, 5, 8)),
            r"ResNet18\(width=...\): expected an even int.*got \(2, 4, 5, 8\)",
        ),
        (
            lambda: models.FedAvgCnn(3, width=(2, 4)),  # pyright: ignore[reportArgumentType]
            r"FedAvgCnn\(width=...\): expected a positive int, or a tuple of 3, one "
            r"for each layer; got \(2, 4\)",
        ),
        (
            lambda: models.FedAvgCnn(3, width=(2, 4, 0)),
            r"FedAvgCnn\(width=...\): expected a tuple of positive ints; got \(2, 4, 0",
        ),
        (
            lambda: models.Mlp((3,), 2, scale=0.0),
            r"Mlp\(scale=...\): expected a finite number above 0; got 0.0",
        ),
        (
            lambda: models.FedAvgCnn(2, scale=float("inf")),
            r"FedAvgCnn\(scale=...\): expected a finite number above 0; got inf",
        ),
        (
            lambda: models.FedSepCnn(2, scale=float("nan")),
            r"FedSepCnn\(scale=...\): expected a finite number above 0; got nan",
        ),
        (
            lambda: models.ResNet18(2, scale=-1.0),
            r"ResNet18\(scale=...\): expected a finite number above 0; got -1.0",
        ),
        (
            lambda: models.CharTransformer(3, width=10),
            r"CharTransformer\(width=..., heads=...\): expected a width that the heads "
            r"divide; got 10 and 4",
        ),
    ],
)
def test_options_are_checked(call, message):
    with pytest.raises(ConfigError, match=message):
        call()


@pytest.mark.parametrize(
    ("model", "x", "message"),
    [
        (
            models.FedAvgCnn(10),
            _GREY,
            r"FedAvgCnn: x is float32\[2,28,28\]; expected real images \[batch, height,"
            r" width, channels\]. Give grey images one channel, x\[..., None\]",
        ),
        (
            models.FedSepCnn(10),
            jnp.ones((2, 28, 28, 1), jnp.uint8),
            r"FedSepCnn: x is uint8\[2,28,28,1\].*divide bytes by 255",
        ),
        (
            models.FedSepCnn(10),
            jnp.ones((2, 20, 20, 1)),
            r"kernel_size is \(2, 2\), but the images are \(1, 1\)",
        ),
        (models.ResNet18(10), _GREY, r"ResNet18: x is float32\[2,28,28\]"),
        (
            models.Mlp((), 10),
            _IDS,
            r"Mlp: x is int32\[2,5\]; expected real numbers \[batch, \*\]. Convert int",
        ),
        (models.FedNestMlp(10), _IDS, r"FedNestMlp: x is int32\[2,5\]; expected real"),
        (
            models.CharLstm(10),
            jnp.ones((2, 5)),
            r"CharLstm: x is float32\[2,5\]; expected the characters' numbers, integers"
            r" \[batch, length\]. Encode the text first",
        ),
        (
            models.CharTransformer(10),
            _IDS[0],
            r"CharTransformer: x is int32\[5\]; expected the characters' numbers",
        ),
        (
            models.CharTransformer(10, length=4),
            _IDS,
            r"CharTransformer: x is int32\[2,5\]; expected at most 4 characters. Cut",
        ),
    ],
)
def test_inputs_are_checked(model, x, message):
    with pytest.raises(fad.FadError, match=message):
        jax.eval_shape(model.init, _KEY, x)
