"""DP-FedAvg: the mean of clipped updates, with Gaussian noise.

McMahan et al., "Learning Differentially Private Recurrent Language Models", ICLR 2018,
Algorithm 1 with the estimator of a fixed denominator (Section 2), all weights 1.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fad._errors import FadError
from fad.aggregators._aggregator import Aggregator
from fad.aggregators._checks import check_number
from fad.aggregators._clip import clip_to
from fad.aggregators._norm import wide
from fad.placement import AtClients
from fad.primitives import map

PyTree = Any

_CALL = "fad.aggregators.gaussian_mean"
# Folded into the server's key, as clients fold their numbers into the round's: no
# client has this one, only an empty place.
_SERVER = 0xFFFFFFFF


def gaussian_mean(*, noise_multiplier: Any, bound: Any, clients: Any) -> Aggregator:
    """Average clipped messages over a fixed number of clients, and add Gaussian noise.

    With ``z`` the noise multiplier, ``C`` the bound, ``m`` the number of clients, and
    the sum over those of positive weight, each counting once whatever its weight::

        step = (sum_i v_i + N(0, (z C)^2 I)) / m

    The noise is drawn at the server from its key, once a round. Nothing is clipped
    here: put ``clip(bound)`` before it, and between them nothing that lengthens a
    message, as error feedback and unbiased quantisation do; or take ``dp_fedavg``,
    which clips. The sum is ``total``, so ``secure_sum`` goes with it; its rounding may
    lengthen a message ``[d]`` by ``sqrt(d) step / 2``, which belongs into the bound.

    ``fad.aggregators.epsilon`` accounts for it. It assumes Poisson sampling, where each
    client comes with probability ``clients / population`` independently of the others;
    that neighbouring data sets differ by one client, added or removed; and the fixed
    denominator. The simulator's cohorts have a fixed size: they are no
    Poisson samples, and the account does not hold for them as it stands. It does not
    count what else is shown of a round without noise: losses, the number of excluded
    clients, the reports of other aggregators. Nor is the noise secure as it is drawn:
    pseudo-random, from a key that the whole simulation knows, and in floating point.

    Args:
        noise_multiplier: z, the noise's deviation in bounds, from 0; may be traced.
        bound: C, which no message's Euclidean norm exceeds; may be traced.
        clients: m, as many as a round expects: not how many came. May be traced.

    Returns:
        The aggregator. In its derivative the noise is a constant normal number times
        ``z C / m``.

    Raises:
        FadError: A number is out of range; in a round, if there is no key.

    Example:
        >>> mean = gaussian_mean(noise_multiplier=0.5, bound=1.0, clients=100)
        >>> key = jax.random.key(0)
        >>> step, _ = mean.server((), (), jnp.zeros(10_000), None, key)
        >>> round(float(step.std()), 4)
        0.005

    References:
        McMahan et al., Learning Differentially Private Recurrent Language Models, ICLR
        2018, Algorithm 1.
    """
    check_number(_CALL, "noise_multiplier", noise_multiplier, low=0)
    check_number(_CALL, "bound", bound)
    check_number(_CALL, "clients", clients)

    def server(theta, state, mean, params, key):
        del theta, params
        deviation = as_float(noise_multiplier) * as_float(bound) / as_float(clients)
        return add_noise(_CALL, mean, deviation, key), state

    return Aggregator(server=server, combine=mean_over(clients))


def dp_fedavg(*, bound: Any, noise_multiplier: Any, clients: Any) -> Aggregator:
    """Clip updates, average them over a fixed number of clients, and add noise.

    It is ``chain(clip(bound), gaussian_mean(...))`` but for the clipped fraction: the
    clients do not report it, since it would be shown without noise.

    Args:
        bound: C, to which updates are clipped; may be traced.
        noise_multiplier: z, the noise's deviation in bounds, from 0; may be traced.
        clients: m, as many as a round expects; may be traced.

    Returns:
        The aggregator; see ``gaussian_mean`` for what its account assumes.

    Raises:
        FadError: As ``gaussian_mean``.

    Example:
        >>> private = dp_fedavg(bound=1.0, noise_multiplier=1.0, clients=10)
        >>> sent, _ = private.client((), (), (), jnp.array([3.0, 4.0]), None)
        >>> [round(float(x), 4) for x in sent]
        [0.6, 0.8]

    References:
        McMahan et al., Learning Differentially Private Recurrent Language Models, ICLR
        2018, Algorithm 1.
    """
    noisy = gaussian_mean(
        noise_multiplier=noise_multiplier, bound=bound, clients=clients
    )

    def client(theta, state, memory, update, key):
        del theta, state, key
        return clip_to(update, bound)[0], memory

    return noisy._replace(client=client)


def mean_over(clients: Any) -> Callable[..., PyTree]:
    """Return the combine ``total(v_i) / clients`` over those of positive weight.

    In 32 bits at least: rounded to 16, a sum of many could jump by more than one
    client's message, which the noise would not hide.
    """

    def there(message: PyTree, weight: jax.Array) -> PyTree:
        def one(v):
            v = v.astype(wide(v))
            return jnp.where(weight > 0, v, jnp.zeros_like(v))

        return jax.tree.map(one, message)

    def combine(
        messages: AtClients[PyTree], weights: AtClients[jax.Array], total: Callable
    ) -> PyTree:
        count = as_float(clients)
        added = total(map(there, messages, weights))
        return jax.tree.map(lambda s: s / count.astype(s.dtype), added)

    return combine


def add_noise(call: str, tree: PyTree, deviation: jax.Array, key: Any) -> PyTree:
    """Add normal noise to leaves of 32 bits at least.

    Raises:
        FadError: There is no key.
    """
    if key is None:
        raise FadError(
            f"{call}: expected the round's key for the noise, got None. Pass key= to "
            "fad.aggregators.aggregate, or to the server side."
        )
    leaves, treedef = jax.tree.flatten(tree)
    keys = jax.random.split(jax.random.fold_in(key, _SERVER), len(leaves))

    def noisy(x, own):
        x = x.astype(wide(x))
        return x + deviation.astype(x.dtype) * jax.random.normal(own, x.shape, x.dtype)

    return treedef.unflatten(noisy(*x) for x in zip(leaves, keys, strict=True))


def as_float(x: Any) -> jax.Array:
    """Return a number as an array of the default float."""
    return jnp.asarray(x).astype(jnp.result_type(float))
