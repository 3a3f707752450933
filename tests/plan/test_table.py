"""The text of a plan: folded, with units, in 100 columns."""

import jax
import pytest

import fad
from fad.plan import Plan, Round, Wire, Work
from fad.plan._fold import fold
from fad.plan._text import bytes_text, list_text
from tests.plan.programs import train, train_args


def a_round(kind, **options):
    """Return a round that is equal to another of the same kind."""
    wire = Wire(f"f32[{kind}]", 4 * kind)
    return Round([wire], [Work("local", 10 * kind)], [wire], **options)


def numbers(plan):
    """Return the first words of the table's rows, and how often."""
    rows = str(plan).splitlines()[4:-6]
    firsts = [line[:12].split("  ")[0].strip() for line in rows]
    return list(zip(firsts[::2], firsts[1::2], strict=True))


def test_the_table_of_a_gradient():
    plan = fad.plan(jax.grad(train))(*train_args(10, 1))
    assert str(plan) == GRADIENT.strip("\n")


GRADIENT = """
train: 4 clients

round      down            client work  up       keeps       back
-----------------------------------------------------------------
1          160 B           work         160 B    0 B         no
           f32[40]         80 FLOP      f32[40]
2-10       160 B           work         160 B    160 B       no
9 times    f32[40]         120 FLOP     f32[40]  to 1.44 kB
11         164 B           <lambda> x2  160 B    1.44 kB     no
           f32[40], f32[]  120 FLOP     f32[40]
12-20      160 B           work         160 B    1.28 kB     yes
9 times    f32[40]         80 FLOP      f32[40]  to 0 B
-----------------------------------------------------------------
total      3.2 kB          2 kFLOP      3.2 kB   at most     yes
20 rounds                                        1.44 kB

Per client. keeps: state held for a later round when this one ends; back: clients
of an earlier round must come back.
"""


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        ([1], [("1", "")]),
        ([1] * 10, [("1-10", "10 times")]),
        ([2, *[1] * 9], [("1", ""), ("2-10", "9 times")]),
        ([1, 2, 1, 2], [("1,3", "2 times"), ("2,4", "2 times")]),
        ([3, *[1, 2] * 9], [("1", ""), ("2,4..18", "9 times"), ("3,5..19", "9 times")]),
        (
            [1, 2, 3] * 3,
            [("1,4..7", "3 times"), ("2,5..8", "3 times"), ("3,6..9", "3 times")],
        ),
        ([1, 1, 2] * 2, [("1,4", "2 times"), ("2,5", "2 times"), ("3,6", "2 times")]),
        ([1, 2, 3, 4] * 2, [(str(i + 1), "") for i in range(8)]),
        ([1] * 9, [("1-9", "9 times")]),
        ([1, 2, 1, 3], [("1", ""), ("2", ""), ("3", ""), ("4", "")]),
    ],
)
def test_equal_rounds_are_folded(kinds, expected):
    plan = Plan("f", 4, tuple(map(a_round, kinds)))
    assert numbers(plan) == expected


def test_folding_loses_no_round():
    kinds = [1, 2, 2, 1, 2, 1, 2, 3, 3, 3, 1, 2, 3, 1, 2, 3, 1]
    folded = [f for b in fold(list(map(a_round, kinds))) for f in b.pattern]
    assert sorted(n for f in folded for n in f.numbers) == [*range(1, len(kinds) + 1)]
    for f in folded:
        assert {kinds[n - 1] for n in f.numbers} == {f.round.flops // 10}


def test_state_that_rises_is_folded_and_state_that_turns_is_not():
    rising = [a_round(1, state_bytes=n) for n in (1, 2, 3)]
    falling = [a_round(1, state_bytes=n) for n in (2, 1, 0)]
    blocks = fold(rising + falling)
    assert [b.times for b in blocks] == [3, 3]
    assert [b.pattern[0].kept for b in blocks] == [(1, 3), (2, 0)]


def test_rounds_that_differ_in_who_takes_part_are_not_folded():
    assert len(fold([a_round(1), a_round(1, returns=True)])) == 2


def test_long_lists_are_summarised_with_the_largest():
    wires = [Wire("f32[200]", 800), Wire("f32[784,200]", 627_200), Wire("f32[10]", 40)]
    text = str(Plan("f", 4, (Round([*wires, Wire("f32[200,10]", 8000)], [], wires),)))
    assert "f32[784,200] + 3 more" in text
    assert "f32[784,200] + 2 more" in text


@pytest.mark.parametrize("count", [1, 50])
def test_fits_a_hundred_columns(count):
    wire = Wire("float8_e4m3fn[1000,1000,1000,1000]", 10**12 - 1)
    work = Work("a_function_with_quite_a_long_name", 999_999)
    state = 999_999_999
    pattern = [
        Round([wire] * n, [work] * n, [wire] * n, state_bytes=n * state)
        for n in (count, count + 1)
    ]
    plan = Plan("f" * 200, 10**6, (*pattern * 100, *pattern[:1] * 1000))
    assert max(map(len, str(plan).splitlines())) <= 100


def test_a_round_without_client_work():
    text = str(Plan("f", 4, (Round(up=[Wire("f32[2]", 8)]),)))
    assert "0 FLOP" in text
    assert "-  " in text


def test_a_plan_without_rounds():
    assert "0 rounds" in str(Plan("f", 4, ()))


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (999_499, "999 kB"),
        (999_500, "1 MB"),
        (40_083_496, "40.1 MB"),
        (8_056_782_704, "8.06 GB"),
        (10**19, "1e+04 PB"),
    ],
)
def test_units(nbytes, text):
    assert bytes_text(nbytes) == text


def test_lists():
    assert list_text([], 10) == "-"
    assert list_text(["abcdefghijkl"], 8) == "abcde..."
    assert list_text(["abcdefghijkl", "m"], 14) == "ab... + 1 more"
