"""Second order: every composition of the two modes equals the plain program's."""

import functools
import itertools

import jax
import jax.numpy as jnp
import pytest

import fad
from tests import masks, rounds
from tests.subjects import SMOOTH, Subject, assert_same

MODES = {"fwd": jax.jacfwd, "rev": jax.jacrev}
SECOND_ORDER = {
    f"{outer}_over_{inner}": (MODES[outer], MODES[inner])
    for outer, inner in itertools.product(MODES, MODES)
}
SUBJECTS = [
    Subject(operation, "float64", "array")
    for operation in ("map", "map_remat", "map_closure", "map_broadcast")
]
compositions = pytest.mark.parametrize(
    "modes", SECOND_ORDER.values(), ids=list(SECOND_ORDER)
)


@pytest.mark.usefixtures("x64")
@compositions
@pytest.mark.parametrize("subject", SUBJECTS, ids="-".join)
def test_second_derivatives_of_the_subjects(subject, modes):
    assert subject in SMOOTH
    outer, inner = modes

    def square(*args):
        return jnp.sum(fad.program(fad.sum)(subject.program(*args)) ** 2)

    actual = jax.jit(outer(inner(square)))(*subject.args())
    assert_same(actual, _plain_second_derivatives(subject))


@functools.cache
def _plain_second_derivatives(subject):
    square = lambda *args: jnp.sum(subject.marked(*args).sum(0) ** 2)  # noqa: E731
    return jax.jit(jax.jacfwd(jax.jacrev(square)))(*subject.args())


def _by_learning_rates(train, outer, inner):
    args = rounds.make_args()
    by = lambda s, c: train(args[0], s, c, *args[3:])  # noqa: E731
    return jax.jit(outer(inner(by, (0, 1)), (0, 1)))(*args[1:3])


@functools.cache
def _plain_by_learning_rates():
    return _by_learning_rates(rounds.plain_train, jax.jacfwd, jax.jacrev)


@pytest.mark.usefixtures("x64")
@compositions
def test_second_derivatives_of_training(modes):
    actual = _by_learning_rates(rounds.train, *modes)
    assert_same(actual, _plain_by_learning_rates())


@pytest.mark.usefixtures("x64")
def test_second_derivatives_of_training_with_remat():
    train = lambda *a: rounds.train(*a, remat=True)  # noqa: E731
    actual = _by_learning_rates(train, jax.jacfwd, jax.jacrev)
    assert_same(actual, _plain_by_learning_rates())


@pytest.mark.usefixtures("x64")
def test_hessian_of_training_by_the_params():
    args = rounds.make_args()
    actual = jax.jit(jax.hessian(rounds.train))(*args)
    assert_same(actual, jax.jit(jax.hessian(rounds.plain_train))(*args))


@pytest.mark.usefixtures("x64")
def test_mixed_derivative_by_server_and_client_values():
    args = rounds.make_args()

    def mixed(train):
        return jax.jit(jax.jacfwd(jax.grad(train, argnums=4), argnums=2))(*args)

    assert_same(mixed(rounds.train), mixed(rounds.plain_train))


@pytest.mark.usefixtures("x64")
def test_hessian_vector_product():
    args = rounds.make_args()
    vector = jax.tree.map(jnp.ones_like, args[0])

    def product(train):
        gradient = lambda p: jax.grad(train)(p, *args[1:])  # noqa: E731
        return jax.jit(lambda p: jax.jvp(gradient, (p,), (vector,)))(args[0])

    assert_same(product(rounds.train), product(rounds.plain_train))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("remat", [False, True])
def test_third_derivative(remat):
    data = jnp.linspace(0.1, 1.0, 4)

    @fad.program
    def program(scale, data):
        work = lambda s, d: jnp.sin(s * d)  # noqa: E731
        return fad.sum(fad.map(work, fad.broadcast(scale), data, remat=remat))

    by = lambda s: program(s, fad.AtClients(data))  # noqa: E731
    actual = jax.jit(jax.grad(jax.grad(jax.grad(by))))(2.0)
    assert_same(actual, -(data**3 * jnp.cos(2.0 * data)).sum())


@pytest.mark.usefixtures("x64")
@compositions
def test_second_derivatives_of_a_round_on_slices(modes):
    outer, inner = modes
    args = jnp.array([0.5, -1.0, 2.0]), fad.AtClients(masks.DATA.astype(float))
    square = lambda w, d: jnp.sum(masks.slice_round(w, d) ** 2)  # noqa: E731
    actual = jax.jit(outer(inner(square, (0, 1)), (0, 1)))(*args)
    assert_same(actual, _plain_second_derivatives_on_slices())


@functools.cache
def _plain_second_derivatives_on_slices():
    square = lambda w, d: jnp.sum(masks.plain_slice_round(w, d) ** 2)  # noqa: E731
    args = jnp.array([0.5, -1.0, 2.0]), masks.DATA.astype(float)
    return jax.jit(jax.jacfwd(jax.jacrev(square, (0, 1)), (0, 1)))(*args)
