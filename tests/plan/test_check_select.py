"""Selections, the keys they reveal, and sub-cohorts, as ``fad.check`` sees them."""

import jax
import jax.numpy as jnp
import pytest

import fad
from fad import check

N = 6
W = jax.ShapeDtypeStruct((8, 3), jnp.float32)
DATA = fad.AtClients(
    {
        "x": jax.ShapeDtypeStruct((N,), jnp.float32),
        "keys": jax.ShapeDtypeStruct((N, 2), jnp.int32),
    }
)


def selecting(public):
    @fad.program
    def program(w, data):
        part = fad.select(w, data["keys"], public=public)
        new = fad.map(lambda p, x: p * x, part, data["x"])
        return fad.deselect(new, data["keys"], w, public=public)

    return program


ALL = ("keys", "unsafe_gather")


def run(data, start, stop):
    return jax.tree.map(lambda a: a[start:stop], data)


# ------------------------------------------------------------------------------------
# selections
# ------------------------------------------------------------------------------------


def squares(fn):
    return lambda *args: sum(jnp.sum(v**2) for v in jax.tree.leaves(fn(*args)))


@pytest.mark.parametrize("derive", [lambda f: f, lambda f: jax.grad(squares(f))])
def test_slices_by_public_keys_pass(derive):
    report = check(derive(selecting(True)))(W, DATA)
    assert report.allowed == ()
    assert {(r.type, r.how) for r in report.learns} == {("f32[2,3]", "select")}
    assert {a.type for a in report.reveals} == {"f32[8,3]"}
    (output,) = report.outputs
    assert (output.where, output.axes) == ("server", ())


def test_slices_are_client_values():
    @fad.program
    def program(w, data):
        return fad.select(w, data["keys"], public=True)

    (output,) = check(program)(W, DATA).outputs
    assert (output.where, output.axes) == ("clients", (0,))

    def leaks(w, data):
        return program(w, data).unsafe_gather().sum()

    expected = r"through 'reduce_sum'(.|\n)*clients on axis 0, from fad.select"
    with pytest.raises(fad.PlacementError, match=expected):
        check(leaks)(W, DATA)


def test_keys_that_are_not_public_are_refused():
    expected = (
        r"fad.check\(program\): the server learns the keys of each client, i32\[2\], "
        r"one by one.\n  value: int32\[6,2\], clients on axis 0, from data\['keys'\]\n"
        r"  at: .*test_check_select.py:\d+, in .*program: part = .*\nExpected "
        r"client values to leave the clients through fad.sum alone. Say public=True of "
        r"keys that the server knows.*; fad.check\(..., allow='keys'\) reports it"
    )
    for allow in ((), ("decode", "unsafe_gather")):
        with pytest.raises(fad.PlacementError, match=expected):
            check(selecting(False), allow=allow)(W, DATA)


@pytest.mark.parametrize("derive", [lambda f: f, lambda f: jax.grad(squares(f))])
def test_keys_that_are_allowed_are_reported(derive):
    report = check(derive(selecting(False)), allow="keys")(W, DATA)
    kinds = {(a.kind, a.primitive, a.type) for a in report.allowed}
    assert kinds >= {("keys", "fad_select", "i32[2]")}
    assert report.outputs[0].exposes
    assert "\n  keys: i32[2] by 'fad_deselect', at " in str(report)


def test_keys_that_the_server_made_reveal_nothing():
    @fad.program
    def program(w, data):
        own = fad.AtClients(jnp.zeros((N, 2), jnp.int32))
        new = fad.map(lambda p, x: p * x, fad.select(w, own), data["x"])
        return fad.deselect(new, own, w)

    assert not check(program)(W, DATA).allowed


def test_a_client_may_select_for_itself():
    @fad.program
    def program(w, data):
        inner = fad.program(lambda w, k: fad.sum(fad.select(w, k)))

        def work(x, k):
            return x * inner(w, fad.AtClients(k[None])).sum()

        return fad.sum(fad.map(work, data["x"], data["keys"]))

    report = check(program)(W, DATA)
    assert len(report.reveals) == 1
    assert not report.allowed


@pytest.mark.parametrize("public", [True, False])
def test_client_values_are_not_selected_from(public):
    @fad.program
    def program(data):
        everyones = data["x"].unsafe_gather() * 2
        return fad.sum(fad.select(everyones, data["keys"], public=public))

    expected = "'fad_select': it sends all clients' values to every client"
    with pytest.raises(fad.PlacementError, match=expected):
        check(program, allow="keys")(DATA)
    kinds = {a.kind for a in check(program, allow=ALL)(DATA).allowed}
    assert kinds == {"unsafe_gather", *["keys"] * (not public)}


# ------------------------------------------------------------------------------------
# means by coverage
# ------------------------------------------------------------------------------------


def averaging(secure, weighted):
    @fad.program
    def program(w, data):
        part = fad.select({"w": w}, {"w": data["keys"]}, public=True)
        given = {"weights": data["x"]} if weighted else {}
        return fad.coverage_mean(
            part, {"w": data["keys"]}, {"w": w}, public=True, secure=secure, **given
        )

    return program


@pytest.mark.parametrize(
    ("secure", "weighted"), [(False, False), (True, True), (True, False)]
)
def test_a_mean_by_coverage_passes(secure, weighted):
    report = check(averaging(secure, weighted))(W, DATA)
    assert not report.allowed
    assert len(report.reveals) == 2


def test_weights_that_keys_spread_are_decoded():
    expected = (
        r"decodes what each client sends, f32\[\], before it can sum(.|\n)*in "
        r"fad.coverage_mean give secure=True; fad.check\(..., allow='decode'\)"
    )
    with pytest.raises(fad.PlacementError, match=expected):
        check(averaging(False, True))(W, DATA)
    (allowed,) = check(averaging(False, True), allow="decode")(W, DATA).allowed
    assert (allowed.kind, allowed.primitive) == ("decode", "fad_deselect")


