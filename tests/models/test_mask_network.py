"""The network of masks: its precision, its start, and that layers know each other."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest

from fad import ConfigError
from fad.models import MaskNetwork


@pytest.mark.once
def test_scores(x64):
    network = MaskNetwork((4, 2), hidden=3, param_dtype=jnp.float64)
    params = jax.jit(network.init)(jax.random.key(0))
    first, second = jax.jit(network.apply)(params)
    assert (first.shape, second.shape) == ((4,), (2,))
    assert first.dtype == second.dtype == jnp.float64
    assert (jnp.abs(first - 3) < 3).all()
    last: Any = lambda p: jnp.sum(network.apply(p)[1])  # type: ignore  # noqa: E731
    slope = jax.jit(jax.grad(last))(params)["params"]
    assert jnp.abs(slope["GRUCell_0"]["hn"]["kernel"]).max() > 0  # the layer before
    assert not jnp.abs(slope["Dense_0"]["kernel"]).max()
    other = jax.eval_shape(MaskNetwork((4, 2), hidden=3).init, jax.random.key(0))
    assert {x.dtype for x in jax.tree.leaves(other)} == {jnp.dtype("float32")}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sizes": (0,)}, "sizes=...: expected a tuple of positive ints"),
        ({"sizes": (1,), "hidden": 0}, "hidden=...: expected a positive int"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(ConfigError, match=message.replace("=...", r"=\.\.\.\)")):
        MaskNetwork(**options)
