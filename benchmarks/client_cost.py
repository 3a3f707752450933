"""What a client's round costs at its width: operations, bytes and wall time.

A small residual network of width 64 on images of 32x32, of which a client has the share
p of the kernels of each layer. What falls with p squared where a convolution is between
hidden layers, and with p where it is not, is set beside what is counted and measured.
"""

import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import fad
from algorithms.fedsep_submodels import fedsep_submodels
from benchmarks._report import Report
from benchmarks._timing import Spread, interleave
from fad import submodels
from fad.models import ResNet18, narrow

WIDTHS = (1.0, 1 / 2, 1 / 4, 1 / 8, 1 / 16)
BATCHES, STEPS, TURNS = (10, 32), 1, 5
COLUMNS = {
    "width": "p",
    "share": "proportional",
    "gflops": "GFLOP of products",
    "flops_ratio": "/ proportional",
    "all_ratio": "all FLOP / proportional",
    "kernels": "kernels, kB",
    "down": "down, kB",
    "up": "up, kB",
    "bytes_ratio": "kernels' bytes / kernels",
    **{f"ms_{b}": f"ms, batch {b}: median (least; quartiles)" for b in BATCHES},
    **{f"ratio_{b}": f"/ proportional, batch {b}" for b in BATCHES},
    **{f"linear_{b}": f"time's share / p, batch {b}" for b in BATCHES},
}
TEXT = """One round of one client of `fedsep_submodels`, without a search for masks:
ResNet with one block in each of four stages, of width 64 at p = 1, static batch norm,
images of 32x32x3. "Proportional" is the share of the whole model's operations that the
kernels kept imply: p squared for a convolution between hidden layers, p for the first
one and for the dense layer. The products' operations are counted in the jaxpr of the
local training; all operations, and the bytes, are those of `fad.plan`. Of the bytes,
those of norms and of the dense layer are taken off before the ratio: what remains are
the kernels and the numbers that say which. The time is that of one step of local
training, compiled, on one core, all widths in turns."""


def task(size: int = 32, blocks: tuple[int, ...] = (1, 1, 1, 1)) -> fad.data.Task:
    """Return a task of random images, in any width."""
    rng = np.random.default_rng(0)
    examples = {
        "x": rng.normal(size=(4, size, size, 3)).astype(np.float32),
        "y": np.arange(4, dtype=np.int32),
    }
    model = ResNet18(10, norm="static_batch", width=64, blocks=blocks)

    def at(width: float, scaled: bool = False) -> fad.data.Task:
        del scaled
        net = narrow(model, width)

        def loss(params: Any, rows: Any) -> Any:
            logits: Any = net.apply({"params": params}, rows["x"])
            return optax.softmax_cross_entropy_with_integer_labels(logits, rows["y"])

        return fad.data.Task(
            name="images",
            train=fad.data.Federated(examples, np.array([0, 2, 4])),
            test=examples,
            init=lambda key: net.init(key, examples["x"])["params"],
            loss=loss,
            metrics=lambda params, rows: {"loss": loss(params, rows)},
            narrow=at,
        )

    return at(1.0)


