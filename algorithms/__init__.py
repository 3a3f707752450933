"""Federated algorithms, one file each, built from fad's public API."""

from types import ModuleType

from algorithms import (
    afl,
    aggitd,
    centralised_bilevel,
    fathom,
    fedavg,
    fedbio,
    fedexp,
    fedhyper,
    fedmbo,
    fedmsa,
    fednest,
    fednova,
    hypergradient_descent,
    learned_aggregator,
    learned_weights,
    memfbo,
    per_fedavg,
    qffl,
    reptile,
    self_tuning_fedavg,
    simfbo,
)

# Those of a task of two levels.
BILEVEL_ALGORITHMS: dict[str, ModuleType] = {
    "aggitd": aggitd,
    "centralised_bilevel": centralised_bilevel,
    "fedbio": fedbio,
    "fedmbo": fedmbo,
    "fedmsa": fedmsa,
    "fednest": fednest,
    "memfbo": memfbo,
    "simfbo": simfbo,
}

ALGORITHMS: dict[str, ModuleType] = {
    **BILEVEL_ALGORITHMS,
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
