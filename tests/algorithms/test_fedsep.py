"""FedSep: its round against NumPy, plain JAX and theory, and then with a sketch."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fad
from algorithms import fedavg
from algorithms._fedsep_round import separated
from algorithms.fedsep import Config, fedsep
from fad import decoders
from tests.algorithms.classical import partial_cohorts, run_partially
from tests.algorithms.conftest import init_params, loss
from tests.algorithms.test_fedavg import assert_close, leaves_out
from tests.algorithms.test_hypergradient_descent import (
    CLIENT_LR,
    first_params,
    flat,
    pooled,
    survives_hard_data,
    updates,
)

pytestmark = pytest.mark.once

KEY = jax.random.key(0)
SGD: Any = {"server": optax.sgd(1.0)}
P, SIZE = 2, 4


# ------------------------------------------------------------------------------------
# the round, each client with a lower problem of its own
# ------------------------------------------------------------------------------------

# Client m decodes y = argmin y.H_m y / 2 - y.B_m x = J_m x, and its loss is
# |w_m (y - a_m)|^2 / 2: every step of it is linear. So many steps each takes:
STEPS = (5, 5, 0, 3, 1)
DIM, SENT = 3, 2


class Problem:
    """Arrays of clients, and h(x), the mean of their losses at y(x)."""

    def __init__(self, steps):
        rng, n = np.random.default_rng(0), len(steps)
        root = rng.normal(size=(n, DIM, DIM)) / 2
        self.h = np.eye(DIM) + root @ root.swapaxes(1, 2)
        self.b = rng.normal(size=(n, DIM, SENT)) + np.eye(DIM, SENT)
        self.a = rng.normal(size=(n, DIM)) + 1
        self.w = rng.uniform(0.5, 1, size=(n, DIM))
        self.j, self.steps = np.linalg.solve(self.h, self.b), np.array(steps)
        shape = (n, max(steps), 1)
        rows = {"h": self.h, "b": self.b, "a": self.a, "w": self.w}
        rows = {
            k: np.broadcast_to(v[:, None, None], (*shape, *v.shape[1:]))
            for k, v in rows.items()
        }
        mask = np.arange(max(steps))[None, :, None] < self.steps[:, None, None]
        batches = fad.local.Batches(rows, mask, np.arange(n))
        self.cohort = fad.AtClients(jax.tree.map(jnp.asarray, batches))
        weighted = self.w[..., None] * self.j
        self.hessian = np.einsum("nij,nik->jk", weighted, weighted) / n
        slope = np.einsum("nij,ni->j", weighted, self.w * self.a) / n
        self.optimum = np.linalg.solve(self.hessian, slope)

    def value(self, x):
        return np.mean(np.sum((self.w * (self.j @ x - self.a)) ** 2, axis=1)) / 2

    def gradient(self, x):
        return self.hessian @ (x - self.optimum)

    def plain_round(self, x, some, eta, server_lr):
        sent = []
        for m in some:
            if self.steps[m]:
                y = self.j[m] @ x
                left = (1 - eta * self.w[m] ** 2) ** self.steps[m]
                sent.append(self.j[m].T @ ((left - 1) * (y - self.a[m])))
        return x + server_lr * np.mean(sent, axis=0) if sent else x


def train(y, batches, key, *, eta):
    def loss(y, rows):
        return jnp.sum((rows["w"] * (y[None] - rows["a"])) ** 2, axis=1) / 2

    del key
    return fad.local.train(y, batches, loss=loss, optimizer=optax.sgd(eta))


def own(batches):
    return {k: batches.examples[k][0, 0] for k in ("h", "b")}


def with_own_problems(eta, server_lr):
    decoder = decoders.minimiser(
        lambda x, y, data: data["h"] @ y - data["b"] @ x,
        lambda x, data: data["b"] @ jnp.zeros_like(x),
        steps=400,
        step=0.2,
        terms=DIM,
    )
    learn = functools.partial(train, eta=eta)
    options: Any = {"own": own, "server_lr": server_lr, **SGD}
    return separated(lambda key: jnp.ones(SENT), decoder, learn, **options)


@functools.partial(jax.jit, static_argnames="rounds")
def many(cohort, eta, server_lr, rounds):
    """The x of each of the rounds."""
    algorithm = with_own_problems(eta, server_lr)

    def one(state, _):
        return algorithm.step(state, cohort, KEY)[0], state.x

    return jax.lax.scan(one, algorithm.init(KEY), length=rounds)[1]


def test_the_round_with_own_lower_problems(x64):
    problem = Problem(STEPS)
    ids, x = partial_cohorts(len(STEPS), 20, 3), np.ones(SENT)
    state, _, rows = run_partially(with_own_problems(0.4, 0.7), problem.cohort, ids)
    for some in ids:
        x = problem.plain_round(x, some, 0.4, 0.7)
    np.testing.assert_allclose(state.x, x, rtol=1e-10)
    np.testing.assert_array_equal(state.params, state.x)
    assert all(0 <= row["decode_residual"] < 1e-10 for row in rows)


def test_a_stationary_point_at_the_rate_of_theory(x64):
    """One local step descends on h: linearly here, and below Theorem 3.7's bound."""
    problem, eta = Problem((1,) * 5), 0.5
    curvatures = np.linalg.eigvalsh(problem.hessian)
    server_lr = 0.5 / (eta * curvatures[-1])
    xs = np.asarray(many(problem.cohort, eta, server_lr, rounds=60))
    norms = np.linalg.norm([problem.gradient(x) for x in xs], axis=1)
    rate = 1 - eta * server_lr * curvatures[0]
    assert (norms <= 1.0001 * rate ** np.arange(60) * norms[0] + 1e-9).all()
    assert norms[-1] < 1e-3 * norms[0]
    bound = 2 * problem.value(xs[0]) / (60 * eta * server_lr)
    assert np.mean(norms**2) <= bound


