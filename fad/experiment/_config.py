"""The configuration of one experiment, and its TOML file."""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from fad._errors import ConfigError
from fad.experiment import _toml

A = TypeVar("A")

_FOLDER_NAME = re.compile(r"\w[\w.+-]*")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which examples there are, and how the clients share them.

    Attributes:
        set: The data set; ``digits`` is the 8x8 digits of scikit-learn.
        partition: ``iid``; ``dirichlet`` (label shares drawn per client); ``shards``
            (a few classes per client).
        clients: Number of clients.
        alpha: Concentration of ``dirichlet``: small is heterogeneous.
        classes_per_client: Classes that a client of ``shards`` holds.
        seed: Seed of the partition alone.
    """

    set: Literal["digits"] = "digits"
    partition: Literal["iid", "dirichlet", "shards"] = "iid"
    clients: int
    alpha: float = 0.5
    classes_per_client: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the ranges."""
        _at_least(self, 1, "clients", "classes_per_client")
        _at_least(self, 0, "seed")
        if not self.alpha > 0:
            raise ValueError(f"alpha must be > 0, got {self.alpha}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which model the clients train.

    Attributes:
        name: ``mlp`` (ReLU layers) or ``logistic`` (one linear layer).
        hidden: Widths of the hidden layers of ``mlp``.
    """

    name: Literal["mlp", "logistic"] = "mlp"
    hidden: tuple[int, ...] = (64, 64)

    def __post_init__(self) -> None:
        """Check the ranges."""
        if any(width < 1 for width in self.hidden):
            raise ValueError(f"hidden widths must be >= 1, got {list(self.hidden)}")


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
        batch_size: Examples per local step.
        epochs: Local passes over a client's examples.
        chunk: Clients whose work a device does at a time, which changes speed, memory
            and last bits alone; without it 1 on a CPU, else the whole cohort.
            ``auto`` measures which is fastest, for seconds at the start; a resumed run
            may then choose otherwise, and differ in the last bits.
        algorithm: Options of the algorithm; the file's ``[algorithm] name`` chooses it.
        data: Options of the data.
        model: Options of the model.
    """

    name: str
    seed: int = 0
    rounds: int
    eval_every: int
    checkpoint_every: int
    cohort: int
    batch_size: int
    epochs: int
    chunk: int | Literal["auto"] | None = None
    algorithm: A
    data: DataConfig
    model: ModelConfig

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not _FOLDER_NAME.fullmatch(self.name):
            raise ValueError(
                f"name must be a folder name of letters, digits and _ . + -, "
                f"got {self.name!r}"
            )
        _at_least(self, 0, "seed")
        _at_least(self, 1, "rounds", "eval_every", "checkpoint_every")
        _at_least(self, 1, "cohort", "batch_size", "epochs")
        if isinstance(self.chunk, int):
            _at_least(self, 1, "chunk")
        if self.cohort > self.data.clients:
            raise ValueError(
                f"cohort must be <= data.clients, got cohort = {self.cohort} and "
                f"data.clients = {self.data.clients}"
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
            f"{_toml.nearest(name, algorithms, 'algorithms')}"
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


def _at_least(config: Any, least: int, *names: str) -> None:
    for name in names:
        if getattr(config, name) < least:
            got = getattr(config, name)
            raise ValueError(f"{name} must be >= {least}, got {got}")
