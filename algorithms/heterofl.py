"""HeteroFL: clients of other sizes train the first channels of every layer.

Diao, Ding and Tarokh, "HeteroFL: Computation and Communication Efficient Federated
Learning for Heterogeneous Clients", ICLR 2021. A client of width r has the first
``ceil(r K)`` of each layer's K hidden units (section 3.1), and the server averages each
parameter over the clients that have it (equation 3), round and server step as in
``_submodel_round.py``. Further there are

    the Scaler:     in training hidden activations are divided by r
    masked loss:    logits of labels that a client does not have are zero

and static batch norm, which is the model's: ``resnet18`` with ``norm = static_batch``.
A norm right after the Scaler undoes it but for its epsilon. The last channels are never
trained by narrow clients.
"""

from dataclasses import dataclass
from typing import Any

import fad
from algorithms._submodel_round import BaseConfig, submodel_fedavg


def heterofl(task: fad.data.Task, **options: Any) -> fad.Algorithm:
    """Build HeteroFL, with the options of ``submodel_fedavg``."""

    def first(units, kept, rounds, key):
        del rounds, key
        return units.choose("static", kept)

    return submodel_fedavg(task, first, **options)


@dataclass(frozen=True)
class Config(BaseConfig):
    """The options of HeteroFL; scaled is its Scaler, labels its masked loss."""

    labels: bool = True
    scaled: bool = True


def build(config: Config, task: fad.data.Task) -> fad.Algorithm:
    """Build the algorithm of a config for a task."""
    return config.algorithm(heterofl, task)
