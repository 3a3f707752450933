"""What ``initialize`` is told, by arguments or by the environment, checked."""

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

from fad._errors import FadError

CALL = "fad.distributed.initialize"
_VARIABLES = {
    "coordinator": ("FAD_COORDINATOR", "JAX_COORDINATOR_ADDRESS"),
    "num_processes": ("FAD_NUM_PROCESSES",),
    "process_id": ("FAD_PROCESS_ID",),
    "local_devices": ("FAD_LOCAL_DEVICES",),
}


class Settings(NamedTuple):
    """Who this process is among which others; None is left to JAX's detection."""

    coordinator: str | None
    num_processes: int | None
    process_id: int | None
    local_devices: int | tuple[int, ...] | None

    @property
    def missing(self) -> list[str]:
        """The names of what JAX must find out from the cluster."""
        return [name for name in self._fields[:3] if getattr(self, name) is None]


def read_settings(
    coordinator: str | None,
    num_processes: int | None,
    process_id: int | None,
    local_devices: int | Sequence[int] | None,
) -> Settings:
    """Return the settings: arguments first, then the environment.

    Raises:
        FadError: Naming the argument or the variable that is wrong.
    """
    address = _value("coordinator", coordinator)
    processes = _value("num_processes", num_processes)
    process = _value("process_id", process_id)
    devices = _value("local_devices", local_devices)
    if address is not None:
        _check_address(*address)
    if processes is not None and _number(*processes) < 1:
        raise _error(*processes, "expected at least 1")
    if process is not None and _number(*process) < 0:
        raise _error(*process, "expected at least 0")
    count = None if processes is None else _number(*processes)
    number = None if process is None else _number(*process)
    if process and count is not None and number is not None and number >= count:
        raise _error(
            *process,
            f"expected a number from 0 to {count - 1}, as there are {count} processes",
        )
    known = None if address is None else address[1]
    return Settings(known, count, number, _devices(devices))


def _value(name: str, given: Any) -> tuple[str, Any] | None:
    """Return where a value came from, and the value."""
    if given is not None:
        return name, given
    for variable in _VARIABLES[name]:
        if os.environ.get(variable):
            return variable, os.environ[variable]
    return None


def _number(source: str, value: Any) -> int:
    """Return an int, or the one that a variable spells."""
    if source.isupper() and value.strip().isdecimal():
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise _error(source, value, "expected a whole number")
    return value


def _check_address(source: str, value: Any) -> None:
    host, colon, port = str(value).rpartition(":")
    if not colon or not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise _error(
            source,
            value,
            "expected host:port of process 0, with a port that is free there, for "
            "example '10.0.0.1:8476'",
        )


def _devices(found: tuple[str, Any] | None) -> int | tuple[int, ...] | None:
    if found is None:
        return None
    source, value = found
    if isinstance(value, Sequence) and not isinstance(value, str):
        return tuple(_number(source, v) for v in value)
    if isinstance(value, str) and "," in value:
        return tuple(_number(source, v) for v in value.split(","))
    if _number(source, value) < 1:
        raise _error(source, value, "expected at least 1")
    return _number(source, value)


def _error(source: str, value: Any, expected: str) -> FadError:
    return FadError(f"{CALL}: {source}={value!r}: {expected}.")
