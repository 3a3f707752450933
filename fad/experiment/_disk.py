"""Failures of the disk, as errors that say what to do."""

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

from fad._errors import RunError

_FULL = (errno.ENOSPC, errno.EDQUOT)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a failure to write below ``path`` into an error that says what to do.

    Raises:
        RunError: The disk is full, or the place cannot be written.
    """
    try:
        yield
    except OSError as error:
        fix = "Give a folder that can be written with --runs-dir."
        if error.errno in _FULL:
            fix = "Free some space, then continue with --resume or start again."
        reason = error.strerror or error
        raise RunError(f"{path}: cannot be written: {reason}. {fix}") from error
