"""Every process's row, or text, in all of them."""

import functools
from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

_TEXT_BYTES = 400


def gather(row: np.ndarray) -> np.ndarray:
    """Return every process's ``row``, which has the same shape in all: [processes, *].

    One device of each process takes part, however many each has.
    """
    if jax.process_count() == 1:
        return row[None]
    over, split, run = _exchange()
    rows = jax.make_array_from_process_local_data(split, row[None])
    with jax.set_mesh(over):  # instead of one that the caller may be in
        return np.asarray(run(rows))


@functools.cache
def _exchange() -> tuple[Mesh, NamedSharding, Callable[[jax.Array], jax.Array]]:
    """Return a mesh of the processes, how rows lie on it, what copies them to all."""
    first = {d.process_index: d for d in reversed(jax.devices())}
    over = Mesh(np.array([first[p] for p in sorted(first)]), ("processes",))
    everywhere = NamedSharding(over, PartitionSpec())
    split = NamedSharding(over, PartitionSpec("processes"))
    return over, split, jax.jit(lambda x: x, out_shardings=everywhere)


def gather_text(text: str) -> list[str]:
    """Return every process's text, shortened where it is long."""
    raw = text.encode()
    if len(raw) > _TEXT_BYTES:
        half = _TEXT_BYTES // 2 - 3
        raw = raw[:half] + b" ... " + raw[-half:]
    row = np.zeros(_TEXT_BYTES, np.uint8)
    row[: len(raw)] = np.frombuffer(raw, np.uint8)
    return [bytes(r).rstrip(b"\0").decode(errors="replace") for r in gather(row)]