def batches(size: int) -> fad.local.Batches:
    """Return the batches of one client."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(STEPS, size, 32, 32, 3)).astype(np.float32)
    y = rng.integers(10, size=(STEPS, size)).astype(np.int32)
    mask = np.ones((STEPS, size), bool)
    return fad.local.Batches({"x": x, "y": y}, mask, np.int32(0))


def train(loss: Callable, params: Any, own: fad.local.Batches) -> Any:
    """Return what the client makes of a model."""
    local = fad.local.train(
        params, own, loss=loss, optimizer=optax.sgd(0.01), unroll=True
    )
    return local.delta


def plan(whole: fad.data.Task, width: float) -> fad.Cost:
    """Return what the round costs a client."""
    algorithm = fedsep_submodels(
        whole, widths=(width,), client=optax.sgd(0.01), refresh=0, hidden=8
    )
    state = jax.eval_shape(algorithm.init, jax.random.key(0))
    one = jax.eval_shape(lambda state: algorithm.init_client(state), state)  # type: ignore
    two = jax.tree.map(lambda x: jax.ShapeDtypeStruct((2, *x.shape), x.dtype), one)
    cohort = fad.AtClients(jax.tree.map(lambda x: np.stack([x, x]), batches(10)))
    args = state, cohort, jax.random.key(0), fad.AtClients(two)
    return fad.plan(algorithm.step)(*args).cost()


def timed(loss: Callable, params: Any, size: int) -> Callable[[int], float]:
    """Return a function that runs the local training and returns its seconds."""
    own = jax.tree.map(jnp.asarray, batches(size))
    run = jax.jit(functools.partial(train, loss)).lower(params, own).compile()
    jax.block_until_ready(run(params, own))

    def turn(_: int) -> float:
        start = time.perf_counter()
        jax.block_until_ready(run(params, own))
        return time.perf_counter() - start

    return turn


def normal(shape: jax.ShapeDtypeStruct) -> jax.Array:
    """Return small random parameters."""
    drawn = np.random.default_rng(2).normal(size=shape.shape) / 10
    return jnp.asarray(drawn, shape.dtype)


def main() -> None:
    """Count and measure all widths, and write the page."""
    whole = task()
    model = jax.eval_shape(whole.init, jax.random.key(0))
    examples = {name: x[:2] for name, x in whole.test.items()}
    units = submodels.find(whole.loss, model, examples)
    costs = submodels.costs(whole.loss, model, examples)
    rows, runs = [], {}
    for width in WIDTHS:
        kept, small = units.kept(width), whole.at_width(width)
        shapes = units.shapes(kept)
        shares = {name: kept[name] / size for name, size in units.sizes.items()}
        work = submodels.costs(
            functools.partial(train, small.loss), shapes, batches(10)
        )
        cost = plan(whole, width)
        sizes = [(x.ndim, 4 * x.size) for x in jax.tree.leaves(shapes)]
        kernels = sum(n for ndim, n in sizes if ndim == 4)
        rest = sum(n for ndim, n in sizes if ndim < 4)
        row = {"width": f"1/{round(1 / width)}", "kernels": kernels / 1e3}
        row |= {"share": costs.flops(shares) / costs.total, "gflops": work.total / 1e9}
        row |= {"down": cost.bytes_down / 1e3, "up": cost.bytes_up / 1e3}
        row["bytes_ratio"] = (cost.bytes_up - rest) / kernels
        row["all"] = cost.client_flops
        rows.append(row)
        params = jax.tree.map(normal, shapes)
        for size in BATCHES:
            runs[width, size] = timed(small.loss, params, size)
        print(row, flush=True)
    times = interleave({str(key): run for key, run in runs.items()}, range(TURNS))
    for row, width in zip(rows, WIDTHS, strict=True):
        row["flops_ratio"] = row["gflops"] / rows[0]["gflops"] / row["share"]
        row["all_ratio"] = row["all"] / rows[0]["all"] / row["share"]
        for size in BATCHES:
            spread = Spread.of([1e3 * t for t in times[str((width, size))]])
            least = min(times[str((WIDTHS[0], size))])
            row[f"ms_{size}"] = str(spread)
            part = spread.least / 1e3 / least
            row[f"ratio_{size}"], row[f"linear_{size}"] = (
                part / row["share"],
                part / width,
            )
    report = Report(
        name="client_cost",
        title="What a client's round costs at its width",
        command="python -m benchmarks client_cost",
        columns=COLUMNS,
        text=TEXT,
        rows=rows,
        notes=notes(rows),
    )
    print(report.markdown())
    print(*report.write(complete=True), sep="\n")


def notes(rows: list[dict[str, Any]]) -> list[str]:
    """Say what is at most 1.3 times of proportional."""

    def said(what: str, key: str, to: str = "proportional") -> str:
        within = [r["width"] for r in rows if r[key] <= 1.3]
        return f"At most 1.3 times of {to}, {what}: p = {', '.join(within)}."

    return [
        said("operations of products", "flops_ratio"),
        said("all operations", "all_ratio"),
        said("bytes of kernels", "bytes_ratio"),
        *(said(f"time at batch {b}, the least", f"ratio_{b}") for b in BATCHES),
        *(said(f"time at batch {b}", f"linear_{b}", "p itself") for b in BATCHES),
        "Patches, norms and activations are computed for each channel: their time "
        "falls with p, as the number of channels does, and not with its square.",
    ]
