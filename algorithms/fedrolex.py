"""FedRolex: the sub-models of narrow clients roll through the whole model.

Alam, Liu, Yan and Zhang, "FedRolex: Model-Heterogeneous Federated Learning with Rolling
Sub-Model Extraction", NeurIPS 2022. In round t a client of width r has, of each layer's
K hidden units, those of a window that moves by one a round (section 3):

    (t, t + 1, ..., t + ceil(r K) - 1) mod K

so that all of the model is trained evenly, whatever the clients can hold. Averaging,
the Scaler and the masked loss are HeteroFL's (``heterofl.py``).
"""

from dataclasses import dataclass
from typing import Any

import fad
from algorithms._submodel_round import BaseConfig, submodel_fedavg


def fedrolex(task: fad.data.Task, **options: Any) -> fad.Algorithm:
    """Build FedRolex, with the options of ``submodel_fedavg``."""

    def window(units, kept, rounds, key):
        del key
        return units.choose("rolling", kept, round=rounds)

    return submodel_fedavg(task, window, **options)


@dataclass(frozen=True)
class Config(BaseConfig):
    """The options of FedRolex; scaled is the Scaler, labels the masked loss."""

    labels: bool = True
    scaled: bool = True


def build(config: Config, task: fad.data.Task) -> fad.Algorithm:
    """Build the algorithm of a config for a task."""
    return config.algorithm(fedrolex, task)
