import shutil
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def _prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for package in ("tensorflow_datasets", "array_record", "PIL"):
        pytest.importorskip(package)
    from tests.data import tiny_set

    data_dir = tmp_path_factory.mktemp("sets")
    tiny_set.prepare(data_dir)
    return data_dir


@pytest.fixture
def sets(_prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder with the set fad_tiny, and no other place for decoded arrays."""
    data_dir = tmp_path / "sets"
    shutil.copytree(_prepared, data_dir)
    monkeypatch.delenv("FAD_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(data_dir))
    return data_dir
