"""Programs that send slices: streamed, with memory flat in the number of clients."""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fad
from tests.compile.programs import check_same, shapes_made, temp_bytes
from tests.subjects import assert_same

SIZE, KEPT = 10, 4
NAMES = ("block", "columns", "whole")


def _keys(n: int) -> jax.Array:
    """Return keys, some of them -1; the first client has none."""
    random = np.random.default_rng(n)
    keys = np.stack([random.permutation(SIZE)[:KEPT] for _ in range(n)])
    keys[::3, -1:] = -1
    keys[0] = -1
    return jnp.asarray(keys, jnp.int32)


def _args(n: int, names: Sequence[str] = NAMES, dtype: Any = None) -> tuple:
    random = np.random.default_rng(1)

    def normal(*shape):
        return jnp.asarray(random.normal(size=shape), dtype)

    x = {"block": normal(SIZE, SIZE), "columns": normal(2, SIZE), "whole": normal(3)}
    cohort = {"keys": _keys(n), "data": normal(n, 2), "weights": abs(normal(n))}
    return {name: x[name] for name in names}, fad.AtClients(cohort)


def _where(x: Any, keys: Any) -> dict[str, Any]:
    found = {"block": {0: keys, 1: keys}, "columns": {1: keys}, "whole": None}
    return {name: found[name] for name in x}


def _local(x: Any, data: Any) -> Any:
    return jax.tree.map(lambda v: v - 0.1 * jnp.sin(v) * data.sum(), x)


def _parts(cohort: Any) -> tuple[Any, ...]:
    parts = cohort.unsafe_gather()
    return tuple(fad.AtClients(parts[k]) for k in ("keys", "data", "weights"))


@fad.program
def step(x: Any, cohort: Any) -> Any:
    """Run a round on slices of ``x``."""
    keys, data, weights = _parts(cohort)
    where = _where(x, keys)
    new = fad.map(_local, fad.select(x, where), data)
    return fad.coverage_mean(new, where, x, weights=weights).mean


def train(x: Any, cohort: Any) -> jax.Array:
    """Return a number after two rounds in a scan."""
    x, _ = jax.lax.scan(lambda x, _: (step(x, cohort), None), x, None, length=2)
    return sum(jnp.sum(jnp.sin(v)) for v in jax.tree.leaves(x))  # type: ignore[return-value]


def _gradients(x: Any, cohort: Any) -> Any:
    """Return the value and the gradients by the server's values and the clients'."""

    def of(x, data, weights):
        parts = cohort.unsafe_gather() | {"data": data, "weights": weights}
        return train(x, fad.AtClients(parts))

    parts = cohort.unsafe_gather()
    return jax.value_and_grad(of, (0, 1, 2))(x, parts["data"], parts["weights"])


def _moved(x: Any, cohort: Any) -> Any:
    """Return a tangent, and a batch of rounds."""
    tangent = jax.jvp(lambda x: step(x, cohort), (x,), (x,))[1]
    scaled = lambda s: step(jax.tree.map(lambda v: s * v, x), cohort)  # noqa: E731
    return tangent, jax.vmap(scaled)(jnp.arange(1.0, 3.0))


# ---- numbers -------------------------------------------------------------------------


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("fn", "chunks"), [(_gradients, (1, 3)), (_moved, (3,))])
def test_streamed_programs_compute_what_they_do_at_once(fn, chunks):
    check_same(fn, *_args(7), chunks=chunks)


@pytest.mark.parametrize(("dtype", "tol"), [(jnp.float32, 1e-6), (jnp.bfloat16, 1e-2)])
def test_dtypes(dtype, tol):
    check_same(step, *_args(7, ["columns"], dtype), chunks=(3,), tol=tol)


@pytest.mark.usefixtures("x64")
def test_keys_that_clients_compute_and_keys_that_all_share():
    @fad.program
    def run(x, data):
        top = lambda v, d: jax.lax.top_k(abs(v * d), 3)[1]  # noqa: E731
        own = fad.map(top, fad.broadcast(x), data)
        shared = fad.broadcast(jnp.array([1, -1, 3]))
        both = fad.map(jnp.add, fad.select(x, own), fad.select(x, shared))
        return fad.deselect(both, own, x), fad.deselect(both, shared, x)

    data = fad.AtClients(jnp.asarray(np.random.default_rng(0).normal(size=(5, 8))))
    x = jnp.linspace(0.5, 1.5, 8)
    gradient = lambda x, d: jax.grad(lambda x: jnp.sin(run(x, d)[0]).sum())(x)  # noqa: E731
    check_same(lambda x, d: (run(x, d), gradient(x, d)), x, data, chunks=(1, 3))


@pytest.mark.usefixtures("x64")
def test_slices_that_clients_return_and_keys_chosen_by_a_branch():
    @fad.program
    def run(x, keys, flag):
        def turned(k):
            return fad.map(lambda k: k[::-1], k)

        chosen = jax.lax.cond(flag, turned, lambda k: fad.map(jnp.copy, k), keys)
        mine = fad.select(x, chosen)
        return mine, fad.deselect(mine, keys, x)

    keys = fad.AtClients(_keys(5))
    x = jnp.arange(10.0)
    check_same(run, x, keys, jnp.asarray(True), chunks=(3,))


