"""A recurrent network for text."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype

from fad.models._checks import characters, positive


class CharLstm(nn.Module):
    """Next-character LSTM: ``[batch, length] int -> [batch, length, vocabulary]``.

    Each character becomes ``embedding`` learned numbers; ``layers`` LSTM layers of
    ``width``; a dense layer gives the next character's logits at each place. With a
    vocabulary of 90 there are 820,522 parameters. (The 866,578 quoted for McMahan et
    al. fit no vocabulary with these layers: each character costs 265 parameters, and
    the LSTM layers have 796,672.)

    Attributes:
        vocabulary: Number of different characters.
        embedding: Numbers per character.
        width: Width of an LSTM layer.
        layers: Number of LSTM layers.

    Raises:
        ConfigError: A number is not positive.
        FadError: The input is no batch of characters' numbers.

    Example:
        >>> model = CharLstm(90, width=4)
        >>> x = jnp.zeros((3, 5), int)
        >>> model.apply(model.init(jax.random.key(0), x), x).shape
        (3, 5, 90)

    Source: B. McMahan et al., Communication-Efficient Learning of Deep Networks from
    Decentralized Data, AISTATS 2017, section 3; S. Reddi et al., Adaptive Federated
    Optimization, ICLR 2021, for the vocabulary.
    """

    vocabulary: int
    embedding: int = 8
    width: int = 256
    layers: int = 2

    def __post_init__(self) -> None:
        """Check the options."""
        positive("CharLstm", vocabulary=self.vocabulary, embedding=self.embedding)
        positive("CharLstm", width=self.width, layers=self.layers)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Return the logits."""
        characters("CharLstm", x)
        x = nn.Embed(self.vocabulary, self.embedding)(x)
        for _ in range(self.layers):
            x = _Lstm(self.width)(x)
        return nn.Dense(self.vocabulary)(x)


class _Lstm(nn.Module):
    """One LSTM layer: ``[batch, length, *] -> [batch, length, width]``.

    The input's share of the gates is one product for all times, outside the loop. The
    forget gate starts with bias 1 (Jozefowicz et al., ICML 2015).
    """

    width: int

    @nn.compact
    def __call__(self, x):
        gates = nn.Dense(4 * self.width, bias_init=_open_forget_gate, name="input")(x)
        shape = (self.width, 4 * self.width)
        orthogonal = nn.initializers.orthogonal()
        recurrent = self.param("recurrent", orthogonal, shape, jnp.float32)
        gates, recurrent = promote_dtype(gates, recurrent)

        def step(carry, now):
            cell, out = carry
            let_in, forget, new, let_out = jnp.split(now + out @ recurrent, 4, axis=-1)
            cell = nn.sigmoid(forget) * cell + nn.sigmoid(let_in) * jnp.tanh(new)
            out = nn.sigmoid(let_out) * jnp.tanh(cell)
            return (cell, out), out

        start = jnp.zeros((x.shape[0], self.width), gates.dtype)
        _, outs = jax.lax.scan(step, (start, start), jnp.swapaxes(gates, 0, 1))
        return jnp.swapaxes(outs, 0, 1)


def _open_forget_gate(key, shape, dtype):
    del key
    return jnp.zeros(shape, dtype).at[shape[0] // 4 : shape[0] // 2].set(1)