def test_local_steps_leave_a_bias_that_shrinks_with_their_size(x64):
    problem, etas = Problem((5,) * 5), (0.2, 0.1, 0.05)
    found = [many(problem.cohort, eta, 0.1 / eta, rounds=150) for eta in etas]
    left = [np.linalg.norm(problem.gradient(np.asarray(xs[-1]))) for xs in found]
    assert np.linalg.norm(problem.gradient(np.ones(SENT))) > 10 * left[0]
    assert left[0] > 1.7 * left[1] > 1.7**2 * left[2] > 0


# ------------------------------------------------------------------------------------
# FedAvg, and the sign
# ------------------------------------------------------------------------------------


def plain_learn(params, batches, key):
    del key
    return fad.local.train(params, batches, loss=loss, optimizer=optax.sgd(CLIENT_LR))


def test_fedavg_is_the_identity_decoder(x64, federation):
    options: Any = {"server": optax.sgd(1.0, momentum=0.9), "server_lr": 0.8}
    options |= {"weighting": "examples"}
    ids = partial_cohorts(4, 6, 3)
    same = separated(init_params, decoders.identity(), plain_learn, **options)
    plain = fedavg.fedavg(loss, init_params, client=optax.sgd(CLIENT_LR), **options)
    got, _, rows = run_partially(same, federation.cohort, ids)
    want, _, others = run_partially(plain, federation.cohort, ids)
    assert_close((got.params, got.server), (want.params, want.server), 1e-12)
    for a, b in zip(rows, others, strict=True):
        np.testing.assert_allclose(a["train_loss"], b["train_loss"], rtol=1e-12)
        assert a["decode_residual"] == 0


def test_equation_5_with_line_20_ascends(x64):
    """The paper's literal sign fails the test of one step's descent; ours passes it."""
    rng, size, l1, gamma = np.random.default_rng(0), 12, 0.1, 0.05
    s, target = rng.normal(size=(5, size)) / np.sqrt(5), rng.normal(size=size)
    x = s @ (target * (np.arange(size) < 3))
    decoder = decoders.lasso(
        decoders.dense(jnp.asarray(s)), l1=l1, tolerance=1e-12, terms=50
    )

    def h(x):
        return 0.5 * float(
            jnp.sum((decoder.decode(jnp.asarray(x), None) - target) ** 2)
        )

    def literal(x, theta, delta, data):
        """Equation 5 as it is printed."""
        step = theta + gamma * s.T @ (x - s @ theta)
        u = jnp.diag((jnp.abs(step) > gamma * l1).astype(float))
        eye = jnp.eye(size)
        return (
            gamma * s @ u @ jnp.linalg.solve(eye - (eye - gamma * s.T @ s) @ u, delta)
        )

    rows = {"w": jnp.ones((1, 1, 1, size)), "a": jnp.asarray(target)[None, None, None]}
    cohort = fad.AtClients(
        fad.local.Batches(rows, jnp.ones((1, 1, 1), bool), jnp.zeros(1, jnp.int32))
    )
    learn = functools.partial(train, eta=0.1)

    def after(encode, server_lr):
        algorithm = separated(
            lambda key: jnp.asarray(x),
            decoder,
            learn,
            encode=encode,
            server_lr=server_lr,
            **SGD,
        )
        return algorithm.step(algorithm.init(KEY), cohort, KEY)[0].x

    ours, printed = after(None, 0.1), after(literal, 0.1)
    np.testing.assert_allclose(ours, printed, rtol=1e-8)  # the same encoder, with plus
    assert h(ours) < h(x)
    assert h(after(literal, -0.1)) > h(x)  # line 20 subtracts it


