"""One round of a meta-training, with aggregators that were joined."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fad
from fad import aggregators
from fad.experiment._meta_round import Inner, make_round
from tests.algorithms.conftest import init_params, loss
from tests.experiment.meta_subjects import meta_training, step_size

pytestmark = pytest.mark.once


def one_round(aggregator):
    """The params after a round on two clients of one row each."""
    params = init_params(jax.random.key(0))
    batches = fad.local.Batches(
        {"x": jnp.ones((2, 1, 1, 3)), "y": jnp.arange(2.0).reshape(2, 1, 1)},
        jnp.ones((2, 1, 1), bool),
        jnp.arange(2),
    )
    inner = Inner(params, aggregator.init(params), jnp.float32(0.1), jnp.int32(0))
    theta = aggregator.init_theta(jax.random.key(1))
    step = make_round(aggregator, loss, meta_training())
    return step(theta, inner, fad.AtClients(batches), jax.random.key(2))[0].params


def test_a_chain_is_meta_trained_as_its_parts():
    alone = step_size(rounds=6)
    joined = aggregators.chain(alone, aggregators.clip(1e6))
    jax.tree.map(np.testing.assert_array_equal, one_round(joined), one_round(alone))


def test_an_aggregator_with_a_memory_is_refused():
    joined = aggregators.chain(step_size(rounds=6), aggregators.top_k(1))
    match = (
        r"meta-training: expected .* keeps nothing at the clients, got .* float32\[4\]"
    )
    with pytest.raises(fad.ConfigError, match=match):
        one_round(joined)
