"""The page of the personalisation study: a table for each federation, and a figure."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._figures import COLOURS
from benchmarks._machine import describe, machine
from benchmarks._report import ROOT, table
from fad.experiment._lazy import require

TEXT = """Fashion-MNIST, 100 clients, an MLP with a hidden layer of 64; 10 clients a
round, {rounds} rounds. Half of a client's examples train; a quarter chooses the rate of
the adaptation and a quarter tests it. A client adapts by k gradient steps on the same
20 examples of its training part, at the best of four rates for each model and k. Every
client counts the same. Accuracy at the clients: mean over {seeds} seeds ± standard
deviation over seeds; in brackets the mean of the worst tenth of the clients and the
standard deviation over clients.

- **Two shards**: two pieces of the examples in order of class at each client, so mostly
  two classes, and the same names of classes everywhere.
- **Own names**: five classes at each client, which numbers them in an order of its own.
  No model is right at all clients; whatever helps comes from the adaptation.

FedAvg, Reptile and Per-FedAvg go through up to 200 examples a client and round: ten
local steps on 20 (Reptile 20 steps, twice through them; with 10 it would be FedAvg, as
all clients are of one size), or five meta-steps on 20 of support and 20 of query. MAML
takes one meta-gradient of 40 examples a client, with Adam at the server. Each method
trains at two rates (0.1 and 0.2 at the clients, 0.003 and 0.01 of Adam), of which the
validation chooses too; training looks through K=1 step of 0.1, or through the K that is
named. Before is the model that is then adapted by 5 steps."""
CELL = "{:.3f} ± {:.3f} ({:.2f}, {:.2f})"
COLUMNS = {
    "method": "trained by",
    "before": "before",
    "1": "after 1 step",
    "5": "after 5 steps",
    "seconds": "seconds of training",
}


def write_page(
    rows: Sequence[dict[str, Any]], settings: dict[str, Any], *, complete: bool
) -> Path:
    """Write the page and its figure; one that is not complete goes elsewhere."""
    folder = ROOT / ("docs/experiments" if complete else ".benchmarks/partial")
    figure = _figure(rows, folder / "personalisation.png")
    names = dict.fromkeys(row["federation"] for row in rows)
    sections = [f"## {name}\n\n{table(_lines(rows, name), COLUMNS)}" for name in names]
    parts = [
        "# Personalisation: which model do clients adapt best?",
        TEXT.format(**settings),
        "```sh\npython -m benchmarks personalisation\n```",
        *sections,
        f"![Accuracy of the clients after 5 steps]({figure.name})",
        f"Measured on: {describe(machine())}.",
    ]
    page = folder / "personalisation.md"
    page.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return page


def _lines(rows: Sequence[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    here = [row for row in rows if row["federation"] == name]
    lines = []
    for method in dict.fromkeys(row["method"] for row in here):
        runs = [row for row in here if row["method"] == method]
        cells = {
            "before": _cell([run["5"]["before"] for run in runs]),
            "1": _cell([run["1"]["after"] for run in runs]),
            "5": _cell([run["5"]["after"] for run in runs]),
            "seconds": float(min(run["seconds"] for run in runs)),
        }
        lines.append({"method": method, **cells})
    return lines


def _cell(spreads: Sequence[dict[str, float]]) -> str:
    means, worst, sd = ([s[k] for s in spreads] for k in ("mean", "worst", "sd"))
    return CELL.format(np.mean(means), np.std(means), np.mean(worst), np.mean(sd))


def _figure(rows: Sequence[dict[str, Any]], path: Path) -> Path:
    """Draw the clients' accuracies from the worst to the best, means over seeds."""
    names = list(dict.fromkeys(row["federation"] for row in rows))
    figure = require("matplotlib.figure").Figure(
        figsize=(5.5 * len(names), 4.2), dpi=120, layout="constrained"
    )
    require("matplotlib.backends.backend_agg").FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(names), squeeze=False)[0]
    for axes, name in zip(panels, names, strict=True):
        here = [row for row in rows if row["federation"] == name]
        for k, method in enumerate(dict.fromkeys(row["method"] for row in here)):
            runs = [row["5"]["clients"] for row in here if row["method"] == method]
            clients = np.mean(runs, axis=0)
            share = (np.arange(len(clients)) + 0.5) / len(clients)
            axes.plot(share, clients, label=method, color=COLOURS[k], lw=1.4)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="0.92")
        axes.set(xlabel="clients, from the worst to the best", title=name)
    panels[0].set_ylabel("test accuracy after 5 steps")
    panels[-1].legend(frameon=False, fontsize=8, loc="lower right")
    figure.savefig(path)
    return path
