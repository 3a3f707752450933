import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

import fad
from fad.data import Quadratic, Quadratics

P, Q, LR = 6, 3, 0.5
make = functools.partial(Quadratics.random, lower_size=P, upper_size=Q, seed=0)


@pytest.fixture(scope="module")
def data():
    return make(5)


@pytest.fixture(scope="module")
def x():
    return np.random.default_rng(1).normal(size=Q)


@pytest.fixture(scope="module")
def y0():
    return np.random.default_rng(2).normal(size=P)


def slope(function, x, step=1e-4):
    """Central differences; without error but rounding for a quadratic."""
    unit = step * np.eye(len(x))
    return np.array([(function(x + e) - function(x - e)) / (2 * step) for e in unit])


def error(got, want):
    return np.linalg.norm(got - want) / np.linalg.norm(want)


def local_steps(own, x, y, steps):
    def step(y, _):
        return y - LR * jax.grad(own.lower, argnums=1)(x, y), None

    return jax.lax.scan(step, y, None, length=steps)[0]


def rounds_of(one_round, y, rounds, last):
    """Run rounds, those before the last ones without their derivative."""
    y, _ = jax.lax.scan(one_round, y, None, length=rounds - last)
    y, _ = jax.lax.scan(one_round, jax.lax.stop_gradient(y), None, length=last)
    return y


@fad.program
def federated(x, y0, clients, rounds, steps, last):
    """Return the mean upper loss after federated averaging, written with fad."""

    def one_round(y, _):
        local = fad.map(lambda own: local_steps(own, x, y, steps), clients)
        return fad.mean(local), None

    y = rounds_of(one_round, y0, rounds, last)
    return fad.mean(fad.map(lambda own: own.upper(x, y), clients))


def plain(x, y0, clients, rounds, steps, last):
    """Return the same without fad."""

    def one_round(y, _):
        local = jax.vmap(lambda own: local_steps(own, x, y, steps))(clients)
        return local.mean(axis=0), None

    y = rounds_of(one_round, y0, rounds, last)
    return jax.vmap(lambda own: own.upper(x, y))(clients).mean()


RUNS = [(0, 5, 0), (4, 5, 4), (4, 5, 1), (4, 0, 4)]  # rounds, steps, last


@pytest.mark.once
@pytest.mark.parametrize(("rounds", "steps", "last"), RUNS)
@pytest.mark.parametrize("clients", [1, 5])
def test_fedavg_hypergradient_is_that_of_fad_and_of_jax(
    clients, rounds, steps, last, x, y0, x64
):
    data = make(clients)
    exact = data.fedavg_hypergradient(
        x, y0, rounds=rounds, steps=steps, lr=LR, last=last
    )
    args, static = (jnp.asarray(x), jnp.asarray(y0)), (rounds, steps, last)
    at_clients = data.at_clients()
    with_fad = jax.jit(jax.grad(lambda x, y0: federated(x, y0, at_clients, *static)))
    stacked = jax.tree.map(jnp.asarray, data.clients)
    with_jax = jax.jit(jax.grad(lambda x, y0: plain(x, y0, stacked, *static)))
    for gradient in (with_fad(*args), with_jax(*args)):
        assert gradient.dtype == jnp.float64
        np.testing.assert_allclose(gradient, exact, rtol=1e-10, atol=1e-12)


def test_modes_of_fad_give_the_exact_hypergradient(data, x, y0, x64):
    exact = data.fedavg_hypergradient(x, y0, rounds=3, steps=2, lr=LR)

    @fad.program
    def loss(x, clients):
        return federated(x, jnp.asarray(y0), clients, 3, 2, 3)

    for mode in ("forward", "reverse"):
        gradient = fad.grad(loss, mode=mode)(jnp.asarray(x), data.at_clients())
        np.testing.assert_allclose(gradient, exact, rtol=1e-10)


@pytest.mark.once
def test_losses_have_the_right_derivatives(data, x, y0, x64):
    client = Quadratic(*(jnp.asarray(array[0]) for array in data.clients))
    for loss in (client.lower, client.upper):
        check_grads(jax.jit(loss), (jnp.asarray(x), jnp.asarray(y0)), order=2)
    by_hand = client.A @ y0 + client.C @ x + client.a
    np.testing.assert_allclose(jax.grad(client.lower, 1)(x, y0), by_hand, rtol=1e-12)


