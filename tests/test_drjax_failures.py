"""Where DrJAX 0.2.1 gives a wrong value, NaN, or an error, or stays silent."""

import contextvars
import operator
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fad
from tests.subjects import assert_same

pytestmark = pytest.mark.once

TRACES = 500  # of each of two threads


@pytest.fixture
def busy_switching():
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("busy_switching")
@pytest.mark.parametrize("inherit", [False, True], ids=["fresh", "inherited_context"])
def test_two_threads_trace_programs_of_two_sizes(inherit):
    wrong: list[object] = []
    start = threading.Barrier(2)

    def run(n):
        def program(x):
            time.sleep(0)  # let the other thread in, between scope and use
            sent = fad.broadcast(x)
            time.sleep(0)
            return fad.sum(sent)

        start.wait()
        for _ in range(TRACES):
            shape = jax.make_jaxpr(fad.program(program, clients=n))(1.0)
            (sent, _) = shape.eqns
            if sent.outvars[0].aval.shape != (n,):
                wrong.append((n, shape))

    threads = []
    for n in (3, 5):
        context = contextvars.copy_context() if inherit else contextvars.Context()
        threads.append(threading.Thread(target=context.run, args=(run, n)))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.usefixtures("busy_switching")
def test_two_threads_run_programs_of_two_sizes():
    results: dict[int, list[float]] = {3: [], 5: []}
    helper = jax.jit(lambda x: fad.sum(fad.broadcast(x)))  # one, for both sizes

    def run(n):
        program = fad.program(helper, clients=n)
        for _ in range(TRACES // 10):
            time.sleep(0)
            results[n].append(float(program(1.0)))

    threads = [threading.Thread(target=run, args=(n,)) for n in results]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {n: [float(n)] * (TRACES // 10) for n in results}


def test_seven_clients_in_a_program_of_four():
    program = fad.program(lambda w, batch: fad.sum(batch["x"]), clients=4)
    with pytest.raises(
        fad.PlacementError, match=r"clients=4.*\n  batch: .*float32\[7\]"
    ):
        program(1.0, fad.AtClients({"x": jnp.ones(7)}))


@pytest.mark.parametrize("fn", [fad.sum, fad.mean, lambda x: fad.map(jnp.sin, x)])
def test_seven_clients_inside_a_program_of_four(fn):
    program = fad.program(lambda: fn(fad.AtClients({"x": jnp.ones(7)})), clients=4)
    with pytest.raises(fad.PlacementError, match=r"4 clients, but .*\['x'\] has\s+7"):
        program()


@pytest.mark.parametrize("dtype", ["int32", "int8", "bool", "uint8"])
def test_integer_mean_under_jit(dtype):
    x = fad.AtClients(jnp.asarray([0, 1, 1, 1], dtype))
    program = fad.program(fad.mean)
    assert_same(jax.jit(program)(x), jnp.asarray(0.75))
    assert jax.eval_shape(program, x).dtype == program(x).dtype == jnp.float32


def test_a_program_inside_another_programs_map():
    inner = fad.program(lambda v: fad.sum(fad.map(jnp.square, v)))

    @fad.program
    def outer(scale, data):
        return fad.mean(fad.map(lambda v: inner(fad.AtClients(scale * v)), data))

    data = jnp.arange(12.0).reshape(4, 3)
    args = jnp.asarray(2.0), fad.AtClients(data)
    plain = lambda s, d: jnp.sum((s * d) ** 2, 1).mean()  # noqa: E731
    assert_same(outer(*args), plain(args[0], data))
    actual = jax.jit(jax.grad(outer, (0, 1)))(*args)
    assert_same(actual, jax.grad(plain, (0, 1))(args[0], data))


def test_a_server_value_is_not_summed():
    with pytest.raises(fad.PlacementError, match="x is a server value"):
        fad.program(fad.sum, clients=4)(jnp.ones(4))


def test_a_client_value_is_not_broadcast():
    with pytest.raises(fad.PlacementError, match="x is a client value already"):
        fad.program(fad.broadcast)(fad.AtClients(jnp.ones(4)))


BINARY = (
    "add sub mul truediv floordiv mod pow matmul and_ or_ xor eq ne lt le gt ge".split()
)
UNARY = "neg invert abs".split()
FUNCTIONS = {
    "sin": jnp.sin,
    "exp": jnp.exp,
    "sum": jnp.sum,
    "mean": jnp.mean,
    "concatenate": lambda x: jnp.concatenate([x, x]),
    "stack": lambda x: jnp.stack([x, x]),
    "where": lambda x: jnp.where(x, 1, 2),
    "dot": lambda x: jnp.dot(x, x),
    "norm": jnp.linalg.norm,
    "asarray": jnp.asarray,
    "relu": jax.nn.relu,
    "vmap": lambda x: jax.vmap(jnp.sin)(x),
    "np.sin": np.sin,
    "np.asarray": np.asarray,
    "float": float,
    "int": int,
    "bool": bool,
    "len": len,
    "iter": list,
    "index": lambda x: x[0],
    "slice": lambda x: x[1:],
}
refused = lambda: pytest.raises(fad.ClientValueError, match=r"outside fad\.map")  # noqa: E731
X = fad.AtClients(jnp.ones(4))


@pytest.mark.parametrize("name", BINARY)
@pytest.mark.parametrize(
    "other", [2.0, jnp.ones(4), np.ones(4), X], ids=lambda v: type(v).__name__
)
def test_no_operator_acts_on_a_client_value(name, other):
    op = getattr(operator, name)
    with refused():
        op(X, other)
    with refused():
        op(other, X)


@pytest.mark.parametrize("name", UNARY)
def test_no_unary_operator_acts_on_a_client_value(name):
    with refused():
        getattr(operator, name)(X)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_no_function_acts_on_a_client_value(name):
    with refused():
        FUNCTIONS[name](X)


@pytest.mark.parametrize("name", ["sin", "sum", "float", "bool", "index"])
def test_nor_under_jit(name):
    with refused():
        jax.jit(fad.program(FUNCTIONS[name]))(X)


@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_all_weights_zero(transform):
    x = fad.AtClients(jnp.arange(8.0).reshape(4, 2))
    w = fad.AtClients(jnp.zeros(4))
    total = lambda x, w: jnp.sum(fad.program(fad.weighted_mean)(x, w))  # noqa: E731
    assert transform(total)(x, w) == 0
    for gradient in transform(jax.grad(total, (0, 1)))(x, w):
        assert jnp.isfinite(gradient.unsafe_gather()).all()
    hessian = transform(jax.hessian(total, 1))(x, w)
    assert all(jnp.isfinite(h).all() for h in jax.tree.leaves(hessian))


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, -jnp.inf])
@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_a_client_of_weight_zero_with_a_bad_value(bad, transform):
    x = fad.AtClients(jnp.array([1.0, bad, 3.0]))
    w = fad.AtClients(jnp.array([1.0, 0.0, 1.0]))
    mean = fad.program(fad.weighted_mean)
    assert transform(mean)(x, w) == 2
    by_x, by_w = transform(jax.grad(mean, (0, 1)))(x, w)
    assert_same(by_x, jnp.array([0.5, 0.0, 0.5]))
    assert_same(by_w, jnp.array([-0.5, -1.0, 0.5]))  # finite: the bad value counts as 0


def test_a_bad_value_with_a_weight_is_seen():
    x = fad.AtClients(jnp.array([1.0, jnp.nan]))
    assert jnp.isnan(fad.program(fad.weighted_mean)(x, fad.AtClients(jnp.ones(2))))


def test_primitives_are_the_same_objects_in_every_program():
    def primitive(n):
        return (
            jax.make_jaxpr(fad.program(fad.broadcast, clients=n))(1.0).eqns[0].primitive
        )

    assert primitive(3) is primitive(5)
