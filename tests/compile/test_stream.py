"""A program whose client data is read computes what it does on data at hand."""

import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fad
from fad.compile import _host
from fad.compile._prefetch import ahead
from tests.compile.programs import (
    CLIENTS,
    average,
    make_data,
    make_params,
    make_weights,
    mean_loss,
    train,
)
from tests.subjects import assert_same


class Source:
    """Chunks of some clients' data; notes what is read.

    Attributes:
        reads: ``(round, start)`` of each chunk, in order.
        taken: Chunks read in the pass at hand.
    """

    def __init__(
        self, data: fad.AtClients, sizes: Sequence[int] = (3,), rounds: int = 0
    ):
        self.tree = jax.tree.map(_at_host, data.unsafe_gather())
        self.sizes, self.rounds = sizes, rounds
        self.reads: list[tuple[int, int]] = []

    def __call__(self, index: int = 0) -> Iterator[Any]:
        tree = jax.tree.map(lambda x: x[index], self.tree) if self.rounds else self.tree
        n = len(jax.tree.leaves(tree)[0])
        start = i = 0
        while start < n:
            stop = min(start + self.sizes[min(i, len(self.sizes) - 1)], n)
            self.reads.append((index, start))
            yield jax.tree.map(lambda x: x[start:stop], tree)  # noqa: B023
            start, i = stop, i + 1

    def stream(self, **options: Any) -> Any:
        found = fad.stream(self, rounds=self.rounds or None, **options)
        self.reads.clear()
        return found


def _at_host(x: Any) -> Any:
    is_key = jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    return x if is_key else np.asarray(x)


def check_streamed(
    fn: Callable,
    *args: Any,
    at: int = 1,
    sizes: Sequence[int] = (3,),
    rounds: int = 0,
    tol: float = 1e-12,
    **options: Any,
) -> Source:
    """Assert that ``fn`` gives the same with one argument read; return the source."""
    source = Source(args[at], sizes, rounds)
    given = (*args[:at], source.stream(), *args[at + 1 :])
    actual = fad.jit(fn, **options)(*given)
    assert_same(actual, jax.jit(fn)(*args), tol=tol)
    return source


def threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name == "fad.stream"]


@pytest.fixture(autouse=True)
def _no_thread_left():
    yield
    assert not threads()


# ---- numbers -------------------------------------------------------------------------


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("sizes", [(1,), (3,), (7,), (100,), (2, 4, 1), (3, 1, 1, 2)])
def test_rounds_in_chunks_of_any_size(sizes):
    args = make_params(), make_data(), make_weights()
    check_streamed(train, *args, sizes=sizes)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("chunk", [1, 2, None, "auto"])
def test_clients_at_a_time_within_what_is_read(chunk):
    args = make_params(), make_data(), make_weights()
    check_streamed(train, *args, chunk=chunk)


@pytest.mark.usefixtures("x64")
def test_one_client():
    check_streamed(train, make_params(), make_data(1), make_weights(1))


def test_single_precision():
    """Data in double precision is cast as an argument of ``jax.jit`` is."""
    args = make_params(), make_data(), make_weights()
    check_streamed(train, *args, tol=1e-6)
    double = np.arange(10.0)
    assert double.dtype == np.float64
    total = fad.jit(fad.program(fad.sum))(fad.stream([double]))
    assert total == jnp.float32(45)


@pytest.mark.usefixtures("x64")
def test_weights_read_as_well():
    args = make_params(), make_data(), make_weights()
    streams = Source(args[1]).stream(), Source(args[2], sizes=(2, 3)).stream()
    actual = fad.jit(train)(args[0], *streams)
    assert_same(actual, jax.jit(train)(*args), tol=1e-12)


