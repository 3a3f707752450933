"""Choosing a mode: plan all that apply, take the cheapest, and say why."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from types import ModuleType
from typing import Any

from fad._errors import FadError, PlanError
from fad.modes import forward, mixed, products, reverse
from fad.modes._arguments import Problem
from fad.plan._plan import Cost, plan

Objective = str | Mapping[str, float]
Constraints = Sequence[str] | Mapping[str, float]

MODES: dict[str, ModuleType] = {
    "forward": forward,
    "mixed": mixed,
    "mixed-products": products,
    "reverse": reverse,
}
# What counts first, and what decides between equals.
_ORDERS = {
    "rounds": ("rounds", "bytes", "client_flops", "client_state_bytes"),
    "bytes": ("bytes", "rounds", "client_flops", "client_state_bytes"),
    "client_flops": ("client_flops", "rounds", "bytes", "client_state_bytes"),
    "memory": ("client_state_bytes", "client_flops", "rounds", "bytes"),
}
_NAMED = {"stateless": {"client_state_bytes": 0}, "fresh_cohorts": {"same_cohort": 0}}
BALANCED = {"rounds": 1.0, "bytes_down": 1.0, "bytes_up": 1.0, "client_flops": 1.0}
_TIE = 0.05  # items this close, relatively, are equal: FLOPs are counted roughly


@dataclass(frozen=True)
class Candidate:
    """One way to differentiate: a mode, and whether clients recompute."""

    mode: str
    remat: bool

    def __str__(self) -> str:
        return f"{self.mode}, {'recompute' if self.remat else 'keep'}"


@dataclass(frozen=True)
class Choice:
    """What ``mode="auto"`` chose, and why.

    Attributes:
        candidate: The choice.
        cost: Its planned cost.
        costs: The planned cost of every candidate that applies.
        refused: Why the others do not apply, or which constraint they break.
        objective: What was minimised.
    """

    candidate: Candidate
    cost: Cost
    costs: dict[Candidate, Cost]
    refused: dict[Candidate, str]
    objective: Objective

    def __str__(self) -> str:
        lines = [f"{self.candidate}: the least {_objective_text(self.objective)} of"]
        for candidate, cost in self.costs.items():
            why = self.refused.get(candidate, "")
            lines.append(
                f"  {candidate!s:<25} rounds {cost.rounds}, "
                f"bytes {cost.bytes_down} down {cost.bytes_up} up, "
                f"client FLOPs {cost.client_flops}, state {cost.client_state_bytes} B"
                + (f"  ({why})" if why else "")
            )
        for candidate, why in self.refused.items():
            if candidate not in self.costs:
                lines.append(f"  {candidate!s:<25} does not apply: {why}")
        return "\n".join(lines)


def choose(
    task: Problem,
    *,
    objective: Objective,
    constraints: Constraints,
    mode: str = "auto",
    remat: bool | None = None,
    what: str = "grad",
) -> Choice:
    """Plan the derivative in each mode that applies, and take the cheapest.

    Raises:
        FadError: If the objective or a constraint is unknown.
        PlanError: If no candidate meets the constraints; the message names the one
            that is broken and the cheapest plan that breaks it.
    """
    bounds = _bounds(task.name, constraints)
    _check_objective(task.name, objective)
    try:
        primal = plan(task.fn)(task.chosen, task.rest).cost()
    except PlanError as error:
        raise PlanError(
            f"{task.name}: mode='auto' and constraints need a plan, and there is none: "
            f"{error} Or name a mode without constraints: mode='forward' or 'reverse'."
        ) from None
    costs, refused = {}, {}
    for candidate in _candidates(mode, remat):
        derivative = _derivative(candidate, task, what)
        try:
            costs[candidate] = plan(derivative)(task.chosen, task.rest).cost()
        except (TypeError, ValueError, NotImplementedError) as error:
            # The program itself was planned, so it is this mode that does not apply.
            refused[candidate] = (str(error) or repr(error)).splitlines()[0]
    ranked = sorted(costs, key=lambda c: _rank(costs[c], primal, objective))
    for candidate in ranked:
        broken = _broken(costs[candidate], bounds)
        if broken:
            refused[candidate] = broken
    allowed = [c for c in ranked if c not in refused]
    if not allowed:
        _refuse(task.name, ranked, costs, refused)
    best = _first_of_equals(allowed, costs, primal, objective)
    return Choice(best, costs[best], costs, refused, objective)


def _candidates(mode: str, remat: bool | None) -> list[Candidate]:
    """Return the candidates; of equals, an earlier one is taken."""
    both = [Candidate(m, True) for m in ("forward", "mixed", "mixed-products")]
    both += [Candidate("reverse", False), Candidate("reverse", True)]
    if remat is not None:
        both = [Candidate(m, remat) for m in MODES]
    return [c for c in both if mode in ("auto", c.mode)]


def _derivative(candidate: Candidate, task: Problem, what: str) -> Callable:
    def derivative(chosen: tuple, rest: Any) -> Any:
        here = task._replace(chosen=chosen, rest=rest)
        return getattr(MODES[candidate.mode], what)(here, remat=candidate.remat)[:2]

    return derivative


def _item(cost: Cost, name: str) -> float:
    if name == "bytes":
        return cost.bytes_down + cost.bytes_up
    return float(getattr(cost, name))


def _rank(cost: Cost, primal: Cost, objective: Objective) -> tuple[float, ...]:
    if isinstance(objective, str):
        return tuple(_item(cost, name) for name in _ORDERS[objective])
    return (
        sum(
            w * _item(cost, k) / max(_item(primal, k), 1) for k, w in objective.items()
        ),
    )


def _first_of_equals(ranked, costs, primal, objective) -> Candidate:
    best = _rank(costs[ranked[0]], primal, objective)

    if not isinstance(objective, str):
        return ranked[0]

    def ties(candidate: Candidate) -> bool:
        rank = _rank(costs[candidate], primal, objective)
        pairs = zip(rank, best, strict=True)
        return all(math.isclose(a, b, rel_tol=_TIE) for a, b in pairs)

    order = _candidates("auto", None)
    equals = [c for c in ranked if ties(c)]
    return min(equals, key=lambda c: order.index(c) if c in order else len(order))


def _bounds(call: str, constraints: Constraints) -> dict[str, float]:
    """Return the upper bounds that the constraints mean."""
    if isinstance(constraints, str):
        constraints = (constraints,)
    if isinstance(constraints, Mapping):
        _check_names(call, "constraints", constraints)
        return dict(constraints)
    bounds: dict[str, float] = {}
    for name in constraints:
        if name not in _NAMED:
            raise FadError(
                f"{call}: constraints={constraints!r}: unknown constraint {name!r}. "
                f"Known: {', '.join(_NAMED)}, or a dict of upper bounds such as "
                "{'rounds': 10}."
            )
        bounds.update(_NAMED[name])
    return bounds


def _check_objective(call: str, objective: Objective) -> None:
    if isinstance(objective, Mapping):
        return _check_names(call, "objective", objective)
    if objective not in _ORDERS:
        raise FadError(
            f"{call}: unknown objective {objective!r}. Known: {', '.join(_ORDERS)}, or "
            "a dict of weights such as {'rounds': 1, 'bytes': 2}."
        )
    return None


def _check_names(call: str, what: str, given: Mapping[str, float]) -> None:
    known = [f.name for f in fields(Cost)] + ["bytes"]
    for name in given:
        if name not in known:
            raise FadError(
                f"{call}: {what}={dict(given)!r}: unknown item {name!r}. "
                f"Known: {', '.join(known)}."
            )


def _broken(cost: Cost, bounds: dict[str, float]) -> str:
    over = [
        f"{name} {_item(cost, name):g} > {bound:g}"
        for name, bound in bounds.items()
        if _item(cost, name) > bound
    ]
    return ", ".join(over)


def _refuse(call, ranked, costs, refused) -> None:
    if not ranked:
        listing = "\n".join(f"  {c}: {why}" for c, why in refused.items())
        raise PlanError(f"{call}: no mode applies:\n{listing}")
    cheapest = ranked[0]
    raise PlanError(
        f"{call}: no mode meets the constraints. The cheapest plan is {cheapest}, and "
        f"it breaks {refused[cheapest]}: {costs[cheapest]}. Loosen that constraint, or "
        "change the program (fresh cohorts each round, fewer inputs)."
    )


def _objective_text(objective: Objective) -> str:
    if isinstance(objective, str):
        return objective
    return " + ".join(f"{w:g} {k}" for k, w in objective.items())