def test_the_program_has_the_right_derivatives(data, x, y0, x64):
    clients = data.at_clients()

    def loss(x):
        return federated(x, jnp.asarray(y0), clients, 2, 3, 2)

    check_grads(jax.jit(loss), (jnp.asarray(x),), order=1)


def test_the_mean_is_the_mean_of_the_losses(data, x, y0):
    for name in ("lower", "upper"):
        losses = [
            getattr(Quadratic(*(array[i] for array in data.clients)), name)(x, y0)
            for i in range(data.num_clients)
        ]
        assert getattr(data.mean, name)(x, y0) == pytest.approx(np.mean(losses))


def test_the_solution_has_zero_mean_gradient(data, x):
    mean, y = data.mean, data.solution(x)
    np.testing.assert_allclose(mean.A @ y + mean.C @ x + mean.a, 0, atol=1e-12)


def test_the_single_level_solution(data):
    y = data.solution(np.zeros(Q))
    np.testing.assert_allclose(data.mean.A @ y, -data.mean.a, atol=1e-12)


@pytest.mark.parametrize("clients", [1, 5])
@pytest.mark.parametrize("heterogeneity", [0.0, 0.5, 1.0])
def test_hypergradient_is_the_slope(clients, heterogeneity, x):
    data = make(clients, heterogeneity=heterogeneity)
    value = slope(lambda x: data.mean.upper(x, data.solution(x)), x)
    np.testing.assert_allclose(data.hypergradient(x), value, rtol=1e-8, atol=1e-8)


def test_fedavg_hypergradient_is_the_slope(data, x, y0):
    settings = {"rounds": 7, "steps": 3, "lr": LR}
    value = slope(lambda x: data.mean.upper(x, data.fedavg(x, y0, **settings)), x)
    exact = data.fedavg_hypergradient(x, y0, **settings)
    np.testing.assert_allclose(exact, value, rtol=1e-8, atol=1e-8)


