"""How a process ends: with last words, and process 0 after the others.

JAX ends a process from a C++ thread, by abort, when process 0, which coordinates, is
lost. So (1) a small child prints what this process cannot; (2) on CPU the processes run
as *recoverable*: JAX then reports any other lost process as an error of the computation
that needed it; and (3) process 0, which nobody would wait for then, goes last.
"""

import atexit
import contextlib
import secrets
import socket
import subprocess
import sys
import time

import jax

from fad._errors import RunError
from fad.distributed._gather import gather_text

_CLEAN_SECONDS = 300  # as long as JAX's own barrier at the exit
_FAILED_SECONDS = 5  # for the others to raise the same error
_WITNESS = """
import sys
words = sys.stdin.read().split("\\0")[-1]
if words:
    sys.stderr.write(words)
"""

_failed = False


def mark_failed() -> None:
    """Remember that another process is lost: do not wait for it for long."""
    global _failed
    _failed = True


class Witness:
    """A child process that prints this process's last words if it dies without any.

    It sleeps on a pipe, which the system closes however the process ends.
    """

    def __init__(self, words: str):
        self._child = subprocess.Popen(
            [sys.executable, "-ISc", _WITNESS],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
            start_new_session=True,  # Ctrl-C is not for it
        )
        self.say(words)

    def say(self, words: str) -> None:
        """Set what is printed if the process dies from now on; nothing if empty."""
        assert self._child.stdin is not None
        self._child.stdin.write("\0" + words)
        self._child.stdin.flush()

    def close(self) -> None:
        """Let the child go, in silence."""
        assert self._child.stdin is not None
        try:
            self.say("")
            self._child.stdin.close()
        except OSError:  # somebody ended the child
            return
        self._child.wait()


class Lifelines:
    """One connection from each process to process 0, closed when that process is gone.

    All processes make one together, each waiting at most ``seconds``; ``host`` is
    process 0's, or empty for the name that it gives itself.
    """

    def __init__(self, call: str, host: str, seconds: int):
        self._held: list[socket.socket] = []
        process, processes = jax.process_index(), jax.process_count()
        try:
            if process == 0:
                self._listen(processes - 1, seconds)
            else:
                self._connect(host, seconds)
        except (OSError, jax.errors.JaxRuntimeError) as error:
            raise RunError(
                f"{call}: process {process} of {processes} has no connection with "
                f"process 0{f' at {host}' if host else ''}: {error}. The hosts must "
                "reach each other on any port, as the exchange of results needs too."
            ) from error

    def _listen(self, others: int, seconds: int) -> None:
        dual = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if dual else socket.AF_INET
        token, deadline = secrets.token_bytes(16), time.monotonic() + seconds
        with socket.create_server(("", 0), family=family, dualstack_ipv6=dual) as door:
            port, name = door.getsockname()[1], socket.gethostname()
            gather_text(f"{port} {token.hex()} {name}")
            while len(self._held) < others:
                door.settimeout(_left(deadline))
                caller, _ = door.accept()
                caller.settimeout(_left(deadline))
                if caller.recv(len(token), socket.MSG_WAITALL) == token:
                    self._held.append(caller)
                else:  # a stranger
                    caller.close()

    def _connect(self, host: str, seconds: int) -> None:
        port, token, name = gather_text("")[0].split()
        line = socket.create_connection((host or name, int(port)), timeout=seconds)
        line.sendall(bytes.fromhex(token))
        line.detach()  # no object closes it before the process is gone

    def wait_for_others(self, seconds: float) -> None:
        """In process 0, wait until the others are gone, at most this long."""
        deadline = time.monotonic() + seconds
        for held in self._held:  # elsewhere none
            with held, contextlib.suppress(OSError):  # reset, or out of time
                held.settimeout(_left(deadline))
                held.recv(1)


def _left(deadline: float) -> float:
    return max(0.01, deadline - time.monotonic())


def at_exit(witness: Witness, lifelines: Lifelines | None) -> None:
    """Arrange this process's end; it comes ahead of JAX's own."""
    # The last registered runs first; JAX registers when it is imported.
    atexit.register(_end, witness, lifelines)


def _end(witness: Witness, lifelines: Lifelines | None) -> None:
    # Python keeps in last_value the exception that ends the program.
    failed = _failed or getattr(sys, "last_value", None) is not None
    if lifelines is not None:
        lifelines.wait_for_others(_FAILED_SECONDS if failed else _CLEAN_SECONDS)
    witness.close()
