"""Several experiments on one figure and in one table."""

import dataclasses
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fad.experiment import _toml
from fad.experiment._comparison import Comparison, Entry, slug
from fad.experiment._config import Experiment, load
from fad.experiment._disk import writing
from fad.experiment._figure import Curve, plot
from fad.experiment._folder import check_new
from fad.experiment._loop import Diverged
from fad.experiment._metrics import read_rows
from fad.experiment._page import write_page
from fad.experiment._report import print_table
from fad.experiment._run import run
from fad.experiment._table import (
    Result,
    Run,
    cells,
    check_metrics,
    choose,
    markdown,
    tabulate,
    target_level,
)
from fad.experiment._tasks import build


@dataclasses.dataclass(frozen=True)
class _Point:
    """One experiment to run: an entry at one place of its grid."""

    label: str
    folder: str
    experiment: Experiment


def compare(
    path: str | Path,
    algorithms: Mapping[str, Any],
    *,
    runs_dir: str | Path = "runs",
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
    page: str | Path | None = None,
) -> Path:
    """Run the experiments of a comparison file, then draw and tabulate them.

    The folder ``<runs_dir>/<name>/`` gets ``figure.png``, ``table.md``, ``table.json``
    and a run folder for each experiment. A run that diverges is shown up to there; a
    point of a grid that does is left out, unless all do.

    Args:
        path: The comparison's TOML file.
        algorithms: The known algorithms by name.
        runs_dir: Where the folder goes.
        resume: Continue what was stopped; finished runs are not run again.
        overwrite: Replace the runs that are there.
        progress: Show progress on stderr, and the table on stdout.
        page: A folder that gets ``<name>.md`` and ``<name>.png``, for documentation.

    Returns:
        The folder.

    Raises:
        ConfigError: A file or an override does not fit.
        RunError: The folder exists or cannot be written; a run failed otherwise than
            by divergence; a metric is unknown.

    Example:
        One run of an algorithm that leaves the model as it is:

        >>> import collections, tempfile, types, typing, fad
        >>> State = collections.namedtuple("State", "params")
        >>> @dataclasses.dataclass(frozen=True)
        ... class Config:
        ...     name: typing.ClassVar[str] = "idle"
        >>> @fad.program
        ... def step(state, cohort, key):
        ...     fill = fad.map(lambda batches: batches.mask.mean(), cohort)
        ...     return state, {"fill": fad.mean(fill)}
        >>> def build(config, task):
        ...     return fad.Algorithm(lambda key: State(task.init(key)), step)
        >>> algorithms = {"idle": types.SimpleNamespace(Config=Config, build=build)}
        >>> experiment = '''
        ... name = "idle"
        ... rounds = 1
        ... eval_every = 1
        ... checkpoint_every = 1
        ... cohort = 2
        ... batch_size = 512
        ... epochs = 1
        ... algorithm.name = "idle"
        ... data.clients = 4
        ... model.name = "logistic"
        ... '''
        >>> comparison = '''
        ... name = "one"
        ... title = "One run"
        ... run = [{label = "idle", config = "idle.toml"}]
        ... '''
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "idle.toml").write_text(experiment)
        ...     path = Path(folder, "one.toml")
        ...     _ = path.write_text(comparison)
        ...     made = compare(path, algorithms, runs_dir=folder, progress=False)
        ...     sorted(path.name for path in made.iterdir())
        ['figure.png', 'idle', 'table.json', 'table.md']
    """
    path = Path(path)
    comparison = _toml.convert(Comparison, _toml.read(path), where=f"{path}")
    # Every configuration is read before the first run starts.
    work = [(e, _points(e, path, algorithms)) for e in comparison.run]
    folder = Path(runs_dir) / comparison.name
    check_new(folder, resume=resume, overwrite=overwrite)
    flags = {"resume": resume, "overwrite": overwrite, "progress": progress}
    results = [
        choose(comparison, entry, _run_entry(points, algorithms, folder, flags))
        for entry, points in work
    ]
    check_metrics(comparison, results)
    target = target_level(comparison, results)
    _write(comparison, results, folder, target, progress)
    if page is not None:
        write_page(comparison, path, folder, target, Path(page))
    return folder


def _points(entry: Entry, path: Path, algorithms: Mapping[str, Any]) -> list[_Point]:
    """Load the experiments of an entry."""
    points = []
    for values in entry.points():
        named = [f"{k.rpartition('.')[2]}={v}" for k, v in values.items()]
        label = f"{entry.label} ({', '.join(named)})" if named else entry.label
        experiment = load(
            path.parent / entry.config,
            algorithms,
            overrides={**entry.set, **values},
            note=f" (run {entry.label!r} of {path})",
        )
        points.append(_Point(label, slug(label), experiment))
    return points


def _run_entry(
    points: list[_Point],
    algorithms: Mapping[str, Any],
    folder: Path,
    flags: dict[str, bool],
) -> list[Run]:
    """Run an entry's experiments.

    Returns:
        Those that did not diverge, or the last where all did.
    """
    runs = [_run_point(p, algorithms, folder / p.folder, **flags) for p in points]
    return [run for run in runs if not run.diverged] or runs[-1:]


def _run_point(
    point: _Point,
    algorithms: Mapping[str, Any],
    folder: Path,
    *,
    resume: bool,
    overwrite: bool,
    progress: bool,
) -> Run:
    """Run one experiment in its folder."""
    experiment = point.experiment
    algorithm, task = build(algorithms, experiment)
    try:
        result = run(
            dataclasses.replace(experiment, name=point.folder),
            algorithm,
            task,
            folder,
            resume=resume and (folder / "config.toml").exists(),
            overwrite=overwrite,
            progress=progress,
        )
    except Diverged as error:
        if progress:
            sys.stderr.write(f"{error}\n")
        label = f"{point.label} (diverged at round {error.round})"
        return Run(label, read_rows(folder / "metrics.jsonl"), diverged=True)
    return Run(point.label, result.rows)


def _write(
    comparison: Comparison,
    results: list[Result],
    folder: Path,
    target: float | None,
    progress: bool,
) -> None:
    """Write the figure and the tables."""
    table = tabulate(comparison, results, target)
    head, lines = list(table[0]), cells(table)
    with writing(folder):
        (folder / "table.json").write_text(json.dumps(table, indent=2) + "\n")
        (folder / "table.md").write_text(markdown(head, lines), encoding="utf-8")
    grey = [Curve("", run.rows, grey=True) for r in results for run in r.others]
    plot(
        grey + [Curve(r.best.label, r.best.rows) for r in results],
        folder / "figure.png",
        title=comparison.title,
        name=comparison.metric,
        window=comparison.window,
        trace=comparison.trace,
        target=target,
    )
    if progress:
        short = [name.removesuffix(" / client") for name in head]
        caption = "MB: per client of the cohort; to target: down and up together"
        print_table(short, lines, caption=caption)
