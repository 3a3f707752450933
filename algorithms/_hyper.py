"""Hyper-parameters as unconstrained numbers: steps as logarithms, momenta as logits."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import fad

_FRACTIONS = ("_b1", "_b2")  # how the names of momenta end
_STEPS = ("server_lr", "layer_lrs", "client_lr")


def free(hyper: dict[str, Any]) -> dict[str, Any]:
    """Return the numbers that stand for hyper-parameters.

    Raises:
        FadError: If one is not positive, or a fraction not below 1.
    """

    def one(name, x):
        fraction = name.endswith(_FRACTIONS)
        values, most = np.asarray(x), 1 if fraction else np.inf
        if not np.all((values > 0) & (values < most)):
            how = "logit" if fraction else "logarithm"
            raise fad.FadError(
                f"start[{name!r}]: expected in (0, {most}), got {x!r}: it is learned "
                f"as its {how}."
            )
        x = jnp.asarray(x, jnp.result_type(float))
        return jnp.log(x) - jnp.log1p(-x) if fraction else jnp.log(x)

    return _each(one, hyper)


def values(theta: dict[str, Any]) -> dict[str, Any]:
    """Return the hyper-parameters that the numbers stand for."""
    return _each(
        lambda name, x: jax.nn.sigmoid(x) if name.endswith(_FRACTIONS) else jnp.exp(x),
        theta,
    )


def gentler(theta: dict[str, Any], factor: float) -> dict[str, Any]:
    """Return theta with the first step that it has smaller by a factor."""
    first = next((name for name in _STEPS if name in theta), None)
    return _each(
        lambda name, x: (
            x - jnp.asarray(np.log(factor), x.dtype) if name == first else x
        ),
        theta,
    )


def shown(theta: dict[str, Any]) -> dict[str, jax.Array]:
    """Return a scalar for each hyper-parameter: over layers, the geometric mean."""

    def mean(tree):
        leaves = jax.tree.leaves(tree)
        return sum(x.mean() for x in leaves) / len(leaves)

    return values({name: mean(x) for name, x in theta.items()})


def slopes(gradient: dict[str, Any]) -> dict[str, jax.Array]:
    """Return a scalar for the gradient by each: over layers, the sum.

    It is 0 where it is no number, with which no meta-step is taken.
    """
    found = {}
    for name, branch in gradient.items():
        total = sum(g.sum() for g in jax.tree.leaves(branch))
        found[f"slope_{name}"] = jnp.nan_to_num(total, posinf=0, neginf=0)
    return found


def _each(fn, tree):
    return {
        name: jax.tree.map(lambda x, name=name: fn(name, x), branch)
        for name, branch in tree.items()
    }
