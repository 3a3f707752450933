"""Run an experiment: ``python -m algorithms configs/<file>.toml [--field value]``."""

from algorithms import ALGORITHMS
from fad.experiment import main

if __name__ == "__main__":
    main(ALGORITHMS)
