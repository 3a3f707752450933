"""FedSep's learned sub-models: clients choose the units that they train.

Li and Huang, "Resolving the Tug-of-War: A Separation of Communication and Learning in
Federated Learning", NeurIPS 2023, section 4.2. A client of
width r decodes the global model omega to ``a_i * omega``, its sub-model of the best
units for its own data:

    a_i = argmin_a L_i(a * omega) + beta log(max(T(a), q T_tot) / (q T_tot))     (7)

by a mask network of its own (``_mask_search.py``), trained for some steps each
``refresh`` rounds and in the client's first round, and kept between. The share of
operations q is that of the sub-models with ``ceil(r K)`` units in each layer, and of
each layer the ``ceil(r K)`` units with the largest scores are kept. They make a small
model, that alone is sent and trained (``_submodel_round.py``), to ``d_i``. What goes
back is, with the derivative of the decoder,

    Diag(a_i) d_i + (Diag(omega) da_i/domega)^T d_i                              (8)

``encode = "first"``, as in the paper's experiments, is the first term alone, averaged
over the clients that have a coordinate. ``"both"`` adds the mean of the second over all
clients: the derivative of the search's steps, of masks that are not rounded, the
network that they start from being given. It is zero in rounds without a search, and
the whole model's size. (The paper has -(8) and a server that subtracts it.)

In rounds with a search clients are sent the whole model. The network, its optimizer and
the number of its steps, the noise, and who is asked first are ours; Scaler, masked loss
and static norm are those of HeteroFL (``heterofl.py``).
"""

import warnings
from dataclasses import dataclass
from typing import Any, Literal, get_args

import jax
import optax

import fad
from algorithms._mask_round import Searches
from algorithms._mask_search import Search
from algorithms._ranges import check_range
from algorithms._submodel_round import BaseConfig, head_of, submodel_fedavg, units_of
from fad import submodels

Encode = Literal["first", "both"]


def fedsep_submodels(
    task: fad.data.Task,
    *,
    widths: tuple[float, ...],
    refresh: int = 2,
    mask_lr: float = 0.03,
    mask_steps: int = 20,
    beta: float = 2.0,
    temperature: float = 1.0,
    hidden: int = 32,
    encode: Encode = "first",
    labels: bool = False,
    **options: Any,
) -> fad.Algorithm:
    """Build FedSep over learned sub-models.

    Args:
        task: The task, whose model comes in any width.
        widths: The width r of each tier's model.
        refresh: Rounds from one search to the next; 0 for none, the first masks kept.
        mask_lr: The step of Adam on the mask network.
        mask_steps: The steps of a search.
        beta: The weight of the operations.
        temperature: The sigmoid's tau.
        hidden: The size of the mask network.
        encode: ``"first"`` or ``"both"`` terms of (8).
        labels: Whether clients leave out the labels that they do not have.
        options: The others of ``submodel_fedavg``.

    Returns:
        The algorithm; a client's memory is its ``Memory`` of masks.

    Raises:
        FadError: The encode is none, or the model has no hidden units.
    """
    units = units_of(task)
    _check(task, units, encode)
    model = jax.eval_shape(task.init, jax.random.key(0))
    rows = {name: a[:2] for name, a in task.test.items()}
    costs = submodels.costs(task.loss, model, rows)
    budgets = []
    for width in widths:
        kept = units.kept(width)
        _tell_rounded_up(units.sizes, width)
        shares = {name: kept[name] / size for name, size in units.sizes.items()}
        budgets.append(costs.flops(shares) / max(costs.total, 1))
    search = Search(
        task.loss,
        units,
        costs,
        optimizer=optax.adam(mask_lr, eps_root=1e-16),  # it has a derivative at 0
        steps=mask_steps,
        beta=beta,
        temperature=temperature,
        hidden=hidden,
        rounded=encode == "first",
        head=head_of(task) if labels else "",
    )

    def learned(units, kept, rounds, key, memory):
        del rounds, key
        return units.choose("learned", kept, scores=memory.scores)

    own = Searches(search, tuple(budgets), refresh).own(both=encode == "both")
    return submodel_fedavg(
        task, learned, widths=widths, labels=labels, own=own, **options
    )


def _check(task: fad.data.Task, units: submodels.Units, encode: str) -> None:
    if encode not in get_args(Encode):
        raise fad.FadError(
            f"fedsep_submodels(encode={encode!r}): expected 'first', the paper's, or "
            "'both' terms of the encoder."
        )
    if not units.groups:
        raise fad.FadError(
            f"fedsep_submodels: the model of the task {task.name!r} has no hidden "
            "units to choose from. Take a model with a hidden layer, or fedavg."
        )


def _tell_rounded_up(sizes: dict[str, int], width: float) -> None:
    small = [name for name, size in sizes.items() if width * size < 1]
    if small:
        warnings.warn(
            f"widths: at the width {width:g} no unit of {', '.join(small)} would be "
            "kept; one is. Choose a larger width or more units.",
            stacklevel=3,
        )


@dataclass(frozen=True)
class Config(BaseConfig):
    """The options of FedSep over learned sub-models, with the Scaler of HeteroFL."""

    refresh: int = 2
    mask_lr: float = 0.03
    mask_steps: int = 20
    beta: float = 2.0
    temperature: float = 1.0
    hidden: int = 32
    encode: Encode = "first"
    labels: bool = True
    scaled: bool = True

    def __post_init__(self):
        """Check the ranges."""
        super().__post_init__()
        check_range(self, "(0, inf)", "mask_lr", "temperature", "hidden", "mask_steps")
        check_range(self, "[0, inf)", "refresh", "beta")
        if self.encode not in get_args(Encode):
            raise ValueError(f"encode: expected 'first' or 'both', got {self.encode!r}")


def build(config: Config, task: fad.data.Task) -> fad.Algorithm:
    """Build the algorithm of a config for a task."""
    return config.algorithm(fedsep_submodels, task)
