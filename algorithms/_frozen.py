"""Local training by a server optimizer whose state is frozen."""

from collections.abc import Callable
from typing import Any

import jax
import optax

import fad


def train(
    x: Any,
    batches: fad.local.Batches,
    *,
    loss: Callable[..., jax.Array],
    optimizer: optax.GradientTransformation,
    state: Any,
    correction: Any = None,
    key: jax.Array | None = None,
) -> fad.local.LocalResult:
    """Train one client by an optimizer's updates, each from the same ``state``.

    With a ``correction`` c a step's gradient is ``grad f(y; b) - grad f(x; b) + c``, b
    the step's batch and y the params there. The two gradients are those of one sum,
    ``f(y) + f(x)``, of which only y moves; the result's ``loss`` is the sum's.
    """

    def losses(models, *inputs) -> Any:
        return sum(loss(model, *inputs) for model in models)

    def step(gradients, models):
        own, *at_x = gradients
        if at_x:
            own = jax.tree.map(lambda g, h, c: g - h + c, own, *at_x, correction)
        update, _ = optimizer.update(own, state, models[0])
        return update, *optax.tree.zeros_like(at_x)

    models = (x,) if correction is None else (x, x)
    frozen = optax.stateless(step)
    local = fad.local.train(models, batches, loss=losses, optimizer=frozen, key=key)
    return local._replace(params=local.params[0], delta=local.delta[0])
