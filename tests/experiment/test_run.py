import dataclasses
import errno
import json
import os
import re
import shutil
import signal
import threading
import types
from pathlib import Path

import jax
import numpy as np
import pytest

from fad import DataError, RunError
from fad._strong import strong
from fad.experiment import Diverged, Stopped, _loop, _run, load, read_rows, run
from fad.experiment._checkpoint import Checkpoints
from fad.experiment._stop import stop_request
from tests.experiment import fakes
from tests.experiment.fakes import ALGORITHMS, Config, build, experiment

pytestmark = pytest.mark.usefixtures("fake_cost", "no_figure")


def go(folder, task=None, **options):
    changes = {
        k: options.pop(k) for k in ("rounds", "algorithm", "seed") if k in options
    }
    config = experiment(**changes)
    task = task or fakes.FakeTask()
    return run(config, build(config.algorithm), task, folder, progress=False, **options)


def assert_same_bits(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        if jax.numpy.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        assert x.dtype == y.dtype
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def without_seconds(rows):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def test_writes_its_folder(tmp_path):
    folder = tmp_path / "runs" / "toy"
    result = go(folder)
    assert result.folder == folder
    names = {"config.toml", "metrics.jsonl", "checkpoints"}
    assert {path.name for path in folder.iterdir()} == names
    assert load(folder / "config.toml", ALGORITHMS) == experiment()
    assert read_rows(folder / "metrics.jsonl") == result.rows
    assert [row["round"] for row in result.rows] == [1, 2, 3, 4, 5, 6]
    assert [r["round"] for r in result.rows if "accuracy" in r] == [2, 4, 6]
    last = result.rows[-1]
    assert (last["bytes_down"], last["bytes_up"]) == (18000, 6000)
    assert {"loss", "train_loss", "server_lr", "seconds"} <= set(last)


def test_evaluates_at_the_end(tmp_path):
    assert "accuracy" in go(tmp_path / "a", rounds=3).rows[-1]


def test_evaluation_is_the_mean_over_examples(tmp_path, monkeypatch):
    monkeypatch.setattr("fad.experiment._step.EVAL_BATCH", 2)
    task = fakes.FakeTask()
    result = go(tmp_path / "a", task)
    expected = task.metrics(result.state.params, task.test)["accuracy"].mean()
    np.testing.assert_allclose(result.rows[-1]["accuracy"], expected, rtol=1e-6)


def test_step_is_traced_once(tmp_path):
    before = len(fakes.traces)
    go(tmp_path / "a")
    assert len(fakes.traces) == before + 1


def test_resumed_step_is_traced_once(tmp_path):
    go(tmp_path / "a", rounds=2)
    before = len(fakes.traces)
    go(tmp_path / "a", resume=True)
    assert len(fakes.traces) == before + 1


class StoppingClients(fakes.Clients):
    """Sends a signal to the process while round ``at`` is prepared."""

    def __init__(self, at: int, number: signal.Signals):
        self.at, self.number = at, number

    def cohort(self, *args, **options):
        self.at -= 1
        if not self.at:
            os.kill(os.getpid(), self.number)
        return super().cohort(*args, **options)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_resume_gives_the_same_bits(tmp_path, number):
    whole = go(tmp_path / "whole")
    task = fakes.FakeTask()
    task.train = StoppingClients(3, number)
    with pytest.raises(Stopped, match=r"part: stopped after round 3 of 6; continue"):
        go(tmp_path / "part", task)
    assert len(read_rows(tmp_path / "part" / "metrics.jsonl")) == 3
    part = go(tmp_path / "part", resume=True)
    assert_same_bits(whole.state, part.state)
    assert without_seconds(whole.rows) == without_seconds(part.rows)
    on_disk = read_rows(tmp_path / "part" / "metrics.jsonl")
    assert on_disk == part.rows


def test_resume_after_a_kill_drops_rows_after_the_checkpoint(tmp_path):
    class Killed(Exception):
        pass

    class Clients(fakes.Clients):
        calls = 0

        def cohort(self, *args, **options):
            self.calls += 1
            if self.calls == 6:
                raise Killed
            return super().cohort(*args, **options)

    whole = go(tmp_path / "whole")
    task = fakes.FakeTask()
    task.train = Clients()
    with pytest.raises(Killed):
        go(tmp_path / "part", task)
    path = tmp_path / "part" / "metrics.jsonl"
    assert len(read_rows(path)) == 5
    with path.open("a") as file:
        file.write('{"round": 6, "lo')
    part = go(tmp_path / "part", resume=True)
    assert_same_bits(whole.state, part.state)
    assert without_seconds(whole.rows) == without_seconds(read_rows(path))


def test_resume_with_more_rounds(tmp_path):
    whole = go(tmp_path / "whole")
    go(tmp_path / "part", rounds=4)
    assert_same_bits(whole.state, go(tmp_path / "part", resume=True).state)


def test_resume_of_a_finished_run_only_reads(tmp_path):
    first = go(tmp_path / "a")
    before = len(fakes.traces)
    again = go(tmp_path / "a", resume=True)
    assert len(fakes.traces) == before
    assert_same_bits(first.state, again.state)
    assert first.rows == again.rows


def test_resume_before_the_first_checkpoint(tmp_path):
    whole = go(tmp_path / "whole")
    go(tmp_path / "part", rounds=1)
    for path in (tmp_path / "part" / "checkpoints").iterdir():
        for file in sorted(path.rglob("*"), reverse=True):
            file.rmdir() if file.is_dir() else file.unlink()
    part = go(tmp_path / "part", resume=True)
    assert_same_bits(whole.state, part.state)
    assert without_seconds(whole.rows) == without_seconds(part.rows)


def test_second_signal_interrupts_at_once(capsys):
    with stop_request() as stop_requested:
        assert not stop_requested()
        os.kill(os.getpid(), signal.SIGINT)
        assert stop_requested()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert (
        "stopping after this round (Ctrl-C again: at once)" in capsys.readouterr().err
    )


def test_signals_are_left_alone_outside_the_main_thread():
    asked = []

    def work():
        with stop_request() as stop_requested:
            asked.append(stop_requested())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert asked == [False]


def test_existing_folder_is_refused(tmp_path):
    go(tmp_path / "a", rounds=1)
    with pytest.raises(
        RunError, match=r"a: the folder exists and holds check.*--resume"
    ):
        go(tmp_path / "a", rounds=1)


def test_overwrite_replaces_what_a_run_wrote(tmp_path):
    go(tmp_path / "a")
    (tmp_path / "a" / "notes.txt").write_text("mine")
    result = go(tmp_path / "a", rounds=1, overwrite=True)
    assert read_rows(tmp_path / "a" / "metrics.jsonl") == result.rows
    assert len(result.rows) == 1
    assert (tmp_path / "a" / "notes.txt").exists()


def test_resume_and_overwrite(tmp_path):
    with pytest.raises(RunError, match="--resume and --overwrite exclude each other"):
        go(tmp_path / "a", resume=True, overwrite=True)


def test_resume_of_nothing(tmp_path):
    with pytest.raises(
        RunError, match=r"a: nothing to resume: there is no config.toml"
    ):
        go(tmp_path / "a", resume=True)


def test_resume_with_another_configuration(tmp_path):
    go(tmp_path / "a", rounds=1)
    message = (
        "a: cannot resume with another configuration; it differs in seed (0 -> 1), "
        "algorithm.lr (0.5 -> 0.1), algorithm.momentum ('unset' -> 0.9). Only rounds"
    )
    with pytest.raises(RunError, match=re.escape(message)):
        go(tmp_path / "a", resume=True, seed=1, algorithm=Config(lr=0.1, momentum=0.9))


def test_resume_with_fewer_rounds(tmp_path):
    go(tmp_path / "a", rounds=2)
    with pytest.raises(RunError, match=r"rounds \(2 -> 1\) may only grow"):
        go(tmp_path / "a", rounds=1, resume=True)


def test_divergence_keeps_the_last_finite_checkpoint(tmp_path):
    message = r"a: round 4: train_loss is nan, loss is nan, the parameters are not fin"
    with pytest.raises(Diverged, match=message) as raised:
        go(tmp_path / "a", algorithm=Config(nan_at=4))
    assert raised.value.round == 4
    checkpoints = Checkpoints(tmp_path / "a" / "checkpoints")
    assert checkpoints.rounds() == [2]
    state = jax.tree.map(strong, build(Config()).init(jax.random.key(0)))
    like = {"state": state, "cohorts": {"round": np.int32(0)}}
    saved = checkpoints.load(2, like)
    assert np.isfinite(saved["state"].params["w"]).all()
    assert int(saved["cohorts"]["round"]) == 2
    assert len(read_rows(tmp_path / "a" / "metrics.jsonl")) == 3


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("dtype", "state.params['w'] was float32[3] and became float16[3]"),
        ("tree", "algorithm.step must return a state of the same structure as it got"),
        ("vector", "metrics['norms'] must be a scalar, got shape (3,)"),
    ],
)
def test_step_message(tmp_path, bad, message):
    with pytest.raises(RunError, match=re.escape(message)):
        go(tmp_path / "a", algorithm=Config(bad=bad))


