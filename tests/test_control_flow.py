"""Control flow around and inside a round, and gradients through it."""

import jax
import jax.numpy as jnp
import pytest

import fad
from tests import jaxprs, masks, rounds
from tests.subjects import assert_same, gather

COHORTS = 3


def _mean(params, data):
    return fad.program(lambda p, d: p + fad.mean(fad.map(jnp.sin, d)))(params, data)


def _plain_mean(params, data):
    return params + jnp.sin(data).mean(0)


@pytest.mark.usefixtures("x64")
def test_scan_over_rounds_with_a_cohort_each():
    params, server_lr, client_lr, data, weights = rounds.make_args()
    cohorts = jax.tree.map(
        lambda v: jnp.stack([(1 + i) * v for i in range(COHORTS)]), (data, weights)
    )

    def train(server_lr, cohorts):
        def body(carry, cohort):
            assert isinstance(cohort[0], fad.AtClients)
            return rounds.fl_round(*carry, server_lr, client_lr, *cohort), None

        start = params, jax.tree.map(jnp.zeros_like, params)
        (new, _), _ = jax.lax.scan(body, start, cohorts)
        return rounds.mean_loss(new, data)

    def plain(server_lr, cohorts):
        new, velocity = params, jax.tree.map(jnp.zeros_like, params)
        for i in range(COHORTS):
            d, w = gather(jax.tree.map(lambda v, i=i: v[i], cohorts))
            delta = jax.vmap(rounds.local_sgd, (None, None, 0))(new, client_lr, d)
            delta = jax.tree.map(lambda v, w=w: jnp.tensordot(w, v, 1) / w.sum(), delta)
            velocity = jax.tree.map(lambda v, d: 0.9 * v + d, velocity, delta)
            new = jax.tree.map(lambda p, v: p + server_lr * v, new, velocity)
        return jax.vmap(rounds.loss, (None, 0))(new, gather(data)).mean()

    actual = jax.jit(jax.value_and_grad(train, (0, 1)))(server_lr, cohorts)
    assert_same(actual, jax.jit(jax.value_and_grad(plain, (0, 1)))(server_lr, cohorts))
    assert isinstance(actual[1][1][0], fad.AtClients)


def test_a_client_value_is_a_carry():
    @fad.program
    def program(x, data):
        def body(state, _):
            state = fad.map(lambda s, d: 0.5 * s + d, state, data)
            return state, fad.mean(state)

        return jax.lax.scan(body, fad.broadcast(x), None, length=2)

    data = fad.AtClients(jnp.arange(4.0))
    state, means = jax.jit(program)(jnp.asarray(8.0), data)
    assert isinstance(state, fad.AtClients)
    assert_same(state, 2.0 + 1.5 * jnp.arange(4.0))
    assert_same(means, jnp.array([5.5, 4.25]))
    by_x = jax.grad(lambda x: program(x, data)[1].sum())(jnp.asarray(8.0))
    assert_same(by_x, jnp.asarray(0.75))


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_while_loop(steps):
    @fad.program
    def program(x, data):
        def body(carry):
            i, x = carry
            return i + 1, _mean(x, data)

        return jax.lax.while_loop(lambda c: c[0] < steps, body, (0, x))[1]

    data = jnp.arange(4.0)
    expected = jnp.asarray(1.0)
    for _ in range(steps):
        expected = _plain_mean(expected, data)
    x, client = jnp.asarray(1.0), fad.AtClients(data)
    assert_same(jax.jit(program)(x, client), expected)
    _, tangent = jax.jvp(lambda x: program(x, client), (x,), (x,))
    assert_same(tangent, x)


def test_a_while_loop_that_a_sum_ends():
    @fad.program
    def halve(data):
        def body(d):
            return fad.map(lambda v: v / 2, d)

        return jax.lax.while_loop(lambda d: fad.sum(d) > 1, body, data)

    assert_same(jax.jit(halve)(fad.AtClients(jnp.ones(4))), jnp.full(4, 0.25))


@pytest.mark.parametrize("flag", [True, False])
def test_cond_between_rounds(flag):
    @fad.program
    def program(flag, x, data):
        work = lambda x, d: fad.mean(fad.map(lambda v, y: v * y, d, fad.broadcast(x)))  # noqa: E731
        return jax.lax.cond(flag, work, lambda x, d: x**2 + 0 * fad.sum(d), x, data)

    def plain(flag, x, data):
        return jnp.where(flag, x * data.mean(), x**2)

    x, data = jnp.asarray(3.0), jnp.arange(4.0)
    args = flag, x, fad.AtClients(data)
    assert_same(jax.jit(program)(*args), plain(flag, x, data))
    actual = jax.jit(jax.grad(program, (1, 2)))(*args)
    assert isinstance(actual[1], fad.AtClients)
    assert_same(actual, jax.grad(plain, (1, 2))(flag, x, data))


def test_a_cond_that_a_batch_chooses():
    @fad.program
    def program(flag, data):
        return jax.lax.cond(flag, fad.sum, fad.mean, data)

    data = fad.AtClients(jnp.arange(4.0))
    actual = jax.jit(jax.vmap(program, (0, None)))(jnp.array([True, False]), data)
    assert_same(actual, jnp.array([6.0, 1.5]))


