"""Work done ahead of its use, in a thread."""

import contextlib
import queue
import threading
from collections.abc import Callable, Generator, Iterator
from typing import Any

import jax

# What a ``with`` of the caller sets for its own thread alone, and a reader may use.
_SETTINGS = (
    "enable_x64",
    "default_device",
    "default_prng_impl",
    "default_matmul_precision",
    "threefry_partitionable",
)
_END = object()


def ahead(
    items: Generator[Any, None, None], count: int, put: Callable[[Any], Any]
) -> Generator[Any, None, None]:
    """Yield ``put(item)``, made by a thread that runs up to ``count`` items ahead.

    Where the iteration is left early, ``items`` are closed and the thread ends before
    it is; what is raised in the thread is raised here.
    """
    ready: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()
    # The garbage collector may close this generator anywhere in the thread, so what
    # both use holds no lock: a semaphore or an event would wait for itself.
    free: queue.SimpleQueue[None] = queue.SimpleQueue()
    stopped: list[bool] = []
    for _ in range(count):
        free.put(None)
    settings = {name: getattr(jax.config, f"jax_{name}") for name in _SETTINGS}

    def work() -> None:
        try:
            with _all_set(settings), contextlib.closing(items):
                while True:
                    free.get()
                    if stopped:
                        return
                    item = next(items, _END)
                    ready.put((item if item is _END else put(item), None))
                    if item is _END:
                        return
        except BaseException as error:
            ready.put((_END, error))

    thread = threading.Thread(target=work, name="fad.stream", daemon=True)
    thread.start()
    try:
        while True:
            value, error = ready.get()
            if error is not None:
                raise error
            if value is _END:
                return
            free.put(None)
            yield value
    finally:
        stopped.append(True)
        free.put(None)
        if thread is not threading.current_thread():
            thread.join()


@contextlib.contextmanager
def _all_set(settings: dict[str, Any]) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for name, value in settings.items():
            stack.enter_context(getattr(jax, name)(value))
        yield