# ------------------------------------------------------------------------------------
# derivatives
# ------------------------------------------------------------------------------------


def test_the_derivative_by_steps_penalty_and_sketch(x64, federation):
    """Three rounds with a LASSO, by all that it is made of, against plain JAX."""
    rng = np.random.default_rng(3)
    at = {
        "client_lr": 0.1,
        "server_lr": 0.5,
        "l1": 0.05,
        "s": jnp.asarray(rng.normal(size=(3, SIZE)) / np.sqrt(3)),
    }
    first = jnp.array([1.0, -0.8, 0.0, 0.1])

    def by_fad(h):
        def learn(theta, batches, key):
            client = optax.sgd(h["client_lr"])
            of = lambda p, rows: loss({"w": p[:3], "b": p[3]}, rows)  # noqa: E731
            return fad.local.train(theta, batches, loss=of, optimizer=client)

        decoder = decoders.lasso(
            lambda data: decoders.dense(data[0]),
            l1=h["l1"],
            tolerance=0.0,
            steps=300,
            terms=20,
        )
        algorithm = separated(
            lambda key: h["s"] @ first,
            decoder,
            learn,
            server_lr=h["server_lr"],
            own=lambda batches: (h["s"],),
            **SGD,
        )

        def one(state, _):
            return algorithm.step(state, federation.cohort, KEY)[0], None

        x = jax.lax.scan(one, algorithm.init(KEY), length=3)[0].x
        return pooled(jnp, federation, decoder.decode(x, (h["s"],)))

    def solved(h, x):
        """Theta on its active set in closed form, and what solves with S_A^T S_A."""
        s, l1 = jax.lax.stop_gradient((h["s"], h["l1"]))
        step = 1 / jnp.linalg.norm(s, 2) ** 2

        def ista(_, theta):
            z = theta + step * s.T @ (jax.lax.stop_gradient(x) - s @ theta)
            return jnp.sign(z) * jnp.maximum(jnp.abs(z) - step * l1, 0)

        found = jax.lax.fori_loop(0, 2000, ista, jnp.zeros(SIZE))
        on = (found != 0).astype(float)
        gram = jnp.outer(on, on) * (h["s"].T @ h["s"]) + jnp.diag(1 - on)
        inverse = lambda v: on * jnp.linalg.solve(gram, on * v)  # noqa: E731
        return inverse(h["s"].T @ x - h["l1"] * jnp.sign(found)), inverse

    def plainly(h):
        x = h["s"] @ first
        for _ in range(3):
            theta, inverse = solved(h, x)
            deltas, n = updates(jnp, federation, theta, lr=h["client_lr"])
            sent = [h["s"] @ inverse(d) for d, k in zip(deltas, n, strict=True) if k]
            x = x + h["server_lr"] * sum(sent) / len(sent)
        return pooled(jnp, federation, solved(h, x)[0])

    got, slopes = jax.jit(jax.value_and_grad(by_fad))(at)
    want, expected = jax.jit(jax.value_and_grad(plainly))(at)
    np.testing.assert_allclose(got, want, rtol=1e-9)
    for name, slope in expected.items():
        assert np.abs(slope).max() > 1e-4
        np.testing.assert_allclose(slopes[name], slope, rtol=1e-8, atol=1e-10)


# ------------------------------------------------------------------------------------
# with a sketch
# ------------------------------------------------------------------------------------


def sketched(**options: Any):
    given: Any = {"p": P, "client": optax.sgd(CLIENT_LR), **SGD, **options}
    return fedsep(loss, init_params, **given)


