"""Windows of rounds within one step of an algorithm, by parts of its cohort."""

from collections.abc import Callable
from typing import Any, Literal

import jax

import fad

Mode = Literal["forward", "window", "mixed", "reverse"]


def estimator(
    round: Callable[..., Any], mode: Mode, memory: float, lookahead: int
) -> fad.estimators.Estimator:
    """Return online forward mode, or an estimator of the window alone in a mode.

    Raises:
        FadError: If nothing can be learned from a window of one round, whose loss is
            measured before its step.
    """
    if mode == "forward":
        return fad.estimators.forward(round, memory=memory)
    if lookahead < 2:
        raise fad.FadError(
            f"lookahead={lookahead}: expected at least 2 rounds in mode {mode!r}, as a "
            "round's loss is measured before its step. Give more, or use mode "
            "'forward', which looks back."
        )
    mode = "forward" if mode == "window" else mode
    return fad.estimators.reverse(round, mode=mode, levels=0)


def parts(call: str, cohort: fad.AtClients, key: Any, rounds: int) -> tuple[Any, Any]:
    """Return the cohorts and keys of a window: leaves ``[rounds, n / rounds, *]``.

    Raises:
        FadError: If the rounds do not divide the cohort.
    """
    n = cohort.num_clients
    if n % rounds:
        raise fad.FadError(
            f"{call}: cohort: lookahead={rounds} does not divide its {n} clients; each "
            "round of a step takes its own part of them. Make the cohort a multiple."
        )
    cohorts = jax.tree.map(
        lambda x: x.reshape(rounds, n // rounds, *x.shape[1:]), cohort
    )
    return cohorts, key[None] if rounds == 1 else jax.random.split(key, rounds)
