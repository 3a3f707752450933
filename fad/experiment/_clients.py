"""The clients of a configuration, and the examples that the server holds."""

import dataclasses

import numpy as np

from fad import data as fad_data
from fad._errors import ConfigError
from fad.data import Federated
from fad.experiment._sets import Examples, Source
from fad.experiment._task_config import DataConfig

_NOISY, _TESTED = 2, 3  # Random streams of the seed, apart from the flips.


def clients_and_held_out(
    source: Source, data: DataConfig
) -> tuple[Federated, Examples, Examples | None]:
    """Hold out the server's examples and share the others among the clients.

    What is held out does not depend on the partition, so that partitions, the pooled
    one among them (``iid`` with one client), are judged alike. The noise is at the
    training labels alone.

    Args:
        source: The set.
        data: The configuration.

    Returns:
        The clients, the test and, where asked for, the validation examples.

    Raises:
        ConfigError: A hierarchical partition of a set without coarse labels; an
            option that cannot act on the set.
        DataError: The partition cannot be made.
    """
    train, test, validation = source.clients, source.test, None
    if data.min_examples:
        train = train.take(np.flatnonzero(train.sizes >= data.min_examples))
    if test is None:
        train, test = _hold_out(train, source.kind, data, data.test_fraction)
    elif data.test_fraction != DataConfig.test_fraction:
        raise ConfigError(
            f"data.test_fraction: {data.set!r} has a test split of its own; leave it "
            "out."
        )
    if data.test_examples is not None and data.test_examples < len(test["y"]):
        order = np.random.default_rng([data.seed, _TESTED]).permutation(len(test["y"]))
        test = {name: x[order[: data.test_examples]] for name, x in test.items()}
    if data.validation_fraction:
        share = data.validation_fraction
        train, validation = _hold_out(train, source.kind, data, share)
    if data.partition != "natural":
        rows = _unequal(train.pooled(), source, data)
        train = Federated.from_indices(rows, _parts(rows, data))
    if data.label_noise:
        train = with_noise(train, source, data)
    if data.length != DataConfig.length and source.kind != "characters":
        raise ConfigError("data.length: this set has no text to cut into windows")
    names = sorted(set(test) & {"x", "y"})
    train = dataclasses.replace(train, examples={n: train.examples[n] for n in names})
    test = {name: test[name] for name in names}
    if validation is not None:
        validation = {name: validation[name] for name in names}
    if source.standardise:
        return _standardised(train, test, validation)
    return train, test, validation


def _unequal(rows: Examples, source: Source, data: DataConfig) -> Examples:
    """Keep so many examples of each class as asked for, or all."""
    if data.class_sizes is None:
        return rows
    if source.kind != "classes" or len(data.class_sizes) != source.outputs:
        there = source.outputs if source.kind == "classes" else "no"
        raise ConfigError(
            f"data.class_sizes: expected one size per class; got "
            f"{len(data.class_sizes)}, but this set has {there} classes"
        )
    kept = fad_data.imbalance(rows["y"], data.class_sizes, clip=True, seed=data.seed)
    return {name: x[kept] for name, x in rows.items()}


def with_noise(clients: Federated, source: Source, data: DataConfig) -> Federated:
    """Replace labels, at all clients or at a share of them.

    Args:
        clients: The clients.
        source: The set.
        data: The configuration, which says how many labels, and at whom.

    Returns:
        The clients with the new labels.

    Raises:
        ConfigError: The set has no classes.
    """
    if source.kind != "classes":
        raise ConfigError("data.label_noise: this set has no class labels")
    shares = np.full(clients.num_clients, data.label_noise)
    if data.noisy_clients < 1:
        shares[clean_clients(clients.num_clients, data)] = 0
    return fad_data.flip_labels(
        clients, fraction=shares, seed=data.seed, classes=source.outputs
    )


def clean_clients(count: int, data: DataConfig) -> np.ndarray:
    """Return which of the clients have no noise at their labels."""
    order = np.random.default_rng([data.seed, _NOISY]).permutation(count)
    return np.sort(order[round(data.noisy_clients * count) :])


def _hold_out(
    clients: Federated, kind: str, data: DataConfig, share: float
) -> tuple[Federated, Examples]:
    """Split every client: the end of its text, or as many of every class."""
    train, test = clients.split(
        1 - share,
        share,
        seed=data.seed,
        by="order" if kind == "characters" else "random",
        stratify="y" if kind == "classes" else None,
    )
    rows = test.pooled()
    # Mixed, so that a batch of them is like any other for batch statistics.
    order = np.random.default_rng(data.seed).permutation(len(rows["y"]))
    return train, {name: x[order] for name, x in rows.items()}


def _parts(rows: Examples, data: DataConfig) -> list[np.ndarray]:
    """Return the rows of each client."""
    assert data.clients is not None  # DataConfig checks it.
    n, clients, seed = len(rows["y"]), data.clients, data.seed
    labels = rows["y"]
    match data.partition:
        case "dirichlet":
            return fad_data.partition_dirichlet(
                labels, clients, alpha=data.alpha, seed=seed
            )
        case "shards":
            each = data.shards_per_client
            return fad_data.partition_shards(
                labels, clients, shards_per_client=each, seed=seed
            )
        case "classes":
            each = data.classes_per_client
            return fad_data.partition_classes(
                labels, clients, classes_per_client=each, seed=seed
            )
        case "power_law":
            return fad_data.partition_power_law(
                n, clients, exponent=data.exponent, seed=seed
            )
        case "lognormal":
            return fad_data.partition_lognormal(n, clients, sigma=data.sigma, seed=seed)
        case "hierarchical":
            return _hierarchical(rows, data)
    return fad_data.partition_iid(n, clients, seed=seed)


def _hierarchical(rows: Examples, data: DataConfig) -> list[np.ndarray]:
    assert data.clients is not None
    if "coarse" not in rows:
        raise ConfigError(
            f"data.partition: hierarchical needs the column coarse_label, which "
            f"{data.set!r} does not have; cifar100 does."
        )
    return fad_data.partition_hierarchical(
        rows["coarse"],
        rows["y"],
        data.clients,
        alpha_coarse=data.alpha,
        alpha_fine=data.alpha_fine,
        seed=data.seed,
    )


def _standardised(
    train: Federated, test: Examples, validation: Examples | None
) -> tuple[Federated, Examples, Examples | None]:
    """Bring columns to mean 0 and deviation 1 over the clients' examples, NaN to 0."""
    x = train.examples["x"]
    mean, deviation = np.nanmean(x, axis=0), np.nanstd(x, axis=0)
    deviation[deviation == 0] = 1

    def rows(examples: Examples) -> Examples:
        return {**examples, "x": np.nan_to_num((examples["x"] - mean) / deviation)}

    train = dataclasses.replace(train, examples=rows(train.examples))
    return train, rows(test), None if validation is None else rows(validation)
