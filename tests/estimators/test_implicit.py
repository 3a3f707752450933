"""Implicit derivatives: closed forms, plain JAX, every composition, and bad input."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

import fad
from fad import FadError
from fad._compat import eval_jaxpr
from fad.data import Quadratics
from fad.estimators import implicit

pytestmark = pytest.mark.usefixtures("x64")

# ------------------------------------------------------------------------------------
# the federated quadratic
# ------------------------------------------------------------------------------------

LOWER, UPPER = 4, 3
QUADRATICS = Quadratics.random(5, lower_size=LOWER, upper_size=UPPER, mu=0.5, seed=0)
X = np.array([0.3, -0.2, 0.5])
HESSIAN = np.stack(
    [
        QUADRATICS.hypergradient(e) - QUADRATICS.hypergradient(np.zeros(UPPER))
        for e in np.eye(UPPER)
    ]
)
SOLVES = {
    "cg": {"terms": LOWER},
    "neumann": {"solve": "neumann", "terms": 60, "step": 1.0},
    "asymmetric": {
        "solve": "neumann", "terms": 60, "step": 1.0, "symmetric": False,
    },
    "dense": {
        "solve": lambda a, b: jnp.linalg.solve(jax.vmap(a)(jnp.eye(b.size)).T, b)
    },
}  # fmt: skip


@fad.program
def gradient(x, y, data):
    return fad.mean(fad.map(lambda own: jax.grad(own.lower, 1)(x, y), data))


def descend(x, data):
    """Minimise in a loop that has no reverse derivative."""

    def body(state):
        y, k = state
        return y - gradient(x, y, data), k + 1

    return jax.lax.while_loop(lambda s: s[1] < 60, body, (jnp.zeros(LOWER), 0))[0]


@fad.program
def upper(x, y, data):
    return fad.mean(fad.map(lambda own: own.upper(x, y), data))


def value(x, data, **options):
    return upper(x, implicit(descend, gradient, **options)(x, data), data)


def assert_near(found, want):
    np.testing.assert_allclose(found, want, rtol=0, atol=1e-10)


COMPOSITIONS = {
    "grad": (jax.grad, QUADRATICS.hypergradient(X)),
    "jvp": (
        lambda h: lambda x: jax.jvp(h, (x,), (jnp.ones(UPPER),))[1],
        QUADRATICS.hypergradient(X).sum(),
    ),
    "forward over reverse": (lambda h: jax.jacfwd(jax.grad(h)), HESSIAN),
    "reverse over reverse": (lambda h: jax.jacrev(jax.grad(h)), HESSIAN),
    "reverse over forward": (lambda h: jax.jacrev(jax.jacfwd(h)), HESSIAN),
    "vmap of grad": (
        lambda h: lambda x: jax.vmap(jax.grad(h))(jnp.stack([x, 2 * x])),
        np.stack([QUADRATICS.hypergradient(X), QUADRATICS.hypergradient(2 * X)]),
    ),
}


@pytest.mark.parametrize(
    "solve", ["cg", *(pytest.param(s, marks=pytest.mark.once) for s in [*SOLVES][1:])]
)
@pytest.mark.parametrize("name", COMPOSITIONS)
def test_every_composition_equals_the_closed_form(name, solve):
    compose, want = COMPOSITIONS[name]
    data = QUADRATICS.at_clients()
    found = jax.jit(compose(lambda x: value(x, data, **SOLVES[solve])))(jnp.asarray(X))
    assert_near(found, want)


def test_the_value_is_the_solvers():
    data = QUADRATICS.at_clients()
    y = implicit(descend, gradient)
    assert (y(jnp.asarray(X), data) == descend(jnp.asarray(X), data)).all()
    assert_near(y(jnp.asarray(X), data), QUADRATICS.solution(X))
    assert y.__name__ == "descend"


def iterate(x, data):
    """Minimise in a loop that a planner can count."""
    step = lambda y, _: (y - gradient(x, y, data), None)  # noqa: E731
    return jax.lax.scan(step, jnp.zeros(LOWER), length=60)[0]


def scanned(x, data, terms=LOWER):
    return upper(x, implicit(iterate, gradient, terms=terms)(x, data), data)


@pytest.mark.parametrize("mode", ["forward", "reverse", "mixed", "mixed-products"])
def test_every_mode_of_fad_grad(mode):
    found = jax.jit(fad.grad(scanned, mode=mode))(
        jnp.asarray(X), QUADRATICS.at_clients()
    )
    assert_near(found, QUADRATICS.hypergradient(X))


def test_the_mode_is_chosen_by_plan():
    args = jnp.asarray(X), QUADRATICS.at_clients()
    choice = fad.grad(scanned).explain(*args)
    assert not choice.refused
    assert len(choice.costs) == 5
    assert_near(jax.jit(fad.grad(scanned))(*args), QUADRATICS.hypergradient(X))


@pytest.mark.parametrize("chunk", [2, None])
def test_streamed_over_clients(chunk):
    """Chunks do not divide the clients; the solver's products are sweeps."""
    args = jnp.asarray(X), QUADRATICS.at_clients()
    step = fad.jit(jax.value_and_grad(value), chunk=chunk)
    found, slope = step(*args)
    assert_near(found, value(*args))
    assert_near(slope, QUADRATICS.hypergradient(X))
    assert not step.explain(*args).unstreamed
    # A call inside a trace keeps the rule.
    inner = fad.jit(implicit(descend, gradient, terms=LOWER), chunk=chunk)
    found = jax.grad(lambda x, d: upper(x, inner(x, d), d))(*args)
    assert_near(found, QUADRATICS.hypergradient(X))


