"""The rules by which a client's units are chosen, by name."""

from collections.abc import Mapping
from typing import Any

import jax

from fad._errors import FadError, nearest
from fad.submodels import _extract

# The input that each rule needs, None for none.
_NEEDS = {
    "static": None,
    "rolling": "round",
    "random": "key",
    "magnitude": "params",
    "learned": "scores",
}


def check_rule(rule: str, given: Mapping[str, Any]) -> None:
    """Refuse a rule that is not known, or whose input is missing."""
    if rule not in _NEEDS:
        raise FadError(
            f"fad.submodels.Units.choose(rule={rule!r}): there is no such rule. "
            f"{nearest(str(rule), _NEEDS, 'rules')}"
        )
    needed = _NEEDS[rule]
    if needed is not None and given[needed] is None:
        raise FadError(
            f"fad.submodels.Units.choose(rule={rule!r}): the rule needs {needed}=..., "
            "which is missing."
        )


def choose(
    rule: str, number: int, size: int, keep: int, *, round: Any, key: Any, score: Any
) -> jax.Array:
    """Choose ``keep`` of the ``size`` units of the group with this number."""
    if rule == "static":
        return _extract.static(size, keep)
    if rule == "rolling":
        return _extract.rolling(size, keep, round)
    if rule == "random":
        return _extract.random(size, keep, jax.random.fold_in(key, number))
    return _extract.top(score, keep)
