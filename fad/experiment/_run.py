"""The run loop: rounds, evaluation, metrics, checkpoints, resume."""

import contextlib
import dataclasses
import functools
import os
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from fad.data import ClientMemories
from fad.distributed import check_agreement
from fad.experiment import _folder
from fad.experiment._checkpoint import Checkpoints
from fad.experiment._config import Experiment
from fad.experiment._figure import plot_run
from fad.experiment._loop import Keys, Loop
from fad.experiment._metrics import JsonlWriter, Row, keep_rows, read_rows
from fad.experiment._processes import any_of, by_first, leads
from fad.experiment._progress import Progress
from fad.experiment._stop import Stopped, stop_request


@dataclasses.dataclass(frozen=True)
class RunResult:
    """What a run leaves.

    Attributes:
        folder: The run folder.
        state: The algorithm's last state; ``state.params`` is the model, of two levels
            ``(x, y)``.
        rows: The rows of ``metrics.jsonl``, one a round.
        memories: What the clients keep, where the algorithm lets them.
    """

    folder: Path
    state: Any
    rows: list[Row]
    memories: ClientMemories | None = None


def run(
    experiment: Experiment,
    algorithm: Any,
    task: Any,
    folder: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
    mesh: Mesh | None = None,
) -> RunResult:
    """Run an experiment and write its folder.

    The folder gets ``config.toml``, ``metrics.jsonl``, ``checkpoints/`` and
    ``figure.png``. Every random number depends on ``experiment.seed`` and the round
    alone: a run that was stopped and resumed gives the same bits as one that was not.

    Args:
        experiment: Length of training, cohorts, seed.
        algorithm: The ``fad.Algorithm``.
        task: The ``fad.data.Task`` or ``fad.data.BilevelTask``.
        folder: The run folder.
        resume: Continue the run in the folder; only ``rounds`` may have grown.
        overwrite: Replace the run in the folder.
        progress: Show progress on stderr.
        mesh: Devices over which the clients are split, ``fad.distributed.mesh()``. All
            of its processes call ``run`` together with one folder, which process 0
            alone writes, as it alone shows progress.

    Returns:
        The folder, the last state and the metrics.

    Raises:
        RunError: The folder holds a run already; it cannot be resumed; it cannot be
            written.
        Diverged: A loss or the parameters are not finite.
        Stopped: Ctrl-C or SIGTERM; a checkpoint was left.

    Example:
        Training that averages the clients' models after one local pass:

        >>> import collections, tempfile, typing, fad, optax
        >>> from fad.experiment import DataConfig, ModelConfig, make_task
        >>> data, model = DataConfig(clients=4), ModelConfig(name="logistic")
        >>> task = make_task(data, model)
        >>> State = collections.namedtuple("State", "params")
        >>> @fad.program
        ... def step(state, cohort, key):
        ...     sgd = dict(loss=task.loss, optimizer=optax.sgd(0.5))
        ...     train = lambda batches: fad.local.train(state.params, batches, **sgd)
        ...     delta = fad.mean(fad.map(train, cohort).delta)
        ...     return State(optax.apply_updates(state.params, delta)), {}
        >>> algorithm = fad.Algorithm(lambda key: State(task.init(key)), step)
        >>> @dataclasses.dataclass(frozen=True)
        ... class Config:
        ...     name: typing.ClassVar[str] = "averaging"
        >>> experiment = Experiment(
        ...     name="short",
        ...     rounds=2,
        ...     eval_every=1,
        ...     checkpoint_every=2,
        ...     cohort=4,
        ...     batch_size=32,
        ...     epochs=1,
        ...     algorithm=Config(),
        ...     data=data,
        ...     model=model,
        ... )
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     result = run(experiment, algorithm, task, folder, progress=False)
        ...     sorted(path.name for path in result.folder.iterdir())
        ['checkpoints', 'config.toml', 'figure.png', 'metrics.jsonl']
        >>> result.rows[-1]["accuracy"] > result.rows[0]["accuracy"]
        True
    """
    folder = Path(folder)
    options = {"resume": resume, "overwrite": overwrite}
    keys = Keys(*jax.random.split(jax.random.key(experiment.seed), 3))
    # What does not fit the data is refused before there is a folder.
    loop = Loop(experiment, algorithm, task, keys, folder, mesh)
    by_first(lambda: _folder.prepare(experiment, folder, **options))
    checkpoints = Checkpoints(folder / "checkpoints")
    with contextlib.closing(loop.cohorts):
        state = loop.start()
        start = max(checkpoints.rounds(), default=0)
        if start:
            state = loop.restore(functools.partial(checkpoints.load, start), state)
        check_agreement(f"fad.experiment.run({folder}, from round {start})", [])
        by_first(lambda: keep_rows(folder / "metrics.jsonl", start))
        rows, shown = read_rows(folder / "metrics.jsonl"), progress and leads()
        view = Progress(experiment.name, experiment.rounds, start=start, enabled=shown)
        with contextlib.closing(view):
            state = _train(loop, checkpoints, start, state, rows, view)
    by_first(lambda: plot_run(folder, title=experiment.name))
    return RunResult(folder=folder, state=state, rows=rows, memories=loop.memories)


def _train(
    loop: Loop,
    checkpoints: Checkpoints,
    start: int,
    state: Any,
    rows: list[Row],
    view: Progress,
) -> Any:
    """Run the rounds that are left, appending to ``rows``; return the last state."""
    config, folder = loop.experiment, loop.folder
    writer = JsonlWriter(folder / "metrics.jsonl" if leads() else Path(os.devnull))
    with contextlib.closing(writer), stop_request() as stop_requested:
        for t in range(start + 1, config.rounds + 1):
            state, row = loop.round(t, state)
            rows.append({"round": t, **row})
            writer.write(t, row)
            view.update(t, row)
            stop = any_of(stop_requested())
            if stop or t % config.checkpoint_every == 0 or t == config.rounds:
                saved = loop.saved(state)
                by_first(functools.partial(checkpoints.save, t, saved))
            if stop:
                raise Stopped(
                    f"{folder}: stopped after round {t} of {config.rounds}; "
                    f"continue with --resume"
                )
    return state
