"""What each classical method costs and reveals, from ``fad.plan`` and ``fad.check``.

Nothing is compiled or run: the step of each method is traced for the handwritten
digits, 50 clients, 10 of them in a round, and a network of 64 hidden units.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

import fad
from benchmarks._report import ROOT, table

PAGE = ROOT / "docs" / "methods.md"
BASE: Mapping[str, Any] = {
    "name": "digits",
    "rounds": 1,
    "eval_every": 1,
    "checkpoint_every": 1,
    "cohort": 10,
    "batch_size": 10,
    "epochs": 1,
    "data": {"set": "digits", "partition": "dirichlet", "clients": 50},
    "model": {"name": "mlp", "hidden": (64,)},
}
ABOUT = """What the methods of `algorithms/` and the aggregators of
`fad.aggregators` send, keep and reveal in one step, by `fad.plan` and `fad.check`.
Nothing here is written by hand but the names and the papers: `python -m benchmarks
methods` writes this page, and a test compares it with the code.

- **rounds**: times that the same clients are asked within a step, a round trip each.
- **down**, **up**: bytes that one client receives and sends, in models (the model here
  has 4,810 parameters, {model} bytes as float32). The number of its examples, its loss
  and the like, a few bytes, are in it.
- **keeps**: bytes of a client's memory from one of its steps to the next, in models;
  **within**: what it must hold from one round of a step to a later one.
- **the server sees**: `sums` where every client value goes into a sum over clients,
  which a secure sum could hide; otherwise what of a single client it has to see, for
  which `fad.check` wants a permission by name. "Slices" are which parts of the model a
  client has: of HeteroFL and FedRolex the classes of its labels, of the others units or
  weights that its data chose. Clients of other widths differ in bytes: those here are
  the mean over the cohort."""


class Method(NamedTuple):
    """A line of the table."""

    label: str
    algorithm: str
    options: Mapping[str, Any]
    source: str
    cohort: int = 10
    tiers: int = 1
    public: float = 0.0  # the share of the examples that are public, without labels


def _algorithm(label: str, source: str, **options: Any) -> Method:
    name = options.pop("name", label.lower().replace("-", ""))
    places = options.pop("cohort", 10), options.pop("tiers", 1)
    places += (options.pop("public", 0.0),)
    return Method(label, name, options, source, *places)


def _aggregator(text: str, source: str) -> Method:
    parts = tuple(part.strip() for part in text.split(" + "))
    return Method(f"`{text}`", "aggregated_fedavg", {"aggregators": parts}, source)


METHODS = (
    _algorithm("FedAvg", "McMahan et al. 2017"),
    _algorithm("FedProx", "Li et al. 2020"),
    _algorithm("FedNova", "Wang et al. 2020"),
    _algorithm("SCAFFOLD", "Karimireddy et al. 2020"),
    _algorithm("FedDyn", "Acar et al. 2021"),
    _algorithm("Mime", "Karimireddy et al. 2021"),
    _algorithm("MimeLite", "Karimireddy et al. 2021", name="mime", lite=True),
    _algorithm("Scaffnew", "Mishchenko et al. 2022", cohort=50),
    _algorithm("FedBuff", "Nguyen et al. 2022"),
    _algorithm("Ditto", "Li et al. 2021"),
    _algorithm("AFL", "Mohri et al. 2019"),
    _algorithm("q-FFL", "Li et al. 2020", name="qffl"),
    _algorithm("FedSep, a tenth of the numbers", "Li and Huang 2023", name="fedsep"),
)
_TIERS: Mapping[str, Any] = {"cohort": 12, "tiers": 3}  # of widths 1, 1/2 and 1/4
SUBMODELS = (
    _algorithm("HeteroFL", "Diao et al. 2021", **_TIERS),
    _algorithm("FedRolex", "Alam et al. 2022", **_TIERS),
    _algorithm(
        "Federated Dropout", "Caldas et al. 2018", name="federated_dropout", **_TIERS
    ),
    _algorithm(
        "FedSep, a round with a search",
        "Li and Huang 2023",
        name="fedsep_submodels",
        **_TIERS,
    ),
    _algorithm("ZeroFL", "Qiu et al. 2022", **_TIERS),
    _algorithm("FedDST", "Bibikar et al. 2022", **_TIERS),
    _algorithm("FLASH", "Babakniya et al. 2022", **_TIERS),
    _algorithm("FedDF", "Lin et al. 2020", public=0.2, **_TIERS),
    _algorithm("DS-FL", "Itahara et al. 2021", public=0.2, **_TIERS),
    _algorithm(
        "Fed-ET, clients of 1/2 and 1/4",
        "Cho et al. 2022",
        name="fedet",
        cohort=12,
        tiers=2,
        public=0.2,
    ),
)
AGGREGATORS = (
    _aggregator("geometric_median()", "Pillutla et al. 2022"),
    _aggregator("median()", "Yin et al. 2018"),
    _aggregator("trimmed_mean(fraction=0.2)", "Yin et al. 2018"),
    _aggregator("krum(corrupted=2)", "Blanchard et al. 2017"),
    _aggregator("multi_krum(corrupted=2)", "Blanchard et al. 2017"),
    _aggregator("clip(bound=1.0)", "McMahan et al. 2018"),
    _aggregator("zero_above(bound=10.0)", "TensorFlow Federated"),
    _aggregator(
        "dp_fedavg(bound=1.0, noise_multiplier=1.0, clients=10)", "McMahan et al. 2018"
    ),
    _aggregator(
        "adaptive_clip(noise_multiplier=0.5, clients=10)", "Andrew et al. 2021"
    ),
    _aggregator(
        "clip(bound=1.0) + secure_sum(bound=1.0, clients=10)", "Bonawitz et al. 2017"
    ),
    _aggregator("top_k(k=0.01)", "Stich et al. 2018"),
    _aggregator("random_k(k=0.01)", "Stich et al. 2018"),
    _aggregator("qsgd(levels=7)", "Alistarh et al. 2017"),
    _aggregator("rotated_quantisation(bits=8, bound=1.0)", "Suresh et al. 2017"),
    _aggregator("count_sketch(rows=5, columns=100, k=0.01)", "Rothchild et al. 2020"),
    _aggregator("low_rank(rank=2)", "Vogels et al. 2019"),
)


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE.relative_to(ROOT)}")


def page() -> str:
    """Return the text of the page."""
    columns = {name: name for name in ("method", "rounds", "down", "up")}
    columns |= {name: name for name in ("keeps", "within", "the server sees", "source")}
    sections = {
        "Algorithms": METHODS,
        "Clients of widths or densities 1, 1/2 and 1/4": SUBMODELS,
        "Aggregators, in FedAvg": AGGREGATORS,
    }
    parts = ["# What the classical methods cost and reveal"]
    lines = {name: [line(m) for m in methods] for name, methods in sections.items()}
    parts.append(ABOUT.replace("{model}", f"{_MODEL:,}"))
    for name, rows in lines.items():
        parts += [f"## {name}", table(rows, columns)]
    parts.append(
        "How they do on MNIST: [classical_mnist](experiments/classical_mnist.md)."
    )
    return "\n\n".join(parts) + "\n"


_MODEL = 4 * (64 * 64 + 64 + 64 * 10 + 10)


def line(method: Method) -> dict[str, Any]:
    """Return a method's line."""
    step, args, memory = _traced(method)
    cost = fad.plan(step)(*args).cost()
    return {
        "method": method.label,
        "rounds": cost.rounds,
        "down": _models(cost.bytes_down),
        "up": _models(cost.bytes_up),
        "keeps": _models(memory),
        "within": _models(cost.client_state_bytes),
        "the server sees": _seen(step, args),
        "source": method.source,
    }


