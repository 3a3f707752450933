"""The version of fad: the one place that states it."""

__version__ = "0.1.0"
