"""The task of two levels that a configuration describes."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fad import data as fad_data
from fad._errors import ConfigError
from fad.data import Federated
from fad.estimators import Split
from fad.experiment import _bilevel_problems as problems
from fad.experiment._bilevel_config import BilevelConfig
from fad.experiment._bilevel_problems import Parts
from fad.experiment._clients import clients_and_held_out, with_noise
from fad.experiment._lazy import require
from fad.experiment._network import Network, Width, for_model, network, rows_for
from fad.experiment._sets import Source, read
from fad.experiment._task import class_metrics
from fad.experiment._task_config import DataConfig, ModelConfig


@functools.cache
def make_bilevel_task(
    data: DataConfig, model: ModelConfig, bilevel: BilevelConfig
) -> fad_data.BilevelTask:
    """Make the task of two levels of a configuration; equal ones share one task.

    Every client's examples are split between the levels, each label's alike.
    ``data.label_noise`` is at the lower level's labels alone.

    Args:
        data: The data set, of classes, and its partition among clients.
        model: The model.
        bilevel: The problem.

    Returns:
        The task. Its metrics ``accuracy`` and ``loss``, the cross-entropy, are those of
        the model on test examples, without dropout. ``hyper_cleaning`` with label noise
        has ``clean_auc`` too: the area under the ROC curve of the learned weights as
        scores of the labels that are right, a ``set_metrics["clean_auc"](x, y, test)``
        that looks at x alone; and ``upper_keys``. At a smaller width it has
        ``fad.models.narrow`` of the model; ``scaled`` is for its losses alone.

    Raises:
        ConfigError: The set, the model or the problem does not fit the others.
        DataError: The set is not there, or cannot be shared as asked.
        RunError: Flax is not installed.

    Example:
        >>> config = BilevelConfig(task="hyper_representation", header="Dense_1")
        >>> model = ModelConfig(hidden=(16,))
        >>> task = make_bilevel_task(DataConfig(clients=10), model, config)
        >>> y = task.init_lower(jax.random.key(0))
        >>> task.name, jax.tree.map(lambda a: a.shape, y)
        ('digits-mlp-hyper_representation', {'bias': (10,), 'kernel': (16, 10)})
    """
    source = _source(data, bilevel)
    clean, upper, test = _levels(source, data, model, bilevel)
    lower = with_noise(clean, source, data) if data.label_noise else clean
    set_metrics, upper_keys = {}, None
    if bilevel.task == "hyper_cleaning":
        upper_keys = _example_ids
        ids = np.arange(len(lower.examples["y"]), dtype=np.int32)
        right = clean.examples["y"] == lower.examples["y"]
        lower = dataclasses.replace(lower, examples={**lower.examples, "id": ids})
        if not right.all():
            set_metrics["clean_auc"] = _clean_auc(right)

    def at(width: Width, *, scaled: bool = False) -> fad_data.BilevelTask:
        net = network(source, data, model, lower, width=width, scaled=scaled)
        parts = _parts(net, source, bilevel, clean, upper)

        def metrics(x: Any, y: Any, examples: dict[str, Any]) -> dict[str, jax.Array]:
            logits = net.outputs(parts.params(x, y), examples)
            return class_metrics(logits, examples["y"])

        return fad_data.BilevelTask(
            name=f"{data.set}-{model.name}-{bilevel.task}",
            lower=lower,
            upper=upper,
            test=test,
            init_upper=parts.init_upper,
            init_lower=parts.init_lower,
            problem=parts.problem,
            metrics=metrics,
            set_metrics=set_metrics,
            narrow=functools.cache(at) if width == 1 else None,
            upper_keys=upper_keys,
        )

    return at(1.0)


def _source(data: DataConfig, bilevel: BilevelConfig) -> Source:
    """Read the set, which must have classes and give the server no validation."""
    source = read(data)
    if source.kind != "classes":
        raise ConfigError(
            f"bilevel.task: {bilevel.task!r} learns classes, which {data.set!r} does "
            "not have. Choose another set."
        )
    if data.validation_fraction:
        raise ConfigError(
            "data.validation_fraction: with two levels the clients hold the validation "
            "examples. Leave it out, and set bilevel.upper_fraction."
        )
    return source


def _example_ids(split: Split) -> jax.Array:
    """Return the numbers of a client's lower examples, ``[rows]``, rising: each once.

    Padding and what stands again, in another epoch, is -1.
    """
    real = jnp.where(split.lower.mask, split.lower.examples["id"], -1)
    ids = jnp.sort(real.reshape(-1))
    again = jnp.append(False, ids[1:] == ids[:-1])
    return jnp.where(again, -1, ids)


def _levels(
    source: Source, data: DataConfig, model: ModelConfig, bilevel: BilevelConfig
) -> tuple[Federated, Federated, dict[str, np.ndarray]]:
    """Return the clients' examples of both levels, all labels right, and the test."""
    clean = dataclasses.replace(data, label_noise=0.0, noisy_clients=1.0)
    clients, test, _ = clients_and_held_out(source, clean)
    share = bilevel.upper_fraction
    lower, upper = clients.split(1 - share, share, seed=data.seed, stratify="y")
    return for_model(model, lower), for_model(model, upper), rows_for(model, test)


def _parts(
    net: Network,
    source: Source,
    bilevel: BilevelConfig,
    lower: Federated,
    upper: Federated,
) -> Parts:
    match bilevel.task:
        case "hyper_representation":
            return problems.hyper_representation(net, bilevel)
        case "imbalance":
            labels = np.concatenate([lower.examples["y"], upper.examples["y"]])
            counts = np.bincount(labels, minlength=source.outputs)
            return problems.imbalance(net, bilevel, counts)
        case "hyper_cleaning":
            return problems.hyper_cleaning(net, bilevel, len(lower.examples["y"]))
    return problems.regularisation(net, bilevel)


def _clean_auc(right: np.ndarray) -> Any:
    """Return how well weights tell the right labels, ``[count]`` bool, from others."""

    def clean_auc(x: Any, y: Any, test: Any) -> float:
        del y, test
        return float(require("sklearn.metrics").roc_auc_score(right, np.asarray(x)))

    return clean_auc
