"""What a benchmark ran on."""

import datetime
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any


def machine() -> dict[str, Any]:
    """Return the processor, cores, memory, load, versions and the date."""
    return {
        "cpu": _cpu(),
        "cores": cores(),
        "memory_gib": _memory_gib(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "system": platform.system(),
        "python": platform.python_version(),
        "versions": {
            name: metadata.version(name) for name in ("jax", "jaxlib", "numpy")
        },
        "date": datetime.date.today().isoformat(),
    }


def describe(machine: dict[str, Any]) -> str:
    """Return the machine and the date in one line."""
    memory = machine["memory_gib"]
    parts = [
        machine["cpu"],
        f"{machine['cores']} cores",
        "memory unknown" if memory is None else f"{memory:.0f} GiB",
        f"Python {machine['python']}",
        *(f"{name} {version}" for name, version in machine["versions"].items()),
        f"load {machine['load']} at the start",
        machine["date"],
    ]
    return ", ".join(parts)


def cores() -> int:
    """Return the number of cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _memory_gib() -> float | None:
    names = getattr(os, "sysconf_names", {})
    if "SC_PHYS_PAGES" not in names or "SC_PAGE_SIZE" not in names:
        return None
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
