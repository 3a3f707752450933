"""Does a learned server step reach what the tuned one reaches, wherever it starts?

On each federation FedAvg runs with every fixed step of a grid, and methods that learn
the step start from each of them. The tuned step is the fixed one with the best accuracy
after the last round. All starts of a method are one compiled program, over which
``jax.vmap`` maps.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import fad
from algorithms import fathom, fedavg, fedhyper, self_tuning_fedavg
from benchmarks._report import ROOT
from benchmarks._step_page import write_page
from benchmarks._step_scores import EVERY, MORE
from fad.experiment import DataConfig, ModelConfig, make_task

STARTS = tuple(10.0 ** (k / 2) for k in range(-3, 4))  # 1/32 ... 32
STRESS = (1e-3, *STARTS, 1e3)
PATH = ROOT / "benchmarks" / "results" / "learned_steps.json"
ENDED = 20  # steps undone in a row
TESTED = 2000  # test examples, the same in all runs


def _fathom(rate: float, lr: float, client_lr: float) -> fathom.Config:
    """Return the configuration of the form that learns the server's step."""
    return fathom.Config(
        learn="server",
        rate=rate,
        server_lr=lr,
        client_lr=client_lr,
        max_client_lr=max(1.0, client_lr),
    )


METHODS: dict[str, Callable[[Any, float, float], fad.Algorithm]] = {
    "learned": lambda task, lr, client_lr: self_tuning_fedavg.build(
        self_tuning_fedavg.Config(server_lr=lr, client_lr=client_lr), task
    ),
    "FATHOM, rate 0.01": lambda task, lr, client_lr: fathom.build(
        _fathom(0.01, lr, client_lr), task
    ),
    "FATHOM, rate 0.2": lambda task, lr, client_lr: fathom.build(
        _fathom(0.2, lr, client_lr), task
    ),
    "FedHyper": lambda task, lr, client_lr: fedhyper.build(
        fedhyper.Config(server_lr=lr, client_lr=client_lr), task
    ),
}


class Setting(NamedTuple):
    """A federation, its training, and the step that the starts lie around."""

    data: dict[str, Any]
    model: dict[str, Any]
    rounds: int
    batch: int
    examples: int  # of a client in a round, at most
    client_lr: float
    around: float
    starts: tuple[float, ...] = STARTS


def _synthetic(spread: float) -> Setting:
    data = {"set": "synthetic", "partition": "natural", "clients": 30}
    data |= {"alpha": spread, "beta": spread, "test_fraction": 0.1}
    model = {"name": "logistic"}
    return Setting(data, model, 160, 10, 200, 0.01, 3.0, STRESS)


SETTINGS = {
    "Synthetic(1, 1)": _synthetic(1.0),
    "Synthetic(0, 0)": _synthetic(0.0),
    "MNIST shards": Setting(
        {
            "set": "mnist",
            "partition": "shards",
            "shards_per_client": 2,
            "clients": 100,
        },
        {"name": "mlp", "hidden": (64,)},
        80,
        20,
        200,
        0.05,
        2.0,
        (0.01, *STARTS),  # The tuned step is the third of them.
    ),
    "Shakespeare by role": Setting(
        {
            "set": "tiny_shakespeare",
            "partition": "natural",
            "min_examples": 20,
            "length": 20,
        },
        {"name": "char_lstm", "width": 32, "layers": 1},
        40,
        10,
        40,
        2.0,
        1.0,
    ),
}