# ------------------------------------------------------------------------------------
# sub-cohorts
# ------------------------------------------------------------------------------------


def tiered(w, data):
    return sum(selecting(True)(w, run(data, i, i + 2)) for i in (0, 2, 4))


@pytest.mark.parametrize(
    "derive",
    [
        lambda f: f,
        jax.jit,
        lambda f: jax.grad(squares(f)),
        lambda f: lambda w, data: jax.jvp(lambda v: f(v, data), (w,), (w,)),
    ],
)
def test_programs_over_runs_of_clients_pass(derive):
    report = check(derive(tiered))(W, DATA)
    assert not report.allowed
    assert len(report.reveals) >= 3


def test_the_gradient_by_the_whole_cohort_stands_at_the_clients():
    def loss(x, w, data):
        whole = fad.AtClients({"x": x.unsafe_gather(), **data.unsafe_gather()})
        return squares(tiered)(w, whole)

    x = fad.AtClients(DATA.unsafe_gather()["x"])
    keys = fad.AtClients({"keys": DATA.unsafe_gather()["keys"]})
    (output,) = check(jax.grad(loss))(x, W, keys).outputs
    assert (output.where, output.axes) == ("clients", (0,))

    def linear(x):  # whose cotangent is known to all
        return sum(fad.program(fad.sum)(run(x, i, i + 2)) for i in (0, 2, 4))

    (output,) = check(jax.grad(linear))(x).outputs
    assert (output.where, output.axes) == ("clients", (0,))


def test_runs_of_runs_and_rounds_over_runs_pass():
    def nested(w, data):
        return selecting(True)(w, run(run(data, 2, 6), 0, 2))

    check(nested)(W, DATA)

    def rounds(w, data):
        return jax.lax.scan(lambda w, x: (tiered(w, x), None), w, data)[0]

    def stacked(v):
        return jax.ShapeDtypeStruct((4, *v.shape), v.dtype)

    for fn in (rounds, jax.grad(squares(rounds))):
        assert not check(fn)(W, jax.tree.map(stacked, DATA)).allowed


def test_a_slice_by_a_literal_start_is_a_run():
    def program(w, data):
        part = jax.tree.map(lambda a: jax.lax.dynamic_slice_in_dim(a, 2, 2), data)
        return selecting(True)(w, part) + selecting(True)(w, run(data, 2, 4))

    assert not check(program)(W, DATA).allowed


@pytest.mark.parametrize("stop", [3, -1])
def test_a_run_of_one_client_is_refused(stop):
    start = {3: 2, -1: -2}[stop]
    expected = (
        r"fad.check\(program\): a client value reaches the server through 'slice': it "
        r"takes one client alone, and a sum over one client is that client's value.\n  "
        r"value: .*\n  at: .*\nExpected.*Take a run of at least two clients "
        r"\(fad.submodels.tiers\), or aggregate over all"
    )

    def program(w, data):
        return selecting(True)(w, run(data, start, stop))

    with pytest.raises(fad.PlacementError, match=expected):
        check(program)(W, DATA)


def _mixed(join):
    def program(data):
        first, second = run(data, 0, 2), run(data, 2, 4)
        return join(first["x"], second["x"])

    return program


JOINS = {
    "mul": lambda a, b: fad.AtClients(a.unsafe_gather() * b.unsafe_gather()),
    "fad_map": fad.program(lambda a, b: fad.map(jnp.multiply, a, b)),
    "select_n": lambda a, b: jax.tree.map(
        lambda u, v: jax.lax.select(jnp.ones(2, bool), u, v), a, b
    ),
    "cond": lambda a, b: jax.lax.cond(
        jnp.ones(()) > 0, lambda u, v: u, lambda u, v: v, a, b
    ),
    "fad_deselect": fad.program(
        lambda a, b: fad.deselect(_key(a), _key(b), jnp.zeros(4, int), public=True)
    ),
}


def _key(v):
    return fad.map(lambda x: jnp.int32(x)[None], v)


@pytest.mark.parametrize("name", JOINS)
def test_values_of_different_runs_do_not_meet(name):
    expected = (
        rf"through {name!r}: it joins values of different clients, 0 to 1 of 6 and 2 "
        r"to 3 of 6.\n  value: .*clients on axis 0, from (data\['x'\]|fad.map)"
    )
    fn = _mixed(JOINS[name])
    with pytest.raises(fad.PlacementError, match=expected):
        check(fn)(DATA)
    report = check(fn, allow="unsafe_gather")(DATA)
    assert name in [a.primitive for a in report.allowed]


def test_a_tier_takes_arguments_of_its_own():
    @fad.program
    def of_tier(w, own, x):
        return fad.sum(fad.map(jnp.multiply, fad.map(lambda k: w[k], own), x))

    def program(w, first, second, data):
        return of_tier(w, first, run(data, 0, 2)["x"]) + of_tier(
            w, second, run(data, 4, 6)["x"]
        )

    keys = fad.AtClients(jax.ShapeDtypeStruct((2,), jnp.int32))
    weights = jax.ShapeDtypeStruct((3,), jnp.float32)
    assert not check(program)(weights, keys, keys, DATA).allowed


def test_what_the_server_made_meets_any_run():
    @fad.program(clients=2)
    def scaled(w, x):
        return fad.sum(fad.map(jnp.multiply, fad.broadcast(w), x))

    def program(w, data):
        return scaled(w, run(data, 0, 2)["x"]) + scaled(w, run(data, 4, 6)["x"])

    assert not check(program)(W, DATA).allowed