@pytest.mark.usefixtures("x64")
def test_a_stream_inside_another_argument_and_by_name():
    def f(params, *, inputs):
        return train(params, inputs["data"], inputs["weights"])

    args = make_params(), make_data(), make_weights()
    inputs = {"data": Source(args[1]).stream(), "weights": args[2]}
    actual = fad.jit(f)(args[0], inputs=inputs)
    assert_same(actual, jax.jit(train)(*args), tol=1e-12)


@pytest.mark.usefixtures("x64")
def test_closed_over_values():
    params, weights = make_params(), make_weights()
    check_streamed(lambda data: train(params, data, weights), make_data(), at=0)


@pytest.mark.usefixtures("x64")
def test_two_numbers_of_clients():
    def both(params, few, many):
        return mean_loss(params, few) + 2 * mean_loss(params, many)

    args = make_params(), make_data(4), make_data(9)
    streams = Source(args[1]).stream(), Source(args[2], sizes=(2,)).stream()
    actual = fad.jit(both)(args[0], *streams)
    assert_same(actual, jax.jit(both)(*args), tol=1e-12)


class Mixed(NamedTuple):
    number: Any
    flag: Any
    key: Any


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("sizes", [(3,), (2, 5)])
def test_keys_ints_and_bools_per_client(sizes):
    def work(x):
        noise = jax.random.normal(x.key)
        return jnp.where(x.flag, noise, 0.0), x.number + 1, jax.random.split(x.key)[0]

    @fad.program
    def f(data):
        noise, number, key = fad.map(work, data)
        return fad.sum(noise), fad.sum(number), number, key

    keys = jax.random.split(jax.random.key(0), CLIENTS)
    mixed = Mixed(jnp.arange(CLIENTS), jnp.arange(CLIENTS) % 2 == 0, keys)
    check_streamed(f, fad.AtClients(mixed), at=0, sizes=sizes)


@pytest.mark.usefixtures("x64")
def test_keys_at_hand_beside_a_stream():
    @fad.program
    def f(data, keys):
        draw = lambda d, k: d["x"].sum() * jax.random.normal(k)  # noqa: E731
        return fad.sum(fad.map(draw, data, keys))

    keys = fad.AtClients(jax.random.split(jax.random.key(0), CLIENTS))
    check_streamed(f, make_data(), keys, at=0)


@pytest.mark.usefixtures("x64")
def test_values_of_all_clients_are_returned():
    @fad.program
    def f(params, data):
        losses = fad.map(mean, fad.broadcast(params), data)
        return losses, fad.sum(losses), fad.broadcast(params)

    def mean(params, data):
        return (data["x"] @ params["w"]).mean(0)

    args = make_params(), make_data()
    check_streamed(f, *args)
    got = fad.jit(f)(args[0], Source(args[1]).stream())
    assert isinstance(got[0], fad.AtClients)


# ---- derivatives ---------------------------------------------------------------------


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("mode", ["reverse", "forward", "mixed"])
def test_gradients_in_every_mode(mode):
    args = make_params(), make_data(), make_weights()
    check_streamed(fad.grad(train, mode=mode), *args)


@pytest.mark.usefixtures("x64")
def test_gradients_in_several_arguments():
    gradient = jax.value_and_grad(train, (0, 2, 3))
    check_streamed(gradient, make_params(), make_data(), make_weights(), 0.1)


@pytest.mark.usefixtures("x64")
def test_the_gradient_in_the_data_itself():
    check_streamed(jax.grad(mean_loss, 1), make_params(), make_data())


@pytest.mark.usefixtures("x64")
def test_hessian_vector_products():
    def hvp(params, data):
        gradient = jax.grad(lambda p: mean_loss(p, data))
        return jax.jvp(gradient, (params,), (params,))[1]

    check_streamed(hvp, make_params(), make_data())


# ---- control flow --------------------------------------------------------------------


def _over_cohorts(params, cohorts, weights):
    def body(p, cohort):
        new = average(p, cohort, weights)
        return new, mean_loss(new, cohort)

    return jax.lax.scan(body, params, cohorts)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("sizes", [(3,), (7,), (2, 1)])
