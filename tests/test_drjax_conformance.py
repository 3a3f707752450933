"""What DrJAX's own checks assert, asserted of the same programs on fad."""

import jax
import jax.numpy as jnp
import pytest

import fad
from tests import drjax_adapter as drjax
from tests import jaxprs
from tests.subjects import assert_same, on_mesh

N = 100
placements = pytest.mark.parametrize("name", ["clients", "XY"])
JACOBIANS = {"fwd": jax.jacfwd, "rev": jax.jacrev}
both_modes = pytest.mark.parametrize("jacobian", JACOBIANS.values(), ids=JACOBIANS)


def _over(n, fn):
    return drjax.program(placements={"clients": n})(fn)


def _share_over(n, name="clients"):
    @drjax.program(placements={name: n})
    def share(threshold, values):
        over = lambda t, v: jax.lax.cond(v > t, lambda: 1.0, lambda: 0.0)  # noqa: E731
        return drjax.reduce_mean(
            drjax.map_fn(over, (drjax.broadcast(threshold), values))
        )

    return share


@placements
def test_programs_of_two_sizes_by_turns(name):
    hundred, ten = _share_over(100, name), _share_over(10, name)
    values = jax.random.uniform(jax.random.key(2), (100,))

    def expect(n):
        return jnp.mean((values[:n] > 0.5).astype(float))

    for n, share in ((100, hundred), (10, ten), (100, hundred)):
        assert_same(share(jnp.array(0.5), values[:n]), expect(n))


@placements
def test_two_placements_are_refused(name):
    with pytest.raises(ValueError, match="exactly one placement"):
        drjax.program(placements={name: 1, name + "x": 1})


def test_operations_are_undefined_outside_a_program():
    for _ in range(2):  # before a program ran, and after
        with pytest.raises(fad.PlacementError, match="outside a fad program"):
            drjax.broadcast(jnp.array(0.5))
        assert _over(10, drjax.reduce_mean)(jnp.ones(10)) == 1


@pytest.mark.parametrize(
    ("fn", "message"),
    [
        (drjax.broadcast, r"broadcast\(\) takes 1 positional argument but 2"),
        (drjax.reduce_sum, r"reduce_sum\(\) takes 1 positional argument but 2"),
        (drjax.reduce_mean, r"reduce_mean\(\) takes 1 positional argument but 2"),
        (
            lambda *a: drjax.map_fn(lambda x: x, *a),
            r"map_fn\(\) takes 2 positional arguments but 3",
        ),
    ],
)
def test_too_many_arguments(fn, message):
    with pytest.raises(TypeError, match=message):
        _over(1, lambda *args: fn(*args))(jnp.ones(1), jnp.ones(1))


def test_an_error_at_a_client_reaches_the_caller():
    def fail(_):
        raise ValueError("this client fails")

    with pytest.raises(ValueError, match="this client fails"):
        _over(1, lambda x: drjax.map_fn(fail, x))(jnp.zeros(1))


PROGRAMS = {
    "broadcast": (drjax.broadcast, jnp.array(1.0), jnp.ones(N), jnp.ones(N)),
    "sum": (
        drjax.reduce_sum,
        jnp.ones((N, 1)),
        jnp.array([100.0]),
        jnp.ones((1, N, 1)),
    ),
    "mean": (
        drjax.reduce_mean,
        jnp.ones((N, 1)),
        jnp.array([1.0]),
        jnp.full((1, N, 1), 1 / N),
    ),
}
programs = pytest.mark.parametrize(
    ("fn", "x", "value", "jacobian"), PROGRAMS.values(), ids=PROGRAMS
)


@programs
def test_values_and_jacobians(fn, x, value, jacobian):
    program = _over(N, fn)
    assert_same(program(x), value)
    assert_same(jax.jit(program)(x), value)
    for mode in JACOBIANS.values():
        assert_same(mode(program)(x), jacobian)


@programs
def test_jacobian_where_one_result_is_ignored(fn, x, value, jacobian):
    program = _over(N, fn)
    twice = jax.jit(lambda v: (program(v), program(v)))
    assert_same(jax.jacrev(jax.jit(lambda v: twice(v)[0]))(x), jacobian)
    assert_same(twice(x)[1], value)


@both_modes
@pytest.mark.parametrize(
    ("fn", "expected"), [(drjax.reduce_sum, 100.0), (drjax.reduce_mean, 1.0)]
)
def test_jacobian_of_a_broadcast_reduced(jacobian, fn, expected):
    program = _over(N, lambda x: fn(drjax.broadcast(x)))
    assert_same(jacobian(program)(jnp.array([1.0])), jnp.array([[expected]]))


@pytest.mark.parametrize(
    ("mode", "name", "primitive"),
    [
        ("fwd", "broadcast", "fad_broadcast"),
        ("rev", "broadcast", "fad_sum"),
        ("fwd", "sum", "fad_sum"),
        ("rev", "sum", "fad_broadcast"),
        ("fwd", "mean", "fad_sum"),
        ("rev", "mean", "fad_broadcast"),
    ],
)
def test_closure(mode, name, primitive):
    fn, x, *_ = PROGRAMS[name]
    found = jaxprs.equations(jaxprs.trace(JACOBIANS[mode](_over(N, fn)), x))
    assert primitive in {e.primitive.name for e in found}


def test_weighted_mean():
    x, w = jnp.arange(8.0).reshape(4, 2), jnp.array([1.0, 0.0, 2.0, 1.0])
    program = _over(4, drjax.reduce_weighted_mean)
    assert_same(program(x, w), (w[:, None] * x).sum(0) / w.sum())


def test_nested_structures():
    x = {"a": jnp.ones((4, 2)), "b": (jnp.arange(4.0),)}
    out = _over(4, drjax.reduce_sum)(x)
    assert_same(out, {"a": jnp.full(2, 4.0), "b": (jnp.array(6.0),)})


def test_a_broadcast_keeps_the_sharding_of_its_value():
    program = _over(8, drjax.broadcast)
    with on_mesh("explicit_model"):
        x = jax.reshard(jnp.ones((8, 8)), jax.P("model"))
        out = jax.jit(program)(x)
        assert tuple(out.sharding.spec) == (None, "model", None)
    assert_same(out, jnp.ones((8, 8, 8)))
