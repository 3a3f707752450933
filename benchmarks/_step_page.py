"""The page of the learned server steps: a table for each federation, and a figure."""

from typing import Any

import numpy as np

from benchmarks._machine import describe, machine
from benchmarks._report import ROOT, table
from benchmarks._step_scores import (
    EVERY,
    MORE,
    WINDOW,
    scores,
    tuned_rounds,
    tuned_start,
)

NAME = "learned_server_steps"
COMMAND = "python -m benchmarks learned_steps"
TEXT = f"""FedAvg learns its server step by `algorithms/self_tuning_fedavg.py` with its
defaults, from starts between 1/32 and 32 times the tuned step (on Synthetic also 1/1000
and 1000 times). The tuned step is the best of the same grid held fixed, by the accuracy
after the last round. A cell says how many rounds a method takes to the tuned run's last
accuracy, as a multiple of the rounds that the tuned run takes itself, on the mean curve
of the seeds; `-` stands for more than {MORE}. In brackets: from how many seeds it gets
there within {MORE} times, each seed against its own tuned run; and the accuracy at the
tuned run's last round, mean and standard deviation.

Accuracy is measured every {EVERY} rounds on the same 2,000 test examples, and averaged
over {WINDOW} evaluations. FATHOM is the form for the server's step of its equation 5,
with the paper's rate of 0.01 and with 0.2, near the learned step's 0.15; FedHyper is
its scheduler of the server's step (FedHyper-G) with a bound of 3."""


def write_page(found: dict[str, Any]) -> None:
    """Write the page and its figure from the curves."""
    folder = ROOT / "docs" / "experiments"
    _figure(found, folder / f"{NAME}.png")
    parts = ["# Learned server steps, wherever they start", TEXT]
    parts += [_section(name, federation) for name, federation in found.items()]
    parts.append(f"![Rounds to the tuned accuracy, and accuracy]({NAME}.png)")
    parts.append(f"Measured on: {describe(machine())}.\n\nRun it again: `{COMMAND}`.")
    (folder / f"{NAME}.md").write_text("\n\n".join(parts) + "\n")


def _section(name: str, federation: dict[str, Any]) -> str:
    rounds, target = tuned_rounds(federation)
    best = (
        federation["setting"]["starts"][tuned_start(federation)]
        * federation["setting"]["around"]
    )
    seeds = len(federation["methods"]["fixed"]["accuracy"])
    methods = dict(sorted(federation["methods"].items(), key=lambda m: _place(m[0])))
    rows = []
    found = {method: scores(federation, method) for method in methods}
    for i, start in enumerate(federation["setting"]["starts"]):
        row: dict[str, Any] = {
            "start": f"{start * federation['setting']['around'] / best:.3g}"
        }
        for method, s in found.items():
            row[method] = _cell(s, i, seeds)
        rows.append(row)
    columns = {"start": "start / tuned"} | {m: m for m in methods}
    within = int((found["learned"].ratio <= MORE).sum())
    setting = federation["setting"]
    sent = [
        f"{m} {v['bytes'][0] / 1e6:.4g}/{v['bytes'][1] / 1e6:.4g}"
        for m, v in methods.items()
    ]
    return "\n\n".join(
        [
            f"## {name}",
            f"{federation['clients']} clients, 10 a round, {setting['rounds']} rounds, "
            f"{seeds} seeds. The tuned step is {best:.3g}: {target:.3f} in {rounds} "
            f"rounds. The learned step gets there within {MORE} times from {within} of "
            f"{len(setting['starts'])} starts.",
            table(rows, columns),
            f"MB per client and round, down/up, by `fad.plan`: {'; '.join(sent)}.",
        ]
    )


def _place(method: str) -> int:
    """Return the column of a method: the fixed steps first, then the learned."""
    first = ("fixed", "learned")
    return first.index(method) if method in first else len(first)


def _cell(s: Any, i: int, seeds: int) -> str:
    ratio = f"{s.ratio[i]:.2f}" if s.ratio[i] <= MORE else "-"
    return f"{ratio} ({s.reached[i]}/{seeds}; {s.final[i]:.3f} ± {s.spread[i]:.3f})"


def _figure(found: dict[str, Any], path: Any) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.6 * len(found), 6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, len(found), squeeze=False)
    for column, (name, federation) in enumerate(found.items()):
        top, bottom = axes[0, column], axes[1, column]
        best = federation["setting"]["starts"][tuned_start(federation)]
        x = np.array(federation["setting"]["starts"]) / best
        for method in sorted(federation["methods"], key=_place):
            s = scores(federation, method)
            never = np.where(s.ratio <= MORE, s.ratio, 1.5)
            (line,) = top.plot(x, never, "o-", ms=3, label=method)
            bottom.errorbar(
                x, s.final, s.spread, color=line.get_color(), marker="o", ms=3
            )
        top.axhline(MORE, color="0.6", lw=0.8, ls="--")
        top.set(title=name, xscale="log", ylim=(0, 1.6))
        top.set_yticks([0, 0.5, 1, MORE, 1.5], ["0", "0.5", "1", str(MORE), "more"])
        bottom.set(xscale="log", xlabel="start / tuned step")
    axes[0, 0].set_ylabel("rounds to the tuned accuracy\n/ the tuned run's")
    axes[1, 0].set_ylabel("accuracy at the tuned run's end")
    axes[0, -1].legend(fontsize=7)
    figure.savefig(path, dpi=120)
