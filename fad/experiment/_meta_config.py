"""The configuration of meta-training: an aggregator, and what it learns on."""

import dataclasses
from pathlib import Path
from typing import Any, Literal

from fad.experiment import _toml
from fad.experiment._config import _FOLDER_NAME
from fad.experiment._task_config import DataConfig, ModelConfig, at_least

Range = tuple[float, float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class AggregatorConfig:
    """Which aggregator is learned.

    Attributes:
        name: A name that ``fad.aggregators.make`` knows, or ``module:function``.
        options: The aggregator's own, but for ``rounds``.
    """

    name: str = "learned"
    options: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Federation:
    """A family of federations; every inner run draws one of them.

    A draw has its own seed of the partition, initial model and cohorts.

    Attributes:
        label: Its name in the metrics.
        runs: Inner runs at a time, each on a draw of its own.
        examples: Only so many examples of the set are used.
        alpha: The range of the partition's concentration, drawn log-uniformly; without
            it, that of ``data``.
        client_lr: The range of the clients' step, drawn log-uniformly.
        data: The data; its seed is drawn.
        model: The model.
    """

    label: str
    runs: int = 1
    examples: int | None = None
    alpha: Range | None = None
    client_lr: Range
    data: DataConfig
    model: ModelConfig

    def __post_init__(self) -> None:
        """Check the ranges."""
        at_least(self, 1, "runs")
        if self.examples is not None:
            at_least(self, 1, "examples")
            if self.data.partition == "natural":
                raise ValueError("examples is not for a natural partition")
        for name in ("alpha", "client_lr"):
            low, high = getattr(self, name) or (1.0, 1.0)
            if not 0 < low <= high:
                got = [low, high]
                raise ValueError(f"{name}: expected 0 < low <= high, got {got}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MetaTraining:
    """Meta-training of one aggregator.

    Attributes:
        name: Name of the run folder.
        seed: Seed of everything.
        steps: Number of meta-steps.
        rounds: Length of an inner run; then another federation is drawn.
        window: Rounds of each inner run in a meta-step, through which the meta-gradient
            goes; the state of the inner run passes on.
        estimator: Of the meta-gradient: ``reverse`` through the window; ``forward``,
            through the whole inner run, for a small theta; ``es`` and ``pes``,
            evolution strategies through the window and through the whole inner run.
        sigma: Of ``es`` and ``pes``: the size of the perturbations.
        pairs: Of ``es`` and ``pes``: the pairs of perturbed inner runs.
        objective: The mean over rounds of the ``loss``, which minds a bad round, or of
            the ``log_loss``, which weighs federations alike whatever their losses.
        emphasis: Power of t / T by which later rounds weigh more; 0 weighs all alike.
        meta_lr: Adam's step on theta; it falls to a tenth along a cosine.
        clip: The largest norm of each inner run's gradient, so that none rules.
        on_divergence: What an inner run that became infinite or NaN does to its
            meta-step, before it is started anew: ``skip`` leaves it out, ``clip`` takes
            what is finite of its gradient, ``raise`` ends the meta-training.
        checkpoint_every: Meta-steps between two checkpoints.
        cohort: Clients per round.
        batch_size: Examples per local step.
        epochs: Local passes over a client's examples.
        max_examples: At most so many examples of a client in a pass.
        aggregator: What is learned.
        federation: The families; each of their inner runs counts the same.
    """

    name: str
    seed: int = 0
    steps: int
    rounds: int
    window: int
    estimator: Literal["reverse", "forward", "es", "pes"] = "reverse"
    sigma: float = 0.01
    pairs: int = 2
    objective: Literal["loss", "log_loss"] = "loss"
    emphasis: float = 1.0
    meta_lr: float = 0.003
    clip: float = 1.0
    on_divergence: Literal["skip", "clip", "raise"] = "skip"
    checkpoint_every: int
    cohort: int
    batch_size: int
    epochs: int = 1
    max_examples: int
    aggregator: AggregatorConfig = dataclasses.field(default_factory=AggregatorConfig)
    federation: tuple[Federation, ...]

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not _FOLDER_NAME.fullmatch(self.name):
            raise ValueError(f"name must be a folder name, got {self.name!r}")
        at_least(self, 0, "seed", "emphasis")
        at_least(self, 1, "steps", "rounds", "window", "checkpoint_every", "pairs")
        at_least(self, 1, "cohort", "batch_size", "epochs", "max_examples")
        for name in ("sigma", "meta_lr", "clip"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be > 0, got {getattr(self, name)}")
        if self.rounds % self.window:
            raise ValueError(
                f"window must divide rounds, got window = {self.window} and "
                f"rounds = {self.rounds}"
            )
        labels = [f.label for f in self.federation]
        if not labels or len({*labels}) < len(labels):
            raise ValueError(
                f"federation: expected one or more with different labels, got {labels}"
            )


def load_meta(path: str | Path) -> MetaTraining:
    """Load a meta-training from its TOML file.

    Args:
        path: The file.

    Returns:
        The meta-training.

    Raises:
        ConfigError: The file is missing, is not TOML, or does not fit the schema.

    Example:
        >>> import tempfile
        >>> text = '''
        ... name = "short"
        ... steps = 2
        ... rounds = 4
        ... window = 2
        ... checkpoint_every = 2
        ... cohort = 4
        ... batch_size = 5
        ... max_examples = 10
        ... [[federation]]
        ... label = "digits"
        ... client_lr = [0.1, 0.1]
        ... data.clients = 10
        ... model.name = "logistic"
        ... '''
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "short.toml")
        ...     _ = path.write_text(text)
        ...     load_meta(path).federation[0].label
        'digits'
    """
    return _toml.convert(MetaTraining, _toml.read(path), where=f"{path}")


def dump_meta(config: MetaTraining) -> str:
    """Write it as TOML text that ``load_meta`` reads back to an equal value."""
    whole = dataclasses.asdict(config)
    federations = whole.pop("federation")
    parts = ["", *("\n[[federation]]" for _ in federations)]
    lines = []
    for head, table in zip(parts, [whole, *federations], strict=True):
        flat = {k: v for k, v in _toml.flatten(table).items() if v is not None}
        lines += [head] if head else []
        lines += [f"{key} = {_toml.format_value(v)}" for key, v in flat.items()]
    return "\n".join(lines) + "\n"
