"""``chunk="auto"``: measured once, remembered on disk."""

import json
import os
from pathlib import Path

import jax.numpy as jnp
import pytest

import fad
from fad.compile import _auto
from tests.subjects import assert_same


@fad.program
def _run(w, data):
    return fad.sum(fad.map(lambda x: jnp.sin(w * x) ** 2, data))


def _args(n=64):
    return jnp.asarray(2.0), fad.AtClients(jnp.arange(1.0 * n).reshape(n, 1))


@pytest.fixture
def measured(monkeypatch) -> list:
    """The policies that were timed."""
    timed: list = []

    def time(run, policy):
        timed.append(policy)
        run(policy)
        return 1.0 if policy.rule == "one" else 2.0

    monkeypatch.setattr(_auto, "_time", time)
    return timed


def test_measured_once_and_remembered_on_disk(measured, cache):
    first = fad.jit(_run)
    expected = _run(*_args())
    assert_same(first(*_args()), expected, tol=1e-5)
    count = len(measured)
    assert count in (2, 3)
    assert_same(first(*_args()), expected, tol=1e-5)
    assert len(measured) == count
    again = fad.jit(_run)
    assert_same(again(*_args()), expected, tol=1e-5)
    assert len(measured) == count
    assert [p.name for p in cache.iterdir()] == ["chunks.json"]


def test_explain_says_why(measured):
    run = fad.jit(_run)
    assert run.explain(*_args()).why == "chosen by the cost model, not measured"
    assert not measured
    run(*_args())
    explained = run.explain(*_args())
    assert explained.why.startswith("fastest of those measured (")
    assert "ms" in explained.why
    assert [s.chunk for s in explained.sweeps] == [1]
    assert fad.jit(_run).explain(*_args()).why.endswith("remembered")


def test_other_shapes_are_measured_anew(measured):
    run = fad.jit(_run)
    run(*_args())
    count = len(measured)
    run(*_args(32))
    assert len(measured) > count


def test_one_client_needs_no_measuring(measured):
    run = fad.jit(_run)
    run(*_args(1))
    assert not measured
    assert run.explain(*_args(1)).why == "all choices of chunk are the same"


def test_the_choice_is_used(measured):
    run = fad.jit(_run)
    run(*_args())
    assert (
        run.lower(*_args()).as_text()
        == fad.jit(_run, chunk=1).lower(*_args()).as_text()
    )


def test_an_unmeasured_function_is_measured_when_it_is_called(measured):
    run = fad.jit(_run)
    run.lower(*_args())
    assert not measured
    run(*_args())
    assert measured


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", '{"a": 1}', "\x00"],
    ids=["empty", "half", "list", "null", "other", "binary"],
)
def test_a_corrupt_memory_is_measured_again_and_replaced(measured, cache, text):
    cache.mkdir()
    (cache / "chunks.json").write_text(text)
    assert_same(fad.jit(_run)(*_args()), _run(*_args()), tol=1e-5)
    assert measured
    assert json.loads((cache / "chunks.json").read_text())


@pytest.mark.parametrize(
    "entry", [1, None, "one", [], {}, {"rule": "one"}, {"rule": []}]
)
def test_a_corrupt_entry_is_measured_again(measured, cache, entry):
    fad.jit(_run)(*_args())
    path, count = cache / "chunks.json", len(measured)
    path.write_text(json.dumps(dict.fromkeys(json.loads(path.read_text()), entry)))
    assert_same(fad.jit(_run)(*_args()), _run(*_args()), tol=1e-5)
    assert len(measured) > count


def test_a_cache_that_cannot_be_written(measured, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FAD_CACHE_DIR", str(tmp_path / "file" / "below"))
    run = fad.jit(_run)
    assert_same(run(*_args()), _run(*_args()), tol=1e-5)
    count = len(measured)
    run(*_args())
    assert len(measured) == count
    fad.jit(_run)(*_args())
    assert len(measured) > count


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root")
def test_a_read_only_cache(measured, cache):
    cache.mkdir()
    cache.chmod(0o500)
    assert_same(fad.jit(_run)(*_args()), _run(*_args()), tol=1e-5)


def test_the_memory_stands_in_the_users_cache(measured, tmp_path, monkeypatch):
    monkeypatch.delenv("FAD_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    fad.jit(_run)(*_args())
    assert (tmp_path / "xdg" / "fad" / "chunks.json").is_file()
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    fad.jit(_run)(*_args())
    assert (tmp_path / "home" / ".cache" / "fad" / "chunks.json").is_file()


def test_timing_for_real():
    run = fad.jit(_run)
    assert_same(run(*_args()), _run(*_args()), tol=1e-5)
    assert "fastest of those measured" in run.explain(*_args()).why