def _options(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks learned_steps")
    parser.add_argument("--only", choices=SETTINGS, help="one federation")
    parser.add_argument("--seeds", type=int, default=5, help="at least 2")
    parser.add_argument("--page", action="store_true", help="only write the page again")
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
    """Run what is asked for, keep the curves, and write the page.

    Methods whose curves are kept already, of the same setting, do not run again.
    """
    options = _options(argv)
    found = json.loads(PATH.read_text()) if PATH.exists() else {}
    for name, setting in SETTINGS.items():
        if options.page or options.only not in (None, name):
            continue
        like = {**setting._asdict(), "seeds": options.seeds}
        like = json.loads(json.dumps(like))
        if found.get(name, {}).get("setting") != like:
            found[name] = {"setting": like, "methods": {}}
        for method, curves in _federation(name, setting, found[name], options.seeds):
            found[name]["methods"][method] = curves
            PATH.write_text(json.dumps(found) + "\n")
    whole = {"fixed", *METHODS}
    names = [n for n in SETTINGS if n in found and whole <= set(found[n]["methods"])]
    write_page({name: found[name] for name in names})
    return 0


def _federation(
    name: str, setting: Setting, found: dict[str, Any], seeds: int
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each method's accuracies ``[seeds, evaluations, starts]`` and bytes."""
    task = make_task(DataConfig(**setting.data), ModelConfig(**setting.model))
    steps = [setting.around * start for start in setting.starts]
    found["clients"] = task.train.num_clients
    for method in ("fixed", *METHODS):
        if method in found["methods"]:
            continue
        began, curves = time.perf_counter(), []
        lanes = _lanes(method, task, setting, steps)
        for seed in range(seeds):
            curves.append(_curves(lanes, task, setting, seed))
            print(f"{name}: {method}, seed {seed}: {curves[-1][-1].round(3)}")
        yield (
            method,
            {
                "accuracy": np.round(curves, 5).tolist(),
                "bytes": lanes.bytes,
                "seconds": round(time.perf_counter() - began, 1),
            },
        )


class _Lanes(NamedTuple):
    """One method from all its starts at once."""

    init: Callable[[jax.Array], Any]
    step: Callable[..., Any]
    bytes: tuple[int, int]  # down and up, per client and round


def _lanes(method: str, task: Any, setting: Setting, steps: list[float]) -> _Lanes:
    every = jnp.asarray(steps, jnp.float32)
    client_lr = setting.client_lr
    if method == "fixed":

        def step(lr, state, cohort, key):
            return _fedavg(task, lr, client_lr).step(state, cohort, key)

        algorithms = [_fedavg(task, lr, client_lr) for lr in steps]
    else:
        algorithms = [METHODS[method](task, lr, client_lr) for lr in steps]

        def step(lr, state, cohort, key):
            del lr  # It is in the state.
            return algorithms[0].step(state, cohort, key)

    def init(key):
        states = [algorithm.init(key) for algorithm in algorithms]
        return jax.tree.map(lambda *x: jnp.stack(x), *states)

    moved = jax.jit(jax.vmap(step, in_axes=(0, 0, None, None)))
    key = jax.random.key(0)
    cost = fad.plan(algorithms[0].step)(
        algorithms[0].init(key), _cohort(task, setting, key, 1), key
    ).cost()
    sent = (int(cost.bytes_down), int(cost.bytes_up))
    return _Lanes(init, lambda *args: moved(every, *args), sent)


def _fedavg(task: Any, lr: Any, client_lr: float) -> fad.Algorithm:
    return fedavg.fedavg(
        task.loss,
        task.init,
        server=optax.sgd(1.0),
        client=optax.sgd(client_lr),
        server_lr=lr,
    )


def _curves(lanes: _Lanes, task: Any, setting: Setting, seed: int) -> np.ndarray:
    """Return accuracies ``[evaluations, starts]`` of one seed."""
    key, found = jax.random.key(seed), []
    state, test = lanes.init(key), _test(task)
    alive = np.ones(len(setting.starts), bool)  # A run ends at a loss that is none.

    @jax.jit
    def tested(params, test):
        return jax.vmap(lambda p: task.metrics(p, test)["accuracy"].mean())(params)

    for t in range(1, int(MORE * setting.rounds) + 1):
        cohort = _cohort(task, setting, jax.random.fold_in(key, 1), t)
        state, metrics = lanes.step(state, cohort, jax.random.key(t))
        alive &= np.isfinite(metrics["train_loss"])
        alive &= np.asarray(metrics.get("undone", 0)) < ENDED
        if t % EVERY == 0:
            found.append(np.where(alive, tested(state.params, test), 0))
    return np.stack(found)


def _cohort(task: Any, setting: Setting, key: jax.Array, t: int) -> Any:
    return task.train.cohort(
        jax.random.fold_in(key, t),
        10,
        batch_size=setting.batch,
        max_examples=setting.examples,
    )


def _test(task: Any) -> Any:
    count = len(jax.tree.leaves(task.test)[0])
    some = np.random.default_rng(0).permutation(count)[:TESTED]
    return jax.device_put(jax.tree.map(lambda x: x[some], task.test))
