"""Federated Dropout: every client trains a random sub-model, anew in each round.

Caldas, Konecny, McMahan and Talwalkar, "Expanding the Reach of Federated Learning by
Reducing Client Resource Requirements", 2018 (section 2.2). A client of width r gets
``ceil(r K)`` of each layer's K hidden units, drawn at random for it and this round
alone, trains the smaller model that they make, and the server averages each parameter
over the clients that had it (``_submodel_round.py``). The paper has one width for all
and drops no input and no output, and in convolutions whole filters; here a tier has one
width.

Activations are divided by r in training (``scaled``), as dropout does, where the model
has that; the paper leaves it open.
"""

from dataclasses import dataclass
from typing import Any

import fad
from algorithms._submodel_round import BaseConfig, submodel_fedavg


def federated_dropout(task: fad.data.Task, **options: Any) -> fad.Algorithm:
    """Build Federated Dropout, with the options of ``submodel_fedavg``."""

    def drawn(units, kept, rounds, key):
        del rounds
        return units.choose("random", kept, key=key)

    return submodel_fedavg(task, drawn, **options)


@dataclass(frozen=True)
class Config(BaseConfig):
    """The options of Federated Dropout."""

    labels: bool = False
    scaled: bool = True


def build(config: Config, task: fad.data.Task) -> fad.Algorithm:
    """Build the algorithm of a config for a task."""
    return config.algorithm(federated_dropout, task)
