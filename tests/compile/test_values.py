"""``fad.jit`` computes what ``jax.jit`` does, whatever the chunk."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fad
from tests import rounds
from tests.compile.programs import (
    CLIENTS,
    average,
    check_same,
    make_data,
    make_params,
    make_weights,
    mean_loss,
)
from tests.subjects import assert_same


@pytest.fixture
def numbers() -> fad.AtClients:
    """One pair of numbers per client."""
    return fad.AtClients(jnp.asarray(np.random.default_rng(1).normal(size=(7, 2))))


# ---- rounds ----------------------------------------------------------------------


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("n", [1, 6, 7])
def test_rounds_of_any_number_of_clients(n):
    args = make_params(), make_data(n), make_weights(n)
    check_same(average, *args, chunks=(1, 3, 100))


def test_rounds_in_single_precision():
    check_same(average, make_params(), make_data(), make_weights(), tol=1e-6)


@pytest.mark.usefixtures("x64")
def test_local_steps_and_server_momentum():
    params, server_lr, client_lr, data, weights = rounds.make_args(CLIENTS)
    velocity = jax.tree.map(jnp.zeros_like, params)
    args = params, velocity, server_lr, client_lr, data, weights
    check_same(rounds.fl_round, *args, chunks=(1, 3, None))


@pytest.mark.usefixtures("x64")
def test_two_numbers_of_clients_in_one_function():
    def both(params, few, many):
        return mean_loss(params, few) + 2 * mean_loss(params, many)

    check_same(both, make_params(), make_data(4), make_data(9))


@pytest.mark.usefixtures("x64")
def test_two_rounds_one_after_the_other():
    def rounds(params, data, weights):
        return average(average(params, data, weights), data, weights)

    check_same(rounds, make_params(), make_data(), make_weights())


# ---- what the clients compute --------------------------------------------------------


def _chain(x):
    once = fad.map(jnp.sin, x)
    return fad.sum(fad.map(lambda a, b: a * b + 1, once, x))


def _several_sums(x):
    s, c = fad.map(lambda v: (jnp.sin(v), jnp.cos(v)), x)
    return fad.sum(s), fad.mean(c), fad.weighted_mean(s, fad.map(jnp.sum, c))


def _unused(x):
    used, _ = fad.map(lambda v: (v**2, jnp.outer(v, v)), x)
    return fad.sum(used)


def _centred(x):
    mean = fad.mean(x)
    return fad.mean(fad.map(lambda v: (v - mean) ** 2, x))


def _outputs(x):
    y = fad.map(jnp.sin, x)
    return y, fad.map(lambda v, w: v @ w, x, y), fad.sum(y), x


def _twice(x):
    return fad.broadcast(fad.sum(x)), fad.broadcast(jnp.asarray(1.0))


def _of_each_other(x):
    inner = fad.program(_centred)
    return fad.program(lambda v: inner(v) + fad.sum(v))(x)


def _across_levels(x):
    big = fad.map(lambda v: jnp.outer(v, v) * jnp.ones((2, 2)), x)
    total = fad.sum(big)
    again = fad.map(lambda b: b @ total, big)
    return fad.sum(again), fad.sum(fad.map(lambda b, a: b - a, big, again))


PROGRAMS = {
    "raw": fad.sum,
    "mean_of_broadcast": lambda x: fad.mean(fad.broadcast(fad.sum(x))),
    "chain": _chain,
    "several_sums": _several_sums,
    "unused": _unused,
    "centred": _centred,
    "outputs": _outputs,
    "broadcasts": _twice,
    "nested": _of_each_other,
    "levels": _across_levels,
    "no_communication": lambda x: fad.map(jnp.sin, x),
    "only_broadcast": lambda x: fad.broadcast(jnp.zeros(3)),
    "nothing": lambda x: (),
    "data_alone": lambda x: x,
    "jit_inside": lambda x: jax.jit(_chain)(x) + fad.sum(fad.map(jax.jit(jnp.sin), x)),
    "vmap_inside_clients": lambda x: fad.sum(fad.map(jax.vmap(jnp.sin), x)),
    "sums_of_sums": lambda x: fad.sum(fad.broadcast(fad.sum(x))),
}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", PROGRAMS)
def test_programs(name, numbers):
    check_same(fad.program(PROGRAMS[name]), numbers, chunks=(1, 3, None))


@pytest.mark.usefixtures("x64")
def test_a_client_returns_itself_and_a_constant():
    @fad.program
    def program(x):
        same, one, sent = fad.map(lambda v: (v, 1.0, jnp.arange(3)), x)
        return same, one, fad.sum(same), fad.sum(one), fad.sum(sent)

    check_same(program, fad.AtClients(jnp.arange(7.0)))


@pytest.mark.usefixtures("x64")
def test_closures_over_arrays(numbers):
    table = jnp.arange(4.0).reshape(2, 2)
    numpy_table = np.arange(2.0)

    def program(x):
        return fad.sum(fad.map(lambda v: table @ v + numpy_table, x)), table

    check_same(fad.program(program), numbers)


@pytest.mark.usefixtures("x64")
def test_client_data_closed_over(numbers):
    @fad.program(clients=7)
    def program(scale):
        return fad.sum(fad.map(lambda v: v * scale, numbers))

    check_same(program, jnp.asarray(2.0))


# ---- kinds of numbers ----------------------------------------------------------------


@pytest.mark.parametrize(
    "dtype", ["int32", "int8", "uint8", "bool", "float16", "bfloat16", "complex64"]
)
def test_dtypes(dtype):
    random = np.random.default_rng(0)
    x = jnp.asarray(random.integers(0, 2, size=(7, 3)), dtype)

    @fad.program
    def program(x):
        y = fad.map(lambda v: v * v, x)
        return fad.sum(x), fad.sum(y), fad.mean(y), y

    check_same(program, fad.AtClients(x), tol=1e-2 if "16" in dtype else 1e-6)


@pytest.mark.usefixtures("x64")
def test_whole_numbers_in_double_precision():
    x = fad.AtClients(jnp.arange(14, dtype=jnp.int32).reshape(7, 2))
    y = fad.AtClients(jnp.ones((7, 2), jnp.float32))
    run = fad.program(
        lambda x, y: (
            fad.sum(x),
            fad.mean(x),
            fad.weighted_mean(y, fad.map(jnp.sum, x)),
        )
    )
    check_same(run, x, y)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_short_floats_are_summed_in_single_precision(dtype):
    ones = fad.AtClients(jnp.ones(4096, dtype))
    for chunk in (1, 64, None):
        assert float(fad.jit(fad.program(fad.sum), chunk=chunk)(ones)) == 4096


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_weighted_means_of_short_floats(dtype):
    x = fad.AtClients(jnp.asarray(np.random.default_rng(0).normal(size=(7, 3)), dtype))
    weights = fad.AtClients(jnp.arange(7))
    check_same(fad.program(fad.weighted_mean), x, weights, tol=1e-2)


def test_keys_at_the_server_and_at_the_clients():
    @fad.program
    def program(key, keys):
        def work(shared, own):
            noise = jax.random.normal(own, (2,)) + jax.random.normal(shared, (2,))
            return noise, jax.random.fold_in(own, 1)

        noise, new = fad.map(work, fad.broadcast(key), keys)
        return fad.sum(noise), new, fad.sum(fad.map(jax.random.uniform, new))

    keys = fad.AtClients(jax.random.split(jax.random.key(1), 7))
    check_same(program, jax.random.key(0), keys, tol=1e-6)


def test_a_key_per_client_made_at_the_server():
    @fad.program
    def program(key, data):
        keys = fad.AtClients(jax.random.split(key, 7))
        return fad.sum(fad.map(lambda k, v: v * jax.random.uniform(k), keys, data))

    check_same(program, jax.random.key(0), fad.AtClients(jnp.arange(7.0)), tol=1e-6)


# ---- clients that do not count -------------------------------------------------------


@pytest.mark.usefixtures("x64")
def test_clients_of_weight_zero_may_be_nan():
    x = jnp.arange(14.0).reshape(7, 2).at[jnp.array([2, 6])].set(jnp.nan)
    weights = jnp.array([1, 2, 0, 1, 1, 0, 0])
    args = fad.AtClients(x), fad.AtClients(weights)
    check_same(fad.program(fad.weighted_mean), *args, chunks=(1, 3, None))
    out = fad.jit(fad.program(fad.weighted_mean), chunk=3)(*args)
    assert jnp.isfinite(out).all()


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("chunk", [1, 3, None])
def test_an_average_of_nobody_is_zero(chunk):
    args = make_params(), make_data(), fad.AtClients(jnp.zeros(CLIENTS))
    out = fad.jit(average, chunk=chunk)(*args)
    assert_same(out, jax.tree.map(jnp.zeros_like, args[0]))


@pytest.mark.parametrize("chunk", [1, 3, None])
def test_nan_of_one_client_reaches_the_sum(chunk):
    x = fad.AtClients(jnp.arange(7.0).at[6].set(jnp.nan))
    assert jnp.isnan(fad.jit(fad.program(fad.sum), chunk=chunk)(x))


# ---- batches of programs -------------------------------------------------------------


@pytest.mark.usefixtures("x64")
def test_vmap_over_learning_rates():
    def sweep(params, data, weights, rates):
        run = jax.vmap(average, in_axes=(None, None, None, 0))
        return run(params, data, weights, rates)

    args = make_params(), make_data(), make_weights(), jnp.array([0.1, 0.2])
    check_same(sweep, *args, chunks=(1, 3, None))


@pytest.mark.usefixtures("x64")
def test_vmap_over_cohorts():
    cohorts = make_data(CLIENTS, lead=(2,))
    check_same(jax.vmap(mean_loss, (None, 0)), make_params(), cohorts)


@pytest.mark.usefixtures("x64")
def test_vmap_over_per_client_axes_that_do_not_lead():
    x = fad.AtClients(jnp.asarray(np.random.default_rng(0).normal(size=(7, 2, 3))))
    run = jax.vmap(fad.program(_several_sums), in_axes=2)
    check_same(run, x, chunks=(1, 3, None))
