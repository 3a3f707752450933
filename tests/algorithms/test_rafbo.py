"""RAFBO: its forms, against algorithms without slices and against masks."""

import jax
import numpy as np
import pytest

import fad
from algorithms._pruned_structured import structured
from algorithms.fedbio import fedbio
from algorithms.memfbo import memfbo
from algorithms.rafbo import Config, rafbo
from tests.algorithms.bilevel_loops import (
    LRS,
    START,
    X,
    Y,
    keeps_dtype,
    masked,
    run,
    same,
    setting,
)
from tests.algorithms.pruned_loops import steps_are_masked, whole

pytestmark = [pytest.mark.usefixtures("x64"), pytest.mark.once]


def full(problem, init_x, init_y, **options):
    return rafbo([whole(problem)], init_x, init_y, **options)


@pytest.mark.parametrize("form", ["difference", "penalty", "exact"])
def test_with_all_keys_it_is_memfbo_or_fedbio(form):
    _, problem, cohort = setting(steps=2)
    found, metrics = run(full(problem, *START, form=form, **LRS), cohort, 5)
    if form == "exact":
        other = fedbio(problem, *START, **LRS)
    else:
        other = memfbo(problem, *START, form=form, **LRS)
    state, told = run(other, cohort, 5)
    same(found.z, state, rtol=1e-12, atol=1e-12)
    same({name: metrics[name] for name in told}, told, rtol=1e-12, atol=1e-12)
    assert (metrics["coverage_x"], metrics["coverage_y"]) == (4, 4)
    assert metrics["uncovered"] == metrics["uncovered/x"] == 0


def test_steps_are_those_with_masks():
    def tiers(task, rule):
        return [structured(task, w, w, rule=rule, lower_rule=rule) for w in (1.0, 0.5)]

    steps_are_masked(rafbo, tiers, local=True)


def test_nobody_nan_and_short_floats():
    _, problem, cohort = setting(steps=2)
    algorithm = full(problem, *START, **LRS)
    state, step = algorithm.init(jax.random.key(0)), jax.jit(algorithm.step)
    nobody = masked(cohort, np.zeros((4, 2)), np.zeros((4, 1)))
    found, metrics = step(state, nobody, jax.random.key(0))
    same(found.params, (X, Y))
    assert all(np.isfinite(a) for a in jax.tree.leaves(metrics))
    assert metrics["uncovered"] == 3 + 4
    split = cohort.unsafe_gather()
    upper = split.upper._replace(
        examples=jax.tree.map(lambda a: a.at[0].set(np.nan), split.upper.examples)
    )
    broken = fad.AtClients(split._replace(upper=upper))
    found, _ = step(state, broken, jax.random.key(0))
    assert np.isnan(found.x).all()  # It is seen, not hidden.
    keeps_dtype(full, LRS)


def test_the_same_options_as_rabo():
    assert Config().options().keys() == {
        *("form", "average", "lower_lr", "linear_lr", "upper_lr", "delta", "penalty")
    }
    with pytest.raises(ValueError, match=r"delta: expected in \(0, inf\), got 0"):
        Config(delta=0)
