"""Slices of the model on the wire, the keys that name them, and tiers of clients."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import pytest

import fad
from tests.plan.programs import F32

N, ROWS, COLUMNS = 6, 8, 3
W = jax.ShapeDtypeStruct((ROWS, COLUMNS), jnp.float32)
B = jax.ShapeDtypeStruct((5,), jnp.float32)


def at_clients(*shape, dtype=jnp.float32, lead=()):
    return fad.AtClients(jax.ShapeDtypeStruct((*lead, N, *shape), dtype))


def keys(k, **options):
    return at_clients(k, dtype=jnp.int32, **options)


def selecting(public):
    @fad.program
    def program(w, own, data):
        part = fad.select(w, own, public=public)
        new = fad.map(lambda p, x: jnp.sin(p) * x, part, data)
        return fad.deselect(new, own, w, public=public)

    return program


def squares(fn):
    return lambda *args: sum(jnp.sum(v**2) for v in jax.tree.leaves(fn(*args)))


def wires(fn, *args):
    return [
        ([w.text for w in r.down], [w.text for w in r.up])
        for r in fad.plan(fn)(*args).rounds
    ]


@pytest.mark.parametrize("kept", [1, 2, 8])
def test_bytes_are_those_of_the_kept_part(kept):
    cost = fad.plan(selecting(True))(W, keys(kept), at_clients()).cost()
    assert (cost.rounds, cost.bytes_down, cost.bytes_up) == (1, *[F32 * kept * 3] * 2)
    assert not cost.same_cohort


def test_a_block_is_named_along_several_axes():
    @fad.program
    def program(w, rows, columns):
        own = {0: rows, 1: columns}
        return fad.deselect(fad.select(w, own, public=True), own, w, public=True)

    assert wires(program, W, keys(4), keys(2)) == [(["f32[4,2]"], ["f32[4,2]"])]


def test_a_gradient_sends_slices_alone():
    args, kept = (W, keys(2), at_clients()), "f32[2,3]"
    derived = jax.grad(squares(selecting(True)))
    assert wires(derived, *args) == [([kept], [kept])] * 2
    plan = fad.plan(derived)(*args)
    assert [r.returns for r in plan.rounds] == [False, True]

    def both(w, dw, *rest):
        return jax.jvp(lambda v: selecting(True)(v, *rest), (w,), (dw,))

    assert wires(both, W, *args) == [([kept] * 2, [kept] * 2)]


def test_a_linear_loss_needs_one_round_forth_and_back():
    fn = lambda *args: jnp.sum(selecting(True)(*args))  # noqa: E731
    ((down, up),) = wires(jax.grad(fn), W, keys(2), at_clients())
    assert (down, up) == (["f32[2,3]"] * 2, ["f32[2,3]"])


def test_keys_that_are_not_public_are_sent_first_and_once():
    args = W, keys(2), at_clients()
    first, slices = ([], ["i32[2]"]), (["f32[2,3]"], ["f32[2,3]"])
    assert wires(selecting(False), *args) == [first, slices]
    derived = jax.grad(squares(selecting(False)))
    assert wires(derived, *args) == [first, slices, slices]
    plan = fad.plan(derived)(*args)
    assert plan.cost().bytes_up == 8 + 2 * 24
    assert [r.returns for r in plan.rounds] == [False, True, True]


def test_keys_of_several_leaves_are_sent_once_with_the_sum():
    @fad.program
    def program(data, own):
        both = fad.map(lambda x: {"a": x, "b": 2 * x}, data)
        return fad.deselect(both, own, {"a": W, "b": W})

    assert wires(program, at_clients(2, 3), keys(2)) == [
        ([], ["i32[2]", "f32[2,3]", "f32[2,3]"]),
    ]


def test_keys_made_of_a_sum_wait_for_it():
    def program(public):
        @fad.program
        def program(w, data):
            total = fad.sum(data)
            own = fad.map(lambda x: jnp.int32(x + total)[None], data)
            return fad.sum(fad.select(w, own, public=public))

        return program

    part, total = "f32[1,3]", "f32[]"
    assert wires(program(True), W, at_clients()) == [([], [total]), ([part], [part])]
    assert wires(program(False), W, at_clients()) == [
        ([], [total]),
        ([total], ["i32[1]"]),
        ([part], [part]),
    ]


def test_public_keys_cost_nothing_though_clients_could_make_them():
    """Neither the model that they follow from is sent, nor the work counted."""

    @fad.program
    def program(w, data):
        largest = lambda v: jax.lax.top_k(jnp.sum(v**2, 1), 2)[1]  # noqa: E731
        own = fad.map(largest, fad.broadcast(w))
        part = fad.select(w, own, public=True)
        new = fad.map(lambda p, x: p * x, part, data)
        return fad.deselect(new, own, w, public=True)

    (r,) = fad.plan(program)(W, at_clients()).rounds
    assert [w.text for w in r.down] == ["f32[2,3]"]
    assert r.flops == 6


@pytest.mark.parametrize(
    ("weighted", "secure", "sent"),
    [(False, False, []), (True, False, ["f32[]"]), (True, True, ["f32[2,3]"])],
)
def test_a_mean_by_coverage_sends_weights_as_told(weighted, secure, sent):
    @fad.program
    def program(w, own, data, weights):
        part = fad.map(lambda p, x: p * x, fad.select(w, own, public=True), data)
        given = {"weights": weights} if weighted else {}
        return fad.coverage_mean(part, own, w, public=True, secure=secure, **given)

    args = W, keys(2), at_clients(), at_clients()
    assert wires(program, *args) == [(["f32[2,3]"], ["f32[2,3]", *sent])]


def test_a_mean_by_coverage_sends_its_weight_once_for_all_leaves():
    @fad.program
    def program(w, b, own, data, weights):
        like, spec = {"w": w, "b": b}, {"w": own, "b": None}
        part = fad.select(like, spec, public=True)
        new = fad.map(lambda p, x: jax.tree.map(lambda a: a * x, p), part, data)
        return fad.coverage_mean(new, spec, like, weights=weights, public=True)

    args = W, B, keys(2), at_clients(), at_clients()
    assert wires(program, *args) == [
        (["f32[5]", "f32[2,3]"], ["f32[5]", "f32[2,3]", "f32[]"])
    ]


def test_a_weight_is_sent_though_the_leaf_that_it_travels_with_is_not_needed():
    @fad.program
    def program(w, own, data, weights):
        part = fad.select({"a": w, "b": w}, own, public=True)
        new = fad.map(lambda p, x: jax.tree.map(lambda v: v * x, p), part, data)
        like = {"a": w, "b": w}
        out = fad.coverage_mean(new, own, like, weights=weights, public=True)
        return out.mean["b"]

    args = W, keys(2), at_clients(), at_clients()
    (sent,) = wires(program, *args)
    assert sent == (["f32[2,3]"], ["f32[2,3]", "f32[]"])
    with pytest.raises(fad.PlacementError, match="decodes what each client sends"):
        fad.check(program)(*args)


def test_a_scan_over_rounds_of_slices():
    def program(w, own, data):
        body = lambda w, xs: (selecting(True)(w, *xs), None)  # noqa: E731
        return jax.lax.scan(body, w, (own, data))[0]

    args = W, keys(2, lead=(4,)), at_clients(lead=(4,))
    plan = fad.plan(program)(*args)
    slices = ["f32[2,3]"], ["f32[2,3]"]
    assert plan.clients == N
    assert wires(program, *args) == [slices] * 4
    assert not plan.cost().same_cohort
    assert wires(jax.grad(squares(program)), *args) == [slices] * 8
    assert "8 times" not in str(plan)
    assert "4 times" in str(plan)


def test_the_same_keys_over_rounds_are_sent_once():
    def program(w, own, data):
        step = lambda w, _: (selecting(False)(w, own, data), None)  # noqa: E731
        return jax.lax.scan(step, w, length=3)[0]

    slices = ["f32[2,3]"], ["f32[2,3]"]
    args = W, keys(2), at_clients()
    assert wires(program, *args) == [([], ["i32[2]"]), *[slices] * 3]
    returns = [r.returns for r in fad.plan(program)(*args).rounds]
    assert returns == [False, True, True, True]


# ------------------------------------------------------------------------------------
# tiers
# ------------------------------------------------------------------------------------

WIDTHS = (8, 4, 2)  # rows of the wide, the middle and the narrow tier
TIERS = tuple(slice(i, i + 2) for i in (0, 2, 4))


def _tier(kept):
    @fad.program
    def program(w, b, data):
        own = fad.map(lambda _: jnp.arange(kept, dtype=jnp.int32), data)
        own = {"w": own, "b": None}
        sent = fad.select({"w": w, "b": b}, own, public=True)
        new = fad.map(lambda p, x: jax.tree.map(lambda v: v * x, p), sent, data)
        return fad.deselect(new, own, {"w": w, "b": b}, public=True)

    return program


def tiered(w, b, data):
    sums = [
        _tier(kept)(w, b, jax.tree.map(lambda a, t=tier: a[t], data))
        for kept, tier in zip(WIDTHS, TIERS, strict=True)
    ]
    return jax.tree.map(lambda *v: sum(v[1:], v[0]), *sums)


def test_tiers_share_a_round_and_count_as_their_mean():
    plan = fad.plan(tiered)(W, B, at_clients())
    (r,) = plan.rounds
    assert plan.clients == N
    kept = [F32 * COLUMNS * k for k in WIDTHS]
    mean = sum(kept) // 3 + F32 * 5
    assert (mean, r.bytes_down, r.bytes_up) == (76, mean, mean)
    texts = sorted(w.text for w in r.down)
    assert texts == ["f32[2,3]", "f32[4,3]", *["f32[5]"] * 3, "f32[8,3]"]
    assert {w.share for w in (*r.down, *r.up, *r.work)} == {Fraction(1, 3)}
    assert r.flops == -(-sum(3 * k + 5 for k in WIDTHS) // 3)  # rounded up
    assert str(plan).endswith("means over all clients, of which not all do the same.")
    title = " ".join(t.get_text() for t in plan.figure().axes[0].texts)
    assert "On average, a client receives 76 B" in title


def test_the_gradient_of_tiers_keeps_each_ones_part():
    derived = jax.grad(squares(lambda w, b, data: tiered(jnp.sin(w), b, data)))
    first, back = fad.plan(derived)(W, B, at_clients()).rounds
    # Back comes the cotangent of w; what goes up is the same slices of it.
    assert first.bytes_up == 56
    assert (back.bytes_down, back.bytes_up) == (56, 56)
    assert back.returns
    of_both = jax.grad(squares(lambda w, b, data: tiered(w, b, data)), (0, 1))
    assert [r.bytes_up for r in fad.plan(of_both)(W, B, at_clients()).rounds] == [
        76
    ] * 2


def test_tiers_in_a_scan_over_cohorts():
    def program(w, b, data):
        def body(carry, x):
            new = tiered(carry[0], carry[1], x)
            return (new["w"], new["b"]), None

        return jax.lax.scan(body, (w, b), data)[0]

    plan = fad.plan(program)(W, B, at_clients(lead=(4,)))
    assert plan.clients == N
    assert [(r.bytes_down, r.bytes_up, r.returns) for r in plan.rounds] == [
        (76, 76, False)
    ] * 4

    def same(w, b, data):
        body = lambda w, _: (tiered(w, b, data)["w"], None)  # noqa: E731
        return jax.lax.scan(body, w, length=3)[0]

    rounds = fad.plan(same)(W, B, at_clients()).rounds
    assert [r.returns for r in rounds] == [False, True, True]


def test_a_tier_that_takes_part_alone_counts_as_its_share():
    def program(w, b, data):
        return _tier(2)(w, b, jax.tree.map(lambda a: a[:2], data))

    plan = fad.plan(program)(W, B, at_clients())
    assert (plan.clients, plan.cost().bytes_up) == (N, 15)  # 44 / 3, rounded up


def test_without_client_arguments_the_largest_program_is_the_whole():
    def program(w):
        large, small = (
            fad.program(lambda v: fad.sum(fad.broadcast(v)), clients=n)(w)
            for n in (4, 2)
        )
        return large + small

    plan = fad.plan(program)(W)
    assert (plan.clients, plan.cost().bytes_down) == (4, 96 + 48)


def test_cohorts_of_different_sizes_count_whole():
    total = fad.program(fad.sum)

    def program(few, many):
        return total(few) + total(many)

    few = fad.AtClients(jax.ShapeDtypeStruct((2, 3), jnp.float32))
    plan = fad.plan(program)(few, at_clients(3))
    assert (plan.clients, plan.cost().bytes_up) == (N, 24)


def test_keys_that_come_tier_by_tier_leave_a_tier_a_part():
    total = selecting(True)

    def program(w, data, wide, narrow):
        parts = fad.submodels.tiers(data, 2)
        return total(w, wide, parts[0]) + total(w, narrow, parts[1])

    def own(k):
        return fad.AtClients(jax.ShapeDtypeStruct((3, k), jnp.int32))

    plan = fad.plan(program)(W, at_clients(), own(4), own(2))
    (r,) = plan.rounds
    assert (plan.clients, r.bytes_down, r.bytes_up) == (N, 36, 36)
    assert {v.share for v in (*r.down, *r.up, *r.work)} == {Fraction(1, 2)}