def test_streamed_from_the_host():
    clients = QUADRATICS.at_clients().unsafe_gather()
    parts = [jax.tree.map(lambda v, i=i: v[i : i + 2], clients) for i in (0, 2, 4)]
    found = fad.jit(jax.grad(scanned))(jnp.asarray(X), fad.stream(parts))
    assert_near(found, QUADRATICS.hypergradient(X))


@pytest.mark.once
def test_a_scan_of_upper_steps():
    """Every step's solution, and the derivative through all of them."""
    data = QUADRATICS.at_clients()

    def outer(rate, x):
        def body(x, _):
            slope = jax.grad(lambda x: value(x, data, terms=LOWER))(x)
            return x - rate * slope, None

        return (jax.lax.scan(jax.checkpoint(body), x, length=3)[0] ** 2).sum()

    def plain(rate, x):
        start = QUADRATICS.hypergradient(np.zeros(UPPER))
        for _ in range(3):
            x = x - rate * (jnp.asarray(HESSIAN) @ x + start)
        return (x**2).sum()

    args = jnp.asarray(np.float64(0.1)), jnp.asarray(X)
    found = jax.jit(jax.grad(outer, (0, 1)))(*args)
    for a, b in zip(found, jax.grad(plain, (0, 1))(*args), strict=True):
        assert_near(a, b)
    forward = jax.jit(jax.jacfwd(jax.grad(outer)))(*args)
    assert_near(forward, jax.grad(jax.grad(plain))(*args))


@pytest.mark.parametrize("terms", [1, 4])
def test_rounds(terms):
    """Sixty rounds, the upper gradient, the terms, and the derivative by x."""
    args = jnp.asarray(X), QUADRATICS.at_clients()
    run = functools.partial(scanned, terms=terms)
    assert fad.plan(run)(*args).cost().rounds == 60 + 1
    cost = fad.plan(jax.grad(run))(*args).cost()
    assert cost.rounds == 60 + 1 + terms + 1
    assert cost.client_state_bytes == 0
    # Forward: this system does not depend on y, so it needs no round of its own.
    assert fad.plan(jax.jacfwd(run))(*args).cost().rounds == 60 + 1


@pytest.mark.parametrize("symmetric", [True, False])
def test_what_clients_are_sent_and_keep(symmetric):
    """Each term sends x, y, the shift and a vector; what is kept does not add up."""
    x, data = make_ridge()

    def cost(terms, **options):
        y = implicit(
            lambda x, d: {"w": jnp.zeros(FEATURES), "b": jnp.zeros(())},
            curved_gradient,
            solve="neumann", terms=terms, step=0.1, symmetric=symmetric,
        )  # fmt: skip
        loss = lambda p: jnp.sum(y({**x, "penalty": p}, data)["w"])  # noqa: E731
        run = fad.grad(loss, mode="reverse", **options)
        return fad.plan(run)(x["penalty"]).cost()

    few, many = cost(2), cost(6)
    assert many.rounds == few.rounds + 4 == 6 + 1
    y_size = FEATURES + 1
    assert many.bytes_down - few.bytes_down == 4 * 8 * (FEATURES + 1 + 2 * y_size)
    assert many.bytes_up - few.bytes_up == 4 * 8 * y_size
    assert many.client_state_bytes == few.client_state_bytes > 0
    assert cost(2, remat=True).client_state_bytes == 0


