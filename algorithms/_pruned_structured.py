"""Clients that hold the slices of a narrower model.

Whole hidden units, found in the problem's jaxpr by ``fad.submodels.find``. A group of
units of which y has a part counts to the lower level, any other to the upper one; each
level has its widths and its rule. The losses are those of the narrower model,
``task.at_width``, so that nothing is computed for what a client does not hold; where
the levels differ in width, it gets that of each hidden layer, as ``Units.sizes`` does.

Where a client's losses read but few entries of a vector x, as in data cleaning, it
holds of those the share that its upper width says; the rest of x is zero for it. An
entry that one client alone holds moves by all of that client's hypergradient, n times
what a mean over n clients gives: upper_lr is smaller by that.
"""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

import fad
from algorithms._pruned import Tier
from algorithms._pruned_lifted import in_zeros
from fad import submodels

Rule = Literal["static", "rolling", "random", "magnitude"]


def structured(
    task: Any, width: float, lower_width: float, *, rule: Rule, lower_rule: Rule
) -> Tier:
    """Return the tier of a width of a bilevel task.

    Args:
        task: The task, a ``fad.data.BilevelTask``.
        width: The share of the upper level's units, and of a client's entries of x.
        lower_width: The share of the lower level's units.
        rule: Which ones of the upper level.
        lower_rule: Which ones of the lower level.

    Raises:
        FadError: The task comes in one width only, or the slices are not the narrower
            model's parameters.
    """
    entries = getattr(task, "upper_keys", None)
    if entries is not None and rule == "magnitude":
        raise fad.FadError(
            'extraction = "magnitude": a client does not know the entries of x before '
            'it asks for them. Use "static", "rolling" or "random".'
        )
    narrow, choose = task, None
    if lower_width < 1 or (entries is None and width < 1):
        narrow, choose = _narrower(task, width, lower_width, rule, lower_rule)

    def keys(z, rounds, key):
        units = (lambda own: (None, None)) if choose is None else choose(z, rounds)

        def of(split):
            own = fad.local.client_key(key, split.lower.client)
            x, y = units(own)
            if entries is not None:
                x = _cut(entries(split), width, rule, rounds, own)
            return x, y

        return of

    if entries is None:
        return Tier(narrow.problem, keys)
    like = jax.eval_shape(task.init_upper, jax.random.key(0))
    return Tier(
        narrow.problem,
        keys,
        lambda keys, x, y: (in_zeros(keys[0], x, like), y),
        (False, True),
    )


def _narrower(
    task: Any, width: float, lower_width: float, rule: Rule, lower_rule: Rule
) -> tuple[Any, Callable[..., Callable[[jax.Array], tuple[Any, Any]]]]:
    """Return the narrower task, and ``choose(z, rounds) -> of``.

    ``of(key)`` gives a client's keys of (x, y).
    """
    if not hasattr(task, "at_width"):
        raise fad.FadError(
            f"widths: {type(task).__name__} has one model only, whole. Give a "
            "fad.data.BilevelTask with narrow=, or leave all widths at 1."
        )
    units = _units(task)
    lower = {g.name for g in units.groups if any(p.leaf[:3] == "[1]" for p in g.places)}
    shares = {name: lower_width if name in lower else width for name in units.sizes}
    layers = tuple(shares.values()) or (lower_width,)
    one = len({*layers}) == 1
    if one and width != lower_width and task.upper_keys is None:
        where = "have a part in y" if lower else "lie in x alone"
        raise fad.FadError(
            f"widths: {width} and lower_widths: {lower_width} differ, but all hidden "
            f"units {where}. Leave lower_widths out, and give {layers[0]} as widths."
        )
    narrow, kept = task.at_width(layers[0] if one else layers), units.kept(shares)
    units.check(_shapes(narrow), kept)
    rules = {name: lower_rule if name in lower else rule for name in units.sizes}

    def choose(z, rounds):
        scored = None  # at the server: clients are sent the choice, not what it is of
        if "magnitude" in rules.values():
            scored = units.choose("magnitude", kept, params=z.params)

        def of(key):
            chosen = {
                r: scored or {}
                if r == "magnitude"
                else units.choose(r, kept, round=rounds, key=key)
                for r in set(rules.values())
            }
            return units.keys({name: chosen[r][name] for name, r in rules.items()})

        return of

    return narrow, choose


def _units(task: Any) -> submodels.Units:
    """Return the hidden units of a task's levels; the parameters are ``(x, y)``."""
    problem, key = task.problem, jax.random.key(0)

    def losses(z, lower, upper):
        own = (key,) if problem.random else ()
        return problem.lower(*z, lower, *own), problem.upper(*z, upper, *own)

    rows = [
        {name: a[:2] for name, a in level.examples.items()}
        for level in (task.lower, task.upper)
    ]
    return submodels.find(losses, _shapes(task), *rows)


def _shapes(task: Any) -> tuple[Any, Any]:
    x, y = (
        jax.eval_shape(i, jax.random.key(0)) for i in (task.init_upper, task.init_lower)
    )
    return x, y


def _cut(
    entries: jax.Array, width: float, rule: Rule, rounds: jax.Array, key: jax.Array
) -> jax.Array:
    """Return a share of a client's entries, ``[ceil(width k)]``, filled up with -1."""
    size = submodels.kept(entries.size, width)
    real = jnp.sum(entries >= 0, dtype=jnp.int32)
    order = jnp.argsort(entries < 0, stable=True)  # the real ones first
    if rule == "random":
        order = jnp.argsort(
            jnp.where(entries < 0, 2, jax.random.uniform(key, entries.shape))
        )
    places = jnp.arange(size, dtype=jnp.int32)
    start = rounds if rule == "rolling" else 0
    chosen = entries[order[(start + places) % jnp.maximum(real, 1)]]
    shares = [submodels.kept(n, width) for n in range(1, entries.size + 1)]
    return jnp.where(places < jnp.asarray([0, *shares], jnp.int32)[real], chosen, -1)
