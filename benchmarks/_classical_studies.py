"""What the benchmark of the classical algorithms and aggregators runs."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from benchmarks._study import Series, Study

ROUNDS = 100
ABOUT = """100 clients of MNIST, each with two shards (about two digits, 600 examples),
10 of them in a round, one local pass in batches of 10, plain SGD; an MLP of 784-200-10
(159,010 parameters). Every client counts the same. The clients' step is 0.2 and the
server's 1 but where named. The settings were chosen by trials of 40 rounds with one
other seed, from two to four values of each method's own parameters and of the step
(0.05 to 0.5 of FedAvg), and not tuned further: a point or two between methods says
little.

Scaffnew wants all 100 clients in every round, so its rounds are ten times the work of
the others'. Where all clients take as many steps and weigh the same, FedNova is FedAvg
up to rounding, and so is Ditto's global model; Ditto is there for its personal
models, which its line does not show. DP-FedAvg's noise is far too small to protect
anybody, as 10 clients a round leave no other choice. The aggregators are in FedAvg, and
no client is corrupted here: what the robust ones lose is the price of two digits per
client, whose updates are all outliers."""


def _method(algorithm: str, *, set: Any = None, every: int = 5, **options: Any):
    own = {"name": algorithm, "client_lr": 0.2, **options}
    return Series(own, ROUNDS, every, seconds=25, set=set or {})


def _uniform(algorithm: str, **options: Any) -> Series:
    return _method(algorithm, weighting="uniform", **options)


def _aggregated(*parts: str, **options: Any) -> Series:
    return _uniform("aggregated_fedavg", aggregators=list(parts), **options)


ALGORITHMS: Mapping[str, Series] = {
    "FedAdam": _uniform("fedavg", server="adam", server_lr=0.01),
    "FedProx, mu = 0.1": _uniform("fedprox", mu=0.1),
    "FedProx, adaptive": _uniform("fedprox", mu=0.0, adaptive=True),
    "FedNova": _uniform("fednova"),
    "SCAFFOLD": _method("scaffold"),
    "FedDyn, alpha = 0.03": _method("feddyn", alpha=0.03),
    "Mime, momentum": _method("mime", client_lr=0.01),
    "MimeLite, momentum": _method("mime", client_lr=0.002, lite=True),
    "Scaffnew, p = 0.05": Series(
        {"name": "scaffnew", "client_lr": 0.1, "p": 0.05, "max_steps": 60},
        ROUNDS,
        5,
        seconds=120,
        set={"cohort": 100},
    ),
    "FedBuff": _method("fedbuff", client_lr=0.3),
    "Ditto": _uniform("ditto", personal_lr=0.1, lam=0.3),
    "AFL": _uniform("afl", weights_lr=0.001),
    "q-FFL, q = 0.2": _uniform("qffl", q=0.2),
}
ROBUST: Mapping[str, Series] = {
    "geometric median": _aggregated("geometric_median()"),
    "trimmed mean, 20 %": _aggregated("trimmed_mean(fraction=0.2)"),
    "median": _aggregated("median()"),
    "Krum, f = 2": _aggregated("krum(corrupted=2)"),
    "multi-Krum, f = 2": _aggregated("multi_krum(corrupted=2)"),
}
PRIVATE: Mapping[str, Series] = {
    "clip, 2": _aggregated("clip(bound=2.0)"),
    "clip + secure sum, 16 bits": _aggregated(
        "clip(bound=2.0)", "secure_sum(bound=2.0, clients=10, bits=16)"
    ),
    "DP-FedAvg, z = 0.05": _aggregated(
        "dp_fedavg(bound=2.0, noise_multiplier=0.05, clients=10)"
    ),
    "DP, adaptive, z = 0.05": _aggregated(
        "adaptive_clip(noise_multiplier=0.05, clients=10, initial_bound=1.0)"
    ),
}
COMPRESSED: Mapping[str, Series] = {
    "top-k, 1 %": _aggregated("top_k(k=0.01)"),
    "random-k, 10 %": _aggregated("random_k(k=0.1)"),
    "QSGD, 7 levels": _aggregated("qsgd(levels=7, bucket=512)"),
    "rotated, 8 bits": _aggregated("rotated_quantisation(bits=8, bound=2.0)"),
    "count-sketch, 5 x 6,000": _aggregated(
        "count_sketch(rows=5, columns=6000, k=0.001)", client_lr=0.1
    ),
    "low rank, 4": _aggregated("low_rank(rank=4)"),
}

# One panel and one table each, with FedAvg in all of them.
GROUPS: Mapping[str, Mapping[str, Series]] = {
    "Algorithms": ALGORITHMS,
    "Robust aggregators": ROBUST,
    "Private aggregators": PRIVATE,
    "Compressed updates": COMPRESSED,
}

MNIST = Study(
    title="The classical family on MNIST, 100 clients of two shards",
    config="mnist_classical.toml",
    splits={name: {} for name in GROUPS},
    targets=(0.9, 0.93),
    about=ABOUT,
    series={
        "FedAvg": _uniform("fedavg"),
        **{
            label: replace(series, splits=(name,))
            for name, group in GROUPS.items()
            for label, series in group.items()
        },
    },
)

STUDIES: dict[str, Study] = {"classical_mnist": MNIST}
