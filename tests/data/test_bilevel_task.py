import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fad
from fad.data import BilevelTask, Federated

X = np.ones((4, 2), np.float32)


def clients(*offsets, **examples):
    return Federated(examples or {"x": X}, np.array(offsets or (0, 1, 4)))


def make(**changes):
    parts = {
        "name": "ones",
        "lower": clients(),
        "upper": clients(),
        "test": {"x": X},
        "init_upper": lambda key: jnp.zeros(2),
        "init_lower": lambda key: jnp.zeros(2),
        "problem": fad.estimators.Bilevel(
            upper=lambda x, y, e: ((y[None] - 3 * e["x"]) ** 2).sum(1),
            lower=lambda x, y, e: ((y[None] - x[None] - e["x"]) ** 2).sum(1),
        ),
        "metrics": lambda x, y, e: {"mean": e["x"].mean(1)},
    }
    return BilevelTask(**{**parts, **changes})


def test_is_frozen_and_holds_both_levels():
    task = make()
    with pytest.raises(dataclasses.FrozenInstanceError):
        task.name = "other"  # pyright: ignore[reportAttributeAccessIssue]
    assert task.train.lower is task.lower
    assert task.train.upper is task.upper
    assert dict(task.set_metrics) == {}


def test_its_cohorts_are_what_estimators_take(getkey):
    task = make()
    cohort = task.train.cohort(getkey(), 2, batch_size=2)
    cohorts = jax.tree.map(lambda a: jnp.asarray(a)[None], cohort)
    x, y = task.init_upper(getkey()), task.init_lower(getkey())
    estimator = fad.estimators.aid(
        task.problem, fad.solvers.gradient_descent(0.5), steps=1, terms=1
    )
    found = estimator.estimate(x, estimator.init(x, y, cohort), cohorts, None)
    # y* = x + 1 = 1 after one exact step; dy*/dx = 1; f' = 2 (y - 3).
    np.testing.assert_allclose(found.state.y, [1, 1])
    np.testing.assert_allclose(found.hypergradient, [-4, -4], rtol=1e-6)


def test_a_width_asks_for_a_narrower_model():
    small = make()
    task = make(narrow=lambda width: small)
    assert task.at_width(1) is task
    assert task.at_width(0.5) is small
    match = r"BilevelTask\.at_width\(width=0\.5\): the task 'ones' has one model only"
    with pytest.raises(ValueError, match=match):
        small.at_width(0.5)
    match = r"BilevelTask\.at_width\(width=2\): expected the share of units"
    with pytest.raises(ValueError, match=match):
        task.at_width(2)


def test_levels_may_hold_other_arrays():
    extra = clients(0, 2, 4, x=X, id=np.arange(4, dtype=np.int32))
    assert set(make(lower=extra).lower.examples) == {"x", "id"}


def test_refuses_other_clients():
    match = r"BilevelTask\(lower=\.\.\., upper=\.\.\.\): expected the same clients"
    with pytest.raises(ValueError, match=match):
        make(upper=clients(0, 4))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        (
            {"upper": clients(0, 1, 4, x=X[:, :1])},
            r"BilevelTask\(lower=\.\.\., upper=\.\.\.\): a row of 'x' is float32\[2\] "
            r"in lower and float32\[1\] in upper\. Arrays of one name must be alike",
        ),
        (
            {"test": {"x": X.astype(np.float64)}},
            r"BilevelTask\(lower=\.\.\., test=\.\.\.\): a row of 'x' is float32\[2\] "
            r"in lower and float64\[2\] in test",
        ),
        (
            {
                "lower": clients(0, 1, 4, z=X),
                "test": {"x": X[:, 0]},
            },
            r"BilevelTask\(upper=\.\.\., test=\.\.\.\): a row of 'x' is",
        ),
        (
            {"upper": clients(0, 1, 4, x=np.full_like(X, np.nan))},
            r"BilevelTask\(upper=\.\.\.\): expected finite numbers, but 'x' has NaN or "
            r"infinity in 4 of 4 rows, in the columns 0, 1, at the clients 0 \(1 of",
        ),
        (
            {"test": {"x": np.full_like(X, np.inf)}},
            r"BilevelTask\(test=\.\.\.\): expected finite numbers.*columns 0, 1\. Fill",
        ),
        (
            {"test": {"x": X[:0]}},
            r"BilevelTask\(test=\.\.\.\): expected arrays \[N, \*\] that share one N",
        ),
        (
            {"test": {"x": np.ma.masked_array(X, X > 0)}},
            r"BilevelTask\(test=\.\.\.\): expected plain arrays, but 'x' is a masked",
        ),
    ],
    ids=["upper", "test", "upper and test", "nan", "inf", "empty", "masked"],
)
def test_refuses(changes, match):
    with pytest.raises(ValueError, match=match):
        make(**changes)
