"""What a sub-model costs: operations as a polynomial in the shares of units."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from fad._errors import FadError, nearest
from fad.submodels._find import explore


class Costs(NamedTuple):
    """The operations of a model's products, ``sum_l c_l prod_g share_g``.

    Attributes:
        products: The operations ``c_l`` of the whole model, by the groups of units that
            make them: ``("a", "b")`` for a layer from units ``a`` to units ``b``,
            ``("a", "a")`` for one between the same units, ``()`` for what no width
            changes.
        sizes: The number of units of each group.
    """

    products: dict[tuple[str, ...], int]
    sizes: dict[str, int]

    @property
    def total(self) -> int:
        """The operations of the whole model."""
        return sum(self.products.values())

    def flops(self, shares: Mapping[str, Any]) -> Any:
        """Return the operations of a sub-model with these shares of units.

        Args:
            shares: The share of each group's units, ``[]`` in [0, 1], by the group's
                name; of other groups all are there.

        Returns:
            The operations ``[]``, a polynomial in the shares: differentiable, and
            correct to a rounding where the shares are those of a real sub-model.

        Raises:
            FadError: A name is not known.

        Example:
            >>> import jax.numpy as jnp
            >>> params = {"hidden": jnp.ones((3, 8)), "out": jnp.ones((8, 2))}
            >>> model = lambda p, x: jnp.tanh(x @ p["hidden"]) @ p["out"]
            >>> found = costs(model, params, jnp.ones((1, 3)))
            >>> found.flops({"hidden": 0.25}), found.total
            (20.0, 80)
        """
        for name in shares:
            if name not in self.sizes:
                raise FadError(
                    f"fad.submodels.Costs.flops(shares=...): there are no units "
                    f"{name!r}. {nearest(str(name), self.sizes, 'units')}"
                )
        parts = [
            math.prod([shares.get(name, 1.0) for name in names], start=float(flops))
            for names, flops in self.products.items()
        ]
        return sum(parts)


def costs(fn: Callable[..., Any], params: Any, *args: Any) -> Costs:
    """Count the operations of a model's products, and what they are proportional to.

    Every matrix product and convolution of the jaxpr counts, two operations for each
    multiply-add; what is elementwise does not. A scan counts its body times its length,
    a condition its dearest branch, a while its body once.

    Args:
        fn: The model or its loss, as of ``fad.submodels.find``. Its gradient costs
            about three times as much, at every width.
        params: Its parameters, likewise.
        args: Its other arguments.

    Returns:
        The costs.

    Raises:
        FadError: ``params`` has no array, or something else.

    Example:
        >>> import jax.numpy as jnp
        >>> params = {"hidden": jnp.ones((3, 8)), "out": jnp.ones((8, 2))}
        >>> model = lambda params, x: jnp.tanh(x @ params["hidden"]) @ params["out"]
        >>> costs(model, params, jnp.ones((1, 3))).products
        {('hidden',): 80}
    """
    units, products = explore("costs", fn, params, args)
    found: dict[tuple[str, ...], int] = {}
    for flops, names in products:
        key = tuple(sorted(names))
        found[key] = found.get(key, 0) + flops
    return Costs(found, units.sizes)
