"""The page of costs is what the code says, and the page of accuracies can be run."""

import jax
import pytest

from algorithms import ALGORITHMS
from benchmarks import _study_runs as runs
from benchmarks import methods
from benchmarks.classical import STUDIES
from fad.experiment import load

pytestmark = pytest.mark.once

MNIST = STUDIES["classical_mnist"]


@pytest.mark.slow
def test_the_page_is_what_the_code_says():
    with jax.numpy_dtype_promotion("standard"):  # optax's projection needs it
        assert methods.PAGE.read_text("utf-8") == methods.page()


@pytest.mark.parametrize("label", MNIST.series)
def test_settings_load(label):
    job = runs.Job("classical", "classical_mnist", label, "Algorithms", 1)
    path = runs.ROOT / "configs" / MNIST.config
    experiment = load(path, ALGORITHMS, overrides=runs.overrides(MNIST, job))
    assert experiment.rounds == MNIST.series[label].steps