def _traced(method: Method) -> tuple[Any, tuple[Any, ...], int]:
    """Return a method's step, its arguments' types, and the bytes of a memory."""
    from algorithms import ALGORITHMS
    from fad.experiment import DataConfig, Experiment, ModelConfig
    from fad.experiment._plan import step_arguments
    from fad.experiment._tasks import build

    config = ALGORITHMS[method.algorithm].Config(**method.options)
    values = {**BASE, "cohort": method.cohort, "algorithm": config}
    values |= {"tiers": method.tiers}
    values |= {
        "data": DataConfig(**BASE["data"], validation_fraction=method.public),
        "model": ModelConfig(**BASE["model"]),
    }
    algorithm, task = build(ALGORITHMS, Experiment(**values))
    args = step_arguments(Experiment(**values), algorithm, task)
    memory = 0
    if algorithm.init_client is not None:
        kept = jax.tree.leaves(jax.eval_shape(algorithm.init_client, args[0]))
        memory = sum(math.prod(x.shape) * x.dtype.itemsize for x in kept)
    return algorithm.step, args, memory


def _seen(step: Any, args: tuple[Any, ...]) -> str:
    """Say what the server sees besides sums."""
    report = fad.check(step, allow=("decode", "keys", "unsafe_gather"))(*args)
    kinds = {a.kind for a in report.allowed}
    if "keys" in kinds:
        return "each client's slices and weight"
    if "unsafe_gather" in kinds:
        return "each client's update"
    if "decode" in kinds:
        codes = {a.type for a in report.allowed}
        if codes == {"f32[]"}:
            return "each client's weight"
        return f"each client's code, {', '.join(sorted(codes))}"
    return "sums"


def _models(nbytes: int) -> str:
    models = nbytes / _MODEL
    return f"{models:.2f}" if models >= 0.005 else "-" if not nbytes else f"{nbytes} B"
