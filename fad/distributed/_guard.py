"""An error of a lost process, told as what it is."""

import contextlib
import re
from collections.abc import Iterator

import jax

from fad._errors import RunError
from fad.distributed._ending import mark_failed

_STATUS = re.compile(r"[A-Z_]+: ")  # with which an error of the runtime begins
_LATE = re.compile("timed out|deadline", re.IGNORECASE)
_LOST = re.compile(
    r"gloo|nccl|connection (closed|reset|refused)|socket closed|broken pipe|"
    r"coordination.?service|heartbeat|another task died",
    re.IGNORECASE,
)
RESTART = (
    "Start the run again from its last checkpoint, with the processes that are left: "
    "num_processes, process_id and coordinator in fad.distributed.initialize say which."
)


@contextlib.contextmanager
def guard(call: str) -> Iterator[None]:
    """Raise a clear error where a computation fails because a process is lost.

    Everything that waits for a result of several processes belongs inside: with JAX's
    asynchronous dispatch the error comes where the result is waited for. In a program
    of one process it does nothing.

    Args:
        call: The call as the user wrote it, for the message.

    Yields:
        Nothing.

    Raises:
        RunError: If another process ended, or did not answer in time. Any other error
            passes unchanged.

    Example:
        >>> import jax
        >>> with guard("my round"):
        ...     total = jax.block_until_ready(jax.numpy.arange(3).sum())
    """
    try:
        yield
    except (jax.errors.JaxRuntimeError, ValueError) as error:  # the latter by numpy
        text = str(error)
        lost = _STATUS.match(text) and _LOST.search(text)
        if not lost or jax.process_count() == 1:
            raise
        mark_failed()
        raise RunError(_message(call, text)) from error


def _message(call: str, text: str) -> str:
    here = f"process {jax.process_index()} of {jax.process_count()}"
    what = "another process ended in the middle of the run (see its own output)"
    if _LATE.search(text):
        what = (
            "another process did not answer in time: it ended, hangs, is stopped, or "
            "is that much slower (fad.distributed.initialize(collective_seconds=...) "
            "sets how long the others wait)"
        )
    return f"{call}: {here} reports that {what}. {RESTART}"
