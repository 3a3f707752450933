"""Decoding a sketch: its time, its memory, and how exact it is.

What is sketched is sparse with noise, or nothing but noise, which is harder: then
hundreds of coordinates are active, up to p of them.
"""

import os
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks._processes import PROC, _kib
from benchmarks._report import Report
from benchmarks._timing import Spread
from fad.decoders import Decoder, Sketch, gaussian, hadamard, lasso, min_norm

ROWS, SIZE, NONZERO, NOISE, TURNS = 1000, 100_000, 50, 0.01, 3
SECONDS, MEGABYTES = 2.0, 200
COLUMNS = {
    "what": "decoder",
    "of": "of",
    "active": "active",
    "residual": "residual",
    "decode": "decode, s: median (least; quartiles)",
    "encode": "with an encode, s",
    "cpu": "decode, CPU s",
    "temporaries": "temporaries, MB",
    "grown": "memory grows by, MB",
}
TEXT = f"""`fad.decoders` on d = {SIZE:,} and p = {ROWS:,}, in float32: from the p
numbers that are sent to the d that are learned, and back. S as a whole would be
{4 * ROWS * SIZE / 1e6:.0f} MB. The penalty is a share of the largest |S'omega|.
*Sparse* is S theta and {NOISE} times noise, theta with {NONZERO} normal entries;
*dense* is a normal omega. Times are of compiled programs. CPU seconds are those of all
threads, the least of the runs, and tell more on a machine that does other work.
Temporaries are as the compiler plans them; memory grows from just before the call to
the peak. Targets, of the Gaussian LASSO at a tenth: below {SECONDS:g} s on two cores
and {MEGABYTES} MB."""


def omegas(sketch: Sketch) -> dict[str, jax.Array]:
    """Return what is decoded, ``[p]``, by name."""
    rng = np.random.default_rng(0)
    theta = np.zeros(sketch.size, np.float32)
    places = rng.choice(sketch.size, min(NONZERO, sketch.size), replace=False)
    theta[places] = rng.normal(size=places.size)
    noise = NOISE * rng.normal(size=sketch.rows).astype(np.float32)
    sparse = jax.jit(sketch.apply)(jnp.asarray(theta)) + noise
    return {"sparse": sparse, "dense": jnp.asarray(noise / NOISE)}


def decoders(rows: int, size: int) -> dict[str, tuple[Sketch, Decoder]]:
    """Return the decoders, by name."""
    normal, signs = gaussian(rows, size, 0), hadamard(rows, size, 0)
    found = {
        f"LASSO, Gaussian, {share:g}": (normal, lasso(normal, l1=share, share=True))
        for share in (0.1, 0.03)
    }
    found["LASSO, Hadamard, 0.1"] = signs, lasso(signs, l1=0.1, share=True)
    found["shortest, Gaussian"] = normal, min_norm(normal)
    found["shortest, Hadamard"] = signs, min_norm(signs)
    return found


def measure(decoder: Decoder, omega: jax.Array, *, turns: int) -> dict[str, Any]:
    """Decode and encode some times; return what a line of the table says."""

    def both(omega: jax.Array) -> Any:
        theta, encode = jax.vjp(lambda x: decoder.decode(x, None), omega)
        return theta, encode(theta)[0]

    decode = jax.jit(lambda omega: decoder.decode(omega, None)).lower(omega).compile()
    encode = jax.jit(both).lower(omega).compile()
    before = _resident("VmRSS:")
    theta = jax.block_until_ready(decode(omega))  # what it allocates may stay
    grown = max(0, _resident("VmHWM:") - before)
    seconds = [_timed(lambda: decode(omega)) for _ in range(turns)]
    encoding = [_timed(lambda: encode(omega))[0] for _ in range(turns)]
    residual = jax.jit(lambda x, y: decoder.residual(x, y, None))(omega, theta)
    analysis = decode.memory_analysis()
    return {
        "active": int((theta != 0).sum()),
        "residual": float(residual),
        "decode": str(Spread.of([wall for wall, _ in seconds])),
        "least": min(wall for wall, _ in seconds),
        "cpu": min(cpu for _, cpu in seconds),
        "encode": min(encoding),
        "temporaries": analysis and analysis.temp_size_in_bytes / 1e6,
        "grown": grown / 1e6 if PROC.exists() else None,
    }


def _timed(call: Callable[[], Any]) -> tuple[float, float]:
    """Return the seconds of a call, and those of all its threads."""
    wall, cpu = time.perf_counter(), time.process_time()
    jax.block_until_ready(call())
    return time.perf_counter() - wall, time.process_time() - cpu


def _resident(field: str) -> int:
    """Return the resident memory in bytes, or its peak since that was asked for."""
    found = _kib(os.getpid(), "status", field)
    if PROC.exists() and field == "VmRSS:":
        (PROC / "self" / "clear_refs").write_text("5")  # the peak begins anew
    return found


def lines(rows: int, size: int, *, turns: int) -> list[dict[str, Any]]:
    """Measure every decoder on both."""
    found = []
    for name, (sketch, decoder) in decoders(rows, size).items():
        for of, omega in omegas(sketch).items():
            line = measure(decoder, omega, turns=turns)
            found.append({"what": name, "of": of, **line})
            print(found[-1], flush=True)
    return found


def main() -> None:
    """Measure, print the table, and write the results."""
    report = Report(
        name="decode",
        title="Decoding a sketch",
        command="python -m benchmarks decode",
        columns=COLUMNS,
        text=TEXT,
        rows=lines(ROWS, SIZE, turns=TURNS),
        notes=[
            "The residual is that of the optimality condition over the one at zero; of "
            "the shortest solution, that of its equation.",
            "What was allocated for a line is there for the next ones, so the first "
            "line alone tells by how much memory grows.",
        ],
        settings={"rows": ROWS, "size": SIZE, "turns": TURNS},
    )
    print(report.markdown())
    print(*report.write(complete=True), sep="\n")
