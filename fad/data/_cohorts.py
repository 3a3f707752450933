"""The cohorts of one round after the other, prepared ahead, with exact resume."""

import hashlib
import itertools
import weakref
import zlib
from collections.abc import Callable, Generator, Mapping
from typing import Any, Self

import jax
import numpy as np

from fad._errors import DataError, describe
from fad.compile._prefetch import ahead
from fad.data._checks import natural, seed_words
from fad.data._cohort import Maker
from fad.placement import AtClients

Place = Callable[[AtClients[Any]], AtClients[Any]]

# What a state may differ in, and what to call it.
_SAME = {"key": "another key", "clients": "other clients", "options": "other options"}


class Cohorts:
    """The cohorts of rounds 1, 2 and so on, without end, each made before its use.

    ``Federated.cohorts`` makes one. The cohort of round ``t`` depends on the key and
    ``t`` alone: ``clients.cohort(jax.random.fold_in(key, t), ...)``. While a round
    runs, a thread prepares the next cohort and puts it on the device. The thread ends
    by ``close``, at the end of a ``with`` block, when the object is no longer used, or
    when an error is raised; what is raised in the thread is raised by ``next``, and
    the ``next`` after it tries the same round again.

    The thread uses ``place``. If that is a method of the object that keeps the cohorts,
    such as ``self.place``, the thread itself keeps both in use: ``close`` them.

    Example:
        >>> from fad.data import Federated
        >>> data = Federated({"x": np.arange(5)}, np.array([0, 2, 5]))
        >>> key = jax.random.key(0)
        >>> with data.cohorts(key, 1, batch_size=2) as cohorts:
        ...     first, second = next(cohorts), next(cohorts)
        ...     state = cohorts.state
        ...     third = next(cohorts)
        >>> with data.cohorts(key, 1, batch_size=2, state=state) as cohorts:
        ...     again = next(cohorts)
        >>> bool((third.unsafe_gather().client == again.unsafe_gather().client).all())
        True
    """

    def __init__(
        self, recipe: Maker, key: jax.Array, *, place: Place, prefetch: int
    ) -> None:
        self._recipe, self._key = recipe, key
        self._place = place
        self._prefetch = natural("Federated.cohorts", "prefetch", prefetch)
        self._identity = {
            "key": _key(key),
            **{name: _digest(parts) for name, parts in recipe.identity().items()},
        }
        self._round, self._closed = 0, False
        self._items: Generator[tuple[int, AtClients[Any]], None, None] | None = None
        self._ending: weakref.finalize | None = None

    @property
    def state(self) -> dict[str, np.ndarray]:
        """What to keep in a checkpoint: arrays, after the round last given."""
        return {"round": np.array(self._round, np.int32), **self._identity}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on after the round of a state.

        Args:
            state: What ``state`` was, in this process or another.

        Raises:
            DataError: If it is no such state or its round is not an integer of at
                least 0; or if it is one of another key, of other
                clients (their sizes, arrays, and some hundred rows are compared) or of
                other options.
        """
        call = "fad.data.Cohorts.restore(state=...)"
        if not isinstance(state, Mapping) or set(state) != set(self.state):
            given = sorted(state) if isinstance(state, Mapping) else describe(state)
            raise DataError(
                f"{call}: expected what Cohorts.state gives, {sorted(self.state)}; "
                f"got {given}."
            )
        start = np.asarray(state["round"])
        if start.shape != () or start.dtype.kind not in "iu" or start < 0:
            raise DataError(
                f"{call}: expected 'round' to be an integer of at least 0; got "
                f"{state['round']!r}."
            )
        for name, mine in self._identity.items():
            if not np.array_equal(np.asarray(state[name]), mine):
                raise DataError(
                    f"{call}: the state is of {_SAME[name]} than these cohorts. Make "
                    "them with the arguments of the run that left the state."
                )
        self._stop()
        self._round = int(start)

    def close(self) -> None:
        """End the thread; no cohort can be taken any more."""
        self._closed = True
        self._stop()

    def __iter__(self) -> Self:
        """Return itself."""
        return self

    def __next__(self) -> AtClients[Any]:
        """Return the next round's cohort."""
        if self._closed:
            raise DataError(
                "fad.data.Cohorts: these cohorts are closed. Make new ones by "
                "Federated.cohorts(..., state=...) to go on."
            )
        try:
            if self._items is None:
                self._start()
            assert self._items is not None
            self._round, cohort = next(self._items)
        except BaseException:
            self._stop()
            raise
        return cohort

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()

    def _start(self) -> None:
        items = _made(self._recipe, self._key, self._round)
        place = self._place

        def put(item: tuple[int, Any]) -> tuple[int, Any]:
            return item[0], place(item[1])

        if self._prefetch:
            self._items = ahead(items, self._prefetch, put)
        else:
            self._items = (put(item) for item in items)
        # Also at the end of the program, before what the thread works with is gone.
        self._ending = weakref.finalize(self, self._items.close)

    def _stop(self) -> None:
        if self._ending is not None:
            self._ending()
        self._items = self._ending = None


def _made(
    recipe: Maker, key: jax.Array, start: int
) -> Generator[tuple[int, AtClients[Any]], None, None]:
    for t in itertools.count(start + 1):
        yield t, recipe.make(jax.random.fold_in(key, t))


def _key(key: jax.Array) -> np.ndarray:
    """Return what tells a key from others: uint32, its words and its kind.

    Two words are of the one kind that has two. The kinds of four differ in what
    ``fold_in`` gives; a raw key does not tell its own.
    """
    words = seed_words("Federated.cohorts", key)
    if len(words) > 2 and jax.numpy.issubdtype(key.dtype, jax.dtypes.prng_key):
        words.append(zlib.crc32(str(jax.random.key_impl(key)).encode()))
    return np.array(words, np.uint32)


def _digest(parts: list[Any]) -> np.ndarray:
    """Return a fingerprint of arrays and of what has a text: uint32 ``[4]``."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        array = isinstance(part, np.ndarray)
        data = np.ascontiguousarray(part).tobytes() if array else repr(part).encode()
        digest.update(len(data).to_bytes(8, "little") + data)
    return np.frombuffer(digest.digest(), np.uint32).copy()
