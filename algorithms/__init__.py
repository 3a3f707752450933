"""Federated algorithms, one file each, built from fad's public API."""

from types import ModuleType

from algorithms import fedavg, self_tuning_fedavg

ALGORITHMS: dict[str, ModuleType] = {
    "fedavg": fedavg,
    "self_tuning_fedavg": self_tuning_fedavg,
}
