"""Federated algorithms, one file each, built from fad's public API."""

from types import ModuleType

from algorithms import (
    afl,
    fathom,
    fedavg,
    fedexp,
    fedhyper,
    fednova,
    hypergradient_descent,
    learned_aggregator,
    learned_weights,
    per_fedavg,
    qffl,
    reptile,
    self_tuning_fedavg,
)

ALGORITHMS: dict[str, ModuleType] = {
    "afl": afl,
    "fathom": fathom,
    "fedavg": fedavg,
    "fedexp": fedexp,
    "fedhyper": fedhyper,
    "fednova": fednova,
    "hypergradient_descent": hypergradient_descent,
    "learned_aggregator": learned_aggregator,
    "learned_weights": learned_weights,
    "per_fedavg": per_fedavg,
    "qffl": qffl,
    "reptile": reptile,
    "self_tuning_fedavg": self_tuning_fedavg,
}
