"""What compiling costs: the streaming pass beside plain JAX.

The gradient of 64 scanned rounds is traced, lowered and compiled by ``jax.jit`` and by
``fad.jit``, in turns, with JAX's caches cleared before each. The pass alone is timed on
a program of 5,000 equations, beside tracing it.
"""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

import fad
from benchmarks._report import Report
from benchmarks._timing import Spread, interleave
from benchmarks.workers._scale import _arrays, _client, _losses
from fad.compile._chunk import Policy
from fad.compile._explain import Report as Notes
from fad.compile._pass import run, trace

TURNS = 7
COLUMNS = {"what": "what", "seconds": "s: median (least; quartiles)", "ratio": "ratio"}
TEXT = """Tracing, lowering and compiling the value and gradient of 64 scanned rounds of
FedAvg (64 clients, 5 steps, MLP 784-64-10), in turns, caches cleared before each; and
the pass alone on a program of 5,000 equations (110 rounds written out, Adam at the
server)."""


def training(rounds: int) -> tuple[Callable, tuple[Any, ...]]:
    """Return a loss after some rounds, and its arguments."""
    data, params, held_out = _arrays(64)

    @fad.program
    def one_round(w, rates, data):
        mean = fad.mean(fad.map(lambda batches: _client(w, rates[0], batches), data))
        return jax.tree.map(lambda p, m: p + rates[1] * (m - p), w, mean)

    def loss(rates, params, data):
        def body(w, _):
            return one_round(w, rates, data), None

        w, _ = jax.lax.scan(body, params, None, length=rounds)
        return _losses(w, *held_out).mean()

    rates = (jnp.float32(0.1), jnp.float32(1.0))
    return loss, (rates, params, fad.AtClients(data))


def long_program() -> tuple[Callable, tuple[Any, ...]]:
    """Return a program of more than 5,000 equations, and its arguments."""
    optimizer = optax.adam(0.1)

    @fad.program
    def one_round(w, data):
        return fad.mean(fad.map(lambda x: jax.tree.map(lambda p: p * x, w), data))

    def program(w, data):
        state = optimizer.init(w)
        for _ in range(110):
            updates, state = optimizer.update(one_round(w, data), state)
            w = optax.apply_updates(w, updates)
        return w

    w = {"a": jnp.ones(3), "b": jnp.ones(3)}
    return program, (w, fad.AtClients(jnp.ones((8, 3))))


def compile_time(compiled: Callable, args: tuple[Any, ...]) -> float:
    """Return the seconds from the function to the executable."""
    jax.clear_caches()
    start = time.perf_counter()
    compiled().lower(*args).compile()
    return time.perf_counter() - start


def pass_time() -> tuple[int, float, float]:
    """Return the equations of the long program, and s to trace it and for the pass."""
    program, args = long_program()
    leaves, tree = jax.tree.flatten(args)

    def of(*xs):
        return program(*jax.tree.unflatten(tree, xs))

    start = time.perf_counter()
    closed, _ = trace(of, leaves)
    tracing = time.perf_counter() - start

    def streamed(*xs):
        return run(closed, xs, policy=Policy(size=1), mesh=None, report=Notes())

    start = time.perf_counter()
    jax.make_jaxpr(streamed)(*leaves)
    return len(closed.jaxpr.eqns), tracing, time.perf_counter() - start


def main() -> None:
    """Measure, print the table, and write the results."""
    loss, args = training(64)
    ways = {
        "jax.jit": lambda: jax.jit(jax.value_and_grad(loss)),
        "fad.jit": lambda: fad.jit(jax.value_and_grad(loss), chunk=1),
    }
    contenders = {
        name: lambda _, way=way: compile_time(way, args) for name, way in ways.items()
    }
    times = interleave(contenders, range(TURNS))
    spreads = {name: Spread.of(t) for name, t in times.items()}
    base = spreads["jax.jit"].median
    rows: list[dict[str, Any]] = [
        {"what": f"compile, {n}", "seconds": str(s), "ratio": s.median / base}
        for n, s in spreads.items()
    ]
    equations, tracing, extra = pass_time()
    rows += [
        {"what": f"trace {equations} equations", "seconds": f"{tracing:.2f}"},
        {"what": "the pass on them", "seconds": f"{extra:.2f}"},
    ]
    report = Report(
        name="compiling",
        title="What compiling costs",
        command="python -m benchmarks compiling",
        columns=COLUMNS,
        text=TEXT,
        rows=rows,
    )
    print(report.markdown())
    print(*report.write(complete=True), sep="\n")
