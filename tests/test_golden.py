"""Golden values: what the FAD papers' own tests and tutorial give.

Rush et al., Federated Automatic Differentiation, JMLR 25, 2024, and Rush et al., DrJAX,
2024: small programs whose values are known.
"""

import jax
import jax.numpy as jnp
import pytest

import fad
from tests import jaxprs
from tests.subjects import assert_same, gather

N = 100
JACOBIANS = {"fwd": jax.jacfwd, "rev": jax.jacrev}
both_modes = pytest.mark.parametrize("jacobian", JACOBIANS.values(), ids=JACOBIANS)

broadcast = fad.program(fad.broadcast, clients=N)
total = fad.program(fad.sum, clients=N)
mean = fad.program(fad.mean, clients=N)
ONES = fad.AtClients(jnp.ones((N, 1)))
ROWS = fad.AtClients(jnp.array([[2, 0], [-1, 2]]))
SLICES = fad.AtClients(jnp.array([[1.0, 2.0], [4.0, 8.0]]))
# Which of three rows stands at each client's two places.
NAMED = jnp.array([[[0.0, 0, 1], [1, 0, 0]], [[0, 0, 0], [0, 0, 1]]])
select = fad.program(lambda x: fad.select(x, ROWS), clients=2)
deselect = fad.program(lambda y: fad.deselect(y, ROWS, jnp.zeros(3)))


def _close(actual, expected):
    assert_same(gather(actual), expected, tol=1e-6)


def test_broadcast():
    _close(broadcast(jnp.array(1.0)), jnp.ones(N))
    _close(jax.jit(broadcast)(jnp.array(1.0)), jnp.ones(N))


@both_modes
def test_jacobian_of_broadcast(jacobian):
    _close(jacobian(broadcast)(jnp.array(1.0)), jnp.ones(N))


def test_sum_and_mean():
    _close(total(ONES), jnp.array([100.0]))
    _close(mean(ONES), jnp.array([1.0]))


@both_modes
def test_jacobian_of_sum(jacobian):
    _close(jacobian(total)(ONES), jnp.ones((1, N, 1)))


@both_modes
def test_jacobian_of_mean(jacobian):
    _close(jacobian(mean)(ONES), jnp.full((1, N, 1), 1 / N))


@both_modes
def test_jacobians_of_select_and_deselect(jacobian):
    _close(select(jnp.arange(3.0)), jnp.array([[2.0, 0.0], [0.0, 2.0]]))
    _close(deselect(SLICES), jnp.array([2.0, 0.0, 9.0]))
    _close(jacobian(select)(jnp.arange(3.0)), NAMED)
    _close(jacobian(deselect)(SLICES), jnp.moveaxis(NAMED, 2, 0))


@both_modes
@pytest.mark.parametrize(("fn", "expected"), [(fad.sum, 100.0), (fad.mean, 1.0)])
def test_jacobian_of_an_aggregate_of_a_broadcast(jacobian, fn, expected):
    program = fad.program(lambda x: fn(fad.broadcast(x)), clients=N)
    _close(jacobian(program)(jnp.array([1.0])), jnp.array([[expected]]))


# What the derivative of each, in each mode, must contain.
CLOSURE = [
    (jax.jacfwd, broadcast, jnp.array(1.0), "fad_broadcast"),
    (jax.jacrev, broadcast, jnp.array(1.0), "fad_sum"),
    (jax.jacfwd, total, ONES, "fad_sum"),
    (jax.jacrev, total, ONES, "fad_broadcast"),
    (jax.jacfwd, mean, ONES, "fad_sum"),  # the mean is a sum over n
    (jax.jacrev, mean, ONES, "fad_broadcast"),
    (jax.jacfwd, select, jnp.zeros(3), "fad_select"),
    (jax.jacrev, select, jnp.zeros(3), "fad_deselect"),
    (jax.jacfwd, deselect, SLICES, "fad_deselect"),
    (jax.jacrev, deselect, SLICES, "fad_select"),
]


@pytest.mark.parametrize(("jacobian", "program", "x", "primitive"), CLOSURE)
def test_closure_under_fad(jacobian, program, x, primitive):
    found = jaxprs.equations(jaxprs.trace(jacobian(program), x))
    assert primitive in {e.primitive.name for e in found}


@pytest.mark.parametrize(
    ("program", "x", "expected"),
    [
        (broadcast, jnp.array(1.0), jnp.ones(N)),
        (total, ONES, jnp.ones((1, N, 1))),
        (mean, ONES, jnp.full((1, N, 1), 1 / N)),
        (select, jnp.zeros(3), NAMED),
        (deselect, SLICES, jnp.moveaxis(NAMED, 2, 0)),
    ],
    ids=["broadcast", "sum", "mean", "select", "deselect"],
)
def test_symbolic_zero_cotangents(program, x, expected):
    twice = jax.jit(lambda v: (program(v), program(v)))
    once = jax.jit(lambda v: twice(v)[0])
    _close(jax.jacrev(once)(x), expected)


@pytest.mark.parametrize(
    ("clients", "threshold", "expected"), [(100, 24, 0.75), (20, 3, 0.8)]
)
def test_share_over_a_threshold(clients, threshold, expected):
    @fad.program
    def share(threshold, values):
        over = lambda t, v: jax.lax.cond(v > t, lambda: 1.0, lambda: 0.0)  # noqa: E731
        return fad.mean(fad.map(over, fad.broadcast(threshold), values))

    values = fad.AtClients(jnp.arange(clients))
    _close(share(threshold, values), jnp.asarray(expected))


X = jnp.array([2.0, -1.0])
Y = fad.AtClients(jnp.array([[1.0, 2.0], [3.0, -4.0], [-7.0, 6.0]]))


@fad.program
def federated_eval(x, y):
    loss = lambda p, d: 0.5 * (jnp.vdot(p, d) - 1) ** 2  # noqa: E731
    return fad.mean(fad.map(loss, fad.broadcast(x), y))


def test_federated_evaluation():
    assert federated_eval(X, Y) == pytest.approx(87.16667)


@both_modes
def test_gradient_of_federated_evaluation(jacobian):
    expected = pytest.approx([57.666668, -54.666668])
    assert jacobian(federated_eval)(X, Y).tolist() == expected


def test_one_step_of_federated_sgd():
    step = X - 0.01 * jax.grad(federated_eval)(X, Y)
    assert federated_eval(step, Y) == pytest.approx(35.55125, rel=1e-6)
