"""Workers, environments, and what is said when something goes wrong."""

import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import _contest, _environments, limit, peers, scale
from benchmarks.__main__ import main
from benchmarks._contest import Contender, contest, judge
from benchmarks._environments import OWN, InstallError, Peer, python_of, select
from benchmarks._worker import Worker, WorkerError
from benchmarks._workload import LR, make

pytestmark = pytest.mark.once

NOWHERE = Peer("nowhere", (("no-such-package-of-fad==0.0.0", "--no-index"),), ())


@pytest.fixture(scope="module")
def workload():
    return make("mlp", clients=6, cohort=3, rounds=2)


@pytest.fixture(scope="module")
def path(workload, tmp_path_factory):
    path = tmp_path_factory.mktemp("workload") / "w.npz"
    workload.save(path)
    return path


def by_hand(workload):
    """One round in NumPy, in double precision."""
    start = {k: v.astype(float) for k, v in workload.params.items()}
    clients = workload.schedule[0]
    total = {k: np.zeros_like(v) for k, v in start.items()}
    for client in clients:
        p, (x, y) = dict(start), workload.client(client)
        for low in range(0, len(y), 10):
            rows = slice(low, low + 10)
            p = _step(p, x[rows].reshape(-1, 784).astype(float), y[rows])
        for name in total:
            total[name] += p[name] * len(y) / workload.sizes[clients].sum()
    return total


def _step(p, x, y):
    inputs, h = [], x
    for k in range(3):
        inputs.append(h)
        h = h @ p[f"dense{k}/kernel"] + p[f"dense{k}/bias"]
        h = np.maximum(h, 0) if k < 2 else h
    g = np.exp(h - h.max(1, keepdims=True))
    g = (g / g.sum(1, keepdims=True) - np.eye(62)[y]) / len(y)
    new = {}
    for k in (2, 1, 0):
        kernel, bias = f"dense{k}/kernel", f"dense{k}/bias"
        new[kernel] = p[kernel] - LR * inputs[k].T @ g
        new[bias] = p[bias] - LR * g.sum(0)
        g = g @ p[kernel].T * (inputs[k] > 0)
    return new


def test_the_plain_worker_takes_the_round_that_is_described(workload, path, tmp_path):
    with Worker("plain", sys.executable, tmp_path / "log") as worker:
        worker.start("fedavg", path)
        wall, _ = worker.turn(0)
        found = worker.result()
        with pytest.raises(WorkerError, match="plain: turn: IndexError: index 99"):
            worker.turn(99)
    assert wall > 0
    for name, value in by_hand(workload).items():
        np.testing.assert_allclose(found[name], value, rtol=0, atol=1e-6)


def test_a_worker_that_ends_is_reported_with_its_last_words(tmp_path):
    worker = Worker("no_such_worker", sys.executable, tmp_path / "log")
    with worker, pytest.raises(WorkerError, match=r"process ended: .*no_such_worker"):
        worker.start("fedavg", tmp_path)


def test_a_worker_out_of_time_is_stopped_and_says_so(path, tmp_path):
    with Worker("plain", sys.executable, tmp_path / "log") as worker:
        with pytest.raises(WorkerError, match="start not done in 0 s, stopped"):
            worker.start("fedavg", path, limit=0.01)


def borrow_this_python(monkeypatch):
    """Let environments be links to this interpreter, since making one takes seconds."""
    run = _environments._run

    def fake(command):
        if "venv" not in command:
            return run(command)
        home = Path(command[-1], "bin")
        home.mkdir(parents=True)
        (home / "python").symlink_to(sys.executable)

    monkeypatch.setattr(_environments, "_run", fake)


def test_a_peer_that_cannot_be_installed_is_reported(
    workload, tmp_path, monkeypatch, capsys
):
    borrow_this_python(monkeypatch)
    with pytest.raises(InstallError, match="no-such-package-of-fad"):
        python_of(NOWHERE, tmp_path)
    monkeypatch.setattr(_contest, "python_of", lambda peer: python_of(peer, tmp_path))
    failed = Contender(NOWHERE, "nowhere")
    contest([failed], workload, task="fedavg", turns=1, read_after=1)
    assert "!!! nowhere: not installed: ERROR" in capsys.readouterr().out
    row = failed.row()
    assert row["seconds"].startswith("**not installed: ERROR")
    assert "no-such-package-of-fad" in row["failure"]


def test_an_environment_is_made_once_and_again_when_its_pins_change(
    tmp_path, monkeypatch
):
    commands = []

    def run(command):
        commands.append(command)
        if "venv" in command:
            (tmp_path / "p").mkdir()

    monkeypatch.setattr(_environments, "_run", run)
    for pins in [("a==1",), ("a==1",), ("a==2",)]:
        python_of(Peer("p", (pins, ("b==1",)), ()), tmp_path)
    assert [command[-1] for command in commands[1:3]] == ["a==1", "b==1"]
    assert len(commands) == 6


def test_an_unknown_peer_is_named():
    with pytest.raises(SystemExit, match=r"--peers: no peer is named 'fedavg'"):
        select("drjax,fedavg")
    assert [peer.name for peer in select("pfl,drjax")] == ["pfl", "drjax"]
    assert len(select(None)) == 4


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("peers --models mnist", "--models: expected names among mlp,cnn,hyper"),
        ("peers --rounds 0", "--rounds: expected at least 1, got 0"),
        ("limit --models mnist", "--models: expected mlp or cnn, got 'mnist'"),
        ("scale --studies size", "--studies: expected names among clients,rounds"),
    ],
)
def test_a_wrong_option_is_refused_before_anything_runs(command, message):
    with pytest.raises(SystemExit, match=message):
        main(command.split())


def test_a_wrong_result_fails_the_comparison(capsys):
    right = {"w": np.zeros(2, np.float32)}
    first, second = Contender(OWN["plain"], "a"), Contender(OWN["fad"], "b")
    first.found, second.found = right, {"w": np.array([0, 1e-3], np.float32)}
    assert not judge([first, second], 1e-6)
    assert "!!! b: parity FAILED: 1.0e-03 > 1e-06" in capsys.readouterr().out
    first.found, first.failure = None, "it ended"
    with pytest.raises(RuntimeError, match="a, the reference of the parity check"):
        judge([first, second], 1e-6)


def test_the_faster_variant_is_kept_and_the_other_recorded():
    rows = [
        {"peer": "pfl, 1 thread", "median": 2.0},
        {"peer": "pfl, 2 threads", "median": 1.0},
        {"peer": "flwr", "failure": "not installed"},
    ]
    kept = peers.best_variants(rows)
    assert [row["peer"] for row in kept] == ["pfl, 2 threads", "flwr"]
    assert kept[0]["also"] == [rows[0]]


def test_each_study_varies_what_it_names_and_starts_from_its_reference():
    for study in scale.studies(quick=False):
        assert study.name in ("clients", "rounds", "devices")
        assert list(study.values) == sorted(study.values)
        assert study.series[0].peer is OWN["fad"]
    assert scale.studies(quick=False)[0].values[-1] == 16384
    assert limit.TARGET == 1.10
