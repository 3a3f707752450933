"""The configuration of one experiment, and its TOML file."""

import dataclasses
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from fad._errors import ConfigError, nearest
from fad.experiment import _toml
from fad.experiment._bilevel_config import BilevelConfig
from fad.experiment._task_config import DataConfig, ModelConfig, at_least

A = TypeVar("A")

_FOLDER_NAME = re.compile(r"\w[\w.+-]*")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment(Generic[A]):
    """One run: an algorithm, its task and the length of training.

    Attributes:
        name: Name of the run folder.
        seed: Seed of initial model, cohorts and algorithm.
        rounds: Number of federated rounds.
        eval_every: Rounds between two evaluations on the test examples.
        checkpoint_every: Rounds between two checkpoints.
        cohort: Clients per round.
        sampling: Clients are drawn ``uniform`` or by ``size``.
        replace: Whether a client may stand in a cohort more than once.
        availability: The probability that a client can be reached in a round.
        tiers: Equal parts of the cohort, each of clients with a width of their own.
        tiers_by: A ``client`` always stands in the same tier, its number modulo tiers;
            or clients are shuffled in every ``round``.
        batch_size: Examples per local step.
        epochs: Local passes over a client's examples.
        max_examples: At most so many examples of a client in a pass; without it, all.
        chunk: Clients whose work a device does at a time, which changes speed, memory
            and last bits alone; without it 1 on a CPU, else the whole cohort.
            ``auto`` measures which is fastest, for seconds at the start; a resumed run
            may then choose otherwise, and differ in the last bits.
        algorithm: Options of the algorithm; the file's ``[algorithm] name`` chooses it.
        data: Options of the data.
        model: Options of the model.
        bilevel: Options of a problem of two levels; without it there is one.
    """

    name: str
    seed: int = 0
    rounds: int
    eval_every: int
    checkpoint_every: int
    cohort: int
    sampling: Literal["uniform", "size"] = "uniform"
    replace: bool = False
    availability: float = 1.0
    tiers: int = 1
    tiers_by: Literal["client", "round"] = "client"
    batch_size: int
    epochs: int
    max_examples: int | None = None
    chunk: int | Literal["auto"] | None = None
    algorithm: A
    data: DataConfig
    model: ModelConfig
    bilevel: BilevelConfig | None = None

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not _FOLDER_NAME.fullmatch(self.name):
            raise ValueError(
                f"name must be a folder name of letters, digits and _ . + -, "
                f"got {self.name!r}"
            )
        at_least(self, 0, "seed")
        at_least(self, 1, "rounds", "eval_every", "checkpoint_every")
        at_least(self, 1, "cohort", "batch_size", "epochs", "tiers")
        self._check_tiers()
        for table in ("algorithm", "bilevel"):
            weighting = getattr(getattr(self, table), "weighting", None)
            if self.sampling == "size" and weighting == "examples":
                raise ValueError(
                    'sampling = "size" weighs clients by their examples already: set '
                    f'{table}.weighting = "uniform"'
                )
        for name in ("chunk", "max_examples"):
            if isinstance(getattr(self, name), int):
                at_least(self, 1, name)
        if not 0 < self.availability <= 1:
            raise ValueError(f"availability must be in (0, 1], got {self.availability}")
        if not self.replace and self.cohort > (self.data.clients or math.inf):
            raise ValueError(
                f"cohort must be <= data.clients, got cohort = {self.cohort} and "
                f"data.clients = {self.data.clients}"
            )

    def _check_tiers(self) -> None:
        """Refuse tiers that do not divide the cohort, or are not one per width."""
        if self.cohort % self.tiers:
            raise ValueError(
                f"cohort must be a multiple of tiers, got cohort = {self.cohort} and "
                f"tiers = {self.tiers}"
            )
        widths = getattr(self.algorithm, "widths", None)
        if isinstance(widths, tuple) and len(widths) != self.tiers:
            raise ValueError(
                f"algorithm.widths has {len(widths)} widths, one for each tier, and "
                f"tiers = {self.tiers}: set tiers = {len(widths)}"
            )


