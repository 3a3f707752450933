"""What the models refuse."""

from typing import Any

import jax
import jax.numpy as jnp

from fad._errors import ConfigError, FadError, describe


def positive(model: str, **options: Any) -> None:
    """Raise a ConfigError unless every option is a positive int."""
    for name, value in options.items():
        if not _positive(value):
            raise ConfigError(
                f"fad.models.{model}({name}=...): expected a positive int; got "
                f"{value!r}."
            )


def counts(model: str, **options: Any) -> None:
    """Raise a ConfigError unless every option is a tuple of positive ints."""
    for name, value in options.items():
        if not isinstance(value, tuple | list) or not all(map(_positive, value)):
            raise ConfigError(
                f"fad.models.{model}({name}=...): expected a tuple of positive ints; "
                f"got {value!r}. A tuple of one is (64,)."
            )


def layer_widths(model: str, width: Any, multiples: tuple[int, ...]) -> tuple[int, ...]:
    """Return the widths of a model's layers: one each, or multiples of one int.

    Raises:
        ConfigError: The width is no positive int, nor a tuple of one for each layer.
    """
    if not isinstance(width, tuple | list):
        positive(model, width=width)
        return tuple(width * multiple for multiple in multiples)
    counts(model, width=width)
    if len(width) != len(multiples):
        raise ConfigError(
            f"fad.models.{model}(width=...): expected a positive int, or a tuple of "
            f"{len(multiples)}, one for each layer; got {width!r}."
        )
    return tuple(width)


def rows(model: str, x: jax.Array) -> None:
    """Raise a FadError unless ``x`` is a batch of real numbers."""
    if jnp.ndim(x) < 1 or not _real(x):
        raise FadError(
            f"fad.models.{model}: x is {describe(x)}; expected real numbers "
            "[batch, *]. Convert integers by x.astype(float) and divide bytes by 255."
        )


def images(model: str, x: jax.Array) -> None:
    """Raise a FadError unless ``x`` is a batch of real images, channels last."""
    if jnp.ndim(x) != 4 or not _real(x):
        raise FadError(
            f"fad.models.{model}: x is {describe(x)}; expected real images [batch, "
            "height, width, channels]. Give grey images one channel, x[..., None], "
            "convert integers by x.astype(float) and divide bytes by 255."
        )


def characters(model: str, x: jax.Array) -> None:
    """Raise a FadError unless ``x`` is a batch of character numbers."""
    if jnp.ndim(x) != 2 or not jnp.issubdtype(jnp.result_type(x), jnp.integer):
        raise FadError(
            f"fad.models.{model}: x is {describe(x)}; expected the characters' "
            "numbers, integers [batch, length]. Encode the text first."
        )


def _positive(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _real(x: jax.Array) -> bool:
    return jnp.issubdtype(jnp.result_type(x), jnp.floating)
