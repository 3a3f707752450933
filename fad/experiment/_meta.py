"""Meta-training: learn an aggregator by differentiating through training runs."""

import contextlib
import dataclasses
import math
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fad import aggregators
from fad.aggregators import Aggregator
from fad.estimators import Estimate, InnerRunDiverged
from fad.experiment._checkpoint import Checkpoints
from fad.experiment._meta_config import MetaTraining
from fad.experiment._meta_figure import plot_meta
from fad.experiment._meta_folder import prepare
from fad.experiment._meta_slots import Slot, make_slots
from fad.experiment._meta_update import as_estimate, join, make_update
from fad.experiment._metrics import JsonlWriter, Row, keep_rows
from fad.experiment._progress import Progress
from fad.experiment._stop import Stopped, stop_request


@dataclasses.dataclass(frozen=True)
class MetaResult:
    """What meta-training leaves.

    Attributes:
        folder: The run folder, which ``fad.aggregators.load`` reads.
        theta: The learned parameters.
        rows: The rows of ``metrics.jsonl``, one a meta-step.
    """

    folder: Path
    theta: Any
    rows: list[Row]


def meta_train(
    config: MetaTraining,
    folder: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
) -> MetaResult:
    """Meta-train an aggregator and write its folder.

    Inner runs of ``config.rounds`` rounds live side by side, each on a federation of
    its own that is drawn anew when the run is over. A meta-step takes each a window
    further, averages the clipped gradients of the windows' losses, and moves theta. A
    run that diverges is reported with its round, treated as ``on_divergence`` says, and
    started anew; theta stays finite whatever happens.

    The folder gets ``config.toml``, ``metrics.jsonl``, ``checkpoints/``, ``figure.png``
    and ``theta.npz``, the frozen aggregator. All random numbers depend on the seed and
    on the meta-step: a run that was stopped and resumed gives the same bits.

    Args:
        config: What to learn, and on what.
        folder: The run folder.
        resume: Continue the run in the folder.
        overwrite: Replace the run in the folder.
        progress: Show progress on stderr.

    Returns:
        The folder, theta and the metrics.

    Raises:
        ConfigError: The configuration does not fit the data.
        RunError: The folder holds a run already; it cannot be resumed or written.
        InnerRunDiverged: An inner run did, where ``on_divergence`` is ``raise``.
        Stopped: Ctrl-C or SIGTERM; a checkpoint was left.

    Example:
        >>> import tempfile
        >>> from fad.experiment import DataConfig, ModelConfig
        >>> from fad.experiment import Federation, MetaTraining
        >>> digits = Federation(
        ...     label="digits",
        ...     examples=200,
        ...     client_lr=(0.1, 0.1),
        ...     data=DataConfig(clients=10),
        ...     model=ModelConfig(name="logistic"),
        ... )
        >>> config = MetaTraining(
        ...     name="short",
        ...     steps=2,
        ...     rounds=4,
        ...     window=2,
        ...     checkpoint_every=2,
        ...     cohort=4,
        ...     batch_size=5,
        ...     max_examples=10,
        ...     federation=(digits,),
        ... )
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     result = meta_train(config, folder, progress=False)
        ...     sorted(path.name for path in result.folder.iterdir())
        ['checkpoints', 'config.toml', 'figure.png', 'metrics.jsonl', 'theta.npz']
    """
    folder = Path(folder)
    loop = _Loop(config, folder)
    prepare(config, folder, resume=resume, overwrite=overwrite)
    checkpoints = Checkpoints(folder / "checkpoints")
    start = max(checkpoints.rounds(), default=0)
    if start:
        loop.restore(checkpoints.load(start, loop.state))
    rows = keep_rows(folder / "metrics.jsonl", start)
    view = Progress(config.name, config.steps, start=start, enabled=progress)
    with contextlib.closing(view):
        _train(loop, checkpoints, start, rows, view)
    plot_meta(folder, title=config.name)
    return MetaResult(folder, loop.theta, rows)