def test_fixed_point_hypergradient_is_the_slope(data, x):
    settings = {"steps": 3, "lr": LR}
    value = slope(
        lambda x: data.mean.upper(x, data.fedavg_fixed_point(x, **settings)), x
    )
    exact = data.fedavg_fixed_point_hypergradient(x, **settings)
    np.testing.assert_allclose(exact, value, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("steps", [1, 5])
def test_fedavg_tends_to_its_fixed_point(data, x, y0, steps):
    y = data.fedavg(x, y0, rounds=2000, steps=steps, lr=LR)
    fixed = data.fedavg_fixed_point(x, steps=steps, lr=LR)
    np.testing.assert_allclose(y, fixed, rtol=1e-10)
    np.testing.assert_allclose(
        data.fedavg(x, fixed, rounds=1, steps=steps, lr=LR), fixed, rtol=1e-10
    )
    np.testing.assert_allclose(
        data.fedavg_hypergradient(x, y0, rounds=2000, steps=steps, lr=LR),
        data.fedavg_fixed_point_hypergradient(x, steps=steps, lr=LR),
        rtol=1e-10,
    )


@pytest.mark.parametrize(
    ("heterogeneity", "steps", "same"),
    [(0.0, 5, True), (1.0, 1, True), (1.0, 5, False), (0.3, 5, False)],
)
def test_the_two_truths(heterogeneity, steps, same, x):
    """Averaging solves the bilevel problem with one step or equal Hessians alone."""
    data = make(20, heterogeneity=heterogeneity)
    point = data.fedavg_fixed_point(x, steps=steps, lr=LR)
    gradient = data.fedavg_fixed_point_hypergradient(x, steps=steps, lr=LR)
    errors = (
        error(point, data.solution(x)),
        error(gradient, data.hypergradient(x)),
    )
    assert (max(errors) < 1e-12) if same else (min(errors) > 0.01)


def test_one_client_does_not_drift(x):
    data = make(1)
    point = data.fedavg_fixed_point(x, steps=5, lr=LR)
    np.testing.assert_allclose(point, data.solution(x), rtol=1e-10)


def test_no_rounds_leave_the_direct_gradient(data, x, y0):
    mean = data.mean
    direct = mean.H @ x + mean.h + mean.K.T @ y0
    np.testing.assert_array_equal(data.fedavg(x, y0, rounds=0, steps=5, lr=LR), y0)
    gradient = data.fedavg_hypergradient(x, y0, rounds=0, steps=5, lr=LR)
    np.testing.assert_allclose(gradient, direct, rtol=1e-12)


def test_truncation_converges_to_the_whole(data, x, y0):
    settings = {"rounds": 160, "steps": 1, "lr": LR}
    whole = data.fedavg_hypergradient(x, y0, **settings)
    errors = [
        error(data.fedavg_hypergradient(x, y0, **settings, last=k), whole)
        for k in (1, 5, 20, 80, 160)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 0.1
    assert errors[-1] == 0


@pytest.mark.parametrize("heterogeneity", [0.0, 1.0])
def test_the_optimum_is_the_minimum(heterogeneity):
    data = make(5, heterogeneity=heterogeneity)
    best = data.optimum()
    np.testing.assert_allclose(data.hypergradient(best), 0, atol=1e-12)

    def value(x):
        return data.mean.upper(x, data.solution(x))

    for step in np.random.default_rng(0).normal(size=(20, Q)):
        assert value(best + step) > value(best)


def test_random_clients_are_as_asked():
    data = make(4, heterogeneity=0.7, mu=0.2, L=3.0)
    for name, shape in (("A", (4, P, P)), ("C", (4, P, Q)), ("h", (4, Q))):
        array = getattr(data.clients, name)
        assert array.shape == shape
        assert array.dtype == np.float64
    spectrum = np.linalg.eigvalsh(data.clients.A)
    assert spectrum.min() >= 0.2 - 1e-12
    assert spectrum.max() <= 3.0 + 1e-12
    own = np.linalg.eigvalsh(make(4, mu=0.2, L=3.0).clients.A)
    np.testing.assert_allclose(own, np.tile(np.linspace(0.2, 3, P), (4, 1)))
    assert repr(data) == "Quadratics(num_clients=4, lower_size=6, upper_size=3)"


def test_without_heterogeneity_clients_share_what_makes_them_drift():
    same = make(3, heterogeneity=0.0).clients
    for array in (same.A, same.C):
        np.testing.assert_array_equal(array[0], array[1])
    assert not np.array_equal(same.a[0], same.a[1])
    different = make(3).clients
    assert not np.allclose(different.A[0], different.A[1])
    assert not np.allclose(different.C[0], different.C[1])


def test_a_client_depends_on_seed_and_number_alone():
    few, many, other = make(2), make(5), make(2, seed=1)
    for name in Quadratic._fields:
        a, b = getattr(few.clients, name), getattr(many.clients, name)
        np.testing.assert_array_equal(a, b[:2])
        assert not np.array_equal(a, getattr(other.clients, name))


def test_at_clients_has_the_default_precision(data, x64):
    assert data.at_clients().num_clients == data.num_clients == 5
    assert data.at_clients().A.unsafe_gather().dtype == jnp.float64
    with jax.enable_x64(False):
        assert data.at_clients().A.unsafe_gather().dtype == jnp.float32


def changed(data, **arrays):
    return Quadratics(data.clients._replace(**arrays))


def test_takes_the_users_own_clients(data, x):
    again = changed(data, C=jnp.zeros((5, P, Q)))
    np.testing.assert_array_equal(again.solution(x), again.solution(0 * x))


def test_refuses_shapes(data):
    match = r"\(clients\.C\): expected the shape \[n, p, q\] .* got float64\[2,3\]"
    with pytest.raises(ValueError, match=match):
        changed(data, C=np.zeros((2, 3)))
    with pytest.raises(ValueError, match=r"no axis of length 0; got float64\[0,6,3\]"):
        changed(data, C=np.zeros((0, P, Q)))
    match = r"clients\.f\): expected the shape \(5, 6\), as C has n=5, p=6 and q=3; got"
    with pytest.raises(ValueError, match=match):
        changed(data, f=np.zeros((5, 7)))


def test_refuses_numbers_that_are_not_finite(data):
    with pytest.raises(ValueError, match=r"clients\.K\): expected finite numbers"):
        changed(data, K=np.full((5, P, Q), np.nan))


@pytest.mark.parametrize("name", ["A", "F", "H"])
def test_refuses_matrices_that_are_not_symmetric(data, name):
    array = getattr(data.clients, name).copy()
    array[0, 0, 1] += 1
    match = (
        rf"clients\.{name}\): expected symmetric matrices\. Pass \({name} \+ {name}'"
    )
    with pytest.raises(ValueError, match=match):
        changed(data, **{name: array})


def test_refuses_lower_losses_without_a_minimum(data):
    match = r"clients\.A\): expected positive definite .* got an eigenvalue -1"
    with pytest.raises(ValueError, match=match):
        changed(data, A=-data.clients.A)


@pytest.mark.parametrize("name", ["clients", "lower_size", "upper_size"])
def test_refuses_counts(name):
    sizes = {"clients": 2, "lower_size": 2, "upper_size": 2, name: 0}
    match = rf"Quadratics\.random\({name}=\.\.\.\): expected a positive integer; got 0"
    with pytest.raises(ValueError, match=match):
        Quadratics.random(**sizes, seed=0)


@pytest.mark.parametrize("value", [-0.1, 1.1, np.nan, "all"])
def test_refuses_heterogeneity(value):
    match = r"\(heterogeneity=\.\.\.\): expected a number from 0, equal clients, to 1"
    with pytest.raises(ValueError, match=match):
        make(2, heterogeneity=value)


@pytest.mark.parametrize(("mu", "L"), [(0.0, 1.0), (2.0, 1.0), (0.1, np.inf)])
def test_refuses_ranges_of_eigenvalues(mu, L):
    match = r"\(mu=\.\.\., L=\.\.\.\): expected 0 < mu <= L, .* got mu="
    with pytest.raises(ValueError, match=match):
        make(2, mu=mu, L=L)


@pytest.mark.parametrize(
    "call",
    [
        Quadratics.solution,
        Quadratics.hypergradient,
        lambda data, x: data.fedavg(x, np.zeros(P), rounds=1, steps=1, lr=LR),
        lambda data, x: data.fedavg_hypergradient(
            x, np.zeros(P), rounds=1, steps=1, lr=LR
        ),
        lambda data, x: data.fedavg_fixed_point(x, steps=1, lr=LR),
        lambda data, x: data.fedavg_fixed_point_hypergradient(x, steps=1, lr=LR),
    ],
)
def test_refuses_an_x_of_another_size_and_traced_ones(data, call):
    with pytest.raises(
        ValueError, match=r"\(x=\.\.\.\): expected a vector \[3\]; got "
    ):
        call(data, np.zeros(4))
    with pytest.raises(ValueError, match=r"\(x=\.\.\.\): .* but this is traced"):
        jax.jit(lambda x: call(data, x))(jnp.zeros(Q))


def test_refuses_a_start_of_another_size(data, x):
    match = (
        r"Quadratics\.fedavg\(y0=\.\.\.\): expected a vector \[6\]; got float64\[3\]"
    )
    with pytest.raises(ValueError, match=match):
        data.fedavg(x, np.zeros(3), rounds=1, steps=1, lr=LR)


@pytest.mark.parametrize(
    ("name", "value", "match"),
    [
        ("rounds", -1, r"\(rounds=\.\.\.\): expected an integer of at least 0; got -1"),
        ("rounds", 1.5, r"\(rounds=\.\.\.\): expected an integer of at .*; got 1\.5"),
        ("steps", -1, r"\(steps=\.\.\.\): expected an integer of at least 0; got -1"),
        ("last", -1, r"\(last=\.\.\.\): expected an integer of at least 0; got -1"),
        ("last", 4, r"\(last=4\): there are only rounds=3 to differentiate\. Ask for"),
        ("lr", 0.0, r"\(lr=\.\.\.\): expected a positive, finite step size; got 0\.0"),
        ("lr", None, r"\(lr=\.\.\.\): expected a positive, finite step .*; got None"),
        ("lr", np.inf, r"\(lr=\.\.\.\): expected a positive, finite step .*; got inf"),
    ],
)
def test_refuses_settings(data, x, y0, name, value, match):
    settings = {"rounds": 3, "steps": 1, "lr": LR, name: value}
    with pytest.raises(ValueError, match=r"fedavg_hypergradient" + match):
        data.fedavg_hypergradient(x, y0, **settings)


@pytest.mark.parametrize(("steps", "lr"), [(0, 0.5), (1, 20.0)])
def test_refuses_a_fixed_point_that_is_not_reached(data, x, steps, lr):
    match = r"a round does not contract \(factor .*\), so averaging does not converge"
    for call in (data.fedavg_fixed_point, data.fedavg_fixed_point_hypergradient):
        with pytest.raises(ValueError, match=match):
            call(x, steps=steps, lr=lr)