def test_a_cohort_for_every_round(sizes):
    args = make_params(), make_data(lead=(3,)), make_weights()
    check_streamed(_over_cohorts, *args, rounds=3, sizes=sizes)


@pytest.mark.usefixtures("x64")
def test_backward_rounds_read_the_cohorts_again():
    args = make_params(), make_data(lead=(3,)), make_weights()
    gradient = jax.grad(lambda *a: _over_cohorts(*a)[1].sum())
    source = check_streamed(gradient, *args, rounds=3, sizes=(4,))
    rounds = [r for r, start in source.reads if start == 0]
    assert rounds == [0, 1, 2, *rounds[3:]]
    assert rounds[-1] == 0
    assert rounds[3:] == sorted(rounds[3:], reverse=True)
    assert [start for _, start in source.reads] == [0, 4] * len(rounds)


@pytest.mark.usefixtures("x64")
def test_nested_scans():
    @fad.program
    def run(params, data, weights):
        def inner(p, _):
            return average(p, data, weights), mean_loss(p, data)

        def outer(p, scale):
            p, losses = jax.lax.scan(inner, p, None, length=2)
            return jax.tree.map(lambda v: v * scale, p), losses

        return jax.lax.scan(outer, params, jnp.array([1.0, 0.5]))

    args = make_params(), make_data(), make_weights()
    check_streamed(run, *args)
    check_streamed(jax.grad(lambda *a: run(*a)[1].sum()), *args)


@pytest.mark.usefixtures("x64")
def test_a_scan_of_no_rounds():
    @fad.program
    def run(params, data):
        body = lambda p, _: (p, mean_loss(p, data))  # noqa: E731
        return jax.lax.scan(body, params, None, length=0)

    source = check_streamed(run, make_params(), make_data())
    assert not source.reads


def _with_state(params, state, data):
    def work(p, s, d):
        g = jax.grad(lambda q: jnp.mean((d["x"] @ q["w"] - d["y"]) ** 2))(p)["w"] - s
        return p["w"] - 0.1 * g, s + 0.5 * g

    new, state = fad.map(work, fad.broadcast(params), state, data)
    return {**params, "w": fad.mean(new)}, state


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("cohorts", [False, True])
def test_client_state_in_the_carry(cohorts):
    def run(params, data, state):
        def body(carry, cohort):
            cohort = data if cohort is None else cohort
            new = fad.program(_with_state)(*carry, cohort)
            return new, fad.program(fad.sum)(new[1])

        xs = (data, None) if cohorts else (None, 3)
        return jax.lax.scan(body, (params, state), xs[0], length=xs[1])

    state = fad.AtClients(jnp.zeros((CLIENTS, 3, 2)))
    data, rounds = (make_data(lead=(3,)), 3) if cohorts else (make_data(), 0)
    args = make_params(), data, state
    check_streamed(run, *args, rounds=rounds)
    check_streamed(jax.grad(lambda *a: run(*a)[1].sum(), (0, 2)), *args, rounds=rounds)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("flag", [True, False])
def test_cond(flag):
    @fad.program
    def run(flag, data, w):
        wide = lambda s: lambda d: fad.map(lambda v: s * jnp.outer(v, v), d)  # noqa: E731
        out = jax.lax.cond(flag, wide(w), wide(2 * w), data)
        return fad.sum(fad.map(jnp.sin, out)), out

    args = jnp.asarray(flag), fad.AtClients(jnp.ones((7, 3))), jnp.asarray(2.0)
    check_streamed(run, *args)
    check_streamed(jax.grad(lambda *a: run(*a)[0].sum(), 2), *args)


@pytest.mark.usefixtures("x64")
def test_a_cond_that_passes_the_data_through():
    @fad.program
    def run(data):
        change = lambda d: fad.map(jnp.cos, d)  # noqa: E731
        same = lambda d: d  # noqa: E731
        out = jax.lax.cond(fad.sum(data)[0] > 0, same, change, data)
        return fad.sum(fad.map(jnp.sin, out))

    check_streamed(run, fad.AtClients(jnp.arange(21.0).reshape(7, 3)), at=0)


