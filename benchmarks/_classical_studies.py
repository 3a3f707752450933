"""What the benchmark of the classical algorithms runs."""

from collections.abc import Mapping
from typing import Any

from benchmarks._study import Series, Study

ROUNDS = 150
ABOUT = """100 clients of MNIST, each with two shards (about two digits, 600 examples),
10 of them in a round, one local pass in batches of 10; an MLP of 784-200-10 (159,010
parameters). Every client counts the same. Steps and the methods' own parameters were
chosen by short trials of 40 rounds with another seed, from the values on this page and
their neighbours, and not tuned further."""


def _method(
    algorithm: str, *, seconds: float = 25, set: Any = None, **options: Any
) -> Series:
    return Series({"name": algorithm, **options}, ROUNDS, 5, seconds, set=set or {})


def _aggregated(*parts: str, **options: Any) -> Series:
    own: Mapping[str, Any] = {"client_lr": 0.05, **options}
    return _method("aggregated_fedavg", aggregators=list(parts), **own)


MNIST = Study(
    title="The classical family on MNIST, 100 clients of two shards",
    config="mnist_classical.toml",
    splits={"2 shards": {}},
    targets=(0.9, 0.95),
    about=ABOUT,
    series={
        "FedAvg": _method("fedavg", client_lr=0.05),
    },
)

STUDIES: dict[str, Study] = {"classical_mnist": MNIST}
