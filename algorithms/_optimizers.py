"""Server optimizers by name, all from optax, with the step size left outside.

Each returns the direction for a step size of one; the algorithm multiplies by its
server step. The update rules are those of Reddi et al., "Adaptive Federated
Optimization" (ICLR 2021), with the negative mean update in the place of a gradient:
FedAvgM is ``momentum``, FedAdagrad, FedAdam and FedYogi the adaptive ones.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

ServerOptimizer = Literal["sgd", "momentum", "adagrad", "adam", "yogi"]


def server_optimizer(
    name: ServerOptimizer, *, b1: Any, b2: float, eps: float
) -> optax.GradientTransformation:
    """Return the optimizer's direction; ``b1``, ``b2``, ``eps`` as in the paper."""
    match name:
        case "sgd":
            return optax.sgd(1.0)
        case "momentum":
            return optax.sgd(1.0, momentum=b1)
        case "adagrad":
            return optax.adagrad(1.0, initial_accumulator_value=eps**2, eps=eps)
        case "adam":
            return optax.adam(1.0, b1=b1, b2=b2, eps=eps)
        case "yogi":
            return optax.yogi(1.0, b1=b1, b2=b2, eps=eps)


def scaled(step: Any, layers: Any = None) -> optax.GradientTransformation:
    """Return a transformation that multiplies by a step, and by one of each layer.

    Both may be traced, and keep the dtype of what they multiply.
    """

    def times(u, x):
        return u * jnp.asarray(x, u.dtype)

    def update(updates, params):
        del params
        if layers is not None:
            updates = jax.tree.map(times, updates, layers)
        return jax.tree.map(lambda u: times(u, step), updates)

    return optax.stateless(update)


def optimizers_of(
    config: Any, hyper: dict[str, Any]
) -> tuple[optax.GradientTransformation, optax.GradientTransformation]:
    """Return the server's and the clients' optimizer of a config of FedAvg's.

    ``hyper`` goes before the config; its values may be traced. The server's step is
    part of its optimizer.
    """
    direction = server_optimizer(
        config.server,
        b1=hyper.get("server_b1", config.server_b1),
        b2=config.server_b2,
        eps=config.server_eps,
    )
    steps = scaled(hyper.get("server_lr", config.server_lr), hyper.get("layer_lrs"))
    client_lr = hyper.get("client_lr", config.client_lr)
    momentum = config.client_momentum or None
    return optax.chain(direction, steps), optax.sgd(client_lr, momentum=momentum)
