"""The configuration of a task: its data and its model."""

import dataclasses
from typing import Any, Literal

Partition = Literal[
    "natural",
    "iid",
    "dirichlet",
    "shards",
    "classes",
    "power_law",
    "lognormal",
    "hierarchical",
]
ModelName = Literal[
    "mlp",
    "logistic",
    "fednest_mlp",
    "fedavg_cnn",
    "fedsep_cnn",
    "resnet18",
    "char_lstm",
    "char_transformer",
]


_OF_PARTITION = {
    "shards_per_client": "shards",
    "classes_per_client": "classes",
    "exponent": "power_law",
    "sigma": "lognormal",
    "alpha_fine": "hierarchical",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which examples there are, and how the clients share them.

    Attributes:
        set: A set of ``fad.data.load``, of which ``digits`` needs no download; or
            ``synthetic``.
        partition: ``natural`` (the set's own clients); or of all examples together:
            ``iid``; ``dirichlet`` (label shares drawn per client); ``shards`` (pieces
            of the examples in order of label); ``classes`` (a few classes per client);
            ``power_law`` and ``lognormal`` (unequal sizes); ``hierarchical`` (coarse,
            then fine labels).
        clients: Number of clients; of a natural partition the set says it.
        clients_by: The column of natural clients, where it is not the set's usual one.
        alpha: Concentration of ``dirichlet`` and of ``hierarchical``'s coarse labels:
            small is heterogeneous. Of ``synthetic``, the paper's alpha, which changes
            nothing there: see ``fad.data.synthetic``.
        alpha_fine: Concentration of ``hierarchical``'s fine labels.
        beta: Of ``synthetic``, how much the clients' inputs differ.
        shards_per_client: Pieces that a client of ``shards`` holds.
        classes_per_client: Classes that a client of ``classes`` holds.
        exponent: Of ``power_law``: the sizes fall as rank to this power.
        sigma: Of ``lognormal``: standard deviation of the logarithm of the sizes.
        min_examples: Natural clients with fewer examples are left out, of the test too.
        test_fraction: Share of every natural client's examples (else of all) held out
            for the test, where the set has no test split.
        class_sizes: At most how many training examples of each class there are, which
            makes the classes unequal; the test and the validation keep theirs.
        standardise: Whether pixels are brought to mean 0 and deviation 1, one of each
            for all pixels of the train split; without it they are in [0, 1].
        shrink: Blocks of so many by so many pixels are averaged to one, which makes
            images smaller and runs shorter.
        test_examples: At most so many test examples, drawn by the seed; without it,
            all.
        length: Characters of a window of text.
        label_noise: Share of the training labels replaced by others; with two levels,
            of the lower level's.
        noisy_clients: Share of the clients that the noise is at, drawn by the seed.
        validation_fraction: Share of the training examples that the server holds, taken
            before the noise and stratified as the test; 0 for none.
        seed: Seed of the partition, the held-out examples and the noise.
    """

    set: str = "digits"
    partition: Partition = "iid"
    clients: int | None = None
    clients_by: str | None = None
    alpha: float = 0.5
    alpha_fine: float = 10.0
    beta: float = 1.0
    shards_per_client: int = 2
    classes_per_client: int = 2
    exponent: float = 1.0
    sigma: float = 1.0
    min_examples: int = 0
    test_fraction: float = 0.2
    class_sizes: tuple[int, ...] | None = None
    standardise: bool = False
    shrink: int = 1
    test_examples: int | None = None
    length: int = 80
    label_noise: float = 0.0
    noisy_clients: float = 1.0
    validation_fraction: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the ranges, and that each option has something to act on."""
        natural = self.partition == "natural"
        if natural and self.clients is not None and self.set != "synthetic":
            raise ValueError(
                f"clients = {self.clients}, but a natural partition has the clients "
                "that the data has: leave it out"
            )
        if not natural and self.clients is None:
            raise ValueError(
                f"clients: missing; partition {self.partition!r} needs their number"
            )
        if self.clients is not None:
            at_least(self, 1, "clients")
        self._check_options()
        at_least(self, 1, "shards_per_client", "classes_per_client", "length", "shrink")
        if self.test_examples is not None:
            at_least(self, 1, "test_examples")
        at_least(self, 0, "seed", "min_examples", "alpha", "beta", "exponent", "sigma")
        if not self.alpha > 0 and self.set != "synthetic":
            raise ValueError(f"alpha must be > 0, got {self.alpha}")
        if not self.alpha_fine > 0:
            raise ValueError(f"alpha_fine must be > 0, got {self.alpha_fine}")
        if not 0 < self.test_fraction < 1:
            got = self.test_fraction
            raise ValueError(f"test_fraction must be in (0, 1), got {got}")
        if not 0 <= self.label_noise <= 1:
            raise ValueError(f"label_noise must be in [0, 1], got {self.label_noise}")
        if not 0 <= self.noisy_clients <= 1:
            got = self.noisy_clients
            raise ValueError(f"noisy_clients must be in [0, 1], got {got}")
        if self.noisy_clients < 1 and not self.label_noise:
            raise ValueError("noisy_clients needs a label_noise above 0")
        self._check_class_sizes()
        if not 0 <= self.validation_fraction < 1:
            got = self.validation_fraction
            raise ValueError(f"validation_fraction must be in [0, 1), got {got}")

    def _check_class_sizes(self) -> None:
        if self.class_sizes is None:
            return
        if self.partition == "natural":
            raise ValueError("class_sizes is not for a natural partition")
        if min(self.class_sizes, default=0) < 1:
            got = list(self.class_sizes)
            raise ValueError(f"class_sizes must be >= 1, got {got}")

    def _check_options(self) -> None:
        """Refuse what would have no effect, but for alpha, which two kinds share."""
        for name, partition in _OF_PARTITION.items():
            changed = getattr(self, name) != getattr(type(self), name)
            if changed and self.partition != partition:
                raise ValueError(f"{name} is for partition {partition!r} alone")
        if self.set != "synthetic":
            if self.beta != type(self).beta:
                raise ValueError("beta is for the set 'synthetic' alone")
        elif self.clients_by is not None:
            raise ValueError("clients_by: the clients of 'synthetic' have no columns")
        elif self.partition in ("dirichlet", "hierarchical"):
            raise ValueError(
                f"alpha is that of 'synthetic' and cannot be that of partition "
                f"{self.partition!r} as well; choose another partition"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which model the clients train, of ``fad.models``; what is left out is as there.

    Attributes:
        name: ``mlp`` (ReLU layers); ``logistic`` (one linear layer); ``fednest_mlp``,
            whose dropout happens in tasks of two levels alone; ``fedavg_cnn``;
            ``fedsep_cnn``; ``resnet18``; ``char_lstm``; ``char_transformer``.
        hidden: Widths of the hidden layers of ``mlp``.
        width: Width of any other model but ``logistic``.
        layers: Layers of the models of text.
        norm: Normalisation of ``resnet18``: ``group`` or ``static_batch``.
        blocks: Blocks of each stage of ``resnet18``.
    """

    name: ModelName = "mlp"
    hidden: tuple[int, ...] | None = None
    width: int | None = None
    layers: int | None = None
    norm: Literal["group", "static_batch"] | None = None
    blocks: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        """Check the ranges."""
        if any(width < 1 for width in self.hidden or ()):
            got = list(self.hidden or ())
            raise ValueError(f"hidden widths must be >= 1, got {got}")
        for name in ("width", "layers"):
            if getattr(self, name) is not None:
                at_least(self, 1, name)

    def options(self) -> dict[str, Any]:
        """Return the options that are given, for ``fad.models.make``."""
        given = dataclasses.asdict(self)
        return {k: v for k, v in given.items() if k != "name" and v is not None}


def at_least(config: Any, least: int, *names: str) -> None:
    """Refuse a value below ``least``."""
    for name in names:
        if getattr(config, name) < least:
            got = getattr(config, name)
            raise ValueError(f"{name} must be >= {least}, got {got}")
