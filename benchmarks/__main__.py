"""Run a benchmark by name: ``python -m benchmarks modes``."""

import argparse
import importlib
import signal
import sys
from collections.abc import Sequence

# Their modules import JAX, which takes a second: not for the help.
PLAIN = {
    "modes": "does mode='auto' pick what is cheapest?",
    "compiling": "what does the streaming pass cost?",
    "streaming": "a round over a million clients",
    "data": "cohorts from 100,000 clients: time and memory",
    "decode": "decoding a sketch of 100,000 numbers: time and memory",
    "estimators": "estimators of the hypergradient on a federated quadratic",
    "client_cost": "what a client's local training costs by its width",
    "coverage": "RABO: rounds against how many clients hold a coordinate",
    "methods": "what the classical methods cost and reveal, a page of docs/",
    "learned_weights": "learned client weights, noisy labels and unequal clients",
    "personalisation": "which model do clients adapt best?",
}
WITH_OPTIONS = {
    "learned_steps": "learned server steps, wherever they start",
    "bilevel": "federated bilevel algorithms against rounds and bytes",
    "pruned": "RABO and RAFBO: accuracy against a client's FLOPs, memory and bytes",
    "submodels": "FedSep's table 1, reduced: accuracy against a client's FLOPs",
    "classical": "the classical algorithms and aggregators on MNIST",
    "fedsep": "FedSep and compressed FedAvg: accuracy by what clients send",
    "learned_aggregator": "a meta-trained aggregator against tuned FedAdam",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark that is named; return 1 if results disagree."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    commands = parser.add_subparsers(dest="name", required=True)
    from benchmarks import limit, peers, scale

    for name, about in PLAIN.items():
        commands.add_parser(name, help=about)
    for name, about in WITH_OPTIONS.items():
        commands.add_parser(name, help=about, add_help=False)
    found = {"peers": peers, "limit": limit, "scale": scale}
    for name, module in found.items():
        lines = (module.__doc__ or "").splitlines()
        module.arguments(commands.add_parser(name, help=lines[0]))
    options, rest = parser.parse_known_args(argv)
    if options.name in WITH_OPTIONS:
        return importlib.import_module(f"benchmarks.{options.name}").main(rest)
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if options.name in PLAIN:
        importlib.import_module(f"benchmarks.{options.name}").main()
        return 0
    return 0 if found[options.name].main(options) else 1


if __name__ == "__main__":
    # Being ended must end the workers too, which happens where the stack unwinds.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    sys.exit(main())
