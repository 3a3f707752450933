"""Aggregators as text, for a configuration: ``top_k(k=0.01)``."""

import ast
import inspect
from collections.abc import Callable
from typing import Any

from fad._errors import ConfigError, FadError, nearest
from fad.aggregators._adaptive_clip import adaptive_clip
from fad.aggregators._aggregator import Aggregator
from fad.aggregators._clip import clip, zero_above
from fad.aggregators._count_sketch import count_sketch
from fad.aggregators._gaussian import dp_fedavg, gaussian_mean
from fad.aggregators._geometric_median import geometric_median
from fad.aggregators._krum import krum, multi_krum
from fad.aggregators._low_rank import low_rank
from fad.aggregators._qsgd import qsgd
from fad.aggregators._random_k import random_k
from fad.aggregators._rotation import rotated_quantisation
from fad.aggregators._secure_sum import secure_sum
from fad.aggregators._top_k import top_k
from fad.aggregators._trimmed_mean import median, trimmed_mean

_KNOWN: dict[str, Callable[..., Aggregator]] = {
    f.__name__: f
    for f in (
        adaptive_clip,
        clip,
        count_sketch,
        dp_fedavg,
        gaussian_mean,
        geometric_median,
        krum,
        low_rank,
        median,
        multi_krum,
        qsgd,
        random_k,
        rotated_quantisation,
        secure_sum,
        top_k,
        trimmed_mean,
        zero_above,
    )
}


def named(text: str) -> Aggregator:
    """Make the aggregator that a text calls for.

    Args:
        text: A name of ``fad.aggregators``, with options in brackets as in Python:
            ``"clip(bound=1.0)"``; their values are numbers, strings and the like.

    Returns:
        The aggregator.

    Raises:
        ConfigError: The text is no such call, there is no such aggregator, or it does
            not take these options.

    Example:
        >>> named("geometric_median(passes=3)").client is Aggregator().client
        True
    """
    call = f"fad.aggregators.named({text!r})"
    name, options = _parsed(call, text)
    if name not in _KNOWN:
        raise ConfigError(
            f"{call}: there is no such aggregator. "
            f"{nearest(name, _KNOWN, 'aggregators')}"
        )
    build = _KNOWN[name]
    try:
        inspect.signature(build).bind(**options)
    except TypeError as error:
        raise ConfigError(
            f"{call}: {error}. It is {name}{inspect.signature(build)}."
        ) from None
    try:
        return build(**options)
    except FadError as error:
        raise ConfigError(f"{call}: {error}") from error


def _parsed(call: str, text: str) -> tuple[str, dict[str, Any]]:
    """Return the name and the options of a call without running anything."""
    try:
        node = ast.parse(text.strip(), mode="eval").body
        match node:
            case ast.Name(id=name):
                return name, {}
            case ast.Call(func=ast.Name(id=name), args=[], keywords=options):
                # ``**options`` have no name, which no signature takes.
                values = {str(k.arg): ast.literal_eval(k.value) for k in options}
                return name, values
    except (SyntaxError, ValueError):
        pass
    raise ConfigError(
        f"{call}: expected a name with options in brackets, each by its name, such as "
        "'clip(bound=1.0)'."
    )
