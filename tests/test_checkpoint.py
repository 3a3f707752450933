"""Rematerialisation: the same numbers from fewer residuals at the clients."""

import jax
import jax.numpy as jnp
import pytest

import fad
from tests import jaxprs, rounds
from tests.subjects import assert_same, make_like


def _forward(fn, *args):
    """Return the map of the forward pass of the derivative of ``fn``."""
    return jaxprs.maps(lambda *a: jax.vjp(fn, *a)[1], *args)


def _deep(x):
    for _ in range(5):
        x = jnp.sin(x) * jnp.cos(x)
    return x


@fad.program
def _kept(w, data):
    return fad.sum(fad.map(lambda p, d: _deep(p * d), fad.broadcast(w), data))


@fad.program
def _recomputed(w, data):
    work = lambda p, d: _deep(p * d)  # noqa: E731
    return fad.sum(fad.map(work, fad.broadcast(w), data, remat=True))


ARGS = jnp.arange(3.0), fad.AtClients(jnp.linspace(0.0, 1.0, 12).reshape(4, 3))


@pytest.mark.usefixtures("x64")
def test_checkpoint_around_a_round():
    params, _, _, data, _ = rounds.make_args()
    actual = jax.jit(jax.grad(jax.checkpoint(rounds.mean_loss), (0, 1)))(params, data)
    assert_same(actual, jax.grad(rounds.mean_loss, (0, 1))(params, data))


@pytest.mark.usefixtures("x64")
def test_checkpoint_of_each_round_in_a_scan():
    params, server_lr, client_lr, data, weights = rounds.make_args()

    def train(server_lr, client_lr, data):
        @jax.checkpoint
        def body(carry, _):
            return rounds.fl_round(*carry, server_lr, client_lr, data, weights), None

        start = params, jax.tree.map(jnp.zeros_like, params)
        (new, _), _ = jax.lax.scan(body, start, None, length=rounds.ROUNDS)
        return rounds.mean_loss(new, data)

    args = server_lr, client_lr, data
    actual = jax.jit(jax.grad(train, (0, 1, 2)))(*args)
    plain = lambda s, c, d: rounds.plain_train(params, s, c, d, weights)  # noqa: E731
    assert_same(actual, jax.grad(plain, (0, 1, 2))(*args))


@pytest.mark.parametrize("transform", [jax.jit, jax.grad, jax.jacfwd, jax.hessian])
def test_remat_gives_the_same_numbers(transform):
    def total(fn):
        return transform(lambda *a: jnp.vdot(fn(*a), jnp.arange(1.0, 4.0)))

    assert_same(total(_recomputed)(*ARGS), total(_kept)(*ARGS))


def test_remat_keeps_no_residual_at_the_clients():
    outputs = [len(e.outvars) for e in _forward(_recomputed, *ARGS)]
    assert sum(outputs) == 0
    kept = [len(e.outvars) for e in _forward(_kept, *ARGS)]
    assert sum(kept) >= 5


def test_remat_inside_training_keeps_less():
    args = rounds.make_args()

    def residual_bytes(remat):
        found = _forward(lambda *a: rounds.train(*a, remat=remat), *args)
        return sum(v.aval.size for e in found for v in e.outvars)

    assert residual_bytes(True) < residual_bytes(False) / 2


def test_remat_is_behind_a_barrier():
    (backward,) = jaxprs.maps(jax.grad(lambda *a: _recomputed(*a).sum()), *ARGS)
    text = str(backward.params["jaxpr"])
    assert "remat" in text or "checkpoint" in text


def test_inputs_are_forwarded_not_returned():
    args = rounds.make_args()
    found = _forward(rounds.train, *args)
    for work in found[:1] + found[2:]:  # the second returns the weights on purpose
        inner = work.params["jaxpr"].jaxpr
        assert not [v for v in inner.outvars if any(v is x for x in inner.invars)]


def test_a_broadcast_parameter_is_forwarded():
    @fad.program
    def program(w, data):
        return fad.sum(fad.map(lambda p, d: jnp.vdot(p, d), fad.broadcast(w), data))

    found = list(jaxprs.equations(jaxprs.trace(jax.grad(program, (0, 1)), *ARGS)))
    (work,) = [e for e in found if e.primitive.name == "fad_map"]  # the value is dead
    param, _ = [e.outvars[0] for e in found if e.primitive.name == "fad_broadcast"]
    assert param in work.invars


def test_an_output_that_is_a_residual_is_returned_once():
    @fad.program
    def program(data):
        return fad.map(jnp.exp, data)

    (work,) = _forward(program, ARGS[1])
    assert len(work.outvars) == 1
    value, pull = jax.vjp(program, ARGS[1])
    assert_same(pull(value)[0], jnp.exp(2 * ARGS[1].unsafe_gather()))


def test_the_policy_is_part_of_the_program():
    kept, recomputed = (
        jax.jit(jax.grad(lambda *a, f=f: f(*a).sum())) for f in (_kept, _recomputed)
    )
    for _ in range(2):  # no trace cache may swap them
        assert all(e.params["remat"] for e in jaxprs.maps(recomputed, *ARGS))
        assert not any(e.params["remat"] for e in jaxprs.maps(kept, *ARGS))


def test_checkpoint_inside_a_client_is_kept():
    @fad.program
    def program(data):
        return fad.map(jax.checkpoint(_deep), data)

    assert sum(len(e.outvars) for e in _forward(program, ARGS[1])) == 0
    ct = make_like(ARGS[1], seed=2)
    expected = jax.vjp(_deep, ARGS[1].unsafe_gather())[1](ct.unsafe_gather())
    assert_same(jax.vjp(program, ARGS[1])[1](ct), expected)
