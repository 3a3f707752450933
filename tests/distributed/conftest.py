"""One run of two processes for the many checks that need no process to end."""

import json
import os
import time
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.distributed.job import Job


class Session(NamedTuple):
    """What the two processes left."""

    printed: list[dict[str, Any]]  # by each
    numbers: Path  # of process 0


@pytest.fixture(scope="session")
def session(tmp_path_factory: pytest.TempPathFactory) -> Session:
    """Run the session, or wait for the pytest process of the same run that does."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "session"
    done = folder / "done.json"
    try:
        folder.mkdir()
    except FileExistsError:
        deadline = time.monotonic() + 60
        while not done.exists():
            assert time.monotonic() < deadline, "the session failed elsewhere"
            time.sleep(0.1)
    else:
        with Job(folder, "session", str(folder / "numbers.npz")) as job:
            printed = [json.loads(text.splitlines()[-1]) for text in job.ends_well()]
        part = folder / "part.json"
        part.write_text(json.dumps(printed))
        part.rename(done)
    return Session(json.loads(done.read_text()), folder / "numbers.npz")
