"""How many rounds a learned server step takes to be as good as the tuned one."""

from typing import Any, NamedTuple

import numpy as np

EVERY = 2  # rounds between evaluations
MORE = 1.25  # times the tuned run's rounds that others may take
WINDOW = 5  # evaluations in a mean


class Scores(NamedTuple):
    """What a method did from each start; means over seeds.

    Attributes:
        ratio: ``[starts]``, rounds to the tuned run's accuracy over the tuned run's,
            on the mean curve of the seeds; infinite where it does not get there.
        reached: ``[starts]``, seeds whose own curve gets to their own tuned run's.
        final: ``[starts]``, accuracy at the tuned run's last round.
        spread: ``[starts]``, its standard deviation over seeds.
    """

    ratio: np.ndarray
    reached: np.ndarray
    final: np.ndarray
    spread: np.ndarray


def tuned_start(federation: dict[str, Any]) -> int:
    """Return the place of the fixed step that is best after the last round."""
    curves = _smooth(federation["methods"]["fixed"]["accuracy"])
    return int(curves[:, _last(federation)].mean(0).argmax())


def tuned_rounds(federation: dict[str, Any]) -> tuple[int, float]:
    """Return the tuned run's rounds to its last accuracy, and that accuracy."""
    fixed = _smooth(federation["methods"]["fixed"]["accuracy"])
    curve = fixed.mean(0)[:, tuned_start(federation)]
    target = curve[_last(federation)]
    return int(_first(curve[:, None], target)[0]), float(target)


def scores(federation: dict[str, Any], method: str) -> Scores:
    """Score a method, from each start."""
    last, best = _last(federation), tuned_start(federation)
    fixed = _smooth(federation["methods"]["fixed"]["accuracy"])
    curves = _smooth(federation["methods"][method]["accuracy"])
    rounds, target = tuned_rounds(federation)
    ratio = _first(curves.mean(0), target) / rounds
    reached = np.zeros(curves.shape[-1], int)
    for own, tuned in zip(curves, fixed, strict=True):
        goal = tuned[last, best]
        least = _first(tuned[:, [best]], goal)[0]
        reached += _first(own, goal) <= MORE * least
    final = curves[:, last]
    return Scores(ratio, reached, final.mean(0), final.std(0, ddof=1))


def _last(federation: dict[str, Any]) -> int:
    return federation["setting"]["rounds"] // EVERY - 1


def _smooth(curves: Any) -> np.ndarray:
    """Average each evaluation with those before it, up to ``WINDOW``."""
    x = np.asarray(curves)
    parts = [x[:, max(0, i - WINDOW + 1) : i + 1].mean(1) for i in range(x.shape[1])]
    return np.stack(parts, 1)


def _first(curves: np.ndarray, target: float) -> np.ndarray:
    """Return the round in which each of ``[evaluations, starts]`` reaches a target."""
    there = curves >= target
    rounds = (there.argmax(0) + 1) * float(EVERY)
    return np.where(there.any(0), rounds, np.inf)
