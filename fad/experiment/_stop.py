"""Ctrl-C and SIGTERM: finish the round, leave a checkpoint, then stop."""

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any


class Stopped(KeyboardInterrupt):
    """A run was asked to stop, and has left a checkpoint to resume from."""


@contextlib.contextmanager
def stop_request() -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C or SIGTERM into a request; a second one interrupts.

    Yields:
        A function that says whether a stop was requested. Outside the main thread,
        where Python delivers no signals, it never is.
    """
    requests: list[int] = []

    def handle(number: int, frame: Any) -> None:
        del frame
        if requests:
            raise KeyboardInterrupt
        requests.append(number)
        sys.stderr.write("\nstopping after this round (Ctrl-C again: at once)\n")

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield lambda: bool(requests)
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
