"""Does ``mode="auto"`` pick what is cheapest when measured?

For ten varied programs, the gradient in every mode that applies is planned, compiled
and timed in one process, interleaved. The choice under ``objective="client_flops"``
agrees when its median wall time, or the bytes that XLA says it accesses, is within 15 %
of the least. The rounds are written out, since XLA counts a loop's body once.
Results go to ``benchmarks/results/modes.json``.
"""

import datetime
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import fad
from fad.modes import Candidate

REPEATS, SLACK = 101, 1.15
RESULTS = Path(__file__).parent / "results" / "modes.json"


class Case(NamedTuple):
    """A scalar function of its first argument, and its arguments."""

    name: str
    fn: Callable
    args: tuple


def _data(seed: int, clients: int, rows: int, dim: int) -> fad.AtClients:
    return fad.AtClients(jax.random.normal(jax.random.key(seed), (clients, rows, dim)))


def _loss(w, x):
    return jnp.mean((jnp.tanh(jnp.tanh(x @ w["a"]) @ w["b"]) - 0.3) ** 2)


def _local(w, lr, x, steps):
    for _ in range(steps):
        g = jax.grad(_loss)(w, x)
        w = jax.tree.map(lambda p, d: p - lr * d, w, g)
    return w


def training(name, rounds, steps, dim, wrt, *, clients=16, rows=32) -> Case:
    """Some rounds of FedAvg, then the loss, by one of the hyper-parameters."""
    cohorts = [_data(r, clients, rows, dim) for r in range(rounds + 1)]
    ka, kb = jax.random.split(jax.random.key(7))
    a, b = jax.random.normal(ka, (dim, 32)) / dim, jax.random.normal(kb, (32,))
    h = {
        "server": jnp.asarray(0.8),
        "client": jnp.asarray(0.1),
        "per_round": jnp.full(rounds, 0.8),
        "params": {"a": a, "b": b},
    }

    @fad.program
    def one_round(w, lr, server, data):
        new = fad.mean(fad.map(lambda x: _local(w, lr, x, steps), data))
        return jax.tree.map(lambda p, q: p + server * (q - p), w, new)

    @fad.program
    def evaluate(w, data):
        return fad.mean(fad.map(_loss, fad.broadcast(w), data))

    def fn(value, *cohorts):
        at = {**h, wrt: value}
        w = at["params"]
        for r, data in enumerate(cohorts[:-1]):
            server = at["per_round"][r] if wrt == "per_round" else at["server"]
            w = one_round(w, at["client"], server, data)
        return evaluate(w, cohorts[-1])

    return Case(name, fn, (h[wrt], *cohorts))


def weights(name, clients, dim) -> Case:
    """One round whose clients have learned weights."""
    data = _data(3, clients, 8, dim)
    w = {"a": jnp.full((dim, 32), 0.01), "b": jnp.full((32,), 0.1)}

    @fad.program
    def fn(weight, data):
        local = fad.map(lambda x: _local(w, 0.1, x, 1), data)
        new = fad.weighted_mean(local, weight)
        return fad.mean(fad.map(_loss, fad.broadcast(new), data))

    return Case(name, fn, (fad.AtClients(jnp.ones(clients)), data))


def cases() -> list[Case]:
    """Return ten programs that differ in rounds, local steps, size and inputs."""
    return [
        training("server step, 1 round", 1, 2, 64, "server"),
        training("server step, 3 rounds", 3, 2, 64, "server"),
        training("server step, 5 rounds, small model", 5, 1, 16, "server"),
        training("client step, 1 round, 5 local steps", 1, 5, 64, "client"),
        training("client step, 3 rounds", 3, 2, 64, "client"),
        training("3 server steps", 3, 2, 64, "per_round"),
        training("8 server steps", 8, 1, 32, "per_round"),
        training("2,080 initial parameters, 2 rounds", 2, 1, 64, "params", clients=4),
        training("544 initial parameters, 1 round", 1, 2, 16, "params", clients=4),
        weights("100 client weights", 100, 32),
    ]


def measure(case: Case) -> dict[str, Any]:
    """Time every mode of one program, interleaved; say whether auto agrees."""
    choice = fad.grad(case.fn, objective="client_flops").explain(*case.args)
    compiled = {}
    for candidate in choice.costs:
        gradient = fad.grad(case.fn, mode=candidate.mode, remat=candidate.remat)
        compiled[candidate] = jax.jit(gradient).lower(*case.args).compile()
    times: dict[Candidate, list[float]] = {c: [] for c in compiled}
    for _ in range(REPEATS):
        for candidate, run in compiled.items():
            start = time.perf_counter()
            jax.block_until_ready(run(*case.args))
            times[candidate].append(time.perf_counter() - start)
    wall = {c: statistics.median(t) for c, t in times.items()}
    moved = {c: run.cost_analysis()["bytes accessed"] for c, run in compiled.items()}
    chosen = choice.candidate
    return {
        "program": case.name,
        "choice": str(chosen),
        "wall_ratio": wall[chosen] / min(wall.values()),
        "bytes_ratio": moved[chosen] / min(moved.values()),
        "agrees_wall": wall[chosen] <= SLACK * min(wall.values()),
        "agrees_bytes": moved[chosen] <= SLACK * min(moved.values()),
        "wall_ms": {str(c): 1e3 * t for c, t in wall.items()},
        "bytes_accessed": {str(c): b for c, b in moved.items()},
        "planned_flops": {str(c): p.client_flops for c, p in choice.costs.items()},
    }


def main() -> None:
    """Measure all programs, print a table, and write the results."""
    rows = []
    for case in cases():
        rows.append(measure(case))
        row = rows[-1]
        print(
            f"{row['program']:<38} {row['choice']:<20} "
            f"wall x{row['wall_ratio']:.2f}  bytes x{row['bytes_ratio']:.2f}",
            flush=True,
        )
    by_wall = sum(r["agrees_wall"] for r in rows)
    by_bytes = sum(r["agrees_bytes"] for r in rows)
    print(f"agrees with the wall time on {by_wall} of {len(rows)}, ", end="")
    print(f"with the bytes accessed on {by_bytes} of {len(rows)}")
    RESULTS.parent.mkdir(exist_ok=True)
    meta = {
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.machine()}, {jax.default_backend()}",
        "jax": jax.__version__,
    }
    RESULTS.write_text(json.dumps({**meta, "rows": rows}, indent=1) + "\n")
