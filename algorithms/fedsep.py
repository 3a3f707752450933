"""FedSep with a sketch: p numbers go each way, d are learned with.

Li and Huang, "Resolving the Tug-of-War: A Separation of Communication and Learning in
Federated Learning", NeurIPS 2023 (section 4.1), in the round of ``_fedsep_round.py``.
What is sent is omega ``[p]``; with a random S, ``[p, d]`` and p below d, it decodes to

    l1 > 0:   theta = argmin |S theta - omega|^2 / 2 + beta |theta|_1
    l1 = 0:   theta = S^T (S S^T)^-1 omega, the shortest with S theta = omega

The first is the paper's (equation 4). It is sparse; with A where it is not zero, its
encode is ``S_A (S_A^T S_A)^-1 v_A``, and what other coordinates would learn is not
sent. The second is linear; the paper's inverse for it, of ``S^T S`` (Remark 2), does
not exist.

The paper leaves the start open. Here the network is ``theta_init + theta``, except for
``sketch``:

    zero:      omega_1 = 0, for l1 = 0 alone: nothing is active, and encodes to 0
    anchored:  omega_1 = S v, v random and small beside theta_init, by a factor of 100
    sketch:    omega_1 = S theta_init and the network theta: what p numbers keep of it

S and theta_init follow from a seed that all know: p numbers go down, and p go up.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

import fad
from algorithms import fedavg
from algorithms._fedsep_code import Code, Start, is_penalised
from algorithms._fedsep_round import separated
from algorithms._ranges import check_range
from fad import decoders

Encode = Literal["derivative", "inverse"]


def fedsep(
    loss: Callable[..., jax.Array],
    init_params: Callable[[jax.Array], Any],
    *,
    p: int,
    client: optax.GradientTransformation,
    l1: Any = 0.0,
    start: Start = "zero",
    sketch: Callable[..., decoders.Sketch] = decoders.hadamard,
    own_sketch: bool = False,
    encode: Encode = "derivative",
    seed: int = 0,
    **options: Any,
) -> fad.Algorithm:
    """Build FedSep with a sketch.

    Args:
        loss: ``loss(params, examples) -> [batch]``.
        init_params: ``init_params(key) -> params``.
        p: How many numbers are sent.
        client: The clients' optimizer; it starts afresh every round.
        l1: The penalty beta, as a share of the one at which nothing is active at the
            start; it may be traced. 0 is none.
        start: See above.
        sketch: ``sketch(p, d, seed)``, as ``fad.decoders.hadamard`` or ``gaussian``.
        own_sketch: Whether each client has an S of its own. The model that is judged
            and the start are then those of one client more.
        encode: The ``derivative``, transposed, is the paper's; with the ``inverse``,
            ``S v`` or ``S_A v_A``, theta changes as much like v as p numbers allow.
        seed: That of S and of theta_init.
        options: Those of ``separated``: ``server``, ``server_lr`` and so on.

    Returns:
        The algorithm; its metrics have ``active``, the number of theta's coordinates
        that are not zero.

    Raises:
        FadError: If l1 is a number outside [0, 1), or nothing is active at the start
            and nothing would ever be.
    """
    if isinstance(l1, int | float) and not 0 <= l1 < 1:
        raise fad.FadError(
            f"fedsep: expected l1 in [0, 1), got {l1!r}. It is a share of the penalty "
            "at which nothing is active: from 1 on nothing is ever learned."
        )
    if start == "zero" and is_penalised(l1):
        raise fad.FadError(
            f'fedsep(start="zero", l1={l1!r}): omega = 0 decodes to theta = 0 with no '
            "active coordinate, so all updates encode to 0 and nothing is ever "
            'learned. Pass start="anchored", or l1=0.'
        )

    code = Code(init_params, p, l1, start, sketch, seed)

    def learn(theta, batches, key):
        del key
        local = fad.local.train(
            code.network(theta), batches, loss=loss, optimizer=client
        )
        return local._replace(delta=ravel_pytree(local.delta)[0])

    return separated(
        lambda key: code.first(),
        code.decoder(),
        learn,
        encode=code.inverse if encode == "inverse" else None,
        own=lambda batches: batches.client if own_sketch else None,
        shown=code.shown,
        watch=lambda theta: {"active": jnp.sum(theta != 0, dtype=jnp.float32)},
        **options,
    )


@dataclass(frozen=True)
class Config(fedavg.Config):
    """The options of FedAvg, and those of a sketch.

    ``share`` is p / d, where p is not given.
    """

    weighting: fedavg.Weighting = "uniform"
    p: int | None = None
    share: float = 0.1
    l1: float = 0.0
    start: Start = "zero"
    sketch: Literal["gaussian", "hadamard"] = "hadamard"
    own_sketch: bool = False
    encode: Encode = "inverse"
    sketch_seed: int = 0
    tolerance: float | None = None

    def __post_init__(self):
        """Check the ranges."""
        super().__post_init__()
        check_range(self, "(0, 1]", "share")
        check_range(self, "[0, 1)", "l1")
        if self.p is not None and self.p < 1:
            raise ValueError(f"p: expected >= 1, got {self.p!r}")
        if self.tolerance is not None:
            check_range(self, "(0, inf)", "tolerance")


def build(config: Config, task: fad.data.Task) -> fad.Algorithm:
    """Build the algorithm of a config for a task."""
    size = sum(
        x.size for x in jax.tree.leaves(jax.eval_shape(task.init, jax.random.key(0)))
    )
    p = config.p if config.p is not None else max(1, round(config.share * size))
    server, client = fedavg.optimizers(config)
    names = ("l1", "start", "own_sketch", "encode", "server_lr", "weighting")
    names += ("nonfinite", "tolerance")
    options = {name: getattr(config, name) for name in names}
    options |= {"p": p, "seed": config.sketch_seed, "server": server, "client": client}
    return fedsep(
        task.loss, task.init, sketch=getattr(decoders, config.sketch), **options
    )
