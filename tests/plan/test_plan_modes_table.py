"""The modes' costs, in closed form, against plans of programs.

R training rounds, in which each client receives a model of P floats and returns P, and
a mean loss: down R P + P, up R P + 1. Forward mode with q tangents sends (1 + q) times
that in the same rounds. Reverse mode adds backward rounds in which what was sent up
comes down and what was sent down goes up; the loss's own shares its round.
"""

import jax
import jax.numpy as jnp
import pytest

import fad
from fad.plan import Cost
from tests.plan.programs import F32, SIZE, train, train_args

ROUNDS, PARAMETERS = (1, 3, 10), (1, 5)
table = pytest.mark.parametrize(
    ("rounds", "k"), [(r, k) for r in ROUNDS for k in PARAMETERS]
)
places = pytest.mark.parametrize("place", ["server", "client"])


def _cost(fn, rounds, k) -> Cost:
    return fad.plan(fn)(*train_args(rounds, k)).cost()


def _program(place, *, remat=False):
    return lambda *args: train(*args, place=place, remat=remat)


def _check(cost, *, rounds, down, up, state=0, same_cohort=False):
    assert cost.rounds == rounds
    assert (cost.bytes_down, cost.bytes_up) == (F32 * down, F32 * up)
    assert (cost.client_state_bytes, cost.same_cohort) == (F32 * state, same_cohort)


def _primal(place, rounds, k):
    """Return the floats down and up; theta itself travels if the clients use it."""
    sent = SIZE + (k if place == "client" else 0)
    return rounds * sent + SIZE, rounds * SIZE + 1


@places
@table
def test_primal(place, rounds, k):
    down, up = _primal(place, rounds, k)
    cost = _cost(_program(place), rounds, k)
    _check(cost, rounds=rounds + 1, down=down, up=up)


@places
@table
def test_forward(place, rounds, k):
    f = _program(place)

    def jvp(theta, *rest):
        return jax.jvp(lambda t: f(t, *rest), (theta,), (jnp.ones(k),))

    def jacobian(*args):
        return jax.jacfwd(lambda *a: [f(*a)] * 2, has_aux=True)(*args)

    down, up = _primal(place, rounds, k)
    cost = _cost(jvp if k == 1 else jacobian, rounds, k)
    _check(cost, rounds=rounds + 1, down=(1 + k) * down, up=(1 + k) * up)


def _reverse(place, rounds, k):
    """Return the backward training rounds, and all floats down and up.

    The first round's model depends on nothing, so it has no cotangent, and for a
    hyper-parameter of the server no backward round.
    """
    down, up = _primal(place, rounds, k)
    backward = rounds if place == "client" else rounds - 1
    of_theta = rounds * k if place == "client" else 0
    return backward, down + backward * SIZE + 1, up + rounds * SIZE + of_theta


@places
@table
def test_reverse_keeps_state(place, rounds, k):
    backward, down, up = _reverse(place, rounds, k)
    _check(
        _cost(jax.value_and_grad(_program(place)), rounds, k),
        rounds=2 * rounds + (place == "client"),
        down=down,
        up=up,
        state=backward * SIZE,
        same_cohort=backward > 0,
    )


@places
@table
def test_reverse_recomputes(place, rounds, k):
    """No state: what the forward rounds sent is sent again."""
    backward, down, up = _reverse(place, rounds, k)
    again = SIZE + (k if place == "client" else 0)
    _check(
        _cost(jax.value_and_grad(_program(place, remat=True)), rounds, k),
        rounds=2 * rounds + (place == "client"),
        down=down + backward * again,
        up=up,
        same_cohort=backward > 0,
    )


def test_reverse_without_the_value_sends_no_loss():
    with_value, without = (
        _cost(t(_program("server")), 3, 1) for t in (jax.value_and_grad, jax.grad)
    )
    assert with_value.bytes_up - without.bytes_up == F32
    assert with_value.bytes_down == without.bytes_down


@pytest.mark.parametrize("mode", ["mixed", "mixed-products"])
@places
@table
def test_mixed(place, rounds, k, mode):
    """The training rounds carry k tangents; the last one ships as its row says.

    Mixed A, products: k tangents of the model down, k numbers up. Mixed B: no tangent
    and the loss's 1/n down, one gradient up.
    """
    down, up = _primal(place, rounds, k)
    down += rounds * k * (SIZE + (k if place == "client" else 0))
    up += rounds * k * SIZE
    last = (k * SIZE, k) if mode == "mixed-products" else (1, SIZE)
    cost = _cost(fad.value_and_grad(_program(place), mode=mode), rounds, k)
    _check(cost, rounds=rounds + 1, down=down + last[0], up=up + last[1])
