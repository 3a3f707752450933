"""Ways to solve the hypergradient's linear system, a federated round per product."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fad._errors import FadError
from fad.estimators._bilevel_record import Trust
from fad.estimators._linear import conjugate_gradient
from fad.estimators._vectors import add, norm, times

Product = Callable[[Any, Any], Any]


class System(NamedTuple):
    """``run(product, b, v, key) -> (v, trust)`` with ``product(v, j)`` round j's."""

    run: Callable[[Product, Any, Any, Any], tuple[Any, Trust]]
    bias: str
    draws: int


def _cg(terms: int, step: Any) -> System:
    del step

    def run(product: Product, b: Any, v: Any, key: Any) -> tuple[Any, Trust]:
        del v, key
        # One operator, thus one cohort: that of the first product.
        found = conjugate_gradient(lambda p: product(p, 0), b, terms=terms)
        trust = Trust(linear=found.residual, indefinite=found.indefinite)
        return found.value, trust

    return System(run, f"{terms} steps of conjugate gradients", 1)


def _neumann(terms: int, step: Any) -> System:
    def run(product: Product, b: Any, v: Any, key: Any) -> tuple[Any, Trust]:
        del v, key
        return _richardson(product, b, times(step, b), terms, step)

    return System(run, f"(I - step H)^{terms + 1}", terms)


def _fixed_point(terms: int, step: Any) -> System:
    def run(product: Product, b: Any, v: Any, key: Any) -> tuple[Any, Trust]:
        del key
        return _richardson(product, b, v, terms, step)

    text = f"a v that is {terms} steps on at each x; none once x stands still"
    return System(run, text, terms)


def _richardson(product: Product, b: Any, v: Any, terms: int, step: Any) -> Any:
    """Take ``v <- v - step (H v - b)``; the residuals are those before each step."""

    def one(v: Any, j: jax.Array) -> tuple[Any, jax.Array]:
        r = add(product(v, j), b, -1)
        return add(v, r, -step), norm(r)

    v, sizes = jax.lax.scan(one, v, jnp.arange(terms))
    if not terms:
        return v, Trust()
    growing = (sizes[1:] > sizes[:-1]).any() if terms > 1 else jnp.array(False)
    return v, Trust(linear=_ratio(sizes[-1], norm(b)), growing=growing)


def _random_neumann(terms: int, step: Any) -> System:
    """FedIHGP: ``N step prod_{j <= N'} (I - step H_j) b``, N' uniform below N."""

    def run(product: Product, b: Any, v: Any, key: Any) -> tuple[Any, Trust]:
        del v
        if key is None:
            raise FadError(
                "fad.estimators.aid: solve='random-neumann' draws a length and needs a "
                "key, such as jax.random.key(0); got None."
            )
        length = jax.random.randint(jax.random.fold_in(key, 2**31 - 1), (), 0, terms)

        def one(p: Any, j: jax.Array) -> tuple[Any, jax.Array]:
            new = add(p, product(p, j), -step)
            p = jax.tree.map(lambda a, b: jnp.where(j < length, a, b), new, p)
            return p, norm(p)

        p = times(terms * step, b)
        start = norm(p)
        p, sizes = jax.lax.scan(one, p, jnp.arange(terms - 1))
        sizes = jnp.concatenate([start[None], sizes])
        return p, Trust(growing=(sizes[1:] > sizes[:-1]).any())

    text = f"(I - step H)^{terms} in the mean; its variance is another matter"
    return System(run, text, terms)


def _ratio(a: jax.Array, b: jax.Array) -> jax.Array:
    return a / jnp.where(b > 0, b, jnp.ones_like(b))


SOLVES = {
    "cg": _cg,
    "neumann": _neumann,
    "random-neumann": _random_neumann,
    "fixed-point": _fixed_point,
}