@pytest.mark.usefixtures("x64")
def test_while():
    @fad.program
    def run(params, data, weights):
        start = params, 2 * mean_loss(params, data), 0
        return jax.lax.while_loop(
            lambda c: (mean_loss(c[0], data) < c[1]) & (c[2] < 4),
            lambda c: (average(c[0], data, weights), mean_loss(c[0], data), c[2] + 1),
            start,
        )

    check_streamed(run, make_params(), make_data(), make_weights())


# ---- what is read, and when ----------------------------------------------------------


@pytest.mark.usefixtures("x64")
def test_one_pass_for_each_sweep():
    params, weights, source = make_params(), make_weights(), Source(make_data())
    stream, gradient = source.stream(), fad.jit(jax.grad(train))
    sweeps = gradient.explain(params, stream, weights).sweeps
    assert not source.reads
    gradient(params, stream, weights)
    passes = sum(2 if s.where else 1 for s in sweeps)  # two rounds
    assert [start for _, start in source.reads] == [0, 3, 6] * passes


def test_nothing_is_read_where_nothing_is_needed():
    source = check_streamed(lambda w, data: 2 * w, jnp.ones(2), make_data())
    assert not source.reads


def test_clients_are_counted_or_given():
    source = Source(make_data())
    assert fad.stream(source).clients == CLIENTS
    assert source.reads == [(0, 0), (0, 0), (0, 3), (0, 6)]
    source.reads.clear()
    count: Any = np.int64(CLIENTS)
    found = fad.stream(source, clients=count)
    assert found.clients == CLIENTS
    assert source.reads == [(0, 0)]
    assert repr(found) == "<fad.stream of 7 clients, 3 at a time>"
    rounds = fad.stream(lambda i: [np.ones((4, 2)) * i], rounds=5)
    assert repr(rounds) == "<fad.stream of 4 clients, 4 at a time, rounds=5>"


def test_anything_that_can_be_iterated_again():
    total = fad.jit(fad.program(fad.sum))
    chunks = [np.ones((3, 2)), np.ones((4, 2))]
    for source in (chunks, tuple(chunks), {0: chunks[0], 1: chunks[1]}.values()):
        assert_same(total(fad.stream(source)), jnp.full(2, 7.0), tol=0)


def test_chunks_without_clients_are_passed_over():
    chunks = [np.ones((0, 2)), np.ones((3, 2)), np.ones((0, 2)), np.ones((1, 2))]
    found = fad.stream(chunks)
    assert (found.clients, found.size) == (4, 3)
    assert_same(fad.jit(fad.program(fad.sum))(found), jnp.full(2, 4.0), tol=0)


def test_cohorts_of_a_data_set():
    """Chunks may be the cohorts that ``fad.data`` gives, one for every round."""
    random = np.random.default_rng(0)
    examples = {"x": random.normal(size=(60, 3)), "y": random.normal(size=60)}
    offsets = np.cumsum([0, *random.multinomial(60, [1 / 10] * 10)])
    data = fad.data.Federated(examples, offsets)

    def cohort(index):
        key = jax.random.fold_in(jax.random.key(0), index)
        return [data.cohort(key, 4, batch_size=8, bucket_growth=None)]

    @fad.program
    def one(w, batches):
        def work(w, b):
            error = jnp.where(b.mask, b.examples["x"] @ w - b.examples["y"], 0.0)
            return (error**2).sum(), b.mask.sum()

        losses, counts = fad.map(work, fad.broadcast(w), batches)
        return fad.sum(losses) / fad.sum(counts).astype(w.dtype)

    def run(w, cohorts):
        body = lambda w, c: (w - 0.1 * jax.grad(one)(w, c), one(w, c))  # noqa: E731
        return jax.lax.scan(body, w, cohorts)

    stacked = [cohort(i)[0].unsafe_gather() for i in range(3)]
    at_hand = fad.AtClients(jax.tree.map(lambda *x: np.stack(x), *stacked))
    actual = fad.jit(run)(jnp.ones(3), fad.stream(cohort, rounds=3))
    assert_same(actual, jax.jit(run)(jnp.ones(3), at_hand), tol=1e-5)