def test_an_asymmetric_condition_by_weighted_means():
    """The transposed products are of the weighted mean's derivative."""
    matrices = np.random.default_rng(0).normal(size=(3, 2, 2)) * 0.2 + np.eye(2)
    data = fad.AtClients((jnp.asarray(matrices), jnp.array([3.0, 0.0, 1.0])))

    @fad.program
    def condition(x, y, data):
        matrix, weight = data
        return fad.weighted_mean(fad.map(lambda a: a @ y - x, matrix), weight)

    def solver(x, data):
        matrix, weight = data.unsafe_gather()
        return jnp.linalg.solve(jnp.tensordot(weight / weight.sum(), matrix, 1), x)

    options = {"solve": "neumann", "terms": 80, "step": 0.7, "symmetric": False}
    y = implicit(solver, condition, **options)
    found = jax.jit(jax.jacrev(y, (0, 1)))(jnp.ones(2), data)
    for a, b in zip(found, jax.jacrev(solver, (0, 1))(jnp.ones(2), data), strict=True):
        jax.tree.map(assert_near, a, b)


def test_check_passes():
    args = jnp.asarray(X), QUADRATICS.at_clients()
    assert fad.check(jax.grad(value))(*args).allowed == ()


# ------------------------------------------------------------------------------------
# trees: ridge regression with a penalty per feature and none on the intercept
# ------------------------------------------------------------------------------------

FEATURES, ROWS = 3, 4
TERMS = 12


def make_ridge(clients=4, dtype=jnp.float64):
    """Unequal clients, the second of them empty; counts and keys are no real arrays."""
    random = np.random.default_rng(1)
    mask = np.arange(ROWS) < np.array([4, 0, 1, 3])[:clients, None]
    inputs = random.normal(size=(clients, ROWS, FEATURES))
    data = {
        "inputs": jnp.asarray(inputs * (1 + np.arange(clients))[:, None, None], dtype),
        "targets": jnp.asarray(random.normal(size=(clients, ROWS)), dtype),
        "mask": jnp.asarray(mask),
        "key": jax.random.split(jax.random.key(0), clients),
        "count": jnp.arange(clients),
    }
    x = {"penalty": jnp.asarray([-1.0, 0.0, 0.5], dtype), "round": jnp.int32(3)}
    return x, {"own": fad.AtClients(data), "shift": jnp.asarray(0.3, dtype)}


def objective(x, y, own, shift):
    """Return one client's loss; an empty client's is the penalty alone."""
    error = own["inputs"] @ y["w"] + y["b"] - own["targets"] - shift
    loss = jnp.sum(jnp.where(own["mask"], error, 0) ** 2) / 2
    return loss + jnp.sum(jnp.exp(x["penalty"]) * y["w"] ** 2) / 2


@fad.program
def ridge_gradient(x, y, data):
    def client(own):
        return jax.grad(objective, 1)(x, y, own, data["shift"])

    return fad.mean(fad.map(client, data["own"]))


@fad.program
def curved_gradient(x, y, data):
    """The same, of a loss whose second derivatives depend on everything."""

    def client(own):
        f = lambda y: objective(x, y, own, data["shift"])  # noqa: E731
        return jax.grad(lambda y: jnp.cosh(f(y)))(y)

    return fad.mean(fad.map(client, data["own"]))


def normal_equations(x, own, shift):
    """Return the mean Hessian and the mean gradient at zero, of (w, b)."""

    def client(own):
        design = jnp.concatenate([own["inputs"], jnp.ones((ROWS, 1))], 1)
        design = jnp.where(own["mask"][:, None], design, 0)
        targets = jnp.where(own["mask"], own["targets"] + shift, 0)
        return design.T @ design, design.T @ targets

    matrix, right = client(own) if own["mask"].ndim == 1 else jax.vmap(client)(own)
    matrix, right = matrix.mean(0), right.mean(0)
    penalty = jnp.concatenate([jnp.exp(x["penalty"]), jnp.zeros(1)])
    return matrix + jnp.diag(penalty), right


def plain_ridge(x, data):
    own = data["own"].unsafe_gather()
    solved = jnp.linalg.solve(*normal_equations(x, own, data["shift"]))
    return {"w": solved[:FEATURES], "b": solved[FEATURES]}


