"""Does a client value reach the server otherwise than through a sum?"""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fad
from fad import check
from tests import rounds
from tests.plan import honest, leaks
from tests.plan.honest import HONEST, NOT_REVERSIBLE, scalar
from tests.plan.leaks import LEAKS
from tests.subjects import MESHES, on_mesh

W, DATA = leaks.ARGS
EVERYTHING = ("callback", "unsafe_gather")


@pytest.fixture(autouse=True)
def optax_promotion():
    """Optax raises Python floats to counts: no strict promotion."""
    with jax.numpy_dtype_promotion("standard"):
        yield


# ------------------------------------------------------------------------------------
# leaks
# ------------------------------------------------------------------------------------


def test_there_are_enough_programs():
    assert len(LEAKS) >= 20
    assert len(HONEST) >= 20


@pytest.mark.parametrize("name", LEAKS)
def test_a_leak_is_caught_by_its_primitive_and_line(name):
    fn, primitive = LEAKS[name]
    with pytest.raises(fad.PlacementError) as raised:
        check(fn)(*leaks.ARGS)
    text = str(raised.value)
    assert text.startswith(f"fad.check({name}): ")
    assert "\n  value: " in text
    if primitive == "return":
        assert "is returned as if it were at the server" in text
    else:
        assert re.search(f"(through {primitive!r}|: {primitive!r}.* hands)", text)
        assert re.search(rf"leaks.py:\d+, in {name}.*: \S", text)


@pytest.mark.parametrize("name", LEAKS)
def test_a_leak_that_is_allowed_is_reported(name):
    fn, primitive = LEAKS[name]
    report = check(fn, allow=EVERYTHING)(*leaks.ARGS)
    assert primitive in [a.primitive for a in report.allowed]
    assert "but for what is allowed" in str(report)


@pytest.mark.parametrize("mode", [jax.grad, lambda f: jax.jit(jax.grad(f))])
def test_a_derivative_that_leaks_by_a_custom_rule_is_caught(mode):
    check(leaks.leaks_in_its_derivative_only)(*leaks.ARGS)
    with pytest.raises(fad.PlacementError, match="through 'reduce_sum'"):
        check(mode(leaks.leaks_in_its_derivative_only))(*leaks.ARGS)


def test_the_derivative_of_a_leak_leaks():
    leaking = leaks.sums_without_fad
    with pytest.raises(fad.PlacementError, match="through 'reduce_sum'"):
        check(jax.grad(lambda w, d: leaking(w, d).sum()))(*leaks.ARGS)


def test_a_leak_of_closed_over_data_is_caught():
    @fad.program(clients=leaks.N)
    def program(w):
        mean = fad.mean(fad.map(lambda v: v @ w, DATA["x"]))
        return mean + DATA["x"].unsafe_gather().sum()

    with pytest.raises(fad.PlacementError, match="an array that the function closes"):
        check(program)(W)


# ------------------------------------------------------------------------------------
# messages
# ------------------------------------------------------------------------------------

MESSAGES = {
    "sums_without_fad": (
        r"a client value reaches the server through 'reduce_sum': it does not keep "
        r"clients apart.\n  value: float32\[4,3\], clients on axis 0, from data\['x'\]"
        r"\n  at: .*leaks.py:\d+, in sums_without_fad: return w \* data.*\n"
        r"Expected client values to leave the clients through fad.sum alone. Compute "
        r"at the clients with fad.map and aggregate with fad.sum, fad.mean or "
        r"fad.weighted_mean; fad.check\(..., allow='unsafe_gather'\) reports it instead"
    ),
    "uses_a_primitive_without_a_rule": "fad has no rule that says it keeps clients",
    "goes_through_the_clients": "goes through the clients one by one",
    "compares_all_pairs": "it joins values whose client axes differ",
    "sums_the_wrong_axis": (
        r"the client axis is not in front(.|\n)*clients on axis 1, from data\['square'"
        r"(.|\n)*Leave the client axis of AtClients leaves in front"
    ),
    "closes_a_map_over_client_values": (
        "sends all clients' values to every client(.|\n)*Pass the value to fad.map as "
        "an argument"
    ),
    "returns_client_values": (
        r"output\[1\]\['losses'\] is returned as if it were at the server, but it is a "
        r"client value.\n  value: float32\[4\], clients on axis 0, from "
        r"fad.map\(<lambda>, ...\)\n  made by: 'fad_map', .*leaks.py:\d+(.|\n)*Expected"
        r" an AtClients or a sum. Return fad.AtClients\(...\) if it stays"
    ),
    "returns_an_argument": "made by: the argument as it came",
    "calls_back_from_the_server": (
        r"'pure_callback' hands a client value to the host.\n  value: float32\[4\], "
        r"clients on axis 0(.|\n)*allow='callback'\) reports"
    ),
    "writes_from_a_client": (
        r"'io_callback' inside a client's work hands a client value to the host.\n  "
        r"value: float32\[3\], of one client, from data\['x'\](.|\n)*Return the value "
        "from fad.map and aggregate it"
    ),
}