def test_a_reader_may_fill_its_arrays_anew():
    """What is read ahead does not share the reader's memory."""
    wide = 1 << 14

    def chunks():
        page = np.empty(3 * wide + 16, np.float32)
        start = (-page.ctypes.data % 64) // 4  # where JAX shares memory on a CPU
        for i in range(20):
            rows = page[start : start + 3 * wide].reshape(3, wide)
            rows[:] = i
            yield rows[: 2 if i % 3 else 3]

    total = fad.jit(fad.program(fad.sum))(fad.stream(chunks, prefetch=4))
    expected = sum(i * (2 if i % 3 else 3) for i in range(20))
    assert_same(total, jnp.full(wide, expected, jnp.float32), tol=0)


def test_chunks_made_by_jax():
    def chunks():
        for i in range(3):
            yield jax.random.normal(jax.random.fold_in(jax.random.key(0), i), (2, 3))

    expected = jnp.concatenate(list(chunks())).sum(0)
    for size in (2, 5):
        found = fad.jit(fad.program(fad.sum), chunk=size)(fad.stream(chunks))
        assert_same(found, expected, tol=1e-6)


def test_the_callers_settings_hold_in_the_reader():
    def chunks():
        yield jnp.arange(3.0)
        yield jnp.arange(2.0)

    with jax.enable_x64(True):
        total = fad.jit(fad.program(fad.sum))(fad.stream(chunks))
    assert total.dtype == jnp.float64


# ---- prefetch ------------------------------------------------------------------------


@pytest.mark.parametrize("prefetch", [1, 3])
def test_chunks_are_read_ahead_within_bounds(prefetch):
    seen, used = [], []

    def chunks():
        for i in range(12):
            seen.append((i, len(used)))
            yield np.full((2, 1), i, np.float32)

    stream = fad.stream(chunks, clients=24, prefetch=prefetch)

    def note(x):
        time.sleep(0.01)
        used.append(x)

    @fad.program
    def f(data):
        return fad.sum(data)

    compiled = fad.jit(f)
    compiled(stream)
    (program,) = compiled._hosted.values()
    ((key, run),) = program._engine.compiled.items()

    def slow(*args):
        note(0)
        return run(*args)

    program._engine.compiled[key] = slow
    seen.clear()
    used.clear()
    compiled(stream)
    ahead = [i - done for i, done in seen]
    assert max(ahead) <= prefetch + 1
    assert max(ahead) >= prefetch


def test_reading_and_computing_overlap():
    pause = 0.02

    def chunks():
        for i in range(10):
            time.sleep(pause)
            yield np.full((2, 1), i, np.float32)

    compiled = fad.jit(fad.program(fad.sum))
    stream = fad.stream(chunks, clients=20)
    compiled(stream)
    (program,) = compiled._hosted.values()
    ((key, run),) = program._engine.compiled.items()
    program._engine.compiled[key] = lambda *a: (time.sleep(pause), run(*a))[1]
    start = time.perf_counter()
    compiled(stream)
    assert time.perf_counter() - start < 0.85 * 20 * pause


def test_an_exception_of_the_reader_comes_unchanged():
    class Lost(Exception):
        pass

    broken = []

    def chunks():
        yield np.ones((2, 1))
        if broken:
            raise Lost("the disk is gone")
        yield np.ones((2, 1))

    stream = fad.stream(chunks)
    compiled = fad.jit(fad.program(fad.sum))
    compiled(stream)
    broken.append(True)
    with pytest.raises(Lost, match=r"^the disk is gone$"):
        compiled(stream)
    assert not threads()
    broken.clear()
    assert_same(compiled(stream), jnp.full(1, 4.0), tol=0)


