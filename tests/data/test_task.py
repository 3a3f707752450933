import dataclasses
import re
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from fad.data import Federated, Task

X = np.ones((3, 2), np.float32)


def make(test, **options):
    return Task(
        name="ones",
        train=Federated({"x": X}, np.array([0, 1, 3])),
        test=test,
        init=lambda key: jnp.zeros(2),
        loss=lambda params, examples: examples["x"] @ params,
        metrics=lambda params, examples: {"mean": examples["x"].mean(1)},
        **options,
    )


def test_is_frozen():
    task = make({"x": X})
    with pytest.raises(dataclasses.FrozenInstanceError):
        task.name = "other"  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    "test",
    [{"x": X, "y": X}, {"z": X}, {"x": X[:, :1]}, {"x": X.astype(np.float64)}],
    ids=["more", "other", "shape", "dtype"],
)
def test_refuses_a_test_set_of_another_kind(test):
    match = r"Task\(train=\.\.\., test=\.\.\.\): both must hold the same arrays"
    with pytest.raises(ValueError, match=match):
        make(test)


def test_names_what_differs():
    with pytest.raises(ValueError, match=r"'float32\[2\]'.* 'float32\[1\]'"):
        make({"x": X[:, :1]})


def test_refuses_a_masked_test_set():
    match = r"Task\(test=\.\.\.\): expected plain arrays, but 'x' is a masked one"
    with pytest.raises(ValueError, match=match):
        make({"x": np.ma.masked_array(X, X > 0)})


def test_refuses_an_empty_test_set():
    match = r"Task\(test=\.\.\.\): expected arrays \[N, \*\] that share one N"
    with pytest.raises(ValueError, match=match):
        make({"x": X[:0]})


def test_a_width_asks_for_a_narrower_model():
    small = make({"x": X})
    task = make({"x": X}, narrow=lambda width, **options: (small, width, options))
    assert task.at_width(1) is task
    assert task.at_width(0.5) == (small, 0.5, {})
    assert task.at_width(0.5, scaled=True) == (small, 0.5, {"scaled": True})


def test_refuses_a_width():
    task = make({"x": X})
    assert task.at_width(1.0) is task
    match = r"Task\.at_width\(width=0\.5\): the task 'ones' has one model only\. Mak"
    with pytest.raises(ValueError, match=match):
        task.at_width(0.5)
    widths: Any = (0, -0.5, 1.5, float("nan"), (), (1.0, 2.0), "half")
    for width in widths:
        match = re.escape(f"Task.at_width(width={width!r}): expected the share of uni")
        with pytest.raises(ValueError, match=match):
            task.at_width(width)


def test_holds_validation_examples_of_the_same_kind():
    assert make({"x": X}).validation is None
    task = make({"x": X}, validation={"x": X[:2]})
    held = task.validation
    assert held is not None
    assert held["x"].shape == (2, 2)
    match = r"Task\(train=\.\.\., validation=\.\.\.\): both must hold the same arrays"
    with pytest.raises(ValueError, match=match):
        make({"x": X}, validation={"x": X[:, :1]})
    match = r"Task\(validation=\.\.\.\): expected finite numbers"
    with pytest.raises(ValueError, match=match):
        make({"x": X}, validation={"x": np.full_like(X, np.nan)})
