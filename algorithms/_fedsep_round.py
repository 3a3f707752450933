"""The round of FedSep: one parameter to communicate, another to learn with.

Li and Huang, "Resolving the Tug-of-War: A Separation of Communication and Learning in
Federated Learning", NeurIPS 2023 (Algorithm 1). A *decoder* turns the parameter x that
the server holds into the one y that client m learns with, each by a problem of its own:

    decode:   y_m = Dec_m(x) = argmin_y g_m(x, y)
    learn:    Delta_m = (y_m after local training) - y_m
    encode:   u_m = Enc_m(Delta_m),    Enc_m = (d y_m / d x)^T at x
    server:   x <- x + eta * direction(mean_m u_m)

x alone goes down and u alone up. Encode is the decoder's vector-Jacobian product, which
implicit differentiation gives. With ``Delta = -lr * grad f_m(y_m)``, one local step, u
is ``-lr * grad h_m(x)`` of ``h_m(x) = f_m(y_m(x))``, and the server descends.

The paper defines Enc as *minus* this derivative (equation 2) and has the server
subtract (line 20), which is the same; but equation 5, of the LASSO decoder, is the
derivative with a plus, and with line 20 that ascends. Here the sign is the one above.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import fad
from algorithms._server_step import Weighting, screened, server_step, weigh
from algorithms._taking_part import Nonfinite, where
from fad.decoders import Decoder

Encode = Callable[[Any, Any, Any, Any], Any]


class State(NamedTuple):
    """The server's state: the model to judge, what is sent, and the optimizer's."""

    params: Any
    x: Any
    server: Any


def separated(
    start: Callable[[jax.Array], Any],
    decoder: Decoder,
    learn: Callable[..., fad.local.LocalResult],
    *,
    server: optax.GradientTransformation,
    server_lr: float = 1.0,
    weighting: Weighting = "uniform",
    nonfinite: Nonfinite = "refuse",
    encode: Encode | None = None,
    own: Callable[[fad.local.Batches], Any] = lambda batches: None,
    shown: Callable[[Any], Any] = lambda x: x,
    watch: Callable[[Any], dict[str, jax.Array]] = lambda y: {},
    tolerance: float | None = None,
) -> fad.Algorithm:
    """Build FedSep with any decoder, encoder and local training.

    Args:
        start: ``start(key) -> x``, the first parameter to communicate.
        decoder: Turns x into y, ``decode(x, data) -> y``.
        learn: ``learn(y, batches, key)``, a client's training from y on, with the
            round's key.
        server: Turns the mean of what is sent, as a gradient, into a direction.
        server_lr: The server step eta, times the direction.
        weighting: Weigh clients by their examples, or all the same.
        nonfinite: Whether to ``refuse`` a round with an update that is not finite, or
            ``exclude`` its client.
        encode: ``encode(x, y, delta, data) -> u`` of x's structure; None for the
            decoder's own.
        own: ``own(batches) -> data``, a client's part of the decoder's problem. None is
            the same problem for all, which all solve alike.
        shown: ``shown(x) -> params``, the model that is judged; x itself unless told.
        watch: ``watch(y) -> {name: []}``, more to measure of what was decoded.
        tolerance: The largest residual of decoding; None for any.

    Returns:
        The algorithm; its metrics are ``train_loss``, ``server_lr``,
        ``decode_residual``, what is watched and, where clients may be left out,
        ``excluded_clients``: means over the clients.
    """

    def init(key):
        x = start(key)
        return State(shown(x), x, server.init(x))

    @fad.program
    def step(state, cohort, key):
        x = state.x

        def client_work(batches):
            data = own(batches)
            y, back = jax.vjp(lambda x: decoder.decode(x, data), x)
            local = learn(y, batches, key)
            u = encode(x, y, local.delta, data) if encode else back(local.delta)[0]
            # A linear solver may end on NaN with zeros.
            fine = [jnp.isfinite(d).all() for d in jax.tree.leaves(local.delta)]
            u = where(jnp.stack(fine).all(), u, jnp.nan)
            residual = decoder.residual(x, y, data)
            seen = {"decode_residual": residual} | watch(y)
            who = weigh((u, local.loss), local.num_examples, weighting, nonfinite)
            return (u, local.loss, seen), who

        sent, who = fad.map(client_work, cohort)
        mean, train_loss, seen = fad.weighted_mean(sent, who[0])
        x, memory = server_step(x, mean, state.server, server, server_lr)
        metrics = {"train_loss": train_loss, "server_lr": server_lr} | seen
        return State(shown(x), x, memory), screened(metrics, nonfinite, sent[1], *who)

    def check(metrics):
        residual = metrics["decode_residual"]
        if tolerance is not None and not residual <= tolerance:
            raise fad.FadError(
                f"fedsep: decoding left a residual of {residual:.3g} on average; "
                f"expected at most tolerance = {tolerance:.3g}. Give the decoder more "
                "steps, or raise the tolerance."
            )

    return fad.Algorithm(init, step, check)