def solver(x, data):
    return jax.lax.stop_gradient(plain_ridge(x, data))


ridge = implicit(solver, ridge_gradient, terms=TERMS)


def of_reals(solve, x, data):
    """Return a function of the penalties, the shift, the inputs and the targets."""
    own = data["own"].unsafe_gather()

    def of(penalty, shift, inputs, targets):
        given = fad.AtClients({**own, "inputs": inputs, "targets": targets})
        y = solve({**x, "penalty": penalty}, {"own": given, "shift": shift})
        return jnp.sum(y["w"] ** 3) + jnp.sin(y["b"])

    return of, (x["penalty"], data["shift"], own["inputs"], own["targets"])


@pytest.mark.parametrize("clients", [4, 1])
def test_derivatives_by_x_and_by_data_equal_plain_jax(clients):
    of, args = of_reals(ridge, *make_ridge(clients))
    plain, _ = of_reals(plain_ridge, *make_ridge(clients))
    everything = tuple(range(len(args)))
    found = jax.jit(jax.grad(of, everything))(*args)
    for a, b in zip(found, jax.grad(plain, everything)(*args), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-10)
    jvp = jax.jit(lambda *args: jax.jvp(of, args, args))(*args)
    np.testing.assert_allclose(jvp, jax.jvp(plain, args, args), rtol=1e-9)


@pytest.mark.once
def test_check_grads():
    of, args = of_reals(ridge, *make_ridge())
    by_penalty = jax.jit(lambda penalty: of(penalty, *args[1:]))
    check_grads(by_penalty, args[:1], order=2, modes=("fwd", "rev"))


def test_an_empty_client_has_no_derivative_and_nan_in_its_rows_does_nothing():
    x, data = make_ridge()
    of, args = of_reals(ridge, x, data)
    mask = np.asarray(data["own"].unsafe_gather()["mask"])
    targets = jnp.where(jnp.asarray(mask), args[3], jnp.nan)
    by_penalty, by_targets = jax.jit(jax.grad(of, (0, 3)))(*args[:3], targets)
    assert not np.asarray(by_targets)[~mask].any()
    want = jax.jit(jax.grad(of))(*args)
    np.testing.assert_allclose(by_penalty, want, rtol=1e-12)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_dtypes_are_kept(dtype):
    """Also where the parts of y, and x, have different ones."""

    @fad.program
    def condition(x, y, data):
        target = fad.mean(data).astype(jnp.float32) * x.astype(jnp.float32)
        return {"a": y["a"] - target, "b": y["b"] - x * fad.mean(data).astype(dtype)}

    @fad.program
    def solver(x, data):
        mean = fad.mean(data)
        wide = mean.astype(jnp.float32) * x.astype(jnp.float32)
        return {"a": wide, "b": x * mean.astype(dtype)}

    x, data = jnp.asarray(2, dtype), fad.AtClients(jnp.asarray([1.0, 3.0], dtype))
    y = implicit(solver, condition, terms=2)
    value, change = jax.jvp(lambda x: y(x, data), (x,), (jnp.ones_like(x),))
    assert change == {"a": 2, "b": 2}
    assert [v.dtype for v in change.values()] == [jnp.float32, dtype]
    _, pull = jax.vjp(lambda x: y(x, data), x)
    (slope,) = pull(jax.tree.map(jnp.ones_like, value))
    assert (slope, slope.dtype) == (4, dtype)


# ------------------------------------------------------------------------------------
# programs around it
# ------------------------------------------------------------------------------------


def test_in_a_program_that_tells_the_number_of_clients():
    """Also where JAX asks for the derivative when the program has ended."""

    @fad.program
    def program(x, data):
        def mean_of(x, d):
            return fad.mean(fad.map(lambda v: v * x, d))

        y = implicit(mean_of, lambda x, y, d: y - mean_of(x, d), terms=1)
        return jax.checkpoint(y)(x, data) ** 2

    data = fad.AtClients(jnp.array([1.0, 3.0]))
    assert jax.grad(program)(3.0, data) == 24.0  # (2 x)^2
    assert jax.grad(jax.grad(program))(3.0, data) == 8.0
    traced = jax.make_jaxpr(program)(3.0, data)
    late = lambda x: eval_jaxpr(  # noqa: E731
        traced.jaxpr, traced.consts, x, data.unsafe_gather()
    )[0]
    assert jax.grad(late)(3.0) == 24.0


