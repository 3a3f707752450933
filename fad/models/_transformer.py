"""A small transformer for text."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from fad._errors import ConfigError, FadError, describe
from fad.models._checks import characters, positive


class CharTransformer(nn.Module):
    """Next-character transformer: ``[batch, length] int -> [batch, length, v]``.

    Learned embeddings of characters and of positions are added; ``layers`` blocks, each
    of layer norm and causal attention, and of layer norm and two dense layers (four
    times the width, GELU, back), both added to their input; layer norm; a dense layer
    gives the logits of the ``v = vocabulary`` next characters. The head is not tied to
    the embedding. With a vocabulary of 90 there are 430,170 parameters.

    Attributes:
        vocabulary: Number of different characters.
        width: Numbers per character, a multiple of ``heads``.
        heads: Number of attention heads.
        layers: Number of blocks.
        length: The longest text.

    Raises:
        ConfigError: A number is not positive, or the heads do not divide the width.
        FadError: The input is no batch of characters' numbers, or too long.

    Example:
        >>> model = CharTransformer(90, width=8)
        >>> x = jnp.zeros((3, 5), int)
        >>> model.apply(model.init(jax.random.key(0), x), x).shape
        (3, 5, 90)

    Source: A. Vaswani et al., Attention Is All You Need, NeurIPS 2017; norms as in
    R. Xiong et al., On Layer Normalization in the Transformer Architecture, ICML 2020.
    """

    vocabulary: int
    width: int = 128
    heads: int = 4
    layers: int = 2
    length: int = 80

    def __post_init__(self) -> None:
        """Check the options."""
        positive("CharTransformer", vocabulary=self.vocabulary, width=self.width)
        positive("CharTransformer", heads=self.heads, layers=self.layers)
        positive("CharTransformer", length=self.length)
        if self.width % self.heads:
            raise ConfigError(
                f"fad.models.CharTransformer(width=..., heads=...): expected a width "
                f"that the heads divide; got {self.width} and {self.heads}."
            )
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Return the logits."""
        characters("CharTransformer", x)
        if x.shape[1] > self.length:
            raise FadError(
                f"fad.models.CharTransformer: x is {describe(x)}; expected at most "
                f"{self.length} characters. Cut the text, or make the model with a "
                "larger length."
            )
        positions = nn.Embed(self.length, self.width)(jnp.arange(x.shape[1]))
        mask = nn.make_causal_mask(x)
        x = nn.Embed(self.vocabulary, self.width)(x) + positions[None]
        for _ in range(self.layers):
            x = _Block(self.heads)(x, mask)
        return nn.Dense(self.vocabulary)(nn.LayerNorm()(x))


class _Block(nn.Module):
    """Causal attention and two dense layers, each added to its input."""

    heads: int

    @nn.compact
    def __call__(self, x, mask):
        width = x.shape[-1]
        attend = nn.MultiHeadDotProductAttention(self.heads)
        x = x + attend(nn.LayerNorm()(x), mask=mask)
        inner = nn.gelu(nn.Dense(4 * width)(nn.LayerNorm()(x)))
        return x + nn.Dense(width)(inner)
