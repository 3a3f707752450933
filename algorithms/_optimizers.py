"""Server optimizers by name, all from optax, with the step size left outside.

Each returns the direction for a step size of one; the algorithm multiplies by its
server step. The update rules are those of Reddi et al., "Adaptive Federated
Optimization" (ICLR 2021), with the negative mean update in the place of a gradient:
FedAvgM is ``momentum``, FedAdagrad, FedAdam and FedYogi the adaptive ones.
"""

from typing import Literal

import optax

ServerOptimizer = Literal["sgd", "momentum", "adagrad", "adam", "yogi"]


def server_optimizer(
    name: ServerOptimizer, *, b1: float, b2: float, eps: float
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
