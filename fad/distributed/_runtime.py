"""What JAX will do in this process, asked without starting its devices."""

import importlib.metadata
import importlib.util

import jax

_COUNT = "jax_num_cpu_devices"


def backend_started() -> bool:
    """Say whether JAX has started its devices, so that its settings are fixed.

    JAX says so only by refusing another number of devices.
    """
    count = getattr(jax.config, _COUNT)
    try:
        jax.config.update(_COUNT, count + 1)
    except RuntimeError:
        return True
    jax.config.update(_COUNT, count)
    return False


def runs_on_cpu() -> bool:
    """Say whether JAX will run on CPU."""
    platforms = jax.config.jax_platforms  # pyright: ignore[reportAttributeAccessIssue]
    if platforms:
        return platforms.split(",")[0] == "cpu"
    plugins = importlib.metadata.entry_points(group="jax_plugins")
    modules = ("jax_plugins", "libtpu")
    return not plugins and not any(map(importlib.util.find_spec, modules))
