"""Every message of select, deselect and coverage_mean."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fad
from tests.primitives.test_errors import refused

pytestmark = pytest.mark.once

SELECT, DESELECT = "fad.select(x, keys)", "fad.deselect(y, keys, like)"
COVERAGE = "fad.coverage_mean(y, keys, x)"
X = jnp.arange(3.0)
KEYS = fad.AtClients(jnp.array([[0, 2], [1, -1]]))
Y = fad.AtClients(jnp.ones((2, 2)))


wrong = functools.partial(refused, error=fad.FadError)


def _run(fn, *args):
    return fad.program(lambda: fn(*args), clients=2)()


def _keys(*rows, dtype="int32"):
    return fad.AtClients(jnp.asarray(rows, dtype))


CALLS = {
    SELECT: lambda keys, x=X: fad.select(x, keys),
    DESELECT: lambda keys, x=X: fad.deselect(Y, keys, x),
    COVERAGE: lambda keys, x=X: fad.coverage_mean(Y, keys, x),
}
calls = pytest.mark.parametrize(("call", "fn"), CALLS.items(), ids=CALLS)


@calls
def test_outside_a_program(call, fn):
    with refused(call, "was called outside a fad program"):
        fn(KEYS)


@calls
def test_a_key_out_of_range(call, fn):
    where = "along axis 0: client 1 asks for 3", "expected 0 to 2, or -1 for nothing"
    with wrong(call, *where):
        _run(fn, _keys([0, 1], [-1, 3]))
    with wrong(call, "client 0 asks for -2"):
        _run(fn, _keys([0, -2], [-1, 3]))


@calls
def test_a_key_twice(call, fn):
    with wrong(call, "client 1 asks for 2 more than once", "fill up with -1"):
        _run(fn, _keys([-1, -1], [2, 2]))


@calls
def test_what_is_no_key(call, fn):
    with wrong(call, "are float32[2,2]; expected ints [n, k]", "with -1"):
        _run(fn, _keys([0, 1], [0, 1], dtype="float32"))
    with wrong(call, "are int32[2]; expected ints [n, k]"):
        _run(fn, _keys(0, 1))
    with wrong(call, "are bool[2,3]", "expected ints"):
        _run(fn, _keys([True, False, True], [True, True, True], dtype="bool"))


@calls
def test_keys_of_varying_length(call, fn):
    ragged = np.array([[0, 1], [2]], dtype=object)
    with wrong(call, "are object[2]; expected ints [n, k]", "Fill up", "with -1"):
        _run(fn, fad.AtClients(ragged))
    with wrong(call, "do not have the structure", "with -1"):
        _run(fn, [[0, 1], [2]])


@calls
def test_keys_that_are_no_client_value(call, fn):
    came = "axis 0 are int32[2,2]; expected a client value", "fad.AtClients"
    with refused(call, *came):
        _run(fn, jnp.zeros((2, 2), int))
    with refused(call, "along axis 0 are NoneType None; expected a client value"):
        _run(fn, {0: None})


@calls
def test_keys_of_another_number_of_clients(call, fn):
    with refused(call, "are int32[3,1], but the program runs over 2 clients"):
        _run(fn, _keys([0], [1], [2]))


@calls
def test_an_axis_that_is_not_there(call, fn):
    with wrong(call, "along axis 1: it has the shape [3]", "an axis that it has"):
        _run(fn, {1: KEYS})


def test_an_axis_named_twice():
    with wrong(SELECT, "x['w'] along axis 0: that axis is named twice"):
        _run(fad.select, {"w": X}, {"w": {0: KEYS, -1: KEYS}})


def test_keys_of_another_structure():
    with wrong(SELECT, "keys do not have the structure of x", "for each leaf None"):
        _run(fad.select, {"w": X}, {"v": KEYS})
    with wrong(DESELECT, "keys do not have the structure of like"):
        _run(fad.deselect, Y, [KEYS], X)


def test_layers_named_by_numbers_are_not_taken_for_axes():
    layers = {0: X, 1: X}
    with wrong(SELECT, "[0, 1] are axes, or the names of what x holds", "Write {0:"):
        _run(fad.select, layers, {0: KEYS, 1: KEYS})
    out = _run(fad.select, layers, {0: {0: KEYS}, 1: {0: KEYS}}).unsafe_gather()
    assert out[1].tolist() == [[0.0, 2.0], [1.0, 0.0]]


def test_a_client_value_is_selected_from():
    with refused(SELECT, "x['w'] is a client value already"):
        _run(fad.select, {"w": Y}, KEYS)
    with refused(SELECT, "x is str 'text', which is no array"):
        _run(fad.select, "text", KEYS)


def test_random_keys_are_selected():
    keys = jax.random.split(jax.random.key(0), 3)
    with refused(SELECT, "x['k'] is key<fry>[3]", "jax.random.key_data"):
        _run(fad.select, {"k": keys}, KEYS)
    marked = fad.AtClients(jax.random.split(jax.random.key(0), (2, 2)))
    with refused(DESELECT, "y is key<fry>[2,2]: PRNG keys cannot be added"):
        _run(fad.deselect, marked, KEYS, keys)
    with refused(COVERAGE, "y is key<fry>[2,2]: PRNG keys cannot be added"):
        _run(fad.coverage_mean, marked, KEYS, keys)


AGGREGATES = {DESELECT: ("like", fad.deselect), COVERAGE: ("x", fad.coverage_mean)}
aggregates = pytest.mark.parametrize("call", AGGREGATES)


@aggregates
def test_server_and_client_values_are_mixed_up(call):
    name, fn = AGGREGATES[call]
    with refused(call, "y is a server value, float32[3]", "fad.broadcast"):
        _run(fn, X, KEYS, X)
    with refused(call, f"{name} is a client value already"):
        _run(fn, Y, KEYS, Y)
    with refused(call, "over 2 clients, but y has 3"):
        _run(fn, fad.AtClients(jnp.ones((3, 2))), KEYS, X)


@aggregates
def test_slices_that_their_keys_do_not_say(call):
    name, fn = AGGREGATES[call]
    with wrong(call, "y['w'] is float32[2,3]; expected [2, 2]", "server's [3]"):
        _run(fn, fad.AtClients({"w": jnp.ones((2, 3))}), KEYS, {"w": X})
    with wrong(call, "y has the structure", f"expected that of {name}"):
        _run(fn, fad.AtClients({"w": jnp.ones((2, 2))}), KEYS, X)


@pytest.mark.parametrize(
    ("weights", "came"),
    [
        (fad.AtClients(jnp.ones((2, 1))), "weights are float32[2,1]"),
        (fad.AtClients({"a": jnp.ones(2), "b": jnp.ones(2)}), "float32[2], float32[2]"),
        (fad.AtClients({}), "no array"),
        (jnp.ones(2), "weights is a server value"),
    ],
    ids=["a matrix", "two", "none", "at the server"],
)
def test_weights_that_are_not_one_number_per_client(weights, came):
    with refused(COVERAGE, came):
        _run(lambda: fad.coverage_mean(Y, KEYS, X, weights=weights))


@pytest.mark.parametrize("wire", [5, ("f32",), [jax.ShapeDtypeStruct((), "float32")]])
def test_a_wire_that_is_no_tuple_of_types(wire):
    with wrong(DESELECT, "wire is ", "expected a tuple of jax.ShapeDtypeStruct"):
        _run(lambda: fad.deselect(Y, KEYS, X, wire=wire))
