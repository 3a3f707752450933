"""Online forward mode: the tangent of the inner state goes from window to window."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fad._strong import strong
from fad.estimators._checks import (
    all_finite,
    check_fraction,
    check_theta,
    checked,
    window_length,
)
from fad.estimators._estimator import Estimate, Estimator, Round
from fad.estimators._window import begin, first_bad, follow
from fad.modes._basis import basis, is_real, split_rows
from fad.placement import remat_in_scope
from fad.primitives._client_work import merge, pick, skip


class Carry(NamedTuple):
    """The inner state, and its real leaves' derivatives by theta, ``[q, *s]`` each."""

    state: Any
    tangent: list[jax.Array]


def forward(round: Round, *, memory: float = 1.0) -> Estimator:
    """Differentiate a run in forward mode, as it goes.

    Each round sends the inner state with its ``q`` tangents, one per number in theta,
    and clients answer in kind. No round is added and no client comes back; traffic is
    at most ``1 + q`` times the rounds' own, and so is the work. Memory does not depend
    on the window.

    With ``memory=1`` the gradient is exact through the whole run since ``init``,
    whatever the windows. (While theta changes from window to window, it is the
    derivative by a change of theta in all of them.) Below 1 the effect that theta had
    ``r`` rounds before a loss counts ``memory**r``, which keeps tangents from
    exploding; with 0 a loss holds only its own round to account.

    Args:
        round: ``round(theta, state, cohort, key) -> (state, loss)``, a ``fad.program``;
            the loss is what the gradient is of. Leaves of the state that are no real
            numbers (counts, keys) are carried along.
        memory: How far back theta is held to account, in [0, 1].

    Returns:
        The estimator.

    Raises:
        FadError: If memory is outside [0, 1]; when called, if theta is not real, the
            loss no scalar, or the window's cohorts and keys differ in length.

    Example:
        >>> import jax, jax.numpy as jnp, fad
        >>> @fad.program
        ... def round(lr, w, cohort, key):
        ...     w = w - lr * fad.mean(fad.map(lambda x: w - x, cohort))
        ...     return w, fad.mean(fad.map(lambda x: (w - x) ** 2, cohort))
        >>> estimator = fad.estimators.forward(round)
        >>> cohorts = fad.AtClients(jnp.ones((1, 3)))  # windows of one round
        >>> carry, keys = estimator.init(0.5, jnp.zeros(()), None), jnp.zeros(1)
        >>> for _ in range(2):
        ...     estimate = estimator.estimate(0.5, carry, cohorts, keys)
        ...     carry = estimate.carry
        >>> float(estimate.value), float(estimate.gradient)  # d (1 - lr)^4 / d lr
        (0.0625, -0.5)

    References:
        Williams and Zipser, "A learning algorithm for continually running fully
        recurrent neural networks", Neural Computation 1989 (real-time recurrent
        learning); Rush et al., Federated Automatic Differentiation, JMLR 25, 2024.
    """
    call = "fad.estimators.forward"
    memory = check_fraction(f"{call}(memory=...)", "memory", memory)
    run_round = checked(call, round)

    def init(theta: Any, state: Any, key: Any) -> Carry:
        del key
        theta, state = check_theta(call, theta), jax.tree.map(strong, state)
        q = sum(x.size for x in jax.tree.leaves(theta))
        real = [x for x in jax.tree.leaves(state) if is_real(x)]
        return Carry(state, [jnp.zeros((q, *x.shape), x.dtype) for x in real])

    def estimate(theta: Any, carry: Carry, cohorts: Any, keys: Any) -> Estimate:
        theta = check_theta(call, theta)
        window_length(call, cohorts, keys)
        directions = basis(theta)

        def step(carried, inputs):
            run, tangent = carried
            new, loss, tangent, slope = _push(
                run_round, theta, directions, Carry(run.state, tangent), inputs
            )
            run, ok = follow(run, new, loss)
            return (run, [memory * t for t in tangent]), (loss, slope, ok)

        start = (begin(carry.state), carry.tangent)
        (run, tangent), ys = jax.lax.scan(step, start, (cohorts, keys))
        losses, slopes, ok = ys
        gradient = jax.tree.map(
            lambda g, x: g.astype(x.dtype), split_rows(slopes.mean(0), theta), theta
        )
        after = Carry(run.state, tangent)
        finite = all_finite((losses, gradient, after))
        value = losses.mean()
        return Estimate(value, gradient, after, finite, first_bad(ok), run.last)

    return Estimator(init, estimate, _bias(memory))


def _push(
    round: Round, theta: Any, directions: Any, carry: Carry, inputs: Any
) -> tuple[Any, jax.Array, list[jax.Array], jax.Array]:
    """Run a round with ``q`` tangents: new state, loss, and tangents of both."""
    leaves, treedef = jax.tree.flatten(carry.state)
    real = [is_real(x) for x in leaves]

    def of_real(theta, moving):
        state = treedef.unflatten(merge(real, moving, skip(real, leaves)))
        new, loss = round(theta, state, *inputs)
        outs = jax.tree.leaves(new)
        return (pick(real, outs), loss), skip(real, outs)

    def push(*tangents):
        return jax.jvp(of_real, (theta, pick(real, leaves)), tangents, has_aux=True)

    with remat_in_scope(True):
        (moved, loss), (tangent, slope), rest = jax.vmap(
            push, out_axes=(None, 0, None)
        )(directions, carry.tangent)
    return treedef.unflatten(merge(real, moved, rest)), loss, tangent, slope


def _bias(memory: float) -> str:
    if memory == 1:
        return "none: the gradient of the window's mean loss through the whole run"
    return (
        f"short horizon: theta's effect r rounds before a loss counts {memory:g}**r of "
        "the gradient through the whole run"
    )
