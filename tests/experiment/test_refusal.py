"""A round that the algorithm itself refuses leaves nothing behind."""

import pytest

import fad
from fad.experiment import read_rows, run
from tests.experiment import fakes

pytestmark = pytest.mark.usefixtures("fake_cost", "no_figure")


def test_a_round_that_is_refused_is_not_kept(tmp_path):
    """The rows and checkpoints before it are, and the run is where it stopped."""
    seen = []

    def check(metrics):
        seen.append(metrics)
        if len(seen) == 4:
            raise fad.FadError("the loss is not to my taste")

    config = fakes.experiment()
    algorithm = fakes.build(config.algorithm)._replace(check=check)
    folder, task = tmp_path / "toy", fakes.FakeTask()
    message = r"toy: round 4: the loss is not to my taste"
    with pytest.raises(fad.RunError, match=message):
        run(config, algorithm, task, folder, progress=False)
    assert len(read_rows(folder / "metrics.jsonl")) == 3
    assert [p.name for p in (folder / "checkpoints").iterdir()] == ["2"]
    assert set(seen[0]) == {"loss", "server_lr"}
    assert all(type(x) is float for x in seen[0].values())
    result = run(config, algorithm, task, folder, progress=False, resume=True)
    assert len(result.rows) == 6
