"""The drawing of a plan: everything is on it, and no two texts touch."""

import itertools
import sys

import jax
import jax.numpy as jnp
import pytest
from matplotlib.text import Text

import fad
from fad.plan import Plan, Round, Wire, Work
from tests.plan.programs import train, train_args


def _forward(*args):
    return jax.jvp(lambda t: train(t, *args[1:]), args[:1], (jnp.ones(1),))


def _reverse(*args):
    return jax.grad(lambda *a: train(*a, place="client"))(*args)


TIMES = "\N{MULTIPLICATION SIGN}"
PROGRAMS = {"primal": train, "forward": _forward, "reverse": _reverse}


def texts(figure):
    """Return the texts that are seen, with their boxes in pixels."""
    figure.draw_without_rendering()
    renderer = figure.canvas.get_renderer()
    found = [t for t in figure.findobj(Text) if t.get_text() and t.get_visible()]
    return [(t.get_text(), t.get_window_extent(renderer)) for t in found]


def check_readable(figure):
    found = texts(figure)
    pairs = itertools.combinations(found, 2)
    assert not [(a, b) for (a, x), (b, y) in pairs if x.overlaps(y)]
    width, height = figure.bbox.width, figure.bbox.height
    assert not [
        text
        for text, box in found
        if box.x0 < 0 or box.y0 < 0 or box.x1 > width or box.y1 > height
    ]


def names(figure):
    return [text for text, _ in texts(figure)]


@pytest.mark.parametrize("rounds", [1, 3, 20])
@pytest.mark.parametrize("mode", PROGRAMS)
def test_no_texts_overlap(mode, rounds):
    plan = fad.plan(PROGRAMS[mode])(*train_args(rounds, 1))
    figure = plan.figure()
    check_readable(figure)
    found = names(figure)
    assert {"server", "4\nclients"} <= set(found)
    if mode != "reverse":
        assert f"{TIMES} {rounds}" in found or rounds == 1
    if mode == "reverse":
        assert f"_reverse: {2 * rounds + 1} rounds" in found
        assert figure.get_size_inches()[0] < 11  # folded


def distinct(rounds):
    """Return a plan of rounds that are all different, with wide texts."""
    work = Work("W" * 40, 999_999_999_999)
    return Plan(
        "W" * 60,
        1_000_000,
        tuple(
            Round(
                [Wire("f32[9]", 123_000_000 + i)],
                [work],
                [Wire("f32[9]", 999_000)],
                state_bytes=123_456 * i,
                returns=i > 3,
            )
            for i in range(rounds)
        ),
    )


@pytest.mark.parametrize("rounds", [1, 3, 7, 8, 20])
def test_many_different_rounds_are_cut_into_strips(rounds):
    figure = distinct(rounds).figure()
    check_readable(figure)
    assert names(figure).count("server") == -(-rounds // 7)
    assert [f"round {i + 1}" in names(figure) for i in range(rounds)] == [True] * rounds
    assert figure.get_size_inches()[0] < 14


def test_patterns_are_bracketed_together():
    a, b, c = (
        Round([Wire("f32[2]", 8)], [Work("work", n)], [Wire("f32[2]", 8)])
        for n in (100, 200, 300)
    )
    figure = Plan("f", 8, (c, *[a, b] * 9, c, *[a, b, c] * 200)).figure()
    check_readable(figure)
    found = names(figure)
    assert [t for t in found if TIMES in t] == [
        f"{TIMES} 9",
        f"{TIMES} 200",
    ]
    assert "rounds 2,4..18" in found
    assert "rounds 21,24..618" in found


def test_shows_bytes_work_and_state():
    rounds = (
        Round([Wire("f32[9]", 2048)], [Work("local", 5000)], [], state_bytes=700),
        Round([], [Work("_weigh", 3)], [Wire("f32[9]", 36)], returns=True),
    )
    found = names(Plan("f", 8, rounds).figure())
    for text in ("2.05 kB", "36 B", "local", "5 kFLOP", "weigh", "700 B", "0 B"):
        assert text in found
    assert "clients of an earlier round must come back" in found
    assert "state kept for a later round" in found


def test_says_nothing_of_state_that_is_not_kept():
    found = names(Plan("f", 8, (Round(up=[Wire("f32[9]", 36)]),)).figure())
    assert "client keeps" not in found
    assert any("keeps nothing" in text for text in found)


def test_a_plan_without_rounds():
    assert "f: 0 rounds" in names(Plan("f", 8, ()).figure())


def test_is_saved(tmp_path):
    fad.plan(train)(*train_args(3, 1)).figure().savefig(tmp_path / "plan.png")
    assert (tmp_path / "plan.png").stat().st_size > 1000


def test_a_missing_matplotlib_is_named(monkeypatch):
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    message = r"drawing a plan needs the package 'matplotlib.*pip install \"fad\["
    with pytest.raises(fad.PlanError, match=message):
        distinct(1).figure()
