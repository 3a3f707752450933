"""Speed and memory, measured; one command each: ``python -m benchmarks <name>``."""
