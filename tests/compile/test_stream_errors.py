"""What ``fad.stream`` refuses, and what it says."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fad
from fad._errors import DataError, FadError

pytestmark = pytest.mark.once


@fad.program
def total(data: Any) -> Any:
    """Return the sum over the clients."""
    return fad.sum(data)


@fad.program
def twice(data: Any) -> Any:
    """Run two sweeps."""
    mean = fad.mean(data)
    return fad.sum(fad.map(lambda x: (x - mean) ** 2, data))


class Changing:
    """A source whose passes differ: ``passes[i]`` are the chunks of pass i."""

    def __init__(self, *passes: list[Any]):
        self.passes, self.count = passes, 0

    def __call__(self):
        chunks = self.passes[min(self.count, len(self.passes) - 1)]
        self.count += 1
        return iter(chunks)


def ones(*shape, dtype: Any = np.float32):
    return np.ones(shape, dtype)


# ---- the call ------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["clients", "rounds", "prefetch"])
@pytest.mark.parametrize("value", [0, -1, 1.5, True, "3"])
def test_numbers_out_of_range(name, value):
    with pytest.raises(FadError, match=rf"{name}={value!r}\): expected an int >= 1"):
        fad.stream([ones(2)], **{name: value})


def test_prefetch_of_none():
    with pytest.raises(FadError, match="prefetch=None"):
        fad.stream([ones(2)], prefetch=None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("source", "name"), [(iter([ones(2)]), "list_iterator"), (3, "int 3")]
)
def test_an_iterator_that_can_be_read_only_once(source, name):
    message = rf"{name} can be read only once.* Pass a function that makes the iterator"
    with pytest.raises(FadError, match=message):
        fad.stream(source)


@pytest.mark.parametrize(
    "source", [ones(4, 2), jnp.ones((4, 2)), {"x": ones(4)}, fad.AtClients(ones(4))]
)
def test_data_at_hand(source):
    with pytest.raises(FadError, match=r"is data at hand.*or \[data\] for one chunk"):
        fad.stream(source)


def test_rounds_of_something_that_is_no_function():
    with pytest.raises(FadError, match=r"a function of the round.*, got list"):
        fad.stream([ones(2)], rounds=2)


def test_a_function_that_gives_no_iterator():
    with pytest.raises(
        FadError, match=r"chunks\(\.\.\.\) gave NoneType None; expected an iter"
    ):
        fad.stream(lambda: None)  # type: ignore[arg-type]


@pytest.mark.parametrize("chunks", [[], [ones(0, 3)]])
def test_no_client(chunks):
    with pytest.raises(DataError, match="the first pass gave no client"):
        fad.stream(chunks)


# ---- a chunk -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("leaf", "came"),
    [
        (1.0, r"float 1\.0"),
        (np.float32(1), r"float32\[\]"),
        ("a", "str 'a'"),
        (np.array(["a", "b"]), r"<U1\[2\]"),
        (np.array([object()]), r"object\[1\]"),
    ],
)
def test_leaves_that_are_no_arrays_of_clients(leaf, came):
    message = rf"chunks\[0\]\['x'\] is {came}; expected an array of numbers with a lead"
    with pytest.raises(DataError, match=message):
        fad.stream([{"x": leaf}])


def test_leaves_with_different_numbers_of_clients():
    message = (
        r"the arrays of chunks\[0\] have different numbers of clients: "
        r"chunks\[0\]\['x'\]: float32\[2\], chunks\[0\]\['y'\]: float32\[3\]"
    )
    with pytest.raises(DataError, match=message):
        fad.stream([{"x": ones(2), "y": ones(3)}])


def test_a_chunk_without_arrays():
    with pytest.raises(DataError, match=r"chunks\[0\] have .* clients: no array"):
        fad.stream([{}])


@pytest.mark.parametrize(
    "second",
    [
        {"x": ones(2, 3, dtype=np.int32)},
        {"x": ones(2, 4)},
        {"x": ones(2, 3), "y": ones(2)},
        {"z": ones(2, 3)},
        [ones(2, 3)],
    ],
)
def test_chunks_of_other_types(second):
    message = r"chunks\[1\] differs from the first.*first is \{'x': 'float32\[3\]"
    with pytest.raises(DataError, match=message):
        fad.stream([{"x": ones(2, 3)}, second])


def test_types_that_change_in_a_later_pass():
    good, bad = [ones(2), ones(2)], [ones(2), ones(2, 1)]
    stream = fad.stream(Changing(good, good, good, bad))
    with pytest.raises(DataError, match=r"chunks\[1\] differs.*float32\[2,1\]"):
        fad.jit(twice)(stream)


# ---- a pass --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("chunks", "came"),
    [
        ([ones(2)], "2"),
        ([], "0"),
        ([ones(2), ones(3)], "more than 4"),
        ([ones(2), ones(2), ones(1)], "more than 4"),
    ],
)
def test_passes_of_different_lengths(chunks, came):
    good = [ones(2), ones(2)]
    stream = fad.stream(Changing(good, good, good, chunks))
    message = rf"gave {came} clients, but the program runs over 4\. Every pass"
    with pytest.raises(DataError, match=message):
        fad.jit(twice)(stream)


def test_a_function_that_gives_the_same_iterator_again():
    once = iter([ones(2), ones(2)])
    stream = fad.stream(lambda: once)
    with pytest.raises(DataError, match="gave 0 clients"):
        fad.jit(total)(stream)


@pytest.mark.parametrize(("clients", "came"), [(3, "more than 3"), (5, "4")])
def test_another_number_of_clients_than_said(clients, came):
    stream = fad.stream([ones(2), ones(2)], clients=clients)
    with pytest.raises(DataError, match=f"gave {came} clients"):
        fad.jit(total)(stream)


def test_a_round_of_another_length():
    stream = fad.stream(lambda i: [ones(4 - i)], rounds=2)
    message = "a pass over the client data of round 1 gave 3 clients"
    with pytest.raises(DataError, match=message):
        fad.jit(lambda data: jax.lax.scan(lambda c, d: (c + total(d), 0), 0.0, data))(
            stream
        )


def test_two_streams_with_different_numbers_of_clients():
    streams = fad.stream([ones(4)]), fad.stream([ones(5)])
    with pytest.raises(fad.PlacementError, match=r"disagree on the number of clients"):
        fad.jit(fad.program(lambda a, b: fad.sum(fad.map(jnp.add, a, b))))(*streams)


# ---- the program ---------------------------------------------------------------------


def _index(data):
    return data.unsafe_gather()[0]


def _gather(data):
    return jnp.sort(data.unsafe_gather())


def _return(data):
    return data


@pytest.mark.parametrize("fn", [_index, _gather, _return])
def test_all_clients_at_the_server(fn):
    with pytest.raises(FadError, match=r"all clients' values of <fad\.stream of 4"):
        fad.jit(fad.program(fn))(fad.stream([ones(4)]))


def test_all_rounds_returned():
    stream = fad.stream(lambda i: [ones(4)], rounds=2)
    with pytest.raises(FadError, match="uses all clients' values"):
        fad.jit(lambda data: data)(stream)


def test_a_scan_over_the_clients():
    def run(data):
        def body(carry, row):
            return carry + fad.program(fad.sum)(fad.AtClients(row)), None

        return jax.lax.scan(body, 0.0, data.unsafe_gather())[0]

    with pytest.raises(FadError, match=r"scans over the clients of <fad\.stream"):
        fad.jit(run)(fad.stream([ones(4, 3)]))


def test_rounds_read_as_one():
    stream = fad.stream(lambda i: [ones(4)], rounds=2)
    with pytest.raises(FadError, match="scan over its rounds"):
        fad.jit(total)(stream)


def test_maps_with_side_effects():
    def work(x):
        jax.debug.print("{}", x)
        return x

    run = fad.jit(fad.program(lambda data: fad.sum(fad.map(work, data))))
    message = "work cannot run chunk by chunk over a fad.stream: it has side effects"
    with pytest.raises(FadError, match=message):
        run(fad.stream([ones(4)]))


def test_donated_arguments():
    run = fad.jit(fad.program(lambda w, d: w + fad.sum(d)), donate_argnums=0)
    message = r"donate_argnums=\(0,\) cannot be used with a fad\.stream"
    with pytest.raises(FadError, match=message):
        run(jnp.ones(()), fad.stream([ones(4)]))


def test_an_argument_that_is_neither_array_nor_static():
    run = fad.jit(fad.program(lambda d, how: fad.sum(d)), chunk=1)
    message = r"args\[1\]\['a'\] is str 'b'; expected arrays.*static_argnames"
    with pytest.raises(FadError, match=message):
        run(fad.stream([ones(4)]), {"a": "b"})


def test_a_mesh_of_several_processes(monkeypatch):
    mesh = jax.make_mesh((8,), ("clients",))
    run = fad.jit(total, mesh=mesh, chunk=1)
    monkeypatch.setitem(vars(run._mesh), "is_multi_process", True)
    with pytest.raises(FadError, match=r"fad\.stream is read by one"):
        run(fad.stream([ones(4)]))


USES = {
    "called": lambda s: total(s),
    "jax.jit": lambda s: jax.jit(total)(s),
    "lower": lambda s: fad.jit(total).lower(s),
    "lower_chunk": lambda s: fad.jit(total, chunk=1).lower(s),
    "trace": lambda s: fad.jit(total).trace(s),
    "eval_shape": lambda s: fad.jit(total).eval_shape(s),
    "grad": lambda s: jax.grad(fad.jit(lambda w, d: w * total(d)))(1.0, s),
    "fad.grad": lambda s: fad.grad(lambda w, d: w * total(d))(1.0, s),
    "vmap": lambda s: jax.vmap(total)(s),
    "tree": lambda s: jax.tree.leaves({"x": s}),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_use_outside_a_compiled_function(use):
    message = (
        r"<fad.stream of 4 clients, 4 at a time> was given to something else than a "
        r"function compiled by fad\.jit.*no single XLA.*fad\.jit\(jax\.grad\(f\)"
    )
    with pytest.raises(FadError, match=message):
        use(fad.stream([ones(4)]))
