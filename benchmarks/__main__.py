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
    commands.add_parser("data", help="cohorts from 100,000 clients: time and memory")
    commands.add_parser("personalisation", help="which model do clients adapt best?")
    found = {"peers": peers, "limit": limit, "scale": scale}
    for name, module in found.items():
        lines = (module.__doc__ or "").splitlines()
        module.arguments(commands.add_parser(name, help=lines[0]))
    options = parser.parse_args(argv)
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
    if options.name == "modes":
        from benchmarks import modes  # It imports JAX, which takes a second.

        modes.main()
        return 0
    return 0 if found[options.name].main(options) else 1


if __name__ == "__main__":
    # Being ended must end the workers too, which happens where the stack unwinds.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    sys.exit(main())
