import pytest

from fad.experiment import _loop, _run, _tasks
from tests.experiment import fakes


@pytest.fixture
def fake_cost(monkeypatch):
    """The toy is no federated program, so its cost is made up."""
    monkeypatch.setattr(_loop, "round_cost", lambda *args: (3000, 1000))


@pytest.fixture
def fake_task(monkeypatch):
    task = fakes.FakeTask()
    monkeypatch.setattr(_tasks, "make_task", lambda data, model: task)
    return task


@pytest.fixture
def config_file(tmp_path):
    path = tmp_path / "toy.toml"
    path.write_text(fakes.TOML)
    return path


@pytest.fixture
def no_figure(monkeypatch):
    """Drawing takes longer than all else in a toy run."""
    monkeypatch.setattr(_run, "plot_run", lambda *args, **options: None)
