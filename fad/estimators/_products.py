"""Products with a client's second derivatives: exact, or by central differences."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from fad._errors import FadError, nearest
from fad.estimators._bilevel import Client
from fad.estimators._checks import check_positive
from fad.estimators._vectors import add, norm, times

Products = Literal["exact", "difference"]


class SecondOrder(NamedTuple):
    """``hessian(client, x, y, v)`` like y and ``cross(client, x, y, v)`` like x."""

    hessian: Callable[[Client, Any, Any, Any], Any]
    cross: Callable[[Client, Any, Any, Any], Any]


EXACT = SecondOrder(Client.hessian, Client.cross)


def second_order(call: str, products: Any, delta: Any) -> SecondOrder:
    """Return the products of that name.

    Raises:
        FadError: If the name is unknown or delta not positive.
    """
    kinds = ("exact", "difference")
    if products not in kinds:
        raise FadError(
            f"{call}: unknown products {products!r}. "
            f"{nearest(str(products), kinds, 'products')}"
        )
    if products == "exact":
        return EXACT
    return differences(check_positive(call, "delta", delta))


def differences(delta: float) -> SecondOrder:
    """Return central differences over a way of length ``delta`` along v.

    The error is ``O(delta^2)`` from third derivatives and ``O(eps / delta)`` from
    rounding; in float32 the best delta is near 5e-3.
    """

    def hessian(client: Client, x: Any, y: Any, v: Any) -> Any:
        return _central(lambda y: client.g_y(x, y), y, v, delta)

    def cross(client: Client, x: Any, y: Any, v: Any) -> Any:
        return _central(lambda y: jax.grad(client.g)(x, y), y, v, delta)

    return SecondOrder(hessian, cross)


def _central(fn: Callable[[Any], Any], y: Any, v: Any, delta: float) -> Any:
    length = norm(v)
    safe = jnp.where(length > 0, length, jnp.ones_like(length))
    ahead, behind = fn(add(y, v, delta / safe)), fn(add(y, v, -delta / safe))
    return times(length / (2 * delta), add(ahead, behind, -1))
