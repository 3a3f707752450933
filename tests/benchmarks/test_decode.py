"""The benchmark of decoding, in small."""

import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import decode
from fad.decoders import hadamard, lasso

pytestmark = pytest.mark.once


def test_a_line_says_how_exact_how_long_and_how_large():
    sketch = hadamard(64, 256, 0)
    of = decode.omegas(sketch)
    assert {name: omega.shape for name, omega in of.items()} == {
        "sparse": (64,),
        "dense": (64,),
    }
    line = decode.measure(lasso(sketch, l1=0.1, share=True), of["dense"], turns=2)
    assert 0 < line["active"] <= 64
    assert line["residual"] < 1e-4
    assert min(line["least"], line["cpu"], line["encode"]) > 0
    assert line["temporaries"] > 0
    assert set(decode.COLUMNS) <= {"what", "of", *line}


def test_the_truth_is_sparse_with_a_little_noise():
    sketch = hadamard(64, 64, 0)  # regular, so that it can be undone
    theta = sketch.transpose(decode.omegas(sketch)["sparse"])
    assert np.count_nonzero(jnp.abs(theta) > 0.1) <= decode.NONZERO
    assert np.count_nonzero(jnp.abs(theta) < 0.1) >= 64 - decode.NONZERO


def test_every_decoder_is_of_the_size_that_is_asked_for():
    for sketch, _ in decode.decoders(4, 9).values():
        assert (sketch.rows, sketch.size) == (4, 9)