def _train(
    loop: "_Loop",
    checkpoints: Checkpoints,
    start: int,
    rows: list[Row],
    view: Progress,
) -> None:
    """Take the meta-steps that are left, appending to ``rows``."""
    config, folder = loop.config, loop.folder
    writer = JsonlWriter(folder / "metrics.jsonl")
    with contextlib.closing(writer), stop_request() as stop_requested:
        for t in range(start + 1, config.steps + 1):
            row = loop.step(t)
            rows.append({"round": t, **row})
            writer.write(t, row)
            view.update(t, {"loss": row["meta_loss"]})
            stop = stop_requested()
            if stop or t % config.checkpoint_every == 0 or t == config.steps:
                loop.save()
                checkpoints.save(t, loop.state)
            if stop:
                raise Stopped(
                    f"{folder}: stopped after meta-step {t} of {config.steps}; "
                    f"continue with --resume"
                )


class _Loop:
    """Theta, the meta-optimizer's state and the inner runs."""

    def __init__(self, config: MetaTraining, folder: Path) -> None:
        self.config, self.folder = config, folder
        chosen = config.aggregator
        made = aggregators.make(chosen.name, rounds=config.rounds, **chosen.options)
        self.theta, self._slots = _start(config, made)
        self._update = make_update(config)
        self._meta = self._update.init(self.theta)
        self._move = jax.jit(self._combine)
        for slot in self._slots:
            slot.start(self.theta, 0)

    def _combine(self, theta: Any, meta: Any, gradients: list, finite: list) -> Any:
        gradient, counts = join(self.config, gradients, finite)
        estimate = as_estimate(gradient, counts)
        with jax.numpy_dtype_promotion("standard"):  # optax counts in int32
            theta, meta = self._update.update(estimate, meta, theta)
        norm = jax.numpy.sqrt(sum((g**2).sum() for g in jax.tree.leaves(gradient)))
        return theta, meta, norm

    def step(self, t: int) -> Row:
        """Take a meta-step; return its metrics."""
        began = time.perf_counter()
        estimates, row = [], {}
        for slot in self._slots:
            first, estimate = slot.age + 1, slot.advance(self.theta)
            estimates.append((slot, estimate))
            if not estimate.finite:
                row[f"diverged_{slot.label}"] = self._report(t, slot, estimate, first)
        gradients = [e.gradient for _, e in estimates]
        finite = [e.finite for _, e in estimates]
        moved = self._move(self.theta, self._meta, gradients, finite)
        self.theta, self._meta, norm = moved
        for slot, estimate in estimates:
            if slot.over() or not estimate.finite:
                slot.start(self.theta, slot.run + 1)
        return {
            **_losses(estimates),
            **row,
            "gradient_norm": float(norm),
            "diverged": sum(not x for x in finite),
            "seconds": time.perf_counter() - began,
        }

    def _report(self, t: int, slot: Slot, estimate: Estimate, first: int) -> int:
        """Tell of an inner run that diverged; return its round."""
        where = f"{self.folder}: meta-step {t}, run {slot.run} of {slot.label!r}"
        found = self._update.check(estimate, first)
        assert found is not None  # The estimate is not finite.
        if self.config.on_divergence == "raise":
            raise InnerRunDiverged(
                f"{where}: {found}", round=found.round, state=found.state
            )
        sys.stderr.write(f"{where}: {found} Started anew.\n")
        return found.round

    def save(self) -> None:
        """Write the frozen aggregator."""
        chosen, rounds = self.config.aggregator, self.config.rounds
        aggregators.save(
            self.folder, self.theta, name=chosen.name, rounds=rounds, **chosen.options
        )

    @property
    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        slots = [slot.state for slot in self._slots]
        return {"theta": self.theta, "meta": self._meta, "slots": slots}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.theta, self._meta = state["theta"], state["meta"]
        for slot, kept in zip(self._slots, state["slots"], strict=True):
            slot.restore(kept)


def _start(config: MetaTraining, made: Aggregator) -> tuple[Any, list[Slot]]:
    key = jax.random.fold_in(jax.random.key(config.seed), 2**31 - 1)
    return made.init_theta(key), make_slots(config, made)


def _losses(estimates: list[tuple[Slot, Estimate]]) -> Row:
    """Average the objective over the finite runs, and over those of each family."""
    values: dict[str, list[float]] = {}
    for slot, estimate in estimates:
        value = float(estimate.value)
        if math.isfinite(value):
            values.setdefault(slot.label, []).append(value)
    every = [v for family in values.values() for v in family]
    each = {f"loss_{label}": float(np.mean(v)) for label, v in values.items()}
    return {"meta_loss": float(np.mean(every)) if every else math.nan, **each}
