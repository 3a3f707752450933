"""The clients of a configuration, and the examples that they are tested on."""

import dataclasses

import numpy as np

from fad import data as fad_data
from fad._errors import ConfigError
from fad.data import Federated
from fad.experiment._sets import Examples, Source
from fad.experiment._task_config import DataConfig


def clients_and_test(source: Source, data: DataConfig) -> tuple[Federated, Examples]:
    """Hold out the test examples and share the others among the clients.

    What is held out does not depend on the partition, so that partitions, the pooled
    one among them (``iid`` with one client), are judged alike. The noise is at the
    training labels alone.

    Args:
        source: The set.
        data: The configuration.

    Returns:
        The clients and the test examples.

    Raises:
        ConfigError: A hierarchical partition of a set without coarse labels; an
            option that cannot act on the set.
        DataError: The partition cannot be made.
    """
    train, test = source.clients, source.test
    if data.min_examples:
        train = train.take(np.flatnonzero(train.sizes >= data.min_examples))
    if test is None:
        train, test = _hold_out(train, source.kind, data)
    elif data.test_fraction != DataConfig.test_fraction:
        raise ConfigError(
            f"data.test_fraction: {data.set!r} has a test split of its own; leave it "
            "out."
        )
    if data.partition != "natural":
        rows = train.pooled()
        train = Federated.from_indices(rows, _parts(rows, data))
    if data.label_noise:
        if source.kind != "classes":
            raise ConfigError("data.label_noise: this set has no class labels")
        train = fad_data.flip_labels(
            train, fraction=data.label_noise, seed=data.seed, classes=source.outputs
        )
    if data.length != DataConfig.length and source.kind != "characters":
        raise ConfigError("data.length: this set has no text to cut into windows")
    names = set(test) & {"x", "y"}
    train = dataclasses.replace(train, examples={n: train.examples[n] for n in names})
    test = {name: test[name] for name in names}
    return _standardised(train, test) if source.standardise else (train, test)


def _hold_out(
    clients: Federated, kind: str, data: DataConfig
) -> tuple[Federated, Examples]:
    """Split every client: the end of its text, or as many of every class."""
    share = data.test_fraction
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


def _standardised(train: Federated, test: Examples) -> tuple[Federated, Examples]:
    """Bring columns to mean 0 and deviation 1 over the clients' examples, NaN to 0."""
    x = train.examples["x"]
    mean, deviation = np.nanmean(x, axis=0), np.nanstd(x, axis=0)
    deviation[deviation == 0] = 1

    def rows(examples: Examples) -> Examples:
        return {**examples, "x": np.nan_to_num((examples["x"] - mean) / deviation)}

    train = dataclasses.replace(train, examples=rows(train.examples))
    return train, rows(test)
