"""More clients than memory: one round and its gradient over clients made on the fly.

Each client takes a gradient step on 8 points of its own; the loss after the round is
differentiated by the clients' learning rate. One process per number of clients.
"""

import json
import resource
import subprocess
import sys
import time
from typing import Any

from benchmarks._report import ROOT, Report

CLIENTS = (10_000, 100_000, 1_000_000)
CHUNK, ROWS, WIDTH = 2000, 8, 16
COLUMNS = {
    "at": "clients",
    "seconds": "s for the round and its gradient",
    "per_client": "microseconds a client",
    "rss_mb": "peak memory of the process, MB",
    "data_mb": "the clients' data, MB",
}
TEXT = f"""One FedAvg round and the gradient of the loss after it by the clients'
learning rate, by `fad.jit` on a `fad.stream` of clients with {ROWS} points of {WIDTH}
numbers each, made {CHUNK:,} at a time as they are read. The data is read three times:
the loss and its gradient need the round's result. Second call; one process a row."""


def measure(n: int) -> dict[str, Any]:
    """Run one size in this process."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    import fad

    @fad.program
    def loss_after(lr, w, data):
        def client(x, y):
            return w - lr * jax.grad(lambda w: jnp.mean((x @ w - y) ** 2))(w)

        w = fad.mean(fad.map(client, *data))
        return fad.mean(fad.map(lambda x, y: jnp.mean((x @ w - y) ** 2), *data))

    def chunks():
        for start in range(0, n, CHUNK):
            rng = np.random.default_rng(start)
            size = min(CHUNK, n - start), ROWS, WIDTH
            x = rng.standard_normal(size, dtype=np.float32)
            yield x, x.sum(-1)

    run = fad.jit(fad.value_and_grad(loss_after))
    data = fad.stream(chunks, clients=n)
    args = jnp.float32(0.1), jnp.zeros(WIDTH), data
    jax.block_until_ready(run(*args))
    start = time.perf_counter()
    jax.block_until_ready(run(*args))
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    return {
        "at": n,
        "seconds": seconds,
        "per_client": 1e6 * seconds / n,
        "rss_mb": peak,
        "data_mb": n * ROWS * (WIDTH + 1) * 4 / 1e6,
    }


def main() -> None:
    """Measure all sizes, print the table, and write the results."""
    rows = []
    for n in CLIENTS:
        code = (
            f"import json, benchmarks.streaming as s; print(json.dumps(s.measure({n})))"
        )
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        rows.append(json.loads(done.stdout.splitlines()[-1]))
    report = Report(
        name="streaming",
        title="More clients than memory",
        command="python -m benchmarks streaming",
        columns=COLUMNS,
        text=TEXT,
        rows=rows,
    )
    print(report.markdown())
    print(*report.write(complete=True), sep="\n")