def load(
    path: str | Path,
    algorithms: Mapping[str, Any],
    *,
    overrides: Mapping[str, Any] | None = None,
    note: str = "",
) -> Experiment:
    """Load an experiment from its TOML file.

    Args:
        path: The file.
        algorithms: The known algorithms by name; each has a dataclass ``Config``.
        overrides: Values that replace the file's, by dotted key.
        note: Said after the file's name in messages, e.g. who overrides.

    Returns:
        The experiment.

    Raises:
        ConfigError: The file is missing, is not TOML, or does not fit the schema.

    Example:
        >>> import tempfile, types, typing
        >>> @dataclasses.dataclass(frozen=True)
        ... class Config:
        ...     name: typing.ClassVar[str] = "sgd"
        ...     lr: float = 0.1
        >>> text = '''
        ... name = "short"
        ... rounds = 5
        ... eval_every = 1
        ... checkpoint_every = 5
        ... cohort = 2
        ... batch_size = 8
        ... epochs = 1
        ... algorithm.name = "sgd"
        ... data.clients = 4
        ... model.name = "logistic"
        ... '''
        >>> algorithms = {"sgd": types.SimpleNamespace(Config=Config)}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "short.toml")
        ...     _ = path.write_text(text)
        ...     load(path, algorithms, overrides={"algorithm.lr": 0.5}).algorithm
        Config(lr=0.5)
    """
    raw = _toml.read(path)
    where = f"{path}{note}"
    for key, value in (overrides or {}).items():
        _set(raw, key, value, where)
    table = raw.get("algorithm")
    if not isinstance(table, dict) or not isinstance(table.get("name"), str):
        raise ConfigError(
            f'{where}: algorithm.name: missing. Add [algorithm] with name = "...". '
            f"Known algorithms: {', '.join(sorted(algorithms))}."
        )
    name = table.pop("name")
    if name not in algorithms:
        raise ConfigError(
            f"{where}: algorithm.name: unknown algorithm {name!r}. "
            f"{nearest(name, algorithms, 'algorithms')}"
        )
    config = algorithms[name].Config
    if algorithm_name(config) != name:
        raise ConfigError(
            f"algorithms[{name!r}].Config is named {algorithm_name(config)!r}: a "
            f"Config is named after its module; for another name give it "
            f"`name: ClassVar[str] = {name!r}`"
        )
    return _toml.convert(Experiment[config], raw, where=where)


def dump(config: Experiment) -> str:
    """Write an experiment as TOML text; ``load`` of it gives an equal experiment.

    Args:
        config: The experiment.

    Returns:
        The text of the file.

    Example:
        >>> import typing
        >>> @dataclasses.dataclass(frozen=True)
        ... class Config:
        ...     name: typing.ClassVar[str] = "sgd"
        ...     lr: float = 0.1
        >>> experiment = Experiment(
        ...     name="short",
        ...     rounds=5,
        ...     eval_every=1,
        ...     checkpoint_every=5,
        ...     cohort=2,
        ...     batch_size=8,
        ...     epochs=1,
        ...     algorithm=Config(),
        ...     data=DataConfig(clients=4),
        ...     model=ModelConfig(),
        ... )
        >>> print(dump(experiment).partition("[algorithm]")[2].partition("[data]")[0])
        <BLANKLINE>
        name = "sgd"
        lr = 0.1
        <BLANKLINE>
        <BLANKLINE>
    """
    head = {"algorithm": {"name": algorithm_name(type(config.algorithm))}}
    return _toml.dumps(config, extra=head)


def algorithm_name(config: type) -> str:
    """Return the name of the algorithm that a ``Config`` class belongs to.

    It is the class variable ``name`` where there is one, else the last part of the
    class's module.
    """
    return getattr(config, "name", config.__module__.rpartition(".")[2])


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return the dotted keys in which two TOML documents differ, with their values."""
    flat_old, flat_new = _toml.flatten(old), _toml.flatten(new)
    keys = dict.fromkeys([*flat_old, *flat_new])
    missing = "unset"
    pairs = {k: (flat_old.get(k, missing), flat_new.get(k, missing)) for k in keys}
    return [f"{k} ({a!r} -> {b!r})" for k, (a, b) in pairs.items() if a != b]


def _set(raw: dict[str, Any], key: str, value: Any, where: str) -> None:
    """Set a dotted key in nested dictionaries."""
    *tables, last = key.split(".")
    for table in tables:
        raw = raw.setdefault(table, {})
        if not isinstance(raw, dict):
            raise ConfigError(f"{where}: {key}: {table} is a value, not a table")
    raw[last] = value
