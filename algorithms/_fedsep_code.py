"""The code of FedSep with a sketch: omega ``[p]``, theta ``[d]`` and the network.

Which they are, and what is sent, is in ``fedsep.py``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from fad import decoders

Start = Literal["zero", "anchored", "sketch"]

_ANCHOR = 0.01  # of theta_init's spread, or of 1 where it has none


def is_penalised(l1: Any) -> bool:
    """Return whether there is a penalty; a traced one is."""
    return not (isinstance(l1, int | float) and l1 == 0)


@dataclass(frozen=True)
class Code:
    """What all know of the code: what is drawn follows from the seed.

    Made where it is used, so that nothing of it is sent. The arguments are those of
    ``fedsep``.
    """

    init_params: Callable[[jax.Array], Any]
    p: int
    l1: Any
    start: Start
    sketch: Callable[..., decoders.Sketch]
    seed: int

    def initial(self) -> tuple[jax.Array, Callable[[jax.Array], Any]]:
        """Return theta_init, ``[d]``, and what makes a model of such a vector."""
        key = jax.random.key(self.seed)
        if self.start == "sketch":  # S, drawn from this key too, is applied to it
            key = jax.random.fold_in(key, 1)
        return ravel_pytree(self.init_params(key))

    def network(self, theta: jax.Array) -> Any:
        """Return the model that a theta is the change or, of ``sketch``, all of."""
        flat, model = self.initial()
        whole = theta if self.start == "sketch" else flat + theta
        return model(whole.astype(flat.dtype))

    def made(self, client: Any) -> decoders.Sketch:
        """Return S, or a client's own."""
        d = jax.eval_shape(lambda: self.initial()[0]).size
        seed = self.seed if client is None else self.seed + 1 + client
        return self.sketch(self.p, d, seed)

    def first(self) -> jax.Array:
        """Return omega_1."""
        flat, s = self.initial()[0], self.made(None)
        if self.start == "sketch":
            return s.apply(flat)
        if self.start == "zero":
            return jnp.zeros(self.p, flat.dtype)
        v = jax.random.normal(jax.random.key(self.seed + 1), flat.shape, flat.dtype)
        spread = jnp.std(flat)
        return s.apply(_ANCHOR * jnp.where(spread == 0, 1, spread) * v)

    def decoder(self) -> decoders.Decoder:
        """Return the decoder; its data is a client's number, for an S of its own."""
        if not is_penalised(self.l1):
            return decoders.min_norm(self.made)

        def lasso():  # made anew in each trace: beta is of that trace
            beta = self.l1 * jnp.max(jnp.abs(self.made(None).transpose(self.first())))
            return decoders.lasso(self.made, l1=beta)

        return decoders.Decoder(
            lambda *args: lasso().decode(*args), lambda *args: lasso().residual(*args)
        )

    def shown(self, omega: jax.Array) -> Any:
        """Return the model of an omega, decoded by the S of all."""
        return self.network(self.decoder().decode(omega, None))

    def inverse(
        self, omega: jax.Array, theta: jax.Array, delta: jax.Array, client: Any
    ) -> jax.Array:
        """Return ``S delta``, with a penalty of what is active alone."""
        del omega
        if is_penalised(self.l1):
            delta = jnp.where(theta != 0, delta, 0)
        return self.made(client).apply(delta)
