"""What a solver is: two pure functions and the rounds of a step."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from fad.local import Batches
from fad.placement import AtClients, program
from fad.solvers._checks import check_cohort, check_y

Loss = Callable[..., jax.Array]


class Solver(NamedTuple):
    """A federated minimiser of ``mean_i g_i(y)``, as a record of pure functions.

    ``g_i(y)`` is the mean of ``loss(y, examples) -> [batch]`` over client i's real
    rows. ``init(y, cohort) -> memory`` begins. ``step(loss, y, memory, cohort, key) ->
    (y, memory)`` is one iteration over ``cohort: AtClients[Batches]``, a fad program of
    ``rounds`` rounds. Where ``key`` is not None the loss is ``loss(y, examples, key)``,
    with keys of the client's own (``fad.local.client_key``). A step is differentiable
    in y, in the step size, in the examples, and in what ``loss`` closes over.

    A solver that is *exact* stays at the minimiser of the cohort's mean loss, if that
    takes no key, however clients' data and numbers of steps differ; others have a fixed
    point of their own. ``svrg``, ``fedlin`` and ``gradient_descent`` are exact;
    ``scaffold`` is where each local step sees all of a client's rows; ``fedavg`` is
    not. In padded rows, numbers that are not finite are taken as 0.

    Example:
        >>> import jax.numpy as jnp, fad
        >>> examples, mask = jnp.array([[[1.0]], [[3.0]]]), jnp.full((2, 1, 1), True)
        >>> cohort = fad.AtClients(fad.local.Batches(examples, mask, jnp.arange(2)))
        >>> solver = fad.solvers.gradient_descent(0.25)
        >>> y = jnp.array(0.0)
        >>> memory = solver.init(y, cohort)
        >>> square = lambda y, examples: (y - examples) ** 2
        >>> y, memory = solver.step(square, y, memory, cohort, None)
        >>> float(y), solver.rounds
        (1.0, 1)
    """

    init: Callable[[Any, AtClients[Batches]], Any]
    step: Callable[[Loss, Any, Any, AtClients[Batches], Any], tuple[Any, Any]]
    rounds: int


def make(call: str, iterate: Callable[..., Any], *, rounds: int) -> Solver:
    """Return the solver without memory of ``iterate(loss, y, cohort, key) -> y``."""

    def carry(loss: Loss, y: Any, memory: Any, cohort: Any, key: Any) -> Any:
        return iterate(loss, y, cohort, key), memory

    return make_with_memory(call, lambda y, cohort: None, carry, rounds=rounds)


def make_with_memory(
    call: str, begin: Callable[..., Any], iterate: Callable[..., Any], *, rounds: int
) -> Solver:
    """Return the solver of these functions with its arguments checked."""
    begin, iterate = program(begin), program(iterate)

    def init(y: Any, cohort: Any) -> Any:
        where = f"{call}: init(y, cohort)"
        cohort = check_cohort(where, cohort)
        return begin(check_y(where, y), cohort)

    def step(loss: Loss, y: Any, memory: Any, cohort: Any, key: Any) -> Any:
        where = f"{call}: step(loss, y, memory, cohort, key)"
        cohort = check_cohort(where, cohort)
        return iterate(loss, check_y(where, y), memory, cohort, key)

    return Solver(init, step, rounds)
