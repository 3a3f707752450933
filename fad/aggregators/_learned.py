"""Learned aggregators: a small network at the server turns sums into a step."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fad import _optional
from fad._errors import RunError
from fad.aggregators._aggregator import Aggregator
from fad.aggregators._features import Sight, look, shared_features, size
from fad.aggregators._memory import Memory, empty, remember, unbiased
from fad.aggregators._moments import check_rounds, moments
from fad.aggregators._vector import like, ravel, unravel

PyTree = Any

_START = (0.0, 0.0, 1.0, 0.0, 0.0)  # FedAvg with the middle momentum
_LIMIT = 2.0  # of what the network adds to the log step
_FALL = 1.0  # of the log step, from the first round to the last
_LONGEST = 0.04  # where a step's length saturates, of the model's and some updates'
_UPDATES = 10.0  # so many, for a model that starts at zero


def learned(*, rounds: int, hidden: tuple[int, ...] = (16, 16)) -> Aggregator:
    """Make the learned aggregator: a step per coordinate from moments of the updates.

    A client sends its update, the update's square and its sign: three numbers per
    parameter, of which only the means reach the server. From these and the server's
    running means, one small network gives each coordinate a log step and a mixture of
    five directions: the mean update, its momenta of decay 0.5, 0.9 and 0.98, and the
    momentum of 0.9 scaled per coordinate as by Adam. The network's last layer starts at
    zero, where the aggregator is about FedAvg with momentum 0.9 and a server step that
    falls from 1 to 1/e.

    A step's length saturates at a learned share, first 0.04, of the model's plus ten
    mean updates': so a theta that goes too far in meta-training gives poor runs, from
    which it learns, and not dead ones.

    It works on any model, and its features have no scale: with updates and parameters
    ``c`` times larger the step is ``c`` times larger.

    Args:
        rounds: The length of training T; the network sees t / T.
        hidden: Widths of the network's layers.

    Returns:
        The aggregator; ``theta`` is float32, and it computes in the parameters' dtype.

    Raises:
        ConfigError: ``rounds`` is not positive.
        RunError: Flax is not installed.

    Example:
        >>> aggregator = learned(rounds=10)
        >>> theta = aggregator.init_theta(jax.random.key(0))
        >>> params, update = jnp.full(2, 999.0), jnp.array([1.0, -2.0])
        >>> message, _ = aggregator.client(theta, None, (), update, None)
        >>> state = aggregator.init(params)
        >>> step, state = aggregator.server(theta, state, message, params, None)
        >>> [round(float(x), 2) for x in step]
        [1.0, -2.0]

    Source: L. Metz et al., Practical tradeoffs between memory, compute, and
    performance in learned optimizers, 2022, on per-coordinate networks; S. Reddi et
    al., Adaptive Federated Optimization, ICLR 2021, on the memories.
    """
    return _build("learned", rounds, hidden, moments)


def learned_optimizer(*, rounds: int, hidden: tuple[int, ...] = (16, 16)) -> Aggregator:
    """Make the learned server optimizer: as ``learned``, from the mean update alone.

    It sends what FedAvg does. The difference to ``learned`` is what the clients'
    second moment and sign agreement are worth.

    Args:
        rounds: The length of training T; the network sees t / T.
        hidden: Widths of the network's layers.

    Returns:
        The aggregator.

    Raises:
        ConfigError: ``rounds`` is not positive.
        RunError: Flax is not installed.

    Example:
        >>> aggregator = learned_optimizer(rounds=10, hidden=(4,))
        >>> theta = aggregator.init_theta(jax.random.key(0))
        >>> sorted(theta)
        ['fall', 'log_longest', 'log_step', 'mix', 'net']
    """
    return _build("learned_optimizer", rounds, hidden, lambda update: {"mean": update})


def _build(
    name: str,
    rounds: int,
    hidden: tuple[int, ...],
    sent: Callable[[PyTree], dict[str, PyTree]],
) -> Aggregator:
    check_rounds(name, rounds)
    models = _optional.require("fad.models", RunError, "learned aggregators need")
    net = models.CoordinateMlp(tuple(hidden), len(_START) + 1)

    def seen_by_one():
        one = jnp.zeros(1)
        return _look(remember(empty(one), one), sent(one), one, rounds)[0]

    @jax.jit
    def init_theta(key):
        like = jax.eval_shape(seen_by_one)
        return {
            "net": net.init(key, jnp.zeros(like.shape, jnp.float32))["params"],
            "log_step": jnp.zeros((), jnp.float32),
            "log_longest": jnp.log(jnp.array(_LONGEST, jnp.float32)),
            "fall": jnp.array(_FALL, jnp.float32),
            "mix": jnp.array(_START, jnp.float32),
        }

    def client(theta, state, memory, update, key):
        del theta, state, key
        return sent(update), memory

    def server(theta, state, mean, params, key):
        del key
        state = remember(state, mean["mean"])
        seen, ways = _look(state, mean, params, rounds)
        seen, ways = (x.astype(theta["mix"].dtype) for x in (seen, ways))
        out = net.apply({"params": theta["net"]}, seen)
        extra = _LIMIT * jnp.tanh(out[:, :1] / _LIMIT)
        weights = theta["mix"][None] + out[:, 1:]
        moved = jnp.exp(theta["log_step"] + extra[:, 0]) * (weights * ways).sum(axis=1)
        known = size(ravel(params)) + _UPDATES * size(ravel(mean["mean"]))
        longest = jnp.exp(theta["log_longest"]) * known.astype(moved.dtype)
        moved /= jnp.sqrt(1 + (size(moved) / longest) ** 2)
        part = jnp.minimum((state.round - 1).astype(moved.dtype) / rounds, 1)
        return unravel(jnp.exp(-theta["fall"] * part) * moved, like(params)), state

    return Aggregator(init_theta=init_theta, init=empty, server=server, client=client)


def _look(
    memory: Memory, mean: dict[str, PyTree], params: PyTree, rounds: int
) -> tuple[jax.Array, jax.Array]:
    """Return the features ``[p, f]`` and directions ``[p, 5]`` of all coordinates."""
    momenta, second = unbiased(memory)
    update = ravel(mean["mean"])
    sight = Sight(
        mean=update,
        momenta=tuple(map(ravel, momenta)),
        second=ravel(second),
        square=ravel(mean["square"]) if "square" in mean else None,
        sign=ravel(mean["sign"]) if "sign" in mean else None,
    )
    shared = shared_features(memory.round, rounds, update, ravel(params))
    return look(sight, shared, [x.size for x in jax.tree.leaves(params)])
