"""A learned aggregator around FedAdam: steps of a learned size, whatever the updates'."""

import jax
import jax.numpy as jnp

from fad import _optional
from fad._errors import ConfigError, RunError
from fad.aggregators._aggregator import Aggregator
from fad.aggregators._features import Sight, flat, look, shared_features
from fad.aggregators._learned import _like as like
from fad.aggregators._memory import Memory, empty, remember, unbiased

_STEP, _FALL = 0.1, 2.0  # the first step, and the fall of its logarithm
_START = (0.0, 0.0, 1.0, 0.0)  # FedAdam with the middle momentum
_LIMIT = 2.0  # of what the network adds to the log step
_EPS = 1e-3  # of Adam


def learned_adam(*, rounds: int, hidden: tuple[int, ...] = (16, 16)) -> Aggregator:
    """Make the learned aggregator whose steps do not scale with the updates.

    A client sends its update, the update's square and its sign, of which the means
    alone reach the server. As FedAdam does, the server divides each coordinate's mean
    update, and its momenta of decay 0.5, 0.9 and 0.98, by the root of its running mean
    square; a small network gives the coordinate a log step and a mixture of these four.
    The network's last layer starts at zero, where the aggregator is FedAdam with a step
    that falls from 0.06 to a twentieth of it.

    It works on any model. With updates ``c`` times larger the step is the same.

    Args:
        rounds: The length of training T; the network sees t / T.
        hidden: Widths of the network's layers.

    Returns:
        The aggregator; ``theta`` is float32, and it computes in the parameters' dtype.

    Raises:
        ConfigError: ``rounds`` is not positive.
        RunError: Flax is not installed.

    Example:
        >>> aggregator = learned_adam(rounds=10)
        >>> theta = aggregator.init_theta(jax.random.key(0))
        >>> params, update = jnp.zeros(2), jnp.array([1.0, -200.0])
        >>> message = aggregator.client(theta, None, update, None)
        >>> state = aggregator.init(params)
        >>> step, state = aggregator.server(theta, state, message, params, None)
        >>> step.round(2).tolist()
        [0.05999999865889549, -0.05999999865889549]

    Source: S. Reddi et al., Adaptive Federated Optimization, ICLR 2021, on the
    direction; L. Metz et al., Practical tradeoffs between memory, compute, and
    performance in learned optimizers, 2022, on per-coordinate networks.
    """
    if isinstance(rounds, bool) or not isinstance(rounds, int) or rounds < 1:
        raise ConfigError(
            f"fad.aggregators.learned_adam(rounds=...): expected a positive int, the "
            f"length of training; got {rounds!r}."
        )
    models = _optional.require("fad.models", RunError, "learned aggregators need")
    net = models.CoordinateMlp(tuple(hidden), len(_START) + 1)

    @jax.jit
    def init_theta(key):
        one = jnp.zeros(1)
        mean = {"mean": one, "square": one, "sign": one}
        seen = jax.eval_shape(
            lambda: _seen(remember(empty(one), one), mean, one, rounds)
        )
        return {
            "net": net.init(key, jnp.zeros(seen[0].shape, jnp.float32))["params"],
            "log_step": jnp.log(jnp.array(_STEP, jnp.float32)),
            "fall": jnp.array(_FALL, jnp.float32),
            "mix": jnp.array(_START, jnp.float32),
        }

    def client(theta, state, update, key):
        del theta, state, key
        square = jax.tree.map(jnp.square, update)
        return {
            "mean": update,
            "square": square,
            "sign": jax.tree.map(jnp.sign, update),
        }

    def server(theta, state, mean, params, key):
        del key
        state = remember(state, mean["mean"])
        seen, ways = _seen(state, mean, params, rounds)
        seen, ways = (x.astype(theta["mix"].dtype) for x in (seen, ways))
        out = net.apply({"params": theta["net"]}, seen)
        part = jnp.minimum((state.round - 1).astype(out.dtype) / rounds, 1)
        extra = _LIMIT * jnp.tanh(out[:, 0] / _LIMIT) - theta["fall"] * part
        mixed = ((theta["mix"] + out[:, 1:]) * ways).sum(axis=1)
        return like(params, jnp.exp(theta["log_step"] + extra) * mixed), state

    return Aggregator(init_theta=init_theta, init=empty, server=server, client=client)


def _seen(memory: Memory, mean, params, rounds: int) -> tuple[jax.Array, jax.Array]:
    """Return the features ``[p, f]`` and the directions ``[p, 4]`` of all coordinates."""
    momenta, second = unbiased(memory)
    sight = Sight(
        mean=flat(mean["mean"]),
        momenta=tuple(map(flat, momenta)),
        second=flat(second),
        square=flat(mean["square"]),
        sign=flat(mean["sign"]),
    )
    shared = shared_features(memory.round, rounds, sight.mean, flat(params))
    seen, _ = look(sight, shared, [x.size for x in jax.tree.leaves(params)])
    own = jnp.sqrt(sight.second + _EPS**2)
    ways = jnp.stack([x / own for x in (sight.mean, *sight.momenta)], axis=1)
    return seen, ways
