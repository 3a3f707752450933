"""The workload's facts, the tables, the timing and the parity check."""

import json
import os
import time

import numpy as np
import pytest

from benchmarks._machine import describe, machine
from benchmarks._parity import Parity, compare
from benchmarks._processes import PeakMemory, cpu_seconds, tree
from benchmarks._report import Report, table
from benchmarks._timing import Spread, interleave
from benchmarks._workload import flops_of_step, load, make

pytestmark = pytest.mark.once


@pytest.fixture(scope="module")
def workload():
    return make("mlp", rounds=8)


def test_the_workload_is_the_one_that_is_described(workload):
    assert len(workload.sizes) == 400
    assert workload.sizes.min() >= 20
    assert workload.sizes.max() == 50
    assert workload.schedule.shape == (8, 100)
    assert all(len(set(cohort)) == 100 for cohort in workload.schedule.tolist())
    batches = [workload.batches(i) for i in range(8)]
    assert 360 <= np.mean(batches) <= 400
    assert workload.x.dtype == np.float32
    assert set(np.unique(workload.y)) <= set(range(62))
    assert sum(p.size for p in workload.params.values()) == 209_662


def test_labels_are_heterogeneous(workload):
    held = [len(np.unique(workload.client(i)[1])) for i in range(400)]
    assert np.mean(held) < 20  # of 62; a client drawn from all would hold about 27


def test_the_cnn_has_the_params_that_are_described():
    params = make("cnn", clients=2, cohort=1, rounds=1).params
    assert sum(p.size for p in params.values()) == 1_206_590


def test_the_workload_is_the_same_each_time_and_after_saving(workload, tmp_path):
    workload.save(tmp_path / "w.npz")
    for other in (make("mlp", rounds=8), load(tmp_path / "w.npz")):
        assert other.model == "mlp"
        for name in ("x", "y", "offsets", "schedule"):
            assert np.array_equal(getattr(other, name), getattr(workload, name))
        assert list(other.params) == list(workload.params)
        for name, value in workload.params.items():
            assert np.array_equal(other.params[name], value)


def test_padding_keeps_the_stored_order(workload):
    x, y, real = workload.padded()
    assert x.shape == (400, 5, 10, 28, 28)
    assert real.sum() == len(workload.y)
    own_x, own_y = workload.client(7)
    assert np.array_equal(x[7][real[7]], own_x)
    assert np.array_equal(y[7][real[7]], own_y)
    assert not x[~real].any()


def test_flops_are_three_products_per_layer_but_for_the_first():
    first, rest = 784 * 200, 200 * 200 + 200 * 62
    assert flops_of_step("mlp") == 2 * 10 * (2 * first + 3 * rest)


def test_parity_passes_rounding_and_catches_a_wrong_result():
    reference = {"w": np.ones((3, 2), np.float32), "b": np.zeros(2, np.float32)}
    close = {name: value + np.float32(1e-7) for name, value in reference.items()}
    assert compare(close, reference, tolerance=1e-6).passed
    wrong = {**reference, "b": np.array([0, 4e-3], np.float32)}
    parity = compare(wrong, reference, tolerance=1e-6)
    assert not parity.passed
    assert str(parity) == "FAILED: 4.0e-03 > 1e-06"
    assert not Parity(float("nan"), 1.0).passed


def test_parity_of_other_arrays_is_refused():
    with pytest.raises(ValueError, match=r"parity: expected arrays .*'w': \(2,\)"):
        compare({"w": np.ones(3)}, {"w": np.ones(2)}, tolerance=1.0)


def test_the_table_marks_what_is_missing_and_escapes_bars():
    rows = [{"a": 0.123456, "b": "x|y"}, {"a": None, "b": 1234.5}, {"b": "two\nlines"}]
    assert table(rows, {"a": "A", "b": "B"}).splitlines() == [
        "| A | B |",
        "| --- | --- |",
        "| 0.123 | x\\|y |",
        "| - | 1234 |",
        "| - | two lines |",
    ]


def test_a_report_holds_machine_and_date_and_partial_ones_stand_apart(tmp_path):
    report = Report(
        name="x",
        title="A title",
        command="python -m benchmarks x",
        columns={"peer": "framework", "s": "s/round"},
        rows=[{"peer": "fad", "s": 1.5, "walls": [1.0, 2.0]}],
        notes=["A note."],
    )
    data, page = report.write(complete=True, root=tmp_path)
    assert data == tmp_path / "benchmarks" / "results" / "x.json"
    assert page == tmp_path / "docs" / "benchmarks" / "x.md"
    found = json.loads(data.read_text())
    assert found["rows"][0]["walls"] == [1.0, 2.0]
    assert found["machine"]["cores"] >= 1
    text = page.read_text()
    assert text.startswith("# A title\n\n| framework | s/round |")
    assert report.machine["date"] in text
    assert "- A note." in text
    partial, _ = report.write(complete=False, root=tmp_path)
    assert partial == tmp_path / ".benchmarks" / "partial" / "x.json"


def test_the_machine_is_described():
    text = describe(machine())
    assert f"{machine()['cores']} cores" in text
    assert "jax " in text


def test_contenders_take_turns_and_each_is_first_in_turn():
    calls = []

    def contender(name):
        def turn(i):
            calls.append((i, name))
            return None if name == "c" and i > 0 else float(i)

        return turn

    times = interleave({n: contender(n) for n in "abc"}, range(3))
    assert [name for _, name in calls] == list("abcbcacab")
    assert times == {"a": [0.0, 1.0, 2.0], "b": [0.0, 1.0, 2.0], "c": [0.0]}


def test_the_spread_of_times():
    spread = Spread.of([4.0, 1.0, 2.0, 3.0, 5.0])
    assert spread == (3.0, 1.0, 2.0, 4.0, 5)
    assert str(spread) == "3.000 (1.000; 2.000 to 4.000)"
    assert str(Spread.of([2.0])) == "2.000 (once)"


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="needs /proc")
def test_memory_and_cpu_of_this_process_are_seen():
    pid = os.getpid()
    watch = PeakMemory(pid, every=0.01)
    held = np.ones(20_000_000)
    deadline = time.monotonic() + 5
    while (watch.peak or 0) < held.nbytes and time.monotonic() < deadline:
        time.sleep(0.01)
    watch.look()
    watch.stop()
    assert pid in tree(pid)
    assert watch.peak is not None
    assert watch.peak >= held.nbytes
    assert watch.shared_once
    assert (cpu_seconds(pid) or 0) > 0
