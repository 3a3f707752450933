"""A cohort's batches: rows shuffled per client, padded and masked."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Protocol

import jax
import numpy as np

from fad._errors import DataError, describe
from fad.data._checks import positive, seed_words
from fad.data._sampling import Sampling, sampling_of
from fad.local._batches import Batches
from fad.placement import AtClients

# A random stream of a key beside those of sampling. The value never changes.
_SHUFFLE = 1
_CALL = "Federated.cohort"
_ALIGNMENT = 64  # bytes, what XLA asks of the memory that it shares
# Rows whose values tell two federations of the same sizes apart.
_ROWS = 256


class Maker(Protocol):
    """What makes cohorts, one per key."""

    def make(self, key: jax.Array) -> AtClients[Any]:
        """Return the cohort of a key."""
        ...

    def identity(self) -> dict[str, list[Any]]:
        """Return what tells these cohorts from those of other clients or options."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class Recipe:
    """How cohorts are made from clients: what to draw and how to lay it out.

    Attributes:
        examples: Arrays ``[N, *]``, sorted by client.
        offsets: Where each client starts, ``[num_clients + 1]``.
        sampling: Which clients take part.
        batch_size: The rows of a batch.
        epochs: How often a client goes through its rows.
        counts: The rows that each client uses in an epoch, ``[num_clients]``.
        bucket_growth: The ratio of neighbouring numbers of steps; None for one number.
    """

    examples: Mapping[str, np.ndarray]
    offsets: np.ndarray
    sampling: Sampling
    batch_size: int
    epochs: int
    counts: np.ndarray
    bucket_growth: float | None

    def make(self, key: jax.Array) -> AtClients[Batches]:
        """Return the cohort of a key."""
        seed = seed_words(_CALL, key)
        return AtClients(self.batches(seed, self.sampling.draw(seed)))

    def batches(self, seed: list[int], clients: np.ndarray) -> Batches:
        """Return the batches of some clients, ``[size, *]``, -1 an empty place."""
        counts = np.where(clients < 0, 0, self.counts[clients])
        steps = self._steps(int(counts.max()))
        width = steps * self.batch_size
        shape = (len(clients), self.epochs * steps, self.batch_size)
        filled = np.arange(width) < counts[:, None]
        mask = np.repeat(filled[:, None], self.epochs, axis=1).reshape(shape)
        rows = self._rows(seed, clients, counts, width).reshape(shape)
        examples = {name: _take(x, rows) for name, x in self.examples.items()}
        for x in examples.values():
            x[~mask] = 0
        return Batches(examples, mask, clients.astype(np.int32))

    def identity(self) -> dict[str, list[Any]]:
        """Return what tells these cohorts from those of other clients or options."""
        clients: list[Any] = [self.offsets]
        for name, x in sorted(self.examples.items()):
            some = np.linspace(0, len(x) - 1, min(_ROWS, len(x))).astype(np.int64)
            clients += [name, x.dtype.str, x.shape, x[some]]
        draw = self.sampling
        options = [draw.size, draw.replace, self.batch_size, self.epochs]
        options += [self.bucket_growth, draw.weights, draw.chance, self.counts]
        if draw.tiers > 1:
            options += [draw.tiers, draw.tiers_by]
        return {"clients": clients, "options": options}

    def _steps(self, count: int) -> int:
        """Return the steps of an epoch: the smallest bucket that holds ``count``."""
        needed = max(1, -(-count // self.batch_size))
        steps = -(-int(self.counts.max()) // self.batch_size)
        while self.bucket_growth is not None:
            smaller = min(steps - 1, math.ceil(steps / self.bucket_growth))
            if smaller < needed:
                break
            steps = smaller
        return steps

    def _rows(
        self, seed: list[int], clients: np.ndarray, counts: np.ndarray, width: int
    ) -> np.ndarray:
        """Return each place's rows, new orders per epoch: ``[size, epochs, width]``.

        Padding names row 0.
        """
        rows = np.zeros((len(clients), self.epochs, width), np.int64)
        words = np.array([*seed, _SHUFFLE, 0], np.uint32)
        for place in np.flatnonzero(counts).tolist():
            client, count = clients[place], counts[place]
            words[-1] = client
            start, stop = self.offsets[client : client + 2].tolist()
            held = np.arange(start, stop)[None].repeat(self.epochs, axis=0)
            np.random.default_rng(words).permuted(held, axis=1, out=held)
            rows[place, :, :count] = held[:, :count]
        return rows


def _take(x: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return ``x[rows]``, so aligned that a CPU device takes it without a copy."""
    shape = rows.shape + x.shape[1:]
    size = math.prod(shape) * x.itemsize
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    taken = memory[start : start + size].view(x.dtype).reshape(shape)
    if x.flags.c_contiguous:
        return np.take(x, rows, axis=0, out=taken, mode="clip")
    # Of any other layout np.take would copy the whole of x.
    taken[...] = x[rows]
    return taken


def recipe(
    examples: Mapping[str, np.ndarray],
    offsets: np.ndarray,
    size: int,
    *,
    batch_size: int,
    epochs: int = 1,
    replace: bool = False,
    sampling: Any = "uniform",
    available: Any = None,
    max_examples: int | None = None,
    bucket_growth: float | None = 2.0,
    tiers: int = 1,
    tiers_by: str = "client",
) -> Recipe:
    """Check the arguments of ``Federated.cohort`` and return what makes cohorts."""
    for name, x in examples.items():
        if not _is_number(x.dtype):
            raise DataError(
                f"fad.data.{_CALL}(): batches hold numbers, but {name!r} is "
                f"{describe(x)}. Encode it first (text: fad.data.next_character; "
                "numbers that JAX does not know: astype), or leave it out of the "
                "examples."
            )
    sizes = np.diff(offsets)
    size = positive(_CALL, "size", size)
    drawn = sampling_of(
        sizes,
        size,
        replace=replace,
        sampling=sampling,
        available=available,
        tiers=tiers,
        tiers_by=tiers_by,
    )
    counts = sizes
    if max_examples is not None:
        counts = np.minimum(sizes, positive(_CALL, "max_examples", max_examples))
    return Recipe(
        examples=examples,
        offsets=offsets,
        sampling=drawn,
        batch_size=positive(_CALL, "batch_size", batch_size),
        epochs=positive(_CALL, "epochs", epochs),
        counts=counts,
        bucket_growth=_growth(bucket_growth),
    )


def _is_number(dtype: np.dtype) -> bool:
    """Tell whether JAX has arrays of a dtype."""
    number = dtype == np.bool_ or jax.numpy.issubdtype(dtype, np.number)
    return number and dtype.isnative and dtype.char not in "gG"


def _growth(value: Any) -> float | None:
    if value is None:
        return None
    number = isinstance(value, int | float | np.integer | np.floating)
    if not number or not 1 < value < math.inf:
        raise DataError(
            f"fad.data.{_CALL}(bucket_growth=...): expected a finite number above 1, "
            f"or None for one number of steps; got {value!r}."
        )
    return float(value)