@pytest.mark.parametrize("name", MESSAGES)
def test_messages(name):
    with pytest.raises(fad.PlacementError, match=MESSAGES[name]):
        check(LEAKS[name].fn)(*leaks.ARGS)


@pytest.mark.parametrize("allow", ["gather", ["gather"], ["callback", "gather"]])
def test_an_unknown_exception_is_refused(allow):
    expected = (
        r"fad.check\(honest, allow=...\): unknown 'gather'; expected some of "
        "'callback', 'decode', 'keys', 'unsafe_gather'"
    )
    with pytest.raises(fad.FadError, match=expected):
        check(leaks.honest, allow=allow)


@pytest.mark.parametrize("name", ["sums_without_fad", "calls_back_from_a_client"])
def test_each_exception_permits_its_own_kind_alone(name):
    kinds = ["unsafe_gather", "callback"]
    right = "callback" if "calls" in name else "unsafe_gather"
    (wrong,) = {*kinds} - {right}
    assert check(LEAKS[name].fn, allow=right)(*leaks.ARGS).allowed[0].kind == right
    with pytest.raises(fad.PlacementError, match=f"allow={right!r}"):
        check(LEAKS[name].fn, allow=wrong)(*leaks.ARGS)


def test_a_function_with_nothing_to_check_is_refused():
    with pytest.raises(fad.PlanError, match=r"fad.check\(norm\): no argument is AtC"):
        check(jnp.linalg.norm)(W)


def test_closed_over_data_that_no_map_reads_is_not_passed_over():
    with pytest.raises(fad.PlanError, match="Pass client data as an argument"):
        check(lambda w: w * DATA["x"].unsafe_gather().sum())(W)


