"""Run a benchmark by name: ``python -m benchmarks modes``."""

import argparse
import signal
import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark that is named; return 1 if results disagree."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    commands = parser.add_subparsers(dest="name", required=True)
    from benchmarks import limit, peers, scale

    commands.add_parser("modes", help="does mode='auto' pick what is cheapest?")
    commands.add_parser("compiling", help="what does the streaming pass cost?")
    commands.add_parser("streaming", help="a round over a million clients")
    about = "a meta-trained aggregator against tuned FedAdam, where it never was"
    commands.add_parser("learned_aggregator", help=about, add_help=False)
    commands.add_parser("data", help="cohorts from 100,000 clients: time and memory")
    about = "learned client weights against noisy labels and unequal clients"
    commands.add_parser("learned_weights", help=about)
    commands.add_parser("personalisation", help="which model do clients adapt best?")
    found = {"peers": peers, "limit": limit, "scale": scale}
    for name, module in found.items():
        lines = (module.__doc__ or "").splitlines()
        module.arguments(commands.add_parser(name, help=lines[0]))
    options, rest = parser.parse_known_args(argv)
    if options.name == "learned_aggregator":
        from benchmarks import learned_aggregator

        return learned_aggregator.main(rest)
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if options.name == "compiling":
        from benchmarks import compiling

        compiling.main()
        return 0
    if options.name == "streaming":
        from benchmarks import streaming

        streaming.main()
        return 0
    if options.name == "data":
        from benchmarks import data

        data.main()
        return 0
    if options.name == "personalisation":
        from benchmarks import personalisation

        personalisation.main()
        return 0
    if options.name == "learned_weights":
        from benchmarks import learned_weights

        learned_weights.main()
        return 0
    if options.name == "modes":
        from benchmarks import modes  # It imports JAX, which takes a second.

        modes.main()
        return 0
    return 0 if found[options.name].main(options) else 1


if __name__ == "__main__":
    # Being ended must end the workers too, which happens where the stack unwinds.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    sys.exit(main())
