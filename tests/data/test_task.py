import dataclasses

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