def test_a_primitive_that_cannot_be_followed_is_refused():
    mesh = jax.make_mesh((1,), ("i",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec()

    @fad.program(clients=leaks.N)
    def twice(w):
        return fad.sum(fad.broadcast(w))

    hidden = jax.shard_map(
        twice, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False
    )
    expected = "stands inside 'shard_map', which fad.check cannot follow(.|\n)*Move it"
    with pytest.raises(fad.PlacementError, match=expected):
        check(hidden)(W)


# ------------------------------------------------------------------------------------
# honest programs, and closure under every mode
# ------------------------------------------------------------------------------------


def _many(tree):
    return jax.tree.map(lambda v: jnp.stack([v] * 5), tree)


MODES = {
    "value": lambda f: f,
    "jit": jax.jit,
    "jvp": lambda f: lambda *a: jax.jvp(f, a, a),
    "jacfwd": jax.jacfwd,
    "grad": lambda f: jax.grad(scalar(f)),
    "grad_by_data": lambda f: jax.grad(scalar(f), 1),
    "value_and_grad_of_jit": lambda f: jax.value_and_grad(jax.jit(scalar(f)), (0, 1)),
    "grad_of_checkpoint": lambda f: jax.grad(jax.checkpoint(scalar(f)), (0, 1)),
    "vjp": lambda f: lambda *a: jax.vjp(scalar(f), *a)[1](jnp.ones(())),
    "jacrev": jax.jacrev,
    "hessian": lambda f: jax.hessian(scalar(f), (0, 1)),
    "reverse_over_reverse": lambda f: jax.grad(
        lambda *a: jnp.sum(jax.grad(scalar(f))(*a)), (0, 1)
    ),
    "vmap_of_grad": lambda f: (
        lambda w, d: jax.vmap(jax.grad(scalar(f), (0, 1)), (0, None))(_many(w), d)
    ),
    "vmap_by_data": lambda f: jax.vmap(jax.grad(scalar(f), (0, 1)), (None, 0)),
}
FORWARD = ("value", "jit", "jvp", "jacfwd")
REVERSIBLE = [name for name in HONEST if name not in NOT_REVERSIBLE]
LONG = "self_tuning_fedavg_step"  # a derivative itself
CASES = [
    pytest.param(
        name,
        mode,
        marks=[pytest.mark.once] * (name == LONG and mode not in (*FORWARD, "grad")),
    )
    for name in HONEST
    for mode in MODES
    if mode in FORWARD or name in REVERSIBLE
]


@pytest.mark.parametrize(("name", "mode"), CASES)
def test_an_honest_program_passes_in_every_mode(name, mode):
    fn, (w, data) = HONEST[name]
    data = _many(data) if mode == "vmap_by_data" else data
    report = check(MODES[mode](fn))(w, data)
    assert not report.allowed
    assert report.reveals


@pytest.mark.parametrize("name", REVERSIBLE)
def test_gradients_stand_where_their_arguments_do(name):
    fn, args = HONEST[name]
    report = check(jax.grad(scalar(fn), (0, 1)))(*args)
    of_w, *of_data = report.outputs
    assert (of_w.where, of_w.axes) == ("server", ())
    assert {o.where for o in of_data} == {"clients"}


@pytest.mark.parametrize("mode", ["value", "jvp", "grad", "hessian"])
def test_training_passes(mode):
    args = rounds.make_args()
    transforms = {
        "value": lambda f: f,
        "jvp": lambda f: lambda *a: jax.jvp(f, a, a),
        "grad": lambda f: jax.grad(f, rounds.ALL),
        "hessian": lambda f: jax.hessian(f, (0, 1, 2)),
    }
    assert check(transforms[mode](rounds.train))(*args).reveals


# ------------------------------------------------------------------------------------
# the report
# ------------------------------------------------------------------------------------


@fad.program
def two_rounds(w, data):
    local = fad.map(lambda x: w * x, data["x"])
    first = fad.sum(local)
    moved = fad.map(lambda x, y: jnp.sum(first * x) + y, data["x"], data["y"])
    second = fad.sum(moved)
    return {"first": first, "second": second, "kept": moved, "none": 2 * w}


def test_outputs_tell_where_they_live_and_what_they_depend_on():
    report = check(two_rounds)(*leaks.ARGS)
    found = {
        o.path: (o.type, o.where, o.axes, [a.number for a in o.depends])
        for o in report.outputs
    }
    assert found == {
        "output['first']": ("f32[3]", "server", (), [1]),
        "output['second']": ("f32[]", "server", (), [1, 2]),
        "output['kept']": ("f32[4]", "clients", (0,), [1]),
        "output['none']": ("f32[3]", "server", (), []),
    }


def test_sums_and_broadcasts_are_told_by_type_map_and_line():
    report = check(two_rounds)(*leaks.ARGS)
    sums = [(a.number, a.type, a.map) for a in report.reveals]
    maker = "fad.map(<lambda>, ...)"
    assert sums == [(1, "f32[3]", maker), (2, "f32[]", maker)]
    assert [(r.type, r.how) for r in report.learns] == [("f32[3]", "broadcast")] * 2
    for item in (*report.reveals, *report.learns):
        assert re.fullmatch(r"test_check.py:\d+ in two_rounds", item.line)


def test_the_report_reads():
    text = re.sub(r"py:\d+", "py:1", str(check(two_rounds)(*leaks.ARGS)))
    assert text == (
        "two_rounds: client values reach the server through fad.sum alone\n"
        "outputs:\n"
        "  output['first']: f32[3] at the server, from #1\n"
        "  output['kept']: f32[4] at the clients, from #1\n"
        "  output['none']: f32[3] at the server, from no sum\n"
        "  output['second']: f32[] at the server, from #1, #2\n"
        "the server learns:\n"
        "  #1 f32[3] of fad.map(<lambda>, ...), at test_check.py:1 in two_rounds\n"
        "  #2 f32[] of fad.map(<lambda>, ...), at test_check.py:1 in two_rounds\n"
        "each client learns:\n"
        "  f32[3] by broadcast, at test_check.py:1 in two_rounds\n"
        "  f32[3] by broadcast, at test_check.py:1 in two_rounds"
    )


def test_the_report_of_a_program_that_says_nothing():
    program = fad.program(lambda d: fad.map(jnp.sin, d))
    text = str(check(program)(DATA["x"]))
    assert "the server learns:\n  nothing\neach client learns:\n  nothing" in text


def test_what_depends_on_an_exception_says_so():
    @fad.program
    def program(w, data):
        best = data["y"].unsafe_gather().max()
        return fad.mean(fad.map(jnp.sin, data["y"])), w * best, data["y"]

    report = check(program, allow="unsafe_gather")(*leaks.ARGS)
    assert [[a.primitive for a in o.exposes] for o in report.outputs] == [
        [],
        ["reduce_max"],
        [],
    ]
    text = str(report)
    assert "output[1]: f32[3] at the server, from no sum and values allowed" in text
    expected = r"allowed:\n  unsafe_gather: float32\[4\] by 'reduce_max', at .*: best ="
    assert re.search(expected, text)


def test_what_a_client_receives_of_a_server_array():
    @fad.program
    def program(w, data):
        table = fad.AtClients(jnp.outer(jnp.ones(leaks.N), w))
        raw = data["x"].unsafe_gather() * w[None]
        return fad.sum(fad.map(jnp.multiply, table, fad.AtClients(raw)))

    learns = check(program)(*leaks.ARGS).learns
    assert [(r.type, r.how) for r in learns] == [("f32[1,3]", "mul"), ("f32[3]", "row")]


def test_a_stack_of_client_values_tells_its_axis():
    @fad.program
    def program(w, data):
        def body(v, _):
            local = fad.map(lambda x: v * x, data["x"])
            return fad.mean(local), local

        return jax.lax.scan(body, w, None, length=2)

    _, stack = check(program)(*leaks.ARGS).outputs
    assert (stack.type, stack.where, stack.axes) == ("f32[2,4,3]", "clients", (1,))
    assert "at the clients (axis 1), from #1" in str(check(program)(*leaks.ARGS))


def test_decisions_count_as_dependences():
    @fad.program
    def program(w, data):
        total = fad.sum(fad.map(jnp.sin, data["y"]))
        one = jax.lax.cond(total > 0, lambda: w, lambda: 2 * w)
        two = jax.lax.while_loop(lambda v: v.sum() < total, lambda v: 2 * v, w)
        return one, two, w

    report = check(program)(*leaks.ARGS)
    assert [len(o.depends) for o in report.outputs] == [1, 1, 0]


def test_a_derivative_reveals_no_other_kind_of_thing():
    report = check(jax.grad(scalar(two_rounds)))(*leaks.ARGS)
    assert {r.how for r in report.learns} == {"broadcast"}
    assert all(a.map.startswith("fad.map") for a in report.reveals)


def test_sums_of_a_clients_own_program_are_not_the_servers():
    fn, args = HONEST["runs_a_program_in_a_map"]
    assert len(check(fn)(*args).reveals) == 1


def test_closed_over_data_is_at_the_clients():
    @fad.program(clients=leaks.N)
    def program(w):
        return fad.mean(fad.map(lambda x: w * x, DATA["x"])), DATA["x"]

    report = check(program)(W)
    assert [(o.where, o.axes) for o in report.outputs] == [
        ("server", ()),
        ("clients", (0,)),
    ]
    assert report.constants == ()


def test_other_closed_over_arrays_are_told():
    table = jnp.arange(6.0).reshape(2, 3)

    @fad.program
    def program(w, data):
        return fad.mean(fad.map(lambda x: w * x, data["x"])) + table.sum(0)

    report = check(program)(*leaks.ARGS)
    assert report.constants == ("float32[2,3]",)
    assert "closed over, taken as the server's: float32[2,3]" in str(report)


def test_shapes_will_do_and_nothing_is_run():
    shapes = jax.tree.map(lambda v: jax.ShapeDtypeStruct(v.shape, v.dtype), leaks.ARGS)
    assert str(check(two_rounds)(*shapes)) == str(check(two_rounds)(*leaks.ARGS))


def test_arguments_are_named_as_the_function_names_them():
    def total(w, *, cohort):
        return w * cohort["x"].unsafe_gather().sum()

    with pytest.raises(fad.PlacementError, match=r"from cohort\['x'\]"):
        check(total)(W, cohort=DATA)
    with pytest.raises(fad.PlacementError, match=r"from args\[1\]\['x'\]"):
        check(lambda *a: total(a[0], cohort=a[1]))(W, DATA)


@pytest.mark.parametrize("mesh", MESHES)
def test_meshes_change_nothing(mesh):
    with on_mesh(mesh):
        report = check(jax.grad(scalar(two_rounds), (0, 1)))(*leaks.ARGS)
        assert [o.where for o in report.outputs[:2]] == ["server", "clients"]
        with pytest.raises(fad.PlacementError, match="through 'reduce_sum'"):
            check(leaks.sums_without_fad)(*leaks.ARGS)


def test_a_client_may_print_what_is_no_value_of_its_own():
    @fad.program
    def program(data):
        def work(y):
            jax.debug.print("{}", 3)
            return y

        return fad.sum(fad.map(work, data["y"]))

    assert not check(program)(DATA).allowed


def test_work_that_no_output_needs_is_not_looked_at():
    @fad.program
    def program(w, data):
        _ = data["x"].unsafe_gather().sum()
        return w

    assert check(program)(*leaks.ARGS).outputs[0].where == "server"


# ------------------------------------------------------------------------------------
# the rules are true: what a rule keeps apart is apart
# ------------------------------------------------------------------------------------

A, B, C = 2, 4, 6  # sizes; the client axis takes each place
_I = jnp.array([1, 0])
_T = jnp.linspace(-1.0, 1.0, A * B * C).reshape(A, B, C)


def _solve(x):
    return jax.lax.custom_linear_solve(lambda v: 2 * v, x, lambda _, b: b / 2)


OPERATIONS = {
    "elementwise": lambda x: jnp.where(x > 0, jnp.sin(x), x * _T),
    "transpose": lambda x: x.transpose(2, 0, 1),
    "broadcast": lambda x: jnp.broadcast_to(x[:, None], (A, 3, B, C)),
    "merge": lambda x: x.reshape(A, B * C),
    "merge_first": lambda x: x.reshape(A * B, C),
    "split": lambda x: x.reshape(A, B, 2, C // 2),
    "regroup": lambda x: x.reshape(B, A, C),
    "add_axis": lambda x: x[:, None, :, None],
    "add_and_squeeze": lambda x: jnp.squeeze(x[:, None], 1),
    "slice": lambda x: x[:, 1:3],
    "dynamic_slice": lambda x: jax.lax.dynamic_slice_in_dim(x, 1, 2, 1),
    "stride": lambda x: x[:, :, ::2],
    "index": lambda x: x[1],
    "dynamic_index": lambda x: jax.lax.dynamic_index_in_dim(x, _I[0], 1),
    "dynamic_update": lambda x: jax.lax.dynamic_update_slice(
        x, 2 * x[:, :2], (0, _I[0], 0)
    ),
    "flip": lambda x: x[:, ::-1],
    "roll": lambda x: jnp.roll(x, 1, axis=2),
    "concatenate": lambda x: jnp.concatenate([x, 2 * x], 1),
    "stack": lambda x: jnp.stack([x, 2 * x], 1),
    "unstack": lambda x: jnp.unstack(x, axis=1)[2],
    "pad": lambda x: jnp.pad(x, ((0, 0), (1, 0), (0, 0))),
    "sum": lambda x: x.sum(1),
    "max": lambda x: x.max((0, 2)),
    "argmax": lambda x: x.argmax(1),
    "cumsum": lambda x: jnp.cumsum(x, 1),
    "cumulative_reverse": lambda x: jax.lax.cumlogsumexp(x, 2, reverse=True),
    "sort": lambda x: jnp.sort(x, 1),
    "argsort": lambda x: jnp.argsort(x, 2),
    "halves": lambda x: jnp.split(x, 2, 2)[0],
    "matmul": lambda x: x @ jnp.linspace(-1.0, 1.0, C * 5).reshape(C, 5),
    "matmul_from_the_left": lambda x: jnp.einsum("ka,abc->kbc", jnp.ones((5, A)), x),
    "batched_dot": lambda x: jnp.einsum("abc,abd->adc", x, _T),
    "own_products": lambda x: jnp.einsum("abc,abd->bcad", x, x),
    "outer": lambda x: jnp.einsum("abc,k->akbc", x, jnp.arange(3.0)),
    "gather": lambda x: x[:, _I],
    "gather_pairs": lambda x: x[_I, _I],
    "gather_front": lambda x: x[_I],
    "take_along": lambda x: jnp.take_along_axis(x, jnp.argsort(x, 1), 1),
    "gather_by_values": lambda x: _T[0, 0][jnp.argmax(x, 2)],
    "scatter": lambda x: jnp.zeros((A, 7, C)).at[:, jnp.array([6, 0, 3, 2])].set(x),
    "scatter_into": lambda x: x.at[:, _I].add(2 * x[:, :2]),
    "scatter_server": lambda x: x.at[:, _I].set(1.0),
    "scatter_rows": lambda x: x.at[_I, 2].multiply(2.0),
    "vmapped_gather": lambda x: jax.vmap(lambda v, i: v[i])(x, _I),
    "vmapped_scatter": lambda x: jax.vmap(lambda v, i: v.at[i].add(v[0]))(x, _I),
    "scan": lambda x: jax.lax.scan(lambda c, v: (c + v, c * v), x[0], x)[1],
    "scan_last": lambda x: jax.lax.scan(lambda c, v: (c + v, None), x[0], x)[0],
    "cond": lambda x: jax.lax.cond(_I[0] > 0, lambda v: v * 2, jnp.sin, x),
    "bits": lambda x: jax.lax.bitcast_convert_type(x, jnp.uint8),
    "linear_solve": _solve,
    "barrier": lambda x: jax.lax.optimization_barrier((x, x * 2))[1],
    "keys": lambda x: jax.vmap(jax.vmap(jax.vmap(_random_by)))(x),
    "keys_in_front": lambda x: jax.vmap(lambda v: _random_by(v[0, 0]))(x),
}


def _random_by(seed):
    key = jax.random.key(jnp.int32(1000 * seed))
    return jax.random.bits(jax.random.split(jax.random.fold_in(key, 3))[0], (2,))


def _checked(operation, axis):
    """Return the operation as a function of clients, and its report if it passes."""
    clients = jnp.moveaxis(_T, axis, 0)
    fn = jax.jit(lambda v: operation(jnp.moveaxis(v, 0, axis)))

    def marked(v):  # AtClients itself would refuse a client axis that is not in front
        return fad.AtClients.tree_unflatten(None, (fn(v.unsafe_gather()),))

    try:
        return fn, clients, check(marked)(fad.AtClients(clients))
    except fad.PlacementError:
        return fn, clients, None


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("name", OPERATIONS)
def test_a_rule_is_true(name, axis):
    fn, clients, report = _checked(OPERATIONS[name], axis)
    if report is None:
        return  # refused; whether it had to be is the next test's matter
    (place,) = report.outputs[0].axes
    before = np.asarray(fn(clients))
    first = RUNS.get(name, 0) if before.shape[place] < len(clients) else 0
    assert before.shape[place] == len(clients) or name in RUNS
    for i in range(len(clients)):
        after = np.asarray(fn(clients.at[i].set(-2 * clients[i] + 0.5)))
        own = [i - first] if 0 <= i - first < before.shape[place] else []
        others = np.delete(before == after, own, place)
        assert others.all(), "another client's entries changed"


# Where the run of clients begins that an operation takes, if it takes one.
RUNS = {"slice": 1, "dynamic_slice": 1}

# How many of the three axes each operation keeps.
KEPT = {
    "elementwise": 3,
    "transpose": 3,
    "broadcast": 3,
    "merge": 1,
    "merge_first": 1,
    "split": 2,
    "add_axis": 3,
    "slice": 3,  # one of them in part, as a sub-cohort
    "dynamic_slice": 3,
    "index": 2,
    "dynamic_update": 2,
    "concatenate": 2,
    "stack": 3,
    "unstack": 2,
    "pad": 2,
    "sum": 2,
    "max": 1,
    "argmax": 2,
    "cumsum": 2,
    "sort": 2,
    "halves": 2,
    "matmul": 2,
    "batched_dot": 2,
    "own_products": 2,
    "outer": 3,
    "gather": 2,
    "scatter": 2,
    "scatter_into": 2,
    "vmapped_gather": 2,
    "vmapped_scatter": 2,
    "scan": 2,
    "cond": 3,
    "bits": 3,
    "linear_solve": 3,
    "keys": 3,
}


@pytest.mark.parametrize("name", KEPT)
def test_a_rule_is_no_stricter_than_need_be(name):
    reports = [_checked(OPERATIONS[name], axis)[2] for axis in range(3)]
    kept = sum(report is not None for report in reports)
    assert kept == KEPT[name]


def test_one_client_is_not_copied_into_many():
    program = fad.program(lambda w, d: w, clients=1)

    def stretched(w, x):
        return program(w, x), fad.AtClients(x.unsafe_gather() * jnp.ones((5, 3)))

    with pytest.raises(fad.PlacementError, match="through 'mul'"):
        check(stretched)(W, fad.AtClients(jnp.ones((1, 3))))


def test_the_square_cohorts_are_square():
    (_, data), n = honest.SQUARE, honest.N
    assert {v.shape[:2] for v in jax.tree.leaves(data)} == {(n, n)}