def test_stopping_early_ends_the_thread_and_the_reader(monkeypatch):
    closed = []

    def chunks():
        try:
            for _ in range(100):
                yield np.ones((2, 1))
        finally:
            closed.append(True)

    def fail(*_, **__):
        raise RuntimeError("no device")

    stream = fad.stream(chunks, clients=200)
    closed.clear()
    monkeypatch.setattr(_host, "run_sweep", fail)
    with pytest.raises(RuntimeError, match="no device"):
        fad.jit(fad.program(fad.sum))(stream)
    assert not threads()
    assert closed == [True]


@pytest.mark.parametrize("at", range(24))
def test_may_be_closed_at_any_place_of_its_thread(at):
    """As the garbage collector does where it finds an iteration that was dropped."""
    begin, passed, closed = threading.Event(), [], threading.Event()

    def items():
        yield 1
        begin.wait()
        passed.append(0)
        while True:
            yield 2

    def close(*_):
        if not passed or closed.is_set():
            return
        passed[0] += 1
        if passed[0] == at + 1:
            read.close()
            closed.set()

    # So far ahead that the thread is not left waiting for the next item to be taken.
    read = ahead(items(), 50, lambda item: item)
    threading.setprofile(close)
    try:
        assert next(read) == 1
    finally:
        threading.setprofile(None)
        begin.set()
    assert closed.wait(timeout=10)
    for thread in threading.enumerate():
        if thread.name == "fad.stream":
            thread.join(timeout=10)
    assert not threads()


# ---- compilation, meshes, reports ----------------------------------------------------


@pytest.mark.usefixtures("x64")
def test_chunk_functions_are_compiled_once():
    traces = []

    def work(p, d):
        traces.append(1)
        return jnp.tanh(d["x"] @ p["w"]).mean(0)

    @fad.program
    def run(params, data):
        def body(p, _):
            new = fad.mean(fad.map(work, fad.broadcast(p), data))
            return {"w": p["w"] + new[None]}, None

        return jax.lax.scan(body, params, None, length=5)[0]

    compiled = fad.jit(run)
    args = make_params(), Source(make_data(), sizes=(3, 1)).stream()
    compiled(*args)
    (program,) = compiled._hosted.values()
    assert len(program._engine.compiled) == 1
    (chunk,) = program._engine.compiled.values()
    count = len(traces)
    assert chunk._cache_size() == 1
    compiled(*args)
    compiled(args[0], Source(make_data(), sizes=(3,)).stream())  # the same types
    assert (len(traces), chunk._cache_size()) == (count, 1)
    assert len(compiled._hosted) == 1


def test_compiled_chunks_hold_no_values():
    """A compiled chunk function must not keep the first round's arrays alive."""
    compiled = fad.jit(fad.program(lambda w, x, s: fad.sum(fad.map(_times, w, x, s))))
    state = fad.AtClients(jnp.arange(7.0))
    found = fad.stream([np.ones((3,), np.float32), np.ones((4,), np.float32)])
    compiled(fad.AtClients(jnp.ones(7)), found, state)
    (program,) = compiled._hosted.values()
    (chunk,) = program._engine.compiled.values()
    cells = {
        name: cell.cell_contents
        for name, cell in zip(
            chunk.__wrapped__.__code__.co_freevars,
            chunk.__wrapped__.__closure__,
            strict=True,
        )
    }
    assert all(x.array is None for x in cells["work"].rows)
    assert all(sink.values == [None] for sink in cells["wanted"])


def _times(w, x, s):
    return w * x * s