@pytest.mark.parametrize("transform", [lambda f: f, jax.grad], ids=["value", "grad"])
def test_fori_loop(transform):
    data = jnp.arange(4.0)

    def program(x, data):
        return jax.lax.fori_loop(0, 3, lambda i, p: _mean(2 * p, data), x)

    def plain(x, data):
        return jax.lax.fori_loop(0, 3, lambda i, p: _plain_mean(2 * p, data), x)

    x = jnp.asarray(1.0)
    actual = jax.jit(transform(program))(x, fad.AtClients(data))
    assert_same(actual, transform(plain)(x, data))


def test_control_flow_inside_a_client():
    @fad.program
    def program(scale, data):
        def work(s, v):
            out = jax.lax.cond(v > 1, lambda: s * v, lambda: s**2)
            return jax.lax.fori_loop(0, 2, lambda _, o: o * s, out)

        return fad.sum(fad.map(work, fad.broadcast(scale), data))

    def plain(scale, data):
        return (jnp.where(data > 1, scale * data, scale**2) * scale**2).sum()

    data = jnp.arange(4.0)
    args = jnp.asarray(1.5), fad.AtClients(data)
    assert_same(program(*args), plain(args[0], data))
    actual = jax.jit(jax.value_and_grad(program, (0, 1)))(*args)
    assert_same(actual, jax.value_and_grad(plain, (0, 1))(args[0], data))
    curvature = jax.jit(jax.hessian(program))(*args)
    assert_same(curvature, jax.hessian(plain)(args[0], data))


def test_switch_over_programs():
    @fad.program
    def program(i, data):
        branches = [fad.sum, fad.mean, lambda d: fad.sum(fad.map(jnp.square, d))]
        return jax.lax.switch(i, branches, data)

    data = fad.AtClients(jnp.arange(4.0))
    out = jnp.stack([jax.jit(program)(i, data) for i in range(3)])
    assert_same(out, jnp.array([6.0, 1.5, 14.0]))


def test_associative_scan_and_lax_map_over_cohorts():
    cohorts = fad.AtClients(jnp.arange(12.0).reshape(3, 4))
    out = jax.lax.map(fad.program(fad.sum), cohorts)
    assert_same(out, jnp.arange(12.0).reshape(3, 4).sum(1))


def test_rounds_in_a_scan_stay_federated():
    args = rounds.make_args()
    assert jaxprs.check_closed(rounds.train, *args) == [jaxprs.SERVER]
    found = {
        e.primitive.name for e in jaxprs.equations(jaxprs.trace(rounds.train, *args))
    }
    assert {"scan", *jaxprs.WIRE} <= found


@pytest.mark.usefixtures("x64")
def test_a_scan_over_rounds_on_slices_with_keys_of_their_own():
    turned = jnp.where(masks.ROWS < 0, -1, 2 - masks.ROWS)
    rows = jnp.stack([masks.ROWS, masks.ROWS[::-1], turned])
    data = masks.DATA.astype(float)

    def train(w, data, one_round, keys):
        body = lambda w, k: (one_round(w, data, k), None)  # noqa: E731
        return jnp.sum(jax.lax.scan(body, w, keys)[0] ** 2)

    def plain(w, data):
        return train(w, data, masks.plain_slice_round, rows)

    def program(w, data):
        return train(w, data, masks.slice_round, fad.AtClients(rows))

    w = jnp.array([0.5, -1.0, 2.0])
    actual = jax.jit(jax.value_and_grad(program, (0, 1)))(w, fad.AtClients(data))
    assert_same(actual, jax.jit(jax.value_and_grad(plain, (0, 1)))(w, data))


@pytest.mark.parametrize("flag", [True, False])
def test_cond_and_while_around_rounds_on_slices(flag):
    def run(one_round, w, data):
        def body(carry):
            i, w = carry
            send = lambda w: one_round(w, data)  # noqa: E731
            return i + 1, jax.lax.cond(flag, send, jnp.square, w)

        return jax.lax.while_loop(lambda c: c[0] < 2, body, (0, w))[1]

    w, client = jnp.array([0.5, -1.0, 2.0]), fad.AtClients(masks.DATA)
    by_w = lambda w: run(masks.slice_round, w, client)  # noqa: E731
    plain = lambda w: run(masks.plain_slice_round, w, masks.DATA)  # noqa: E731
    actual = jax.jit(lambda w: jax.jvp(by_w, (w,), (w,)))(w)
    assert_same(actual, jax.jvp(plain, (w,), (w,)))


def test_a_client_may_call_what_jax_lowers_later():
    """``jnp.nonzero`` is a primitive of a higher level in JAX 0.12."""

    @fad.program
    def total(w, x):
        def client(v):
            return jnp.sum((v * w)[jnp.nonzero(v, size=2)[0]])

        return fad.sum(fad.map(client, x))

    x = fad.AtClients(jnp.array([[1.0, 0.0, 2.0], [0.0, 3.0, 1.0]]))
    value, slope = jax.jit(jax.value_and_grad(total))(2.0, x)
    assert (float(value), float(slope)) == (14.0, 7.0)
    assert fad.plan(total)(2.0, x).cost().rounds == 1
