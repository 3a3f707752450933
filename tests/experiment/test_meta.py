"""Meta-training: what it learns, resume, divergence, memory."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fad import ConfigError, RunError, aggregators
from fad.estimators import InnerRunDiverged
from fad.experiment import DataConfig, Stopped, _meta, meta_train, read_rows
from fad.experiment._meta_slots import make_slots
from tests.experiment.meta_subjects import (
    federation,
    meta_training,
    replaced,
    without_seconds,
)

pytestmark = pytest.mark.once


@pytest.fixture(autouse=True)
def no_figure(monkeypatch):
    monkeypatch.setattr(_meta, "plot_meta", lambda *args, **options: None)


def _stop_after(monkeypatch, steps):
    """Ask for a stop in the meta-step after so many others."""

    @contextlib.contextmanager
    def request():
        calls = iter(range(10**6))
        yield lambda: next(calls) + 1 >= steps

    monkeypatch.setattr(_meta, "stop_request", request)


def test_lowers_the_meta_loss(tmp_path):
    config = meta_training(steps=10, rounds=8, window=8, meta_lr=0.6)
    result = meta_train(config, tmp_path / "x", progress=False)
    losses = [row["meta_loss"] for row in result.rows]
    assert np.mean(losses[-3:]) < np.mean(losses[:3]) - 0.2
    assert float(result.theta["log"]) > -2.0
    _, frozen = aggregators.load(tmp_path / "x")
    assert frozen["log"] == result.theta["log"]


# Those that carry a state of their own from window to window.
@pytest.mark.parametrize("estimator", ["forward", "pes"])
def test_resumes_bit_for_bit(tmp_path, monkeypatch, estimator):
    config = meta_training(estimator=estimator)
    whole = meta_train(config, tmp_path / "a", progress=False)
    with monkeypatch.context() as patch:
        _stop_after(patch, 3)
        with pytest.raises(Stopped, match=r"stopped after meta-step 3 of 4; continue"):
            meta_train(config, tmp_path / "b", progress=False)
    again = meta_train(config, tmp_path / "b", resume=True, progress=False)
    assert float(again.theta["log"]) == float(whole.theta["log"]) != -3.0
    assert without_seconds(again.rows) == without_seconds(whole.rows)
    assert without_seconds(read_rows(tmp_path / "b" / "metrics.jsonl")) == (
        without_seconds(whole.rows)
    )


def test_inner_runs_start_anew_at_different_steps(tmp_path):
    config = meta_training()
    slots = make_slots(config, aggregators.make(config.aggregator.name, rounds=6))
    theta = {"log": jnp.array(0.0)}
    lives = []
    for slot in slots:
        slot.start(theta, 0)
        while not slot.over():
            slot.advance(theta)
        lives.append(slot.age)
        first = slot.state["carry"].state.params
        slot.start(theta, 1)
        same = jax.tree.map(
            lambda a, b: bool((a == b).all()), first, slot.state["carry"].state.params
        )
        assert not all(jax.tree.leaves(same))
    assert lives == [4, 6]


def _diverging(**changes):
    """The second window's step is beyond float32's range."""
    return meta_training(options={"factor": 1e38, "start": 5.0}, **changes)


@pytest.mark.parametrize("policy", ["skip", "clip"])
def test_a_diverging_run_is_reported_and_theta_stays_finite(tmp_path, capsys, policy):
    config = _diverging(on_divergence=policy)
    result = meta_train(config, tmp_path / "x", progress=False)
    err = capsys.readouterr().err
    assert "meta-step 1, run 0 of 'digits': the inner run diverged in round 1" in err
    assert "Started anew." in err
    assert [row["diverged"] for row in result.rows] == [2] * 4
    assert [row["diverged_digits"] for row in result.rows] == [1] * 4
    assert np.isfinite(result.theta["log"])
    if policy == "skip":
        assert float(result.theta["log"]) == 5.0
    _, frozen = aggregators.load(tmp_path / "x")
    assert np.isfinite(frozen["log"])


def test_a_diverging_run_can_end_all(tmp_path):
    config = _diverging(on_divergence="raise")
    with pytest.raises(InnerRunDiverged, match=r"meta-step 1, run 0 of 'dig") as error:
        meta_train(config, tmp_path / "x", progress=False)
    assert error.value.round == 1
    kept = jax.tree.leaves(error.value.state.params)
    assert all(jnp.isfinite(x).all() for x in kept)
    assert not (tmp_path / "x" / "theta.npz").exists()


def test_one_run_that_diverges_leaves_the_others_their_step(tmp_path, capsys):
    wild = federation(label="wild", client_lr=(1e37, 1e38))
    config = meta_training(federation=(federation(), wild))
    result = meta_train(config, tmp_path / "x", progress=False)
    assert "of 'wild'" in capsys.readouterr().err
    assert all(row["diverged"] <= 1 for row in result.rows)
    assert result.rows[0]["diverged_wild"] >= 1
    assert float(result.theta["log"]) > -3.0


def test_folder_is_guarded(tmp_path):
    config = meta_training(steps=1, federation=(federation(),))
    folder = tmp_path / "x"
    with pytest.raises(RunError, match=r"nothing to resume: there is no config\.toml"):
        meta_train(config, folder, resume=True, progress=False)
    meta_train(config, folder, progress=False)
    with pytest.raises(RunError, match="the folder exists and holds"):
        meta_train(config, folder, progress=False)
    other = replaced(config, clip=0.5)
    with pytest.raises(RunError, match=r"differs in clip \(1.0 -> 0.5\)"):
        meta_train(other, folder, resume=True, progress=False)
    meta_train(other, folder, overwrite=True, progress=False)


def test_cohort_larger_than_a_federation():
    config = meta_training(cohort=11)
    made = aggregators.make(config.aggregator.name, rounds=6)
    with pytest.raises(ConfigError, match=r"'digits': cohort = 11, but there are 10 c"):
        make_slots(config, made)


def test_every_draw_is_another_federation_of_one_shape():
    data = DataConfig(set="synthetic", partition="natural", clients=12)
    families = (
        federation(runs=1),
        federation(label="synthetic", examples=None, alpha=None, data=data),
    )
    config = meta_training(federation=families, epochs=2)
    made = aggregators.make(config.aggregator.name, rounds=6)
    for slot in make_slots(config, made):
        family = slot._family
        draws = [family.draw(np.random.SeedSequence(i)) for i in range(3)]
        assert len({lr for _, lr in draws}) == 3
        assert all(0.1 <= lr <= 0.2 for _, lr in draws)
        windows = [family.window(d, jax.random.key(0), 0) for d, _ in draws]
        shapes = [jax.tree.map(jnp.shape, w.unsafe_gather()) for w in windows]
        assert shapes[0] == shapes[1] == shapes[2]
        assert shapes[0].mask == (2, 4, 4, 5)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_window():
    """Temporary memory of a meta-gradient through 100 rounds and through 10, by XLA."""
    used = {}
    for window in (10, 100):
        config = meta_training(
            rounds=100, window=window, federation=(federation(),), cohort=10
        )
        (slot,) = make_slots(config, aggregators.make("learned", rounds=100))
        theta = aggregators.make("learned", rounds=100).init_theta(jax.random.key(0))
        slot.start(theta, 0)
        cohorts = slot._family.window(slot._clients, jax.random.key(0), 0)
        keys = jax.random.split(jax.random.key(0), window)
        lowered = jax.jit(slot._estimate).lower(theta, slot.carry, cohorts, keys)
        memory = lowered.compile().memory_analysis()
        assert memory is not None
        used[window] = memory.temp_size_in_bytes
    assert used[100] <= 1.5 * used[10], used