def test_plain_functions_need_no_clients():
    y = implicit(lambda x, d: x / d, lambda x, y, d: d * y - x, terms=1)
    assert jax.grad(y)(3.0, 4.0) == 0.25
    assert jax.grad(y, 1)(3.0, 4.0) == -3 / 16
    assert jax.vmap(jax.grad(y), (0, None))(jnp.arange(2.0), 4.0).shape == (2,)


def test_inside_the_work_of_a_client():
    y = implicit(lambda x, d: x / d, lambda x, y, d: d * y - x, terms=1)
    run = fad.program(lambda x, data: fad.sum(fad.map(lambda d: y(x, d), data)))
    data = fad.AtClients(jnp.array([1.0, 4.0]))
    assert jax.grad(run)(3.0, data) == 1.25
    assert fad.plan(jax.grad(run))(3.0, data).cost().rounds == 1


def test_a_start_in_the_data_has_no_derivative():
    def solver(x, start):
        return jax.lax.scan(lambda y, _: (0.5 * (y + x), None), start, length=60)[0]

    y = implicit(solver, lambda x, y, start: y - x, terms=1)
    assert jax.grad(y, (0, 1))(3.0, 9.0) == (1.0, 0.0)


def test_what_a_solver_did_not_reach_is_not_hidden():
    y = implicit(lambda x, d: x * math.nan, lambda x, y, d: y - x, terms=1)
    assert jnp.isnan(y(3.0, 0.0))


# ------------------------------------------------------------------------------------
# bad input
# ------------------------------------------------------------------------------------

GOOD = {"solver": lambda x, d: x, "condition": lambda x, y, d: y - x}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"terms": 0}, "expected terms to be an int >= 1, got 0"),
        ({"terms": 2.0}, "expected terms to be an int >= 1, got 2.0"),
        ({"solve": "neumann"}, "expected step > 0 and finite, got None"),
        ({"solve": "neumann", "step": 0.0}, "expected step > 0 and finite, got 0.0"),
        ({"solve": "neumann", "step": -1}, "expected step > 0 and finite, got -1"),
        ({"solve": "neuman"}, "solve='neuman'.*Did you mean 'neumann'"),
        ({"solve": 3}, r"solve=3; expected a function \(matvec, b\) -> v"),
        ({"symmetric": False}, 'need a symmetric matrix. Pass solve="neumann"'),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(FadError, match=f"fad.estimators.implicit.*{message}"):
        implicit(**GOOD, **options)


@pytest.mark.parametrize("x", [jnp.arange(2), {"n": 3}, {}, None])
def test_x_without_a_real_array(x):
    message = "fad.estimators.implicit: x is .* without a real array"
    with pytest.raises(FadError, match=message):
        implicit(**GOOD)(x, 0.0)


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (None, "returned NoneType None without an array; expected y"),
        ({}, "returned dict without an array; expected y"),
        ({"w": "text"}, r"returned y\['w'\] = str 'text'; expected real arrays"),
        ({"w": jnp.arange(2)}, r"returned y\['w'\] = int32\[2\]; expected real arrays"),
        (1j, r"returned y = complex 1j; expected real arrays at the server"),
        ({"w": fad.AtClients(jnp.ones(3, "float32"))},
         r"returned y\['w'\] = AtClients\(float32\[3\]\); .*aggregated by fad.mean"),
    ],
)  # fmt: skip
def test_a_solver_that_returns_no_real_arrays(y, message):
    with pytest.raises(FadError, match=message):
        implicit(lambda x, d: y, lambda x, y, d: y)(1.0, 0.0)


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        (lambda x, y, d: y["w"], r"expected the structure of y, PyTreeDef\({'w': \*}"),
        (lambda x, y, d: {"w": y["w"][:1]},
         r"\['w'\] of float32\[1\]; expected float32\[2\], as y\['w'\]"),
        (lambda x, y, d: {"w": y["w"].astype("bfloat16")},
         r"\['w'\] of bfloat16\[2\]; expected float32\[2\]"),
        (lambda x, y, d: {"w": fad.AtClients(y["w"])}, "expected the structure of y"),
    ],
)  # fmt: skip
def test_a_condition_that_does_not_match_y(condition, message):
    y = implicit(lambda x, d: {"w": jnp.zeros(2, "float32")}, condition)
    with pytest.raises(FadError, match=message):
        y(1.0, 0.0)
