"""The page about minimum coverage: rounds to a small gradient, and their slopes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks._figures import COLOURS
from benchmarks._machine import describe
from benchmarks._report import ROOT, table
from fad.experiment._lazy import require

Pairs = Mapping[str, Sequence[tuple[int, int]]]
TITLE = "Rounds against the minimum coverage"
TEXT = """RABO's rate is 1 / sqrt(C_x* Q) after Q rounds: C_x*, the least number of
clients that hold a coordinate of the upper variable x in a round, takes the place
of the number of clients, and C_y*, that of the lower variable y, is not in the
leading term. So the rounds to a given mean squared gradient should fall as 1 /
C_x*, a slope of -1 of their logarithms, and not depend on C_y*, a slope of 0.

**The problem.** 8 clients, 16 coordinates of x and of y; of a client's objectives
each coordinate j has a part of its own,

    g_ij = (y_j - 0.3 tanh(x_j) - b_ij - noise)^2 / 2
    f_ij = (y_j - a_j - noise)^2 / 2 + 0.5 x_j^2 / (1 + x_j^2) + noise x_j

strongly convex in y and not convex in x. The shifts b_ij (deviation 0.3, sum 0 over
the clients) make the clients differ, and |a_j| is between 1 and 2. Noise is normal,
new in each round, one sample of each level a client, with a deviation of 1, and of
2 where it is times x_j: it dominates. The gradient of the bilevel objective is
known in closed form.

**The slices.** `algorithms.rabo` in its lifted form: 8 blocks of 2 coordinates, of
which client i holds block r + i and those after it in round r, so that each
coordinate is held by exactly as many clients as the table says, in every round. As
the coordinates do not meet, a client that holds x_j and y_j has unbiased directions
of both, whatever else it lacks: pruning adds no bias where x and y have the same
keys. Where y has more keys than x, a client that holds y_j alone fits it to x_j =
0, which biases y_j by 0.3 tanh(x_j) (1 - C_x* / C_y*) and the squared gradient by
0.001 at most.

**What is counted.** The rounds until the squared gradient, a mean over coordinates
and over all rounds so far, which is the theory's quantity, is at most {target}; it
begins near 0.2. The server's step of x is the best of {count} for each pair of
coverages, the one with the least mean over the seeds; the grid is one for all, from
{low:g} to {high:g} by factors of sqrt(2). The clients' steps of y and of v are 0.1.
A seed draws the problem and the noise, the same for all steps; {seeds} seeds, mean
± standard deviation.

The slope comes near -1 only where noise dominates, so that the best step is small
against the curvature: with a noise of 1 in place of 2 the slopes of the three series
were -0.63, -0.55 and -0.08, with 371 to 1,381 rounds."""


class Best(NamedTuple):
    """A pair's rounds at its best step, ``[seeds]``."""

    step: float
    rounds: np.ndarray


def best(found: Mapping[str, Any], pair: Sequence[int]) -> Best:
    """Return a pair's rounds to the target at the step with the least mean."""
    (row,) = (r for r in found["rows"] if list(r["coverage"]) == list(pair))
    reached = np.asarray(row["reached"], float)
    k = int(reached.mean(0).argmin())
    return Best(found["steps"][k], reached[:, k])


def slopes(found: Mapping[str, Any], pairs: Sequence[tuple[int, int]]) -> np.ndarray:
    """Return each seed's slope of log rounds by log coverage, ``[seeds]``."""
    rounds = np.log([best(found, pair).rounds for pair in pairs])
    return np.polyfit(np.log([_varied(pairs, pair) for pair in pairs]), rounds, 1)[0]


def write_page(found: Mapping[str, Any], varied: Pairs, *, complete: bool) -> Path:
    """Write the page and its figure; one that is not complete goes elsewhere."""
    folder = ROOT / ("docs/experiments" if complete else ".benchmarks/partial")
    figure = _figure(found, varied, folder / "minimum_coverage.png")
    steps = found["steps"]
    text = TEXT.format(
        count=len(steps), low=min(steps), high=max(steps), **{k: found[k] for k in KEPT}
    )
    columns = {"series": "coverage that varies", "x": "C_x*", "y": "C_y*"}
    columns |= {"step": "step", "rounds": "rounds", "times": "rounds x C_x*"}
    rows = []
    for name, pairs in varied.items():
        for x, y in pairs:
            step, rounds = best(found, (x, y))
            row = {"series": name, "x": x, "y": y, "step": step}
            row |= {"rounds": _mean(rounds, ".0f"), "times": f"{rounds.mean() * x:.0f}"}
            rows.append(row)
    fits = [
        {"series": name, "slope": _mean(slopes(found, pairs), ".2f"), "theory": theory}
        for (name, pairs), theory in zip(varied.items(), (-1, -1, 0), strict=True)
    ]
    heads = {"series": "coverage that varies", "slope": "slope", "theory": "theory"}
    parts = [
        f"# {TITLE}",
        text,
        table(fits, heads),
        table(rows, columns),
        f"![{TITLE}]({figure.name})",
        f"All took {found['seconds']} seconds. Measured on: "
        f"{describe(found['machine'])}.",
        "Run it again: `python -m benchmarks coverage`.",
    ]
    page = folder / "minimum_coverage.md"
    page.write_text("\n\n".join(parts) + "\n")
    return page


KEPT = ("target", "seeds")


def _varied(pairs: Sequence[tuple[int, int]], pair: tuple[int, int]) -> int:
    """Return the coverage that a series varies: that of x, unless it is always one."""
    return pair[len({x for x, _ in pairs}) == 1]


def _mean(values: np.ndarray, form: str) -> str:
    return f"{values.mean():{form}} ± {values.std(ddof=1):{form}}"


def _figure(found: Mapping[str, Any], varied: Pairs, path: Path) -> Path:
    figure = require("matplotlib.figure").Figure(
        figsize=(10, 4), dpi=150, layout="constrained"
    )
    require("matplotlib.backends.backend_agg").FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, sharey=True)
    names = list(varied)
    for k, name in enumerate(names):
        axes = right if k == len(names) - 1 else left
        at = np.array([_varied(varied[name], pair) for pair in varied[name]])
        rounds = np.array([best(found, pair).rounds for pair in varied[name]])
        slope = slopes(found, varied[name]).mean()
        look = {"color": COLOURS[k], "marker": "o", "ms": 5, "lw": 1.4}
        axes.errorbar(
            at,
            rounds.mean(1),
            rounds.std(1, ddof=1),
            capsize=3,
            **look,
            label=f"{name}: slope {slope:.2f}",
        )
        theory = np.ones(len(at)) if axes is right else at[0] / at
        if k != 1:
            line = rounds.mean(1)[0] * theory
            axes.plot(at, line, color="0.6", ls="--", lw=1, label="theory")
    for axes, name in ((left, "x"), (right, "y")):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="0.92")
        axes.set_axisbelow(True)
        axes.set(xscale="log", yscale="log", xlabel=f"C_{name}*")
        axes.set_xticks([1, 2, 4, 8], ["1", "2", "4", "8"])
        axes.xaxis.set_minor_locator(require("matplotlib.ticker").NullLocator())
        axes.legend(frameon=False, fontsize=8)
    left.set_ylabel(f"rounds to a mean squared gradient of {found['target']}")
    figure.savefig(path)
    return path
