"""What the clients' choice of kernels is worth, before they train what they chose."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks._report import ROOT, table
from benchmarks._study import Study
from benchmarks._study_runs import Job, overrides
from benchmarks._submodel_studies import HIGH, WIDTHS

RULES = {"learned": "learned", "static": "the first", "random": "at random"}


def choice(command: str, name: str, study: Study, label: str) -> dict[str, list[float]]:
    """Return the accuracy of sub-models on their clients' examples, by rule and width.

    The series runs with seed 0, and then each client keeps of the last model, at each
    width, the units with its largest scores, the first ones, or random ones. Accuracy
    is the mean over 100 examples of each client, all classes being possible.
    """
    import jax
    import jax.numpy as jnp
    import numpy as np

    from algorithms import ALGORITHMS
    from algorithms._submodel_round import units_of
    from fad import submodels
    from fad.experiment import load, run
    from fad.experiment._tasks import build

    values = overrides(study, Job(command, name, label, HIGH, 0))
    values["eval_every"] = values["rounds"]
    path = ROOT / "configs" / study.config
    experiment = load(path, ALGORITHMS, overrides=values)
    algorithm, task = build(ALGORITHMS, experiment)
    with tempfile.TemporaryDirectory() as folder:
        done = run(experiment, algorithm, task, Path(folder, "run"), progress=False)
    assert done.memories is not None
    key, clients = jax.random.key(0), task.train.num_clients
    options = {"batch_size": 100, "epochs": 1, "max_examples": 100}
    cohort = task.train.cohort(key, clients, **options).unsafe_gather()
    memory, units = done.memories.read(np.asarray(cohort.client)), units_of(task)
    params = done.state.params

    def accuracy(own, rule, width):
        examples, scores, client = own
        kept = units.kept(width)
        drawn = jax.random.fold_in(key, client)
        chosen = units.choose(rule, kept, scores=scores, key=drawn)
        sizes = units.sizes
        masks = {k: jnp.zeros(sizes[k]).at[v].set(1) for k, v in chosen.items()}
        held = submodels.masked(units, params, masks)
        return task.metrics(held, jax.tree.map(lambda x: x[0], examples))["accuracy"]

    own = cohort.examples, jax.tree.map(jnp.asarray, memory.scores), cohort.client
    found: dict[str, list[float]] = {}
    for rule in RULES:
        for width in WIDTHS:
            each = jax.lax.map(lambda x, r=rule, w=width: accuracy(x, r, w), own)
            found.setdefault(rule, []).append(round(float(each.mean()), 4))
    return found


def choice_text(found: Mapping[str, Any]) -> str:
    """Return the table of what the choice is worth, and what it says."""
    columns = {"rule": "kernels"} | {str(w): f"p = {w:g}" for w in WIDTHS}
    rows = []
    for rule, name in RULES.items():
        cells = (f"{100 * x:.1f}" for x in found[rule])
        rows.append({"rule": name, **dict(zip(columns, [name, *cells], strict=True))})
    narrow = [
        (learned, max(first, drawn))
        for learned, first, drawn in zip(*(found[r][1:] for r in RULES), strict=True)
    ]
    better = sum(learned > other for learned, other in narrow)
    return (
        "## What the choice of kernels is worth\n\n"
        f"FedSep ({HIGH}, seed 0) after its last round: the accuracy, in percent, of "
        "sub-models of the global model on 100 examples of the client that chose them, "
        "before it trains them; mean over all clients.\n\n"
        f"{table(rows, columns)}\n\n"
        f"The learned kernels are better than both the first ones and random ones at "
        f"{better} of {len(narrow)} widths below 1. That is on a client's own few "
        "classes; the tables above are of the global model, on all of them."
    )
