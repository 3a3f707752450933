"""Whether two frameworks did the same work: their params after the same rounds."""

from typing import NamedTuple

import numpy as np

from benchmarks._workload import Params

# Rounding alone, with room: after more rounds of the CNN it is amplified too much.
ROUNDS = {"mlp": 2, "cnn": 1}
TOLERANCE = {"mlp": 1e-6, "cnn": 2e-5}


class Parity(NamedTuple):
    """The largest difference from the reference, and whether it is rounding."""

    difference: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether the difference is within the tolerance; NaN is not."""
        return bool(self.difference <= self.tolerance)

    def __str__(self) -> str:
        """Read as the difference, loud if it is too large."""
        text = f"{self.difference:.1e}"
        return text if self.passed else f"FAILED: {text} > {self.tolerance:.0e}"


def compare(params: Params, reference: Params, *, tolerance: float) -> Parity:
    """Return the largest absolute difference over all parameters.

    Raises:
        ValueError: Names or shapes differ.
    """
    shapes = {name: value.shape for name, value in params.items()}
    expected = {name: value.shape for name, value in reference.items()}
    if shapes != expected:
        raise ValueError(f"parity: expected arrays {expected}, got {shapes}")
    differences = [np.abs(params[name] - reference[name]).max() for name in expected]
    return Parity(float(np.max(differences)), tolerance)
