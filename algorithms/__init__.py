"""Federated algorithms, one file each, built from fad's public API."""

from types import ModuleType

from algorithms import (
    fathom,
    fedavg,
    fedexp,
    fedhyper,
    fednova,
    hypergradient_descent,
    learned_aggregator,
    per_fedavg,
    reptile,
    self_tuning_fedavg,
)

ALGORITHMS: dict[str, ModuleType] = {
    "fathom": fathom,
    "fedavg": fedavg,
    "fedexp": fedexp,
    "fedhyper": fedhyper,
    "fednova": fednova,
    "hypergradient_descent": hypergradient_descent,
    "learned_aggregator": learned_aggregator,
    "per_fedavg": per_fedavg,
    "reptile": reptile,
    "self_tuning_fedavg": self_tuning_fedavg,
}
