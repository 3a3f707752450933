"""Server optimizers by name, all from optax, with the step size left outside.

Each returns the direction for a step size of one; the algorithm multiplies by its
server step. FedAvgM is ``momentum``, FedAdagrad, FedAdam and FedYogi the adaptive ones
of Reddi et al., "Adaptive Federated Optimization" (ICLR 2021, Algorithm 2), with the
negative mean update in the place of a gradient. Their tau is ``eps``, and optax's rules
deviate from theirs:

- ``adagrad`` divides by ``sqrt(v + eps)`` where the paper has ``sqrt(v) + tau``: with
  v small that is ``sqrt(eps)``, not eps. Both begin at ``v = eps^2``; b1 is not used.
- ``adam`` and ``yogi`` divide m by ``1 - b1^t`` and v by ``1 - b2^t``, the bias
  correction of Adam, which the paper leaves out. Adam's v begins at 0, not at
  ``tau^2`` or more.
- ``yogi`` begins both m and v at 1e-6, where the paper has ``m = 0`` and
  ``v >= tau^2``.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

ServerOptimizer = Literal["sgd", "momentum", "adagrad", "adam", "yogi"]


def server_optimizer(
    name: ServerOptimizer, *, b1: Any, b2: float, eps: float
) -> optax.GradientTransformation:
    """Return the optimizer's direction; ``eps`` is the paper's tau."""
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


def clipped(bound: float) -> optax.GradientTransformation:
    """Return a transformation that scales to a global norm, at most.

    Unlike ``optax.clip_by_global_norm`` it has a derivative at zero, and takes leaves
    of several dtypes, whose squares are summed in the widest one, at least float32.
    """

    def update(updates, params):
        del params
        leaves = jax.tree.leaves(updates)
        kinds = [jnp.dtype(jnp.float32), *(u.dtype for u in leaves)]
        wide = max(kinds, key=lambda dtype: jnp.finfo(dtype).bits)
        square = sum(jnp.sum(jnp.square(u.astype(wide))) for u in leaves)
        above = square > bound**2
        scale = jnp.where(above, bound / jnp.sqrt(jnp.where(above, square, 1.0)), 1.0)
        return jax.tree.map(lambda u: u * scale.astype(u.dtype), updates)

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