def dense(rows, size, seed):
    """A sketch that is quick to compile."""
    return decoders.dense(jnp.asarray(drawn(rows, size, seed)))


def drawn(rows, size, seed):
    return np.random.default_rng(seed).normal(size=(rows, size)) / np.sqrt(rows)


def columns(seed):
    """A Gaussian sketch as a matrix."""
    sketch = decoders.gaussian(P, SIZE, seed)
    return np.asarray(sketch.columns(jnp.arange(SIZE)), float)


@pytest.mark.parametrize(
    ("encode", "own_sketch"), [("derivative", False), ("inverse", True)]
)
def test_equals_numpy_with_a_gaussian_sketch(x64, federation, encode, own_sketch):
    algorithm = sketched(
        sketch=decoders.gaussian,
        encode=encode,
        own_sketch=own_sketch,
        server_lr=0.5,
        weighting="examples",
    )
    ids, omega = partial_cohorts(4, 20, 3), np.zeros(P)
    state, _, rows = run_partially(algorithm, federation.cohort, ids)
    start = first_params()[[3, 0, 1, 2]]  # leaves in the order of their names
    # The second implementation has the weights first.
    shared = columns(0)

    def network(s):
        return (start + s.T @ np.linalg.solve(s @ s.T, omega))[[1, 2, 3, 0]]

    for some in ids:
        clients = [federation.clients[i] for i in some]
        sent, weights = [], []
        for i, client in zip(some, clients, strict=True):
            s = columns(1 + i) if own_sketch else shared
            alone = federation._replace(clients=[client])
            (delta,), (n,) = updates(np, alone, network(s))
            u = s @ delta[[3, 0, 1, 2]]
            sent.append(u if encode == "inverse" else np.linalg.solve(s @ s.T, u))
            weights.append(n)
        omega = omega + 0.5 * np.average(sent, axis=0, weights=weights)
    np.testing.assert_allclose(state.x, omega, rtol=1e-10)
    np.testing.assert_allclose(flat(state.params), network(shared), rtol=1e-10)
    assert [row["active"] for row in rows] == [0] + 19 * [SIZE]


def test_begins_where_it_says(x64):
    init = flat(init_params(jax.random.key(0)))[[3, 0, 1, 2]]
    s = columns(0)
    options: Any = {"sketch": decoders.gaussian, "p": P}

    def first(**more):
        return flat(sketched(**options, **more).init(KEY).params)[[3, 0, 1, 2]]

    np.testing.assert_array_equal(first(), init)
    own = init_params(jax.random.fold_in(jax.random.key(0), 1))  # not drawn as S is
    kept = s.T @ np.linalg.solve(s @ s.T, s @ flat(own)[[3, 0, 1, 2]])
    np.testing.assert_allclose(first(start="sketch"), kept, rtol=1e-10)
    moved = first(start="anchored", l1=0.1) - init
    assert 0 < np.abs(moved).max() < 0.2 * np.abs(init).max()
    assert 0 < np.count_nonzero(moved) <= P


@pytest.mark.parametrize("encode", ["derivative", "inverse"])
def test_a_lasso_learns_on_its_active_set(x64, federation, encode):
    """A step's change of theta: that of the mean update, where theta is active."""
    options: Any = {"start": "sketch", "l1": 0.3, "encode": encode, "server_lr": 1e-4}
    algorithm = sketched(sketch=dense, p=3, **options)
    state = algorithm.init(KEY)
    after, metrics = jax.jit(algorithm.step)(state, federation.cohort, KEY)
    before = flat(state.params)
    moved = (flat(after.params) - before) / 1e-4
    on = before != 0
    assert 0 < on.sum() == metrics["active"] < SIZE
    deltas, n = updates(np, federation, before)
    want = np.where(on, np.sum(deltas, axis=0) / np.sum(n > 0), 0)
    if encode == "derivative":
        s = drawn(3, SIZE, 0)[:, [1, 2, 3, 0]][:, on]
        want[on] = np.linalg.solve(s.T @ s, want[on])
    np.testing.assert_allclose(moved, want, rtol=1e-3, atol=1e-4)
    assert metrics["decode_residual"] < 1e-4


