"""Where solvers go on heterogeneous quadratics, by closed forms in double precision."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fad
from fad.data import Quadratics
from tests.solvers.programs import (
    EXACT,
    LR,
    MASK,
    SOLVERS,
    Row,
    hard_cohort,
    hard_rows,
    loss_of,
    run,
    whole_clients,
)

pytestmark = [pytest.mark.usefixtures("x64"), pytest.mark.once]
X = np.array([0.5, -1.0])
Y0 = np.array([1.0, -2.0, 0.5])
TAU = 5


def _data(clients=4):
    return Quadratics.random(clients, lower_size=3, upper_size=2, mu=0.2, L=1.0, seed=3)


def _run(name, data, taus, steps, lr=LR, y=Y0, x=X):
    cohort = whole_clients(data, taus)
    program = jax.jit(lambda x, y: run(SOLVERS[name](lr), x, y, cohort, steps=steps)[0])
    return program(jnp.asarray(x), jnp.asarray(y))


def _contraction(data, taus, lr):
    """Return what a step of corrected rounds multiplies the distance to y* by."""
    one = np.eye(data.clients.a.shape[1])
    taken = [
        np.linalg.solve(A, one - np.linalg.matrix_power(one - own * A, tau))
        for A, tau, own in zip(data.clients.A, taus, lr, strict=True)
    ]
    return one - np.mean(taken, axis=0) @ data.mean.A


@pytest.mark.parametrize("name", EXACT)
def test_exact_solvers_reach_the_minimiser_linearly(name):
    data, solver = _data(), SOLVERS[name](LR)
    cohort = whole_clients(data, [TAU] * 4)
    loss, y = loss_of(jnp.asarray(X)), jnp.asarray(Y0)

    @jax.jit
    def twenty(y, memory):
        def once(carry, _):
            return solver.step(loss, carry[0], carry[1], cohort, None), None

        return jax.lax.scan(once, (y, memory), length=20)[0]

    carry, errors = (y, solver.init(y, cohort)), []
    for _ in range(15):
        carry = twenty(*carry)
        errors.append(np.abs(carry[0] - data.solution(X)).max())
    assert errors[-1] < 1e-10
    shrinks = [b < 0.5 * a for a, b in itertools.pairwise(errors) if a > 1e-12]
    assert len(shrinks) > 0
    assert all(shrinks)


@pytest.mark.parametrize("weighting", ["uniform", "examples"])
@pytest.mark.parametrize("name", ["svrg", "fedlin", "gradient_descent"])
def test_minibatches_leave_these_exact(name, weighting):
    y = _run_hard(name, weighting)
    np.testing.assert_allclose(y, _hard_solution(weighting), atol=1e-10)


@pytest.mark.parametrize("name", ["scaffold I", "scaffold II"])
def test_minibatches_leave_scaffold_near_the_minimiser(name):
    star = _hard_solution("uniform")
    distance = np.abs(_run_hard(name, "uniform") - star).max()
    drift = np.abs(_run_hard("fedavg", "uniform") - star).max()
    assert 1e-3 < distance < drift


def _run_hard(name, weighting):
    solver, cohort = SOLVERS[name](LR, weighting=weighting), hard_cohort()
    program = jax.jit(lambda x, y: run(solver, x, y, cohort, steps=800)[0])
    return program(jnp.asarray(X), jnp.asarray(Y0))


def _hard_solution(weighting):
    """Return the minimiser of the mean loss of clients with several rows."""
    share = MASK / np.maximum(MASK.sum((1, 2), keepdims=True), 1)
    share = MASK if weighting == "examples" else share
    rows = jax.tree.map(np.nan_to_num, hard_rows())
    mean = Row(*(np.tensordot(share / share.sum(), v, 3) for v in rows))
    return -np.linalg.solve(mean.A, mean.C @ X + mean.a)


@pytest.mark.parametrize("taus", [[TAU] * 4, [1, 7, 2, 4]])
@pytest.mark.parametrize("name", ["svrg", "fedlin"])
def test_corrected_rounds_contract_as_the_closed_form_says(name, taus):
    data, steps = _data(), 6
    lr = [LR / tau if name == "fedlin" else LR for tau in taus]
    factor = np.linalg.matrix_power(_contraction(data, taus, lr), steps)
    star = data.solution(X)
    y = _run(name, data, taus, steps)
    np.testing.assert_allclose(y, star + factor @ (Y0 - star), atol=1e-10)


def test_fedavg_stalls_at_its_own_fixed_point():
    data = _data()
    y = _run("fedavg", data, [TAU] * 4, 200)
    own = data.fedavg_fixed_point(X, steps=TAU, lr=LR)
    np.testing.assert_allclose(y, own, atol=1e-10)
    assert np.abs(y - data.solution(X)).max() > 1e-2
    np.testing.assert_allclose(
        _run("fedavg", data, [TAU] * 4, 3),
        data.fedavg(X, Y0, rounds=3, steps=TAU, lr=LR),
        atol=1e-10,
    )


def test_the_derivative_by_x_tends_to_each_solvers_own_truth():
    data = _data()
    by_x = lambda name: jax.jacobian(  # noqa: E731
        lambda x: _run(name, data, [TAU] * 4, 400, x=x)
    )(jnp.asarray(X))
    mean = data.mean
    np.testing.assert_allclose(
        by_x("svrg"), -np.linalg.solve(mean.A, mean.C), atol=1e-10
    )
    zero = data.fedavg_fixed_point(np.zeros(2), steps=TAU, lr=LR)
    columns = [data.fedavg_fixed_point(e, steps=TAU, lr=LR) - zero for e in np.eye(2)]
    np.testing.assert_allclose(by_x("fedavg"), np.stack(columns, 1), atol=1e-10)


@pytest.mark.parametrize("name", EXACT)
def test_unequal_numbers_of_steps_leave_exact_solvers_exact(name):
    data = _data()
    y = _run(name, data, [1, 7, 2, 4], 800)
    np.testing.assert_allclose(y, data.solution(X), atol=1e-10)


def test_unequal_numbers_of_steps_move_fedavg():
    data, taus = _data(), [1, 7, 2, 4]
    y = _run("fedavg", data, taus, 400)
    assert np.abs(y - data.solution(X)).max() > 1e-2


def test_many_steps_at_flat_clients_drive_svrg_apart_and_not_fedlin():
    # One steep client of one step, one flat client of 50.
    data, taus, lr = _scalar_clients([1.0, 0.1]), [1, 50], 0.5
    x, y = np.zeros(1), np.array([3.0])
    svrg = _contraction(data, taus, [lr, lr])
    fedlin = _contraction(data, taus, [lr, lr / 50])
    assert abs(svrg).item() > 1 > abs(fedlin).item()
    star = data.solution(x)
    away = _run("svrg", data, taus, 20, lr=lr, y=y, x=x)
    assert abs(away - star).item() > 1e3
    near = _run("fedlin", data, taus, 200, lr=lr, y=y, x=x)
    np.testing.assert_allclose(near, star, atol=1e-10)
    # At the minimiser svrg stays too: what is wrong is its step, not its fixed point.
    stays = _run("svrg", data, taus, 1, lr=lr, y=star, x=x)
    np.testing.assert_allclose(stays, star, atol=1e-10)


def _scalar_clients(curvatures):
    n = len(curvatures)
    clients = Quadratics.random(n, lower_size=1, upper_size=1, seed=0).clients
    return Quadratics(clients._replace(A=np.array(curvatures).reshape(n, 1, 1)))


@pytest.mark.parametrize("name", SOLVERS)
def test_one_client_alone_reaches_its_minimiser(name):
    data = _data(1)
    y = _run(name, data, [TAU], 400)
    np.testing.assert_allclose(y, data.solution(X), atol=1e-10)


def test_one_client_alone_needs_no_correction():
    data = _data(1)
    alone = data.fedavg(X, Y0, rounds=3, steps=TAU, lr=LR)
    np.testing.assert_allclose(_run("svrg", data, [TAU], 3), alone, atol=1e-10)
    np.testing.assert_allclose(_run("scaffold II", data, [TAU], 3), alone, atol=1e-10)


def test_scaffold_keeps_the_mean_of_the_control_variates_at_the_server():
    data, x, y = _data(), jnp.asarray(X), jnp.asarray(Y0)
    cohort = whole_clients(data, [1, 7, 2, 4])
    solver = fad.solvers.scaffold(LR)
    y, memory = jax.jit(lambda y: run(solver, x, y, cohort, steps=800))(y)
    mine = memory.clients.unsafe_gather()
    np.testing.assert_allclose(memory.server, mine.mean(0), atol=1e-12)
    own = data.clients.A @ y + data.clients.C @ X + data.clients.a
    np.testing.assert_allclose(mine, own, atol=1e-10)


def test_the_first_corrected_step_goes_along_q():
    data = _data()
    y, q = jnp.asarray(Y0), jnp.array([1.0, 2.0, -1.0])
    once = lambda q, taus: fad.solvers.corrected_round(  # noqa: E731
        loss_of(jnp.asarray(X)), y, q, whole_clients(data, taus), None, lr=LR
    )
    np.testing.assert_allclose(once(q, [1] * 4), y - LR * q, atol=1e-12)
    np.testing.assert_allclose(once(0 * q, [1, 7, 2, 4]), y, atol=1e-12)
