"""Arguments, types, messages, and a plan of a large program."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

import fad
from fad.plan import Wire
from tests.plan.programs import (
    CLIENTS,
    SIZE,
    clients,
    floats,
    rounds_of,
    train,
    wires,
)


@pytest.mark.parametrize("derive", [lambda f: f, jax.grad], ids=["value", "grad"])
def test_shapes_are_as_good_as_arrays(derive):
    shapes = floats(5), floats(SIZE), clients(3), clients()
    arrays = jax.tree.map(lambda s: jnp.ones(s.shape, s.dtype), shapes)
    assert fad.plan(derive(train))(*shapes) == fad.plan(derive(train))(*arrays)


def test_keyword_arguments_and_trees():
    @fad.program
    def program(params, *, data):
        out = fad.map(lambda d: {"v": params["w"] * d["x"]}, data)
        return fad.mean(out)

    data = fad.AtClients({"x": clients().unsafe_gather()})
    plan = fad.plan(program)({"w": floats(SIZE)}, data=data)
    assert plan.clients == CLIENTS
    assert plan.name == "program"
    assert wires(lambda p, d: program(p, data=d), {"w": floats(SIZE)}, data) == [
        (["f32[40]"], ["f32[40]"])
    ]


@pytest.mark.parametrize(
    ("shape", "text", "nbytes"),
    [
        (jax.ShapeDtypeStruct((3,), jnp.bfloat16), "bf16[3]", 6),
        (jax.ShapeDtypeStruct((2, 3), jnp.int8), "i8[2,3]", 6),
        (jax.ShapeDtypeStruct((), bool), "bool[]", 1),
        (jax.eval_shape(lambda: jax.random.key(0)), "key<fry>[]", 8),
        (jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 5)), "key<fry>[5]",
         40),
    ],
)  # fmt: skip
def test_types_and_bytes(shape, text, nbytes):
    @fad.program
    def program(x, data):
        return fad.map(lambda own, d: (own, d), fad.broadcast(x), data)

    (r,) = rounds_of(program, shape, clients())
    assert r.down == [Wire(text, nbytes)]


def test_a_bfloat16_model():
    @fad.program
    def program(w, data):
        return fad.mean(fad.map(lambda x: w * x.astype(jnp.bfloat16), data))

    w = jax.ShapeDtypeStruct((SIZE,), jnp.bfloat16)
    cost = fad.plan(program)(w, clients()).cost()
    assert (cost.bytes_down, cost.bytes_up) == (2 * SIZE, 2 * SIZE)


def test_a_function_without_communication_is_refused():
    def square(x):
        return x**2

    message = r"fad.plan\(square\): the function holds no federated primitive"
    with pytest.raises(fad.PlanError, match=message):
        fad.plan(square)(1.0)


def test_communication_that_no_output_needs_is_none():
    @fad.program
    def program(w, data):
        fad.sum(data)
        return w

    with pytest.raises(fad.PlanError, match="no federated primitive"):
        fad.plan(program)(1.0, clients())


LARGE = """
import resource, sys, time
import jax, jax.numpy as jnp
import fad

ROUNDS, CLIENTS, SIZES = 100, 100, [784, 2048, 2048, 2048, 10]

def loss(params, data):
    x = data["x"]
    for w, b in params[:-1]:
        x = jax.nn.relu(x @ w + b)
    w, b = params[-1]
    return -jnp.mean(jnp.sum(jax.nn.log_softmax(x @ w + b) * data["y"], -1))

@fad.program
def train(params, server_lr, client_lr, data):
    def one_round(params, _):
        def local(p, d):
            def step(q, _):
                grads = jax.grad(loss)(q, d)
                return jax.tree.map(lambda a, g: a - client_lr * g, q, grads), None
            end, _ = jax.lax.scan(step, p, length=4)
            return jax.tree.map(jnp.subtract, end, p)
        delta = fad.mean(fad.map(local, fad.broadcast(params), data))
        return jax.tree.map(lambda a, d: a + server_lr * d, params, delta), None
    params, _ = jax.lax.scan(one_round, params, length=ROUNDS)
    return fad.mean(fad.map(loss, fad.broadcast(params), data))

def peak_megabytes():
    unit = 1e6 if sys.platform == "darwin" else 1e3
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit

shape = lambda *s: jax.ShapeDtypeStruct(s, jnp.float32)
params = [(shape(i, o), shape(o)) for i, o in zip(SIZES, SIZES[1:])]
size = sum(x.size for x in jax.tree.leaves(params))
assert size > 10_000_000
data = fad.AtClients({"x": shape(CLIENTS, 32, 784), "y": shape(CLIENTS, 32, 10)})
before, start = peak_megabytes(), time.perf_counter()
cost = fad.plan(jax.grad(train, (0, 1, 2)))(params, shape(), shape(), data).cost()
seconds, grown = time.perf_counter() - start, peak_megabytes() - before
assert cost.rounds == 2 * ROUNDS + 1, cost
assert cost.bytes_down == 4 * ((2 * ROUNDS + 1) * size + 2), cost
assert seconds < 5, seconds
assert grown < 200, grown
"""


def test_a_hundred_rounds_of_ten_million_parameters_take_seconds():
    subprocess.run([sys.executable, "-c", LARGE], check=True)
