"""Which training leaves the model that clients adapt best?

FedAvg, Reptile, Per-FedAvg and MAML train on one federation each time; then every
client adapts the model on 20 of its own examples, and is tested on others of its own.
Writes ``docs/experiments/personalisation.md``, its figure, and the JSON of the results.
"""

import dataclasses
import functools
import itertools
import json
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

import fad
from algorithms import fedavg, per_fedavg, reptile
from benchmarks._personalisation_page import write_page
from benchmarks._report import results_folder
from fad.experiment import DataConfig, ModelConfig, make_task

CLIENTS, COHORT, SUPPORT = 100, 10, 20
ROUNDS, SEEDS = 300, 2
RATES, STEPS = (0.01, 0.03, 0.1, 0.3), (1, 5)
LOCAL, ADAM = (0.1, 0.2), (0.003, 0.01)  # the rates of training
MODEL = ModelConfig(name="mlp", hidden=(64,))


class Method(NamedTuple):
    """How to train: at most ``examples`` of a client in a round, ``batch`` a step."""

    configs: Sequence[Any]  # of which the validation chooses
    batch: int
    examples: int


def methods() -> dict[str, Method]:
    """Return the methods; a batch of 40 is 20 of support and 20 of query."""

    def per(**options: Any) -> Method:
        make = functools.partial(per_fedavg.Config, inner_lr=0.1, **options)
        return Method([make(client_lr=lr) for lr in LOCAL], 40, 200)

    def maml(steps: int) -> Method:
        make = functools.partial(
            per_fedavg.Config, meta_step="server", server="adam", inner_lr=0.1
        )
        return Method([make(server_lr=lr, inner_steps=steps) for lr in ADAM], 40, 40)

    average = [fedavg.Config(client_lr=lr) for lr in LOCAL]
    equal = [reptile.Config(client_lr=lr, client_steps=20) for lr in LOCAL]
    return {
        "FedAvg": Method(average, 20, 200),
        "Reptile, 20 steps": Method(equal, 20, 200),
        "Per-FedAvg, exact": per(),
        "Per-FedAvg, first order": per(derivative="first_order"),
        "Per-FedAvg, Hessian-free": per(derivative="hessian_free"),
        "MAML, K=1": maml(1),
        "MAML, K=5": maml(5),
    }


def shards() -> fad.data.Task:
    """Two shards of the examples sorted by class at each client."""
    return make_task(
        DataConfig(set="fashion_mnist", partition="shards", clients=CLIENTS), MODEL
    )


def own_names() -> fad.data.Task:
    """Five classes at each client, which numbers them in an order of its own."""
    data = DataConfig(
        set="fashion_mnist",
        partition="classes",
        classes_per_client=5,
        clients=CLIENTS,
    )
    task, rng = make_task(data, MODEL), np.random.default_rng(0)
    y = task.train.examples["y"].copy()
    for start, stop in zip(task.train.offsets, task.train.offsets[1:], strict=False):
        held = rng.permutation(np.unique(y[start:stop]))
        y[start:stop] = np.argsort(held)[np.searchsorted(np.sort(held), y[start:stop])]
    train = dataclasses.replace(task.train, examples={**task.train.examples, "y": y})
    return dataclasses.replace(task, train=train)


FEDERATIONS = {"Two shards": shards, "Own names": own_names}


def train(
    method: Method, config: Any, task: Any, clients: Any, rounds: int, seed: int
) -> tuple[Any, float]:
    """Return the model after some rounds, and the seconds of training."""
    module = {m.Config: m for m in (fedavg, per_fedavg, reptile)}[type(config)]
    algorithm = module.build(config, task)
    init, data, own = jax.random.split(jax.random.key(seed), 3)
    state, step = algorithm.init(init), fad.jit(algorithm.step, chunk=1)
    options = {"batch_size": method.batch, "max_examples": method.examples}
    start = time.perf_counter()
    with clients.cohorts(data, COHORT, **options) as cohorts:
        for t in range(rounds):
            state, _ = step(state, next(cohorts), jax.random.fold_in(own, t))
    jax.block_until_ready(state)
    return state.params, time.perf_counter() - start


class Judge:
    """Every client's accuracy before and after it adapts a model."""

    def __init__(self, task: Any, parts: Any, seed: int) -> None:
        key = jax.random.key(1000 + seed)

        def lay_out(part: Any, **options: Any) -> Any:
            # As many places as clients: they come in their own order.
            return part.cohort(key, CLIENTS, **options).unsafe_gather()

        support, *queries = parts
        self._support = lay_out(support, batch_size=SUPPORT, max_examples=SUPPORT)
        self._queries = [lay_out(part, batch_size=50) for part in queries]
        self._adapt = functools.partial(jax.jit, static_argnums=4)(_adapt(task))

    def __call__(self, models: Sequence[Any], steps: int) -> dict[str, Any]:
        """Choose model and rate on the validation part, and judge on the test part."""
        validation, test = self._queries

        def mean(choice: tuple[int, float]) -> float:
            found = self._adapt(
                models[choice[0]], self._support, validation, choice[1], steps
            )
            return _spread(found.after, found.num_examples).mean

        model, rate = max(itertools.product(range(len(models)), RATES), key=mean)
        found = self._adapt(models[model], self._support, test, rate, steps)
        return {
            "model": model,
            "rate": rate,
            "before": _spread(found.before, found.num_examples)._asdict(),
            "after": _spread(found.after, found.num_examples)._asdict(),
            "clients": np.sort(found.after["accuracy"]).round(4).tolist(),
        }


def _adapt(task: Any) -> Callable:
    def adapt(params: Any, support: Any, query: Any, rate: Any, steps: int) -> Any:
        def one(client: Any) -> Any:
            return fad.local.personalize(
                params,
                *client,
                loss=task.loss,
                optimizer=optax.sgd(rate),
                metrics=task.metrics,
                steps=steps,
            )

        return jax.lax.map(one, (support, query))

    return adapt


def _spread(metrics: Any, num_examples: Any) -> fad.local.Spread:
    return fad.local.spread(metrics["accuracy"], num_examples)


def main(*, rounds: int = ROUNDS, seeds: int = SEEDS) -> None:
    """Train, adapt, print and write the page."""
    rows = []
    for name, federation in FEDERATIONS.items():
        task = federation()
        parts = task.train.split(0.5, 0.25, 0.25, seed=0, stratify="y")
        for seed in range(seeds):
            judge = Judge(task, parts, seed)
            for label, method in methods().items():
                trained = [
                    train(method, config, task, parts[0], rounds, seed)
                    for config in method.configs
                ]
                models, walls = zip(*trained, strict=True)
                found = {str(steps): judge(models, steps) for steps in STEPS}
                seconds = min(walls)
                row = {"federation": name, "method": label, "seed": seed, **found}
                rows.append({**row, "seconds": seconds})
                means = [f"{found[str(k)]['after']['mean']:.4f}" for k in STEPS]
                print(
                    f"{name:12} {seed} {label:30} {seconds:5.1f} s", *means, flush=True
                )
    complete = (rounds, seeds) == (ROUNDS, SEEDS)
    settings = {"rounds": rounds, "seeds": seeds}
    text = json.dumps({"settings": settings, "rows": rows}) + "\n"
    (results_folder(complete) / "personalisation.json").write_text(text)
    print(write_page(rows, settings, complete=complete))
