"""Aggregators by name, the user's own among them."""

import importlib
from collections.abc import Callable
from typing import Any

from fad._errors import ConfigError, nearest
from fad.aggregators._aggregator import Aggregator
from fad.aggregators._learned import learned, learned_optimizer

_KNOWN: dict[str, Callable[..., Aggregator]] = {
    "learned": learned,
    "learned_optimizer": learned_optimizer,
}


def make(name: str, *, rounds: int, **options: Any) -> Aggregator:
    """Make the aggregator called ``name``.

    Args:
        name: ``learned``, ``learned_optimizer``, or ``module:function`` for a function
            ``(rounds=..., **options) -> Aggregator`` of the user's own.
        rounds: The length of training.
        options: The aggregator's own.

    Returns:
        The aggregator.

    Raises:
        ConfigError: There is no such name, module, function or option, or the function
            gives no aggregator.

    Example:
        >>> make("fad.aggregators:learned", rounds=10)._fields[0]
        'init_theta'
    """
    call = f"fad.aggregators.make({name!r})"
    build = _KNOWN[name] if name in _KNOWN else _imported(name, call)
    try:
        made = build(rounds=rounds, **options)
    except TypeError as error:
        raise ConfigError(
            f"{call}: it does not take rounds={rounds!r} and {options or 'no options'}:"
            f" {error}. Expected a function (*, rounds, **options) -> Aggregator."
        ) from error
    if not isinstance(made, Aggregator):
        raise ConfigError(
            f"{call}: expected a fad.aggregators.Aggregator, got a "
            f"{type(made).__name__}. Return one from the function."
        )
    return made


def _imported(name: str, call: str) -> Callable[..., Any]:
    """Import ``module:function``."""
    module, colon, function = name.partition(":")
    if not colon:
        raise ConfigError(
            f"{call}: there is no such aggregator. "
            f"{nearest(name, _KNOWN, 'aggregators')} One of your own is named "
            f"'module:function'."
        )
    try:
        return getattr(importlib.import_module(module), function)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{call}: there is no module {error.name!r}. Run from the folder that "
            f"holds it, or install it."
        ) from error
    except AttributeError:
        raise ConfigError(
            f"{call}: the module {module!r} has no function {function!r}."
        ) from None
