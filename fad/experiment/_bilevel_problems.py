"""Problems of two levels that a model and its examples make."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fad._errors import ConfigError
from fad.estimators import Bilevel
from fad.experiment._bilevel_config import BilevelConfig
from fad.experiment._network import Network

# Norms are rounded off below it. The curvature of a norm is 1 / |W|: at biases of 0,
# where they start, no step of a Neumann series is small enough.
_ROUNDED = 0.01


class Parts(NamedTuple):
    """A problem of two levels, and the model in it.

    Attributes:
        problem: The losses.
        init_upper: ``init_upper(key) -> x``.
        init_lower: ``init_lower(key) -> y``.
        params: ``params(x, y)``, those of the model.
    """

    problem: Bilevel
    init_upper: Callable[[jax.Array], Any]
    init_lower: Callable[[jax.Array], Any]
    params: Callable[[Any, Any], Any]


def hyper_representation(net: Network, config: BilevelConfig) -> Parts:
    """Learn the last layer below, on what all before it, learned above, represent.

    Lower: cross-entropy plus ``penalty * sum_k |W_k|``, the norms, not squared, of the
    last layer's arrays, as ``sqrt(|W_k|^2 + 0.01^2)``, which is smooth. Upper:
    cross-entropy on other examples.

    Source: D. A. Tarzanagh et al., FedNest: Federated Bilevel, Minimax, and
    Compositional Optimization, ICML 2022, figure 2, and the authors' code.
    """
    header = config.header
    layers = jax.eval_shape(net.init, jax.random.key(0))
    if header not in layers:
        raise ConfigError(
            f"bilevel.header: the model has no layer {header!r}; it has "
            f"{', '.join(layers)}. Name the last one."
        )
    if len(layers) == 1:
        raise ConfigError(
            f"bilevel.header: {header!r} is all that the model has, and nothing is "
            "left for the upper level. Choose a model of more layers."
        )

    def params(x: Any, y: Any) -> Any:
        return {**x, header: y}

    def lower(x: Any, y: Any, examples: Any, *key: jax.Array) -> jax.Array:
        losses = _cross_entropy(net, params(x, y), examples, *key)
        return losses + config.strength * optax.tree.sum(jax.tree.map(_norm, y))

    def upper(x: Any, y: Any, examples: Any, *key: jax.Array) -> jax.Array:
        return _cross_entropy(net, params(x, y), examples, *key)

    def init_upper(key: jax.Array) -> Any:
        return {name: x for name, x in net.init(key).items() if name != header}

    problem = _problem(net, config, upper, lower)
    return Parts(problem, init_upper, lambda key: net.init(key)[header], params)


def imbalance(net: Network, config: BilevelConfig, counts: np.ndarray) -> Parts:
    """Learn a model below, and above how its loss scales and shifts the logits.

    Lower: cross-entropy of ``logits * sigmoid(dy) + ly`` with ``x = {"dy": [C], "ly":
    [C]}``, zeros at the start. Upper: that of the logits as they are, in which an
    example of class c counts ``N / (C n_c)``, as if all classes were as frequent.

    Args:
        net: The model.
        config: The configuration.
        counts: How many examples ``n_c`` of each class there are, ``[C]``.

    Source: D. A. Tarzanagh et al., FedNest: Federated Bilevel, Minimax, and
    Compositional Optimization, ICML 2022, figure 3, and the authors' code.
    """
    balance = counts.sum() / (len(counts) * np.maximum(counts, 1))

    def lower(x: Any, y: Any, examples: Any, *key: jax.Array) -> jax.Array:
        logits = net.training(y, examples, *key)
        logits = logits * jax.nn.sigmoid(x["dy"])[None] + x["ly"][None]
        return _of_logits(logits, examples)

    def upper(x: Any, y: Any, examples: Any, *key: jax.Array) -> jax.Array:
        del x
        losses = _cross_entropy(net, y, examples, *key)
        return jnp.asarray(balance, losses.dtype)[examples["y"]] * losses

    def init_upper(key: jax.Array) -> Any:
        del key
        return {name: jnp.zeros(len(counts)) for name in ("dy", "ly")}

    problem = _problem(net, config, upper, lower)
    return Parts(problem, init_upper, net.init, lambda x, y: y)


def hyper_cleaning(net: Network, config: BilevelConfig, count: int) -> Parts:
    """Learn a model below, and above how much each of its examples counts.

    Lower: ``sigmoid(x[id])`` times the cross-entropy, plus ``penalty / 2`` times the
    squared parameters; ``x: [count]`` is at the server, zeros at the start, and
    ``id: [batch]`` is an example's number. Upper: cross-entropy on clean examples.

    Args:
        net: The model.
        config: The configuration.
        count: The number of examples of the lower level.

    Source: A. Shaban et al., Truncated Back-propagation for Bilevel Optimization,
    AISTATS 2019, section 5.2, of data hyper-cleaning.
    """

    def lower(x: Any, y: Any, examples: Any, *key: jax.Array) -> jax.Array:
        losses = _cross_entropy(net, y, examples, *key)
        weights = jax.nn.sigmoid(x[examples["id"]])
        return weights * losses + config.strength / 2 * optax.tree.norm(y, squared=True)

    def upper(x: Any, y: Any, examples: Any, *key: jax.Array) -> jax.Array:
        del x
        return _cross_entropy(net, y, examples, *key)

    problem = _problem(net, config, upper, lower)
    return Parts(problem, lambda key: jnp.zeros(count), net.init, lambda x, y: y)


def regularisation(net: Network, config: BilevelConfig) -> Parts:
    """Learn logistic regression below, and above the penalty of each feature.

    Lower: cross-entropy plus ``sum_jc exp(x_j) W_jc^2 / 2`` with ``x: [d]``, at the
    start the logarithm of the penalty. Upper: cross-entropy on other examples.

    Source: R. Grazzi et al., On the Iteration Complexity of Hypergradient Computation,
    ICML 2020, section 5.
    """
    layers = jax.eval_shape(net.init, jax.random.key(0))
    if len(layers) > 1:
        raise ConfigError(
            "bilevel.task: 'regularisation' is of logistic regression; set model.name "
            '= "logistic"'
        )
    (layer,) = layers
    features = layers[layer]["kernel"].shape[0]

    def lower(x: Any, y: Any, examples: Any, *key: jax.Array) -> jax.Array:
        losses = _cross_entropy(net, y, examples, *key)
        squares = jnp.sum(y[layer]["kernel"] ** 2, axis=1)
        return losses + jnp.dot(jnp.exp(x), squares) / 2

    def upper(x: Any, y: Any, examples: Any, *key: jax.Array) -> jax.Array:
        del x
        return _cross_entropy(net, y, examples, *key)

    def init_upper(key: jax.Array) -> Any:
        del key
        return jnp.full(features, np.log(config.strength))

    problem = _problem(net, config, upper, lower)
    return Parts(problem, init_upper, net.init, lambda x, y: y)


def _problem(net: Network, config: BilevelConfig, upper: Any, lower: Any) -> Bilevel:
    return Bilevel(upper, lower, weighting=config.weighting, random=net.random)


def _cross_entropy(
    net: Network, params: Any, examples: Any, *key: jax.Array
) -> jax.Array:
    return _of_logits(net.training(params, examples, *key), examples)


def _of_logits(logits: jax.Array, examples: Any) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(logits, examples["y"])


def _norm(x: jax.Array) -> jax.Array:
    """Return the norm, rounded off at 0: smooth everywhere."""
    return jnp.sqrt(jnp.sum(x**2) + _ROUNDED**2)
