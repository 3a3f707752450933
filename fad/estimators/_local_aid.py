"""Implicit differentiation with each client's own Hessian: one round, and biased."""

from typing import Any, NamedTuple

from fad.estimators._bilevel import Bilevel, Client, cohort_at, round_means
from fad.estimators._bilevel_record import Trust
from fad.estimators._hoist import hoist_if
from fad.estimators._itd import fold, lower_steps
from fad.estimators._linear_rounds import System
from fad.estimators._products import SecondOrder
from fad.estimators._vectors import add, norm
from fad.solvers import Solver


class LocalAid(NamedTuple):
    """One estimate, as a function that ``fad.plan`` can lay out.

    Client i solves ``H_i v_i = grad_y f_i`` and answers ``grad_x f_i - J_i v_i``. The
    mean of these is not the hypergradient where clients differ, however many terms.
    """

    problem: Bilevel
    solver: Solver
    steps: int
    system: System
    second: SecondOrder
    keep: bool

    def __call__(self, x: Any, state: Any, cohorts: Any, key: Any) -> Any:
        problem, t = self.problem, self.steps
        fixed, kept = hoist_if(self.keep, problem, x, state.y, cohorts)
        y, memory = lower_steps(fixed, self.solver, x, state, kept, key, range(t))

        def work(client: Client) -> Any:
            value, (f_x, b) = client.f_xy(x, y)

            def product(v: Any, j: Any) -> Any:
                del j
                return self.second.hessian(client, x, y, v)

            v, trust = self.system.run(product, b, state.v, key)
            answer = add(f_x, self.second.cross(client, x, y, v), -1)
            return client.g_y(x, y), (value, answer, v, trust.linear)

        q, (value, gradient, v, linear) = round_means(
            problem, work, cohort_at(cohorts, t), fold(key, t)
        )
        trust = Trust(lower=norm(q), linear=linear)
        return value, gradient, state._replace(y=y, memory=memory, v=v), trust