def test_half_written_checkpoints_are_never_read(tmp_path):
    state = {"w": np.arange(3.0, dtype=np.float32)}
    checkpoints = Checkpoints(tmp_path)
    for t in (1, 2, 3):
        checkpoints.save(t, {"w": state["w"] + np.float32(t)})
    (tmp_path / "9").mkdir()
    (tmp_path / "7.orbax-checkpoint-tmp").mkdir()
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.rounds() == [2, 3]
    np.testing.assert_array_equal(checkpoints.load(3, state)["w"], state["w"] + 3)


def test_checkpoints_keep_keys_and_empty_nodes(tmp_path):
    state = {
        "key": jax.random.key(5),
        "rbg": jax.random.key(5, impl="rbg"),
        "keys": jax.random.split(jax.random.key(1), 3),
        "none": None,
        "empty": ((), np.zeros((0, 3), np.float32)),
        "half": jax.numpy.ones(3, jax.numpy.bfloat16),
        "yes": jax.numpy.asarray(True),
    }
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state)
    like = {**state, "key": jax.random.key(0)}
    back = checkpoints.load(1, like)
    assert_same_bits(state, back)
    assert jax.random.key_impl(back["rbg"]) == jax.random.key_impl(state["rbg"])


@pytest.mark.parametrize(
    "like", [{"w": np.zeros(4)}, {"v": np.zeros(3)}, {"w": np.zeros(3, np.float32)}]
)
def test_checkpoint_of_another_state(tmp_path, like):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"w": np.zeros(3)})
    with pytest.raises(RunError, match="this checkpoint does not fit the state of the"):
        checkpoints.load(1, like)


