"""Running the studies of a command: what is missing, a process on each core.

Every run is an experiment of ``configs/`` with some values replaced.
"""

import argparse
import importlib
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks._report import ROOT
from benchmarks._study import Series, Study
from benchmarks._study_page import write_page


class Job(NamedTuple):
    """One run of a study of ``benchmarks.<command>``."""

    command: str
    study: str
    series: str
    split: str
    seed: int


def studies(command: str) -> Mapping[str, Study]:
    """Return the studies of a command."""
    return importlib.import_module(f"benchmarks.{command}").STUDIES


def options_of(command: str, argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks {command}")
    parser.add_argument("study", choices=studies(command))
    parser.add_argument("--seeds", type=int, default=5, help="at least 2")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--part", choices=("paper", "others"), help="of the series")
    parser.add_argument("--again", action="store_true", help="run what is kept, too")
    parser.add_argument("--page", action="store_true", help="only write the page again")
    return parser.parse_args(argv)


def run_study(
    command: str, argv: Sequence[str], *, write: Callable[..., None] = write_page
) -> int:
    """Run what is missing, keep the curves, and write the page.

    Runs that are kept already, of the same settings, are not run again.
    """
    options = options_of(command, argv)
    study = studies(command)[options.study]
    path = results_path(command, options.study)
    found = json.loads(path.read_text()) if path.exists() else {}
    forget(found, study, again=options.again)
    jobs = [
        job
        for job in jobs_of(command, study, options)
        if str(job.seed) not in _kept(found, study, job)["runs"]
    ]
    began = time.perf_counter()
    if not options.page:
        for job, run in _run_all(jobs, options.jobs):
            _kept(found, study, job)["runs"][str(job.seed)] = run
            path.write_text(json.dumps(found) + "\n")
            last, minutes = run["accuracy"][-1], (time.perf_counter() - began) / 60
            line = f"{minutes:5.1f} min: {' '.join(map(str, job[2:]))}: {last}"
            print(line, flush=True)
    write(command, options.study, study, found)
    return 0


def results_path(command: str, name: str) -> Path:
    """Return where the runs of a study are kept."""
    name = name if name.startswith(f"{command}_") else f"{command}_{name}"
    return ROOT / "benchmarks" / "results" / f"{name}.json"


def jobs_of(command: str, study: Study, options: argparse.Namespace) -> list[Job]:
    """Return all runs, seed by seed, so that each process compiles other ones.

    The longest of a seed are first, so that no core waits at the end.
    """
    chosen = [
        (label, series)
        for label, series in study.series.items()
        if options.part in (None, series.part)
    ]
    chosen.sort(key=lambda item: -item[1].seconds)
    return [
        Job(command, options.study, label, split, seed)
        for seed in range(options.seeds)
        for label, series in chosen
        for split in (series.splits or study.splits)
    ]


def forget(found: dict[str, Any], study: Study, *, again: bool) -> None:
    """Drop what is kept of other settings, or all of it."""
    for label in list(found):
        known = study.series.get(label)
        if again or known is None or found[label]["settings"] != known.settings():
            del found[label]


def _kept(found: dict[str, Any], study: Study, job: Job) -> dict[str, Any]:
    settings = study.series[job.series].settings()
    series = found.setdefault(job.series, {"settings": settings, "splits": {}})
    return series["splits"].setdefault(job.split, {"runs": {}})


def _run_all(jobs: Sequence[Job], processes: int) -> Iterator[tuple[Job, Any]]:
    """Yield the runs as they end, each process on a core of its own."""
    context = multiprocessing.get_context("spawn")
    cores = context.Queue()
    for core in range(processes):
        cores.put(core)
    with (
        tempfile.TemporaryDirectory() as cache,
        context.Pool(processes, _own_core, (cores, cache)) as pool,  # ended with us
    ):
        yield from pool.imap_unordered(_named_run, jobs)


def _own_core(cores: Any, cache: str) -> None:
    """Stay on one core, and share compiled programs with the other processes."""
    core = cores.get()
    if hasattr(os, "sched_setaffinity"):
        own = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {own[core % len(own)]})
    import jax

    jax.config.update("jax_compilation_cache_dir", cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def _named_run(job: Job) -> tuple[Job, dict[str, Any]]:
    return job, run(job)


def run(job: Job) -> dict[str, Any]:
    """Run one experiment: its metrics, and the rounds and bytes of a step."""
    from algorithms import ALGORITHMS
    from fad.experiment import Diverged, load, read_rows
    from fad.experiment import run as run_experiment
    from fad.experiment._plan import plan_step
    from fad.experiment._tasks import build

    study = studies(job.command)[job.study]
    series = study.series[job.series]
    path, values = ROOT / "configs" / study.config, overrides(study, job)
    experiment = load(path, ALGORITHMS, overrides=values)
    algorithm, task = build(ALGORITHMS, experiment)
    if study.begin is not None and series.start != "as configured":
        algorithm = study.begin(series.start, algorithm, experiment)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder, "run")
        try:
            rows = run_experiment(
                experiment, algorithm, task, place, progress=False
            ).rows
        except Diverged:
            rows = read_rows(place / "metrics.jsonl")
    cost = plan_step(experiment, algorithm, task).cost()
    tested = [row for row in rows if study.metric in row]
    names = [n for n in (study.metric, *study.others) if not tested or n in tested[0]]
    steps = evaluated(series)
    gone = [None] * (len(steps) - len(tested))  # after a divergence
    return {
        "rounds": int(cost.rounds),
        "bytes": [int(cost.bytes_down), int(cost.bytes_up)],
        "flops": int(cost.client_flops),
        "steps": steps,
        **{name: [round(row[name], 5) for row in tested] + gone for name in names},
        "seconds": round(time.perf_counter() - began, 1),
    }


def evaluated(series: Series) -> list[int]:
    """Return the steps after which a run is evaluated, the last one included."""
    return sorted({*range(series.every, series.steps, series.every), series.steps})


def overrides(study: Study, job: Job) -> dict[str, Any]:
    """Return what a run replaces of the study's configuration."""
    series = study.series[job.series]
    values = {**study.splits[job.split], **series.set, "rounds": series.steps}
    values |= {"algorithm": dict(series.algorithm), "eval_every": series.every}
    values |= {"checkpoint_every": series.steps}
    return values | {"seed": job.seed, "data.seed": job.seed}
