"""Aggregated iterative differentiation: a hypergradient as the lower level runs."""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from fad._errors import FadError, nearest
from fad.estimators._bilevel import (
    Bilevel,
    Client,
    check_problem,
    cohort_at,
    round_means,
)
from fad.estimators._bilevel_record import BilevelEstimator, Trust, make_estimator
from fad.estimators._checks import check_count
from fad.estimators._hoist import hoist_if
from fad.estimators._itd import fold
from fad.estimators._vectors import add, dot, norm, times, zeros
from fad.solvers import corrected_round
from fad.solvers._checks import check_lr, check_passes

_FORMS = ("sum", "random")


class State(NamedTuple):
    """The lower variable."""

    y: Any


def aggitd(
    problem: Bilevel,
    *,
    steps: int,
    lr: Any,
    passes: int = 1,
    step: Any = None,
    form: Literal["sum", "random"] = "sum",
    keep: bool = False,
) -> BilevelEstimator:
    """Carry the hypergradient's vector along the lower level's own rounds.

    The lower level is N steps of FedSVRG from ``y^0``, two rounds each. With the first
    of the two, clients send what the vector needs, at the same y:

    * ``sum``: ``P <- P - step (H(y^t) P - grad_y f(x, y^t))`` from ``P = 0``. It is the
      forward-mode derivative by e, at e = 0, of the lower level's gradient steps on
      ``g - e f``: a gradient of the program, without a round of its own.
    * ``random``: the paper's. For one Q, uniform among the N steps, ``Z = N step
      grad_y f(x, y^Q)`` and then ``Z <- Z - step H(y^t) Z``. Its mean over Q is P.

    One more round gives ``grad_x f - J P`` at ``y^N``: 2N + 1 rounds in all, against
    2N + N' + 2 of FedNest with N' products.

    The full text of the paper was not at hand; the recursion is rebuilt from its
    abstract and from FedNest's parts.

    Args:
        problem: The problem.
        steps: N, at least 1.
        lr: The clients' step in the lower level, one per batch; a number or ``[]``.
        passes: How often clients go through their batches in a step, at least 1.
        step: The recursion's step: ``lr`` times the batches of all passes without it,
            which is how far a client's local steps go.
        form: ``"sum"`` or ``"random"``.
        keep: Whether the clients keep what of their lower losses does not depend on y
            (``fad.estimators.hoist``): faster, for memory.

    Returns:
        The estimator; its ``state`` is ``(y,)``.

    Raises:
        FadError: If an option is unknown or out of range; when called, as
            ``fad.estimators.itd``, or if ``random`` gets no key.

    Example:
        >>> import jax, jax.numpy as jnp, fad
        >>> data = fad.data.Quadratics.random(4, lower_size=3, upper_size=2, seed=0)
        >>> problem, cohorts = fad.data.quadratic_problem(data)
        >>> estimator = fad.estimators.aggitd(problem, steps=100, lr=0.5)
        >>> x, y = jnp.ones(2), jnp.zeros(3)
        >>> state = estimator.init(x, y, jax.tree.map(lambda a: a[0], cohorts))
        >>> estimate = estimator.estimate(x, state, cohorts, None)
        >>> bool(jnp.allclose(estimate.hypergradient, data.hypergradient(x), atol=1e-2))
        True
        >>> estimate.report.rounds
        201

    References:
        Xiao and Ji, "Communication-efficient federated hypergradient computation via
        aggregated iterative differentiation", ICML 2023.
    """
    call = "fad.estimators.aggitd"
    check_problem(call, problem)
    steps = check_count(call, "steps", steps, least=1)
    lr, passes = check_lr(call, "lr", lr), check_passes(call, passes)
    step = None if step is None else check_lr(call, "step", step)
    if form not in _FORMS:
        raise FadError(
            f"{call}: unknown form {form!r}. {nearest(str(form), _FORMS, 'forms')}"
        )
    return make_estimator(
        call,
        lambda x, y, cohort: State(y),
        _AggItd(problem, steps, lr, passes, step, form, keep),
        target="bilevel",
        bias=f"that of y after {steps} steps, and of P, which follows it",
        draws=steps + 1,
        second_order=steps + 1,
    )


class _AggItd(NamedTuple):
    """One estimate, as a function that ``fad.plan`` can lay out."""

    problem: Bilevel
    steps: int
    lr: Any
    passes: int
    step: Any
    form: str
    keep: bool

    def __call__(self, x: Any, state: State, cohorts: Any, key: Any) -> Any:
        if self.form == "random" and key is None:
            raise FadError(
                "fad.estimators.aggitd: form='random' draws a step and needs a key, "
                "such as jax.random.key(0); got None."
            )
        chosen = jnp.array(0)
        if self.form == "random":
            own = jax.random.fold_in(key, 2**31 - 1)
            chosen = jax.random.randint(own, (), 0, self.steps)

        fixed, kept = hoist_if(self.keep, self.problem, x, state.y, cohorts)
        at_x = self._replace(problem=fixed)

        def one(carry: Any, t: jax.Array) -> tuple[Any, None]:
            return at_x._step(x, carry, chosen, cohort_at(kept, t), t, key), None

        start = (state.y, zeros(state.y))
        (y, p), _ = jax.lax.scan(one, start, jnp.arange(self.steps))

        def answer(client: Client) -> Any:
            value, (f_x, _) = client.f_xy(x, y)
            return (client.g_y(x, y), client.cross(x, y, p)), (value, f_x)

        last, own = cohort_at(cohorts, self.steps), fold(key, self.steps)
        (q, jp), (value, f_x) = round_means(self.problem, answer, last, own)
        trust = Trust(lower=norm(q), unfinished=-dot(p, q))
        return value, add(f_x, jp, -1), State(y), trust

    def _step(
        self, x: Any, carry: Any, chosen: Any, cohort: Any, t: Any, key: Any
    ) -> tuple[Any, Any]:
        """Take one step of FedSVRG, and one of the vector."""
        problem, (y, p) = self.problem, carry
        own = fold(key, t) if problem.random else None

        def first(client: Client) -> Any:
            lower = client.g_y(x, y), client.hessian(x, y, p)
            return lower, client.f_xy(x, y)[1][1]

        (q, hp), b = round_means(problem, first, cohort, own)
        batches = jax.tree.leaves(cohort.lower.mask)[0].shape[1]
        step = self.lr * batches * self.passes if self.step is None else self.step
        if self.form == "sum":
            p = add(p, add(hp, b, -1), -step)
        else:
            begin = times(jnp.where(t == chosen, self.steps * step, 0.0), b)
            p = add(add(p, hp, -step), begin)

        def loss(y: Any, *examples: Any) -> jax.Array:
            return problem.lower(x, y, *examples)

        options = {"weighting": problem.weighting, "passes": self.passes}
        return corrected_round(loss, y, q, cohort.lower, own, lr=self.lr, **options), p