def test_a_checkpoint_that_is_not_known_loses_nothing(tmp_path):
    go(tmp_path / "a")
    for round in ("4", "6"):
        (tmp_path / "a" / "checkpoints" / round / "_METADATA").unlink()
    rows = read_rows(tmp_path / "a" / "metrics.jsonl")
    message = r"/\d: this checkpoint is damaged, or another version of fad wrote it: "
    with pytest.raises(RunError, match=message):
        go(tmp_path / "a", resume=True)
    assert read_rows(tmp_path / "a" / "metrics.jsonl") == rows


def test_damaged_checkpoint(tmp_path):
    go(tmp_path / "a")
    for path in (tmp_path / "a" / "checkpoints" / "6").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:9])
    message = r"6: this checkpoint is damaged or cannot be read\. Remove its folder to"
    with pytest.raises(RunError, match=message):
        go(tmp_path / "a", resume=True)
    shutil.rmtree(tmp_path / "a" / "checkpoints" / "6")
    assert go(tmp_path / "a", resume=True).rows[-1]["round"] == 6


def test_disk_full_at_a_checkpoint(tmp_path, monkeypatch):
    def full(*args, **options):
        raise ValueError("RESOURCE_EXHAUSTED: No space left on device")

    class FullCheckpoints(Checkpoints):
        def __init__(self, folder):
            super().__init__(folder)
            self._checkpointer = types.SimpleNamespace(save=full)

    monkeypatch.setattr(_run, "Checkpoints", FullCheckpoints)
    message = (
        r"checkpoints/2: this checkpoint cannot be written: .*No space left on "
        r"device\. Remove the cause, then continue with --resume\."
    )
    with pytest.raises(RunError, match=message):
        go(tmp_path / "a")
    monkeypatch.undo()
    monkeypatch.setattr(_loop, "round_cost", lambda *args: (3000, 1000))
    monkeypatch.setattr(_run, "plot_run", lambda *args, **options: None)
    assert go(tmp_path / "a", resume=True).rows[-1]["round"] == 6


@pytest.mark.parametrize("name", ["file", "file/a"])
def test_runs_folder_is_a_file(tmp_path, name):
    (tmp_path / "file").touch()
    message = r"cannot be written: Not a directory\. Give a folder that can be written"
    with pytest.raises(RunError, match=message):
        go(tmp_path / name)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_runs_folder_without_permission(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(RunError, match=r"a: cannot be written: Permission denied\."):
        go(tmp_path / "a")
    tmp_path.chmod(0o700)


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.EACCES, r"a: cannot be written: .*denied\. Give a folder .*--runs-dir"),
        (
            errno.ENOSPC,
            r"a: cannot be written: No space left.*\. Free some space, then",
        ),
    ],
)
def test_folder_cannot_be_made(tmp_path, monkeypatch, number, message):
    def mkdir(*args, **options):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "mkdir", mkdir)
    with pytest.raises(RunError, match=message):
        go(tmp_path / "a")


def test_metrics_file_is_json(tmp_path):
    go(tmp_path / "a", rounds=2)
    lines = (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line, parse_constant=pytest.fail) for line in lines]
    assert rows[0]["round"] == 1


def test_experiments_differ_by_seed(tmp_path):
    a, b = go(tmp_path / "a"), go(tmp_path / "b", seed=1)
    assert not np.array_equal(a.state.params["w"], b.state.params["w"])
    assert dataclasses.asdict(a)["folder"] == tmp_path / "a"


def test_a_cohort_too_large_is_refused_before_there_is_a_folder(tmp_path):
    class Small(fakes.Clients):
        def cohorts(self, *args, **options):
            raise DataError("too few clients")

    task = fakes.FakeTask()
    task.train = Small()
    with pytest.raises(DataError, match="too few"):
        go(tmp_path / "a", task)
    assert not (tmp_path / "a").exists()


def test_a_training_metric_never_takes_the_name_of_a_test_metric(tmp_path):
    task = fakes.FakeTask()
    task.set_metrics = {"server_lr": lambda params, test: 7}
    rows = go(tmp_path / "a", task).rows
    assert {"train_server_lr", "train_loss"} <= set(rows[0])
    assert "server_lr" not in rows[0]  # evaluated at every second round
    assert rows[1]["server_lr"] == 7.0
