"""Start one of several processes."""

import os
from collections.abc import Sequence

import jax

from fad._errors import FadError
from fad.distributed import _runtime
from fad.distributed._ending import Lifelines, Witness, at_exit
from fad.distributed._guard import RESTART
from fad.distributed._settings import CALL, Settings, read_settings

_called = False
_TIMEOUT = "xla_cpu_collective_timeout_seconds"


def initialize(
    coordinator: str | None = None,
    *,
    num_processes: int | None = None,
    process_id: int | None = None,
    local_devices: int | Sequence[int] | None = None,
    heartbeat_seconds: int = 10,
    collective_seconds: int = 30,
    start_seconds: int = 300,
) -> None:
    """Make this process one of several that run one program over all their devices.

    Call it once, before any JAX computation, in every process. What is not given is
    read from ``FAD_COORDINATOR`` (or JAX's ``JAX_COORDINATOR_ADDRESS``),
    ``FAD_NUM_PROCESSES``, ``FAD_PROCESS_ID`` and ``FAD_LOCAL_DEVICES``, then from what
    JAX itself detects: Slurm, Open MPI, Kubernetes, Cloud TPU. With
    ``num_processes=1`` the process is alone and needs no coordinator, so that the same
    script runs with the one process that is left.

    If another process is lost, this one ends with a message: in the call that waits for
    a result, as ``fad.RunError``, or, where JAX ends the process itself because the
    coordinator is lost, on the standard error.

    Args:
        coordinator: ``host:port`` of process 0, with a port that is free there.
        num_processes: How many processes there are.
        process_id: Which one this is, from 0.
        local_devices: On CPU the number of virtual devices of this process; on
            accelerators the ids of the devices that it uses.
        heartbeat_seconds: How long the process that coordinates, and on accelerators
            any, may be silent before it counts as lost.
        collective_seconds: On CPU, how long a process waits for the others in one
            exchange, thus how much slower one may be. ``XLA_FLAGS`` goes before it.
        start_seconds: How long to wait for all processes to start.

    Raises:
        FadError: If the arguments are wrong or incomplete, if JAX has started already,
            or if it is called twice.

    Example:
        One process alone; others give their number and process 0's address::

            fad.distributed.initialize(num_processes=1, local_devices=2)
            fad.distributed.initialize("10.0.0.1:8476", num_processes=4, process_id=3)
    """
    settings = read_settings(coordinator, num_processes, process_id, local_devices)
    for name, seconds in (
        ("heartbeat_seconds", heartbeat_seconds),
        ("collective_seconds", collective_seconds),
        ("start_seconds", start_seconds),
    ):
        if isinstance(seconds, bool) or not isinstance(seconds, int) or seconds < 1:
            raise FadError(
                f"{CALL}: {name}={seconds!r}: expected whole seconds, at least 1."
            )
    _check_fresh()
    on_cpu = _runtime.runs_on_cpu()
    _set_devices(settings, on_cpu)
    if settings.num_processes != 1:
        _start(settings, on_cpu, heartbeat_seconds, collective_seconds, start_seconds)
    global _called
    _called = True


def _check_fresh() -> None:
    if _called or jax.distributed.is_initialized():
        raise FadError(
            f"{CALL}: it was called before in this process (or jax.distributed."
            "initialize was). Call it once, at the start of the program."
        )
    if _runtime.backend_started():
        raise FadError(
            f"{CALL}: JAX has already started its devices in this process. Call it "
            "first, before any jax.numpy value, jax.random.key or jax.devices()."
        )


def _set_devices(settings: Settings, on_cpu: bool) -> None:
    devices = settings.local_devices
    if not isinstance(devices, int):
        return
    if not on_cpu:
        raise FadError(
            f"{CALL}: local_devices={devices}: a number of virtual devices is for "
            "CPU, but JAX here may use an accelerator. Give the ids of its devices, "
            f"local_devices=({', '.join(map(str, range(devices)))},), or set "
            "JAX_PLATFORMS=cpu."
        )
    jax.config.update("jax_num_cpu_devices", devices)


def _start(
    settings: Settings, on_cpu: bool, heartbeat: int, collective: int, start: int
) -> None:
    me = f"process {settings.process_id} of {settings.num_processes}"
    if settings.missing:
        me = "this process"
    if on_cpu:
        _set_cpu_options(collective)
    witness = Witness(
        f"{CALL}: {me} ended before all processes had started; they have {start} s, "
        "and process 0 must be reachable at "
        f"{settings.coordinator or 'the address that JAX detects'}.\n"
    )
    try:
        _connect(settings, heartbeat, start)
        # Elsewhere JAX's own barrier at the exit keeps the processes together.
        host = (settings.coordinator or "").rpartition(":")[0].strip("[]")
        lifelines = Lifelines(CALL, host, start) if on_cpu else None
    except BaseException:
        witness.close()  # what is raised says it
        raise
    witness.say(_last_words(on_cpu))
    at_exit(witness, lifelines)


def _set_cpu_options(collective_seconds: int) -> None:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update("jax_enable_recoverability", True)
    # It swallows SIGTERM until a program asks for it, which fad's do not.
    jax.config.update("jax_enable_preemption_service", False)
    flags = os.environ.get("XLA_FLAGS", "")
    if _TIMEOUT not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} --{_TIMEOUT}={collective_seconds}".strip()


def _connect(settings: Settings, heartbeat_seconds: int, start_seconds: int) -> None:
    devices = settings.local_devices
    try:
        jax.distributed.initialize(
            settings.coordinator,
            settings.num_processes,
            settings.process_id,
            local_device_ids=None if isinstance(devices, int) else devices,
            initialization_timeout=start_seconds,
            heartbeat_timeout_seconds=heartbeat_seconds,
        )
    except ValueError as error:
        if settings.missing:  # and JAX found no cluster that completes them
            raise _incomplete(settings) from error
        raise


def _last_words(on_cpu: bool) -> str:
    process, processes = jax.process_index(), jax.process_count()
    cause = "it was killed"
    if process or not on_cpu:
        cause += (
            ", or another process, most likely process 0, which coordinates, ended or "
            "stopped answering (see the lines above)"
        )
    return (
        f"fad.distributed: process {process} of {processes} ended in the middle of "
        f"the run: {cause}. {RESTART}\n"
    )


def _incomplete(settings: Settings) -> FadError:
    known = settings._asdict()
    given = [name for name in known if known[name] is not None]
    missing = ", ".join(settings.missing)
    return FadError(
        f"{CALL}: {missing} not given ({', '.join(given) or 'nothing'} is), and no "
        "cluster was found that says it (Slurm, Open MPI, Kubernetes, Cloud TPU). Give "
        "coordinator, num_processes and process_id as arguments or in FAD_COORDINATOR, "
        "FAD_NUM_PROCESSES and FAD_PROCESS_ID; num_processes=1 runs alone."
    )
