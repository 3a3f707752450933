"""Aggregators that show one number of what came with the mean."""

from typing import Any

import jax.numpy as jnp

from fad.aggregators._aggregator import Aggregator


def reporting(name: str, **parts: Any) -> Aggregator:
    """Make the aggregator that passes the mean on and shows the report ``{name: x}``.

    Args:
        name: Of the metric.
        **parts: The aggregator's client side or combine, of which one gives a
            ``Message`` with this report.
    """

    def server(theta, state, mean, params, key):
        del theta, state, params, key
        return mean.value, mean.report

    return Aggregator(
        init=lambda params: {name: jnp.zeros((), jnp.float32)},
        server=server,
        metrics=lambda state: state,
        **parts,
    )
