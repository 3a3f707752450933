"""Every message of the primitives: call, argument, what came, what to do."""

import jax
import jax.numpy as jnp
import pytest

import fad
from tests.subjects import on_mesh

pytestmark = pytest.mark.once

ONES = fad.AtClients(jnp.ones(4))
KEYS = fad.AtClients(jax.random.split(jax.random.key(0), 4))
AGGREGATES = {
    "fad.sum(x)": fad.sum,
    "fad.mean(x)": fad.mean,
    "fad.weighted_mean(x, weights)": lambda x: fad.weighted_mean(x, ONES),
}
aggregates = pytest.mark.parametrize(
    ("call", "fn"), AGGREGATES.items(), ids=["sum", "mean", "weighted_mean"]
)


def refused(*parts, error: type[fad.FadError] = fad.PlacementError):
    """Expect an error whose message has these parts in this order."""
    pattern = "(?s)" + ".*".join(_escape(p) for p in parts)
    return pytest.raises(error, match=pattern)


def _escape(text):
    return "".join(f"\\{c}" if c in "()[]{}.*+?^$|" else c for c in text)


def _run(fn, *args):
    return fad.program(fn, clients=4)(*args)


CALLS = {
    "fad.broadcast(x)": lambda: fad.broadcast(1.0),
    "fad.map(sin, ...)": lambda: fad.map(jnp.sin, ONES),
    "fad.sum(x)": lambda: fad.sum(ONES),
    "fad.mean(x)": lambda: fad.mean(ONES),
    "fad.weighted_mean(x, weights)": lambda: fad.weighted_mean(ONES, ONES),
}
calls = pytest.mark.parametrize("call", CALLS)


@calls
def test_outside_a_program(call):
    with refused(call, "was called outside a fad program", "@fad.program"):
        CALLS[call]()


@calls
def test_after_a_program(call):
    _run(CALLS[call])
    with refused(call, "outside a fad program"):
        CALLS[call]()


@calls
def test_inside_one_clients_work(call):
    with refused(call, "outside a fad program", "one client's work"):
        _run(lambda d: fad.map(lambda v: CALLS[call](), d), ONES)


@aggregates
def test_a_server_value_is_aggregated(call, fn):
    with refused(call, "x is a server value, float32[4]", "fad.broadcast"):
        _run(fn, jnp.ones(4))


@aggregates
def test_a_server_value_among_client_values_is_aggregated(call, fn):
    with refused(call, "x['b'][0] is a server value, float 2.0", "fad.AtClients"):
        _run(fn, {"a": ONES, "b": (2.0,)})


def test_server_weights():
    call = "fad.weighted_mean(x, weights)"
    with refused(call, "weights is a server value, float32[4]"):
        _run(fad.weighted_mean, ONES, jnp.ones(4))


def test_a_server_value_is_mapped():
    def local_step(a, b):
        return a

    with refused(
        "fad.map(local_step, ...)", "args[1]['w'] is a server value, float32[]"
    ):
        _run(lambda d: fad.map(local_step, d, {"w": jnp.ones(())}), ONES)


def test_a_callable_without_a_name_is_named_by_its_class():
    class Step:
        def __call__(self, v):
            return v

    with refused("fad.map(Step, ...)", "args[0] is a server value"):
        _run(lambda: fad.map(Step(), 1.0))


def test_a_client_value_is_broadcast():
    with refused("fad.broadcast(x)", "x['a'] is a client value already", "float32[4]"):
        _run(fad.broadcast, {"a": ONES})


@pytest.mark.parametrize(
    ("leaf", "text"), [("text", "str 'text'"), (object(), "object")]
)
def test_what_is_no_array_is_broadcast(leaf, text):
    with refused(
        "fad.broadcast(x)", f"x['a'] is {text}", "cannot be sent", "close over it"
    ):
        _run(fad.broadcast, {"a": leaf})


@aggregates
def test_another_number_of_clients(call, fn):
    seven = fad.AtClients({"q": jnp.ones((7, 2))})
    listing = "x['q']: float32[7,2]"
    with refused(
        call, "over 4 clients, but x['q'] has 7", listing, "leading axis of 4"
    ):
        _run(lambda: fn(seven))


def test_another_number_of_clients_in_a_map():
    with refused("fad.map(sin, ...)", "over 4 clients, but args[0] has 7"):
        _run(lambda: fad.map(jnp.sin, fad.AtClients(jnp.ones(7))))


def test_arguments_of_two_numbers_of_clients():
    with refused("fad.map(add, ...)", "disagree", "[4, 7]", "args[1]: float32[7]"):
        _run(lambda: fad.map(jnp.add, ONES, fad.AtClients(jnp.ones(7))))


@aggregates
def test_keys_are_aggregated(call, fn):
    with refused(call, "x['k'] is key<fry>[4]", "PRNG keys cannot be added"):
        _run(fn, fad.AtClients({"k": KEYS.unsafe_gather()}))


def test_a_client_returns_all_clients_values():
    with refused(
        "output['all'] is a client value of the program around it", "argument"
    ):
        _run(lambda d: fad.map(lambda v: {"all": d}, d), ONES)


def test_a_client_computes_with_all_clients_values():
    with pytest.raises(fad.ClientValueError, match=r"outside fad\.map"):
        _run(lambda d: fad.map(lambda v: v + d, d), ONES)


def test_a_client_returns_what_is_no_array():
    with refused(
        "fad.map(<lambda>, ...)", "output[1]['name'] is str 'a'", "arrays only"
    ):
        _run(lambda d: fad.map(lambda v: (v, {"name": "a"}), d), ONES)


@pytest.mark.parametrize(
    ("weights", "came"),
    [
        (fad.AtClients(jnp.ones((4, 1))), "weights: float32[4,1]"),
        (
            fad.AtClients({"a": jnp.ones(4), "b": jnp.ones(4)}),
            "weights['a']: float32[4]",
        ),
        (fad.AtClients({}), "no array"),
    ],
)
def test_weights_that_are_not_one_scalar_per_client(weights, came):
    call = "fad.weighted_mean(x, weights)"
    with refused(call, "one scalar per client, [n]; got", came, "fad.map"):
        _run(fad.weighted_mean, ONES, weights)


@aggregates
def test_clients_split_over_another_mesh_axis(call, fn):
    with on_mesh("explicit_clients_model"):
        data = jax.reshard(jnp.ones(4), jax.P("model"))
        with refused(call, "client axis of x is split", "axis 'model'", "'clients'"):
            _run(fn, fad.AtClients(data))


def test_errors_are_the_same_under_jit():
    with refused("fad.sum(x)", "x is a server value, float32[4]"):
        jax.jit(fad.program(fad.sum, clients=4))(jnp.ones(4))


def test_an_error_leaves_no_program_behind():
    def fail(data):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fad.program(fail)(ONES)
    with pytest.raises(ZeroDivisionError):
        fad.program(lambda d: fad.map(fail, d))(ONES)
    with refused("outside a fad program"):
        fad.sum(ONES)