def test_differentiates_by_the_penalty(x64, federation):
    """As a traced number it goes through the whole of a run."""

    @jax.jit
    @jax.value_and_grad
    def run(l1):
        algorithm = sketched(l1=l1, start="sketch", sketch=dense, p=3, server_lr=0.1)
        state = algorithm.step(algorithm.init(KEY), federation.cohort, KEY)[0]
        return jnp.sum(
            jnp.stack([jnp.sum(v**2) for v in jax.tree.leaves(state.params)])
        )

    (low, _), (_, slope), (high, _) = map(run, (0.295, 0.3, 0.305))
    np.testing.assert_allclose(slope, (high - low) / 0.01, rtol=0.02)
    assert abs(slope) > 1e-3


@pytest.mark.parametrize("l1", [0.0, 0.3])
def test_p_numbers_go_down_and_up(federation, l1):
    algorithm = sketched(l1=l1, start="anchored" if l1 else "zero")
    args = algorithm.init(KEY), federation.cohort, KEY
    cost = fad.plan(algorithm.step)(*args).cost()
    assert (cost.rounds, cost.bytes_down) == (1, 4 * P)
    # Beside it the loss, the residual, the number of active ones, and a weight.
    assert cost.bytes_up == 4 * P + 4 * 4
    assert not fad.check(algorithm.step)(*args).allowed


def test_all_clients_decode_once(federation):
    """What is the same for all is no work of each client's."""
    calls = []

    def decode(x, data):
        def count(x):
            calls.append(1)
            return np.zeros_like(x)

        nothing = jax.pure_callback(
            count,
            jax.eval_shape(lambda: jnp.zeros(())),
            jax.lax.stop_gradient(x["b"]),
            vmap_method="sequential",
        )
        return {**x, "b": x["b"] + jax.lax.stop_gradient(nothing)}

    decoder = decoders.closed_form(decode)
    algorithm = separated(init_params, decoder, plain_learn, **SGD)
    step = fad.jit(algorithm.step, chunk=None)
    jax.block_until_ready(step(algorithm.init(KEY), federation.cohort, KEY))
    assert len(calls) == 1


@pytest.mark.parametrize("l1", [0.0, 0.3])
def test_hard_data(x64, federation, l1):
    options: Any = {"l1": l1, "start": "sketch" if l1 else "zero"}
    options |= {"sketch": dense, "p": 3}
    survives_hard_data(sketched(**options), federation)
    algorithm = sketched(**options, nonfinite="exclude")
    leaves_out(algorithm._replace(init=jax.jit(algorithm.init)), federation)


def test_nothing_active_is_refused():
    with pytest.raises(fad.FadError, match=r'start="zero", l1=0\.1.*nothing is ever'):
        sketched(l1=0.1)


@pytest.mark.parametrize("l1", [-0.1, 1.0, float("nan")])
def test_a_penalty_out_of_range_is_refused(l1):
    with pytest.raises(fad.FadError, match=r"fedsep: expected l1 in \[0, 1\), got"):
        sketched(l1=l1, start="anchored")


def test_a_start_without_spread_is_anchored_too():
    flat_start: Any = lambda key: {"w": jnp.zeros(3), "b": jnp.zeros(())}  # noqa: E731
    options: Any = {"p": P, "client": optax.sgd(CLIENT_LR), **SGD}
    algorithm = fedsep(
        loss, flat_start, l1=0.1, start="anchored", sketch=dense, **options
    )
    moved = flat(jax.jit(algorithm.init)(KEY).params)
    assert 0 < np.count_nonzero(moved) <= P
    assert np.abs(moved).max() < 0.2


def test_what_is_not_decoded_well_enough_is_refused():
    check = sketched(tolerance=1e-3).check
    assert check is not None
    check({"decode_residual": 1e-4})
    for residual in (0.5, float("nan")):
        with pytest.raises(fad.FadError, match=r"residual of .* tolerance = 0\.001"):
            check({"decode_residual": residual})
    sketched().check({"decode_residual": 0.5})  # type: ignore[misc]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"p": 0}, r"p: expected >= 1, got 0"),
        ({"share": 1.5}, r"share: expected in \(0, 1\], got 1\.5"),
        ({"l1": 1.0}, r"l1: expected in \[0, 1\), got 1\.0"),
        ({"tolerance": 0.0}, r"tolerance: expected in \(0, inf\), got 0\.0"),
    ],
)
def test_ranges(options, message):
    with pytest.raises(ValueError, match=message):
        Config(**options)
