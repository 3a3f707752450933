"""Which training leaves the model that clients adapt best?

FedAvg, Reptile, Per-FedAvg and MAML train on one federation each time; then every
client adapts the model on 20 of its own examples, and is tested on others of its own.
Writes ``docs/experiments/personalisation.md``, its figure, and the JSON of the results.
"""

import dataclasses
import functools
import json
import time
from collections.abc import Callable
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
ROUNDS, SEEDS = 400, 3
RATES, STEPS = (0.01, 0.03, 0.1, 0.3), (1, 5)
MODEL = ModelConfig(name="mlp", hidden=(64,))


class Method(NamedTuple):
    """How to train: at most ``examples`` of a client in a round, ``batch`` a step."""

    config: Any
    batch: int
    examples: int


def _meta(**options: Any) -> per_fedavg.Config:
    return per_fedavg.Config(client_lr=0.1, inner_lr=0.1, **options)


def methods() -> dict[str, Method]:
    """Return the methods; a batch of 40 is 20 of support and 20 of query."""
    at_server: dict[str, Any] = {"server": "adam", "server_lr": 0.003}
    return {
        "FedAvg": Method(fedavg.Config(client_lr=0.1), 20, 200),
        "Reptile": Method(reptile.Config(client_lr=0.1, client_steps=10), 20, 200),
        "Per-FedAvg, K=1": Method(_meta(), 40, 200),
        "Per-FedAvg, K=5": Method(_meta(inner_steps=5), 40, 200),
        "Per-FedAvg, K=5, first order": Method(
            _meta(inner_steps=5, derivative="first_order"), 40, 200
        ),
        "Per-FedAvg, K=5, Hessian-free": Method(
            _meta(inner_steps=5, derivative="hessian_free"), 40, 200
        ),
        "MAML, K=5": Method(
            _meta(inner_steps=5, meta_step="server", **at_server), 40, 40
        ),
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


def train(method: Method, task: Any, clients: Any, rounds: int, seed: int) -> Any:
    """Return the model after some rounds, and the seconds of training."""
    module = {m.Config: m for m in (fedavg, per_fedavg, reptile)}[type(method.config)]
    algorithm = module.build(method.config, task)
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

    def __call__(self, params: Any, steps: int) -> dict[str, Any]:
        """Choose the rate on the validation part, and judge on the test part."""
        validation, test = self._queries

        def mean(rate: float) -> float:
            found = self._adapt(params, self._support, validation, rate, steps)
            return _spread(found.after, found.num_examples).mean

        rate = max(RATES, key=mean)
        found = self._adapt(params, self._support, test, rate, steps)
        return {
            "rate": rate,
            "before": _spread(found.before, found.num_examples)._asdict(),
            "after": _spread(found.after, found.num_examples)._asdict(),
            "clients": np.sort(found.after["accuracy"]).tolist(),
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
                params, seconds = train(method, task, parts[0], rounds, seed)
                found = {str(steps): judge(params, steps) for steps in STEPS}
                row = {"federation": name, "method": label, "seed": seed, **found}
                rows.append({**row, "seconds": seconds})
                means = [f"{found[str(k)]['after']['mean']:.4f}" for k in STEPS]
                print(
                    f"{name:12} {seed} {label:30} {seconds:5.1f} s", *means, flush=True
                )
    complete = (rounds, seeds) == (ROUNDS, SEEDS)
    settings = {"rounds": rounds, "seeds": seeds}
    text = json.dumps({"settings": settings, "rows": rows}, indent=1) + "\n"
    (results_folder(complete) / "personalisation.json").write_text(text)
    print(write_page(rows, settings, complete=complete))
