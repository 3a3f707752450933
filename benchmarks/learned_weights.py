"""Do learned client weights find the clients that should count?

FedAvg with weights that are learned, beside fixed ones and other methods, on a
federation of which 30 % of the clients have noisy labels and on one of very unequal
clients. All runs of a seed have the same clients, cohorts and first model.
"""

import json
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import fad
from algorithms import afl, fedavg, fednova, learned_weights, qffl
from algorithms._learned_round import Round
from algorithms._weight_functions import Kind, weight_function
from benchmarks import _weight_federations as federations
from benchmarks._weight_federations import CLIENTS, SETTINGS, Setting
from benchmarks._weight_page import write_page

SEEDS, EVERY, LAST = 5, 5, 6  # Accuracy is the mean of the last six evaluations.
META = optax.adam(0.05, b1=0.9, b2=0.99)
Build = Callable[[Any, Setting], fad.Algorithm]


def _sgd(setting: Setting) -> dict[str, Any]:
    return {"server": optax.sgd(1.0), "client": optax.sgd(setting.client_lr)}


def _learned(kind: Kind, mode: learned_weights.Mode, clean: int) -> Build:
    def build(server, setting):
        init, loss, _ = federations.model(setting)
        return learned_weights.learned_weights(
            loss,
            init,
            function=weight_function(kind),
            meta=META,
            mode=mode,
            validation=jax.tree.map(lambda x: x[:clean], server) if clean else None,
            **_sgd(setting),
        )

    return build


def _fedavg(weighting: fedavg.Weighting) -> Build:
    def build(server, setting):
        init, loss, _ = federations.model(setting)
        return fedavg.fedavg(loss, init, weighting=weighting, **_sgd(setting))

    return build


def _qffl(q: float) -> Build:
    def build(server, setting):
        init, loss, _ = federations.model(setting)
        lipschitz = 1 / setting.client_lr
        return qffl.qffl(loss, init, q=q, lipschitz=lipschitz, **_sgd(setting))

    return build


def _afl(server: Any, setting: Setting) -> fad.Algorithm:
    init, loss, _ = federations.model(setting)
    options = {"num_clients": CLIENTS, "weights_lr": 0.001}
    return afl.afl(loss, init, **options, **_sgd(setting))


def _fednova(server: Any, setting: Setting) -> fad.Algorithm:
    init, loss, _ = federations.model(setting)
    own = {"server": optax.sgd(1.0), "client_lr": setting.client_lr}
    return fednova.fednova(loss, init, **own)


# What a weight function is, how it is learned, and on how many clean examples.
LEARNED: dict[str, tuple[Kind, learned_weights.Mode, int]] = {
    "learned exponent, 500 clean examples": ("exponent", "forward", 500),
    "learned log-linear, 500 clean examples": ("loglinear", "forward", 500),
    "learned network, 500 clean examples": ("network", "reverse", 500),
    "learned log-linear, 100 clean examples": ("loglinear", "forward", 100),
    "learned network, 100 clean examples": ("network", "reverse", 100),
    "learned log-linear, cohort's loss": ("loglinear", "forward", 0),
    "learned network, cohort's loss": ("network", "reverse", 0),
}
METHODS: dict[str, Build] = {
    "uniform": _fedavg("uniform"),
    "by examples": _fedavg("examples"),
    "FedNova": _fednova,
    "q-FFL, q = 0.1": _qffl(0.1),
    "q-FFL, q = 1": _qffl(1.0),
    "AFL": _afl,
    **{name: _learned(*how) for name, how in LEARNED.items()},
}
ALONE = {f"the server's {n} examples alone": n for n in (500, 100)}


def main() -> None:
    """Run everything, and write the results and the page."""
    from benchmarks._report import ROOT

    began = time.perf_counter()
    found: dict[str, Any] = {name: _federation(name) for name in SETTINGS}
    found["seconds"] = round(time.perf_counter() - began)
    path = ROOT / "benchmarks" / "results" / "learned_weights.json"
    path.write_text(json.dumps(found) + "\n")
    print(*write_page(found, ROOT / "docs" / "experiments"), sep="\n")


def _federation(name: str, seeds: int = SEEDS) -> dict[str, Any]:
    """Return each method's accuracy and each client's weight, by seed."""
    setting = SETTINGS[name]
    accuracy: dict[str, list[float]] = {}
    weights: dict[str, list[list[float]]] = {}
    made = [federations.make(name, seed) for seed in range(seeds)]
    inputs = [federations.cohorts(f.train, setting, s) for s, f in enumerate(made)]
    for method in (*METHODS, *ALONE):
        run, weigh = _runner(METHODS.get(method, METHODS["uniform"]), setting), None
        if method in LEARNED:
            weigh = _weigher(LEARNED[method][0], setting)
        for seed, (clients, cohorts) in enumerate(zip(made, inputs, strict=True)):
            if method in ALONE:
                rows = {k: x[: ALONE[method]] for k, x in clients.server.items()}
                alone = fad.data.Federated(rows, np.array([0, ALONE[method]]))
                cohorts = federations.cohorts(alone, setting, seed)
            state, curve = run(clients.server, cohorts, jax.random.key(seed))
            score = float(np.mean(curve[EVERY - 1 :: EVERY][-LAST:]))
            accuracy.setdefault(method, []).append(round(score, 5))
            if weigh is not None:
                everyone = federations.everyone(clients.train, setting)
                own = np.asarray(weigh(state, everyone))
                weights.setdefault(method, []).append(own.round(6).tolist())
        print(f"{name}: {method}: {np.round(accuracy[method], 4)}", flush=True)
    return {
        "setting": setting._asdict(),
        "sizes": sorted(made[0].train.sizes.tolist()),
        "noise": [f.noise.tolist() for f in made],
        "accuracy": accuracy,
        "weights": weights,
    }


def _runner(build: Build, setting: Setting) -> Callable[..., Any]:
    """Return a compiled run: the last state and the accuracy of every 5th round."""
    accuracy, test = federations.model(setting)[2], federations.images("test")

    @jax.jit
    def run(server, cohorts, key):
        algorithm = build(server, setting)

        def one(state, inputs):
            t, cohort = inputs
            state, _ = algorithm.step(state, cohort, jax.random.fold_in(key, t))
            due = t % EVERY == EVERY - 1
            zero = jnp.zeros((), jnp.float32)
            score = jax.lax.cond(
                due, lambda p: accuracy(p, test), lambda p: zero, state.params
            )
            return state, score

        rounds = jnp.arange(setting.rounds)
        return jax.lax.scan(one, algorithm.init(key), (rounds, cohorts))

    return run


def _weigher(kind: Kind, setting: Setting) -> Callable[..., Any]:
    """Return a function that weighs all clients, which only a simulation can show."""
    init, loss, _ = federations.model(setting)
    del init
    sgd = _sgd(setting)
    function = weight_function(kind)
    parts = (sgd["server"], sgd["client"], 1.0, None, "examples", False)
    one_round = Round(loss, function, *parts)

    @jax.jit
    @fad.program
    def weigh(state, clients):
        key = jax.random.key(0)
        return one_round.work(state[:3], state.phi, clients, key, 1.0).weight

    return lambda *args: weigh(*args).unsafe_gather()