@pytest.mark.usefixtures("x64")
def test_static_arguments():
    @fad.program
    def f(data, power, *, scale=1):
        for _ in range(power - 1):
            data = fad.map(lambda x: x * x, data)
        return scale * fad.sum(data)

    compiled = fad.jit(f, static_argnames=("power", "scale"))
    x = np.arange(1.0, 6.0)
    found = fad.stream([x])
    assert compiled(found, 1) == x.sum()
    assert compiled(found, 2, scale=3) == 3 * (x**2).sum()
    assert compiled(found, power=3) == (x**4).sum()
    one = fad.jit(f, static_argnames="power")
    assert one(found, 2, scale=2.0) == 2 * (x**2).sum()


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("fn", [train, jax.grad(train)], ids=["value", "grad"])
@pytest.mark.parametrize("sizes", [(3,), (20, 4)])
def test_a_mesh(fn, sizes):
    mesh = jax.make_mesh((8,), ("clients",))
    args = make_params(), make_data(27), make_weights(27)
    check_streamed(fn, *args, sizes=sizes, mesh=mesh, chunk=2)


@pytest.mark.usefixtures("x64")
def test_a_mesh_with_state_keys_and_outputs():
    mesh = jax.make_mesh((4, 2), ("clients", "model"))

    @fad.program
    def run(params, data, state, keys):
        def draw(s, d, k):
            return s + d["x"].sum() * jax.random.normal(k), jax.random.split(k)[0]

        for _ in range(2):
            state, keys = fad.map(draw, state, data, keys)
            params = jax.tree.map(lambda p, s=state: p + fad.mean(s), params)
        return params, state, keys

    keys = fad.AtClients(jax.random.split(jax.random.key(0), CLIENTS))
    state = fad.AtClients(jnp.zeros(CLIENTS))
    args = make_params(), make_data(), state, keys
    check_streamed(run, *args, mesh=mesh)
    everywhere = jax.device_put(
        make_params(), jax.NamedSharding(mesh, jax.sharding.PartitionSpec())
    )
    given = everywhere, Source(args[1]).stream(), state, keys
    assert_same(fad.jit(run, mesh=mesh)(*given), jax.jit(run)(*args), tol=1e-12)


def test_explain():
    args = make_params(), Source(make_data()).stream(), make_weights()
    found = fad.jit(train).explain(*args)
    assert [s.chunk for s in found.sweeps] == [3, 3]
    assert "7 clients, 3 at a time: loss" in str(found)
    assert [s.chunk for s in fad.jit(train, chunk=2).explain(*args).sweeps] == [2, 2]
    assert not found.unstreamed
    mesh = jax.make_mesh((8,), ("clients",))
    found = fad.jit(train, mesh=mesh).explain(*args)
    assert found.devices == 8
    assert [s.chunk for s in found.sweeps] == [1, 1]


# ---- memory --------------------------------------------------------------------------

_MANY = """
    import resource, sys
    import jax, numpy as np, jax.numpy as jnp, fad

    n = int(sys.argv[1])

    def chunks():
        for start in range(0, n, 1000):
            ids = np.arange(start, start + 1000, dtype=np.float32)
            yield {"x": ids[:, None] % np.arange(1, 101, dtype=np.float32)}

    def work(w, d):
        return w - 0.1 * jnp.tanh(d["x"] * w)

    @fad.program
    def run(w, data):
        body = lambda w, _: (fad.mean(fad.map(work, fad.broadcast(w), data)), None)
        return (jax.lax.scan(body, w, None, length=2)[0] ** 2).sum()

    gradient = fad.jit(jax.grad(run), chunk=100)
    assert np.isfinite(gradient(jnp.ones(100), fad.stream(chunks, clients=n))).all()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_memory_does_not_grow_with_the_clients():
    few, many = (
        int(
            subprocess.run(
                [sys.executable, "-c", textwrap.dedent(_MANY), str(n)],
                check=True,
                capture_output=True,
                text=True,
            ).stdout
        )
        for n in (1000, 100_000)
    )
    assert (many - few) / 1024 < 50  # MB; all of the data are 40 MB, read four times