def test_keys_with_a_batch_axis():
    @fad.program
    def run(x, keys):
        return fad.deselect(fad.map(jnp.sin, fad.select(x, keys)), keys, x)

    keys = fad.AtClients(jnp.stack([_keys(3), _keys(3)[:, ::-1], _keys(3) // 2]))
    check_same(jax.vmap(run, (None, 0)), jnp.arange(10.0), keys, chunks=(2,), tol=1e-6)


@pytest.mark.parametrize("last", [1, 9])
def test_a_key_out_of_range_is_seen_and_filling_up_is_not(last):
    """Of 3 clients on 2 devices, the last one's row stands there twice."""
    mesh = jax.make_mesh((2,), ("clients",), devices=jax.devices()[:2])

    @fad.program
    def run(y, keys):
        like = jnp.zeros(3), jnp.zeros(3, jnp.int32)
        both = fad.map(lambda v: (v, v.astype(int)), y)
        return fad.deselect(both, keys, like)

    y = fad.AtClients(jnp.array([[1.0, 2.0], [4.0, 8.0], [16.0, 32.0]]))
    keys = fad.AtClients(jnp.array([[0, 2], [2, 1], [0, last]], jnp.uint8))
    want = [17.0, 40.0, 6.0] if last == 1 else [jnp.nan] * 3
    for jitted in (fad.jit(run, chunk=2), fad.jit(run, chunk=1, mesh=mesh)):
        total, count = jitted(y, keys)
        np.testing.assert_array_equal(total, want)
        np.testing.assert_array_equal(count, np.nan_to_num(want))


# ---- streaming -----------------------------------------------------------------------


def test_only_a_chunks_slices_are_made():
    args = _args(7)
    full = {(7, 2, KEPT), (7, KEPT, KEPT), (7, 2, SIZE), (7, SIZE, SIZE)}
    assert not full & shapes_made(jax.grad(train), *args, chunk=3)
    told = fad.jit(step, chunk=3).explain(*args)
    (sweep,) = told.sweeps
    assert (sweep.chunk, sweep.sums, sweep.stored) == (3, 6, 0)
    assert not told.unstreamed


@pytest.mark.once
@pytest.mark.usefixtures("_optimised")
@pytest.mark.parametrize("fn", [step, jax.grad(train)])
def test_memory_is_flat_in_the_number_of_clients(fn):
    few, many = (temp_bytes(fn, *_args(n, ["block"]), chunk=4) for n in (100, 1000))
    assert many <= 1.05 * few


@pytest.fixture
def _optimised() -> Iterator[None]:
    """Let XLA optimise: memory is the compiled program's."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


# ---- read chunk by chunk, and over devices -------------------------------------------


@pytest.mark.once
@pytest.mark.usefixtures("x64")
def test_clients_that_are_read_and_clients_over_devices():
    (x, cohort), fn = _args(7, ["block"]), jax.grad(train)
    want = jax.jit(fn)(x, cohort)
    at_host = jax.tree.map(np.asarray, cohort.unsafe_gather())
    mesh = jax.make_mesh((2,), ("clients",), devices=jax.devices()[:2])

    def chunks():
        for start in range(0, 7, 3):
            yield jax.tree.map(lambda v: v[start : start + 3], at_host)  # noqa: B023

    assert_same(fad.jit(fn, chunk=2)(x, fad.stream(chunks)), want, tol=1e-12)
    found = fad.jit(fn, chunk=2, mesh=mesh)(x, fad.stream(chunks))
    assert_same(jax.device_get(found), want, tol=1e-12)
    streamed = fad.jit(fn, chunk=3, mesh=mesh)
    assert_same(jax.device_get(streamed(x, cohort)), want, tol=1e-12)
    text = str(streamed.lower(x, cohort).compile().as_text())
    assert "all-reduce" in text
    assert "all-gather" not in text
    assert "all-to-all" not in text


# ---- tiers ---------------------------------------------------------------------------


def _tiers(x: Any, cohort: Any) -> Any:
    """Run one step whose clients have two widths: one program for each."""

    @fad.program
    def tier(x, data, keys):
        new = fad.map(_local, fad.select(x, {0: keys, 1: keys}), data)
        return fad.deselect(new, {0: keys, 1: keys}, x)

    parts = cohort.unsafe_gather()
    total = jnp.zeros_like(x)
    for t, width in enumerate((KEPT, KEPT // 2)):
        mine = {k: fad.AtClients(v[4 * t : 4 * t + 4]) for k, v in parts.items()}
        keys = jax.tree.map(lambda k, w=width: k[:, :w], mine["keys"])
        total = total + tier(x, mine["data"], keys)
    return x + 0.1 * total


def _two_steps(x: Any, cohort: Any) -> jax.Array:
    return jnp.sum(jnp.sin(_tiers(_tiers(x["block"], cohort), cohort)))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("devices", [1, 2])
def test_a_step_of_clients_of_two_widths(devices):
    args, fn = _args(8), jax.value_and_grad(_two_steps)
    mesh = jax.make_mesh((devices,), ("clients",), devices=jax.devices()[:devices])
    options: dict[str, Any] = {"mesh": mesh} if devices > 1 else {}
    streamed = fad.jit(fn, chunk=3, **options)
    assert_same(jax.device_get(streamed(*args)), jax.jit(fn)(*args), tol=1e-12)
    told = streamed.explain(*args)
    assert {s.clients for s in told.sweeps} == {4}
    assert not told.unstreamed
