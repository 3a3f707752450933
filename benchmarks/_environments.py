"""One virtual environment per peer, its versions pinned, under ``.benchmarks/``."""

import hashlib
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / ".benchmarks"
# The wheel without CUDA; PyPI's own brings some gigabytes of it. In a step of its own,
# since pip would ask the second index for every other package too.
TORCH = (
    "torch==2.13.0",
    "--no-deps",
    "--extra-index-url",
    "https://download.pytorch.org/whl/cpu",
)


class InstallError(RuntimeError):
    """A peer's environment could not be made; the message is the last of pip's."""


@dataclass(frozen=True)
class Peer:
    """A framework to compare with.

    Attributes:
        name: Its worker is ``benchmarks/workers/<name>.py``.
        steps: Arguments of ``pip install``, one step after the other; with none it runs
            in fad's own environment.
        report: The packages whose versions stand in the results.
        note: What a reader must know to read its numbers.
    """

    name: str
    steps: tuple[tuple[str, ...], ...]
    report: tuple[str, ...]
    note: str = ""


def _ours(*packages: str) -> tuple[str, ...]:
    """Pin packages to the versions that fad runs on here."""
    return tuple(f"{p}=={metadata.version(p)}" for p in packages)


OWN = {
    "fad": Peer("fad", (), ("jax", "flax")),
    "plain": Peer("plain", (), ("jax",), "plain JAX written by hand, no framework"),
}
PEERS = {
    "drjax": Peer(
        "drjax",
        (("drjax==0.2.1", *_ours("jax", "jaxlib", "numpy")),),
        ("drjax", "jax"),
        "as documented: one map_fn over the cohort, padded batches",
    ),
    "fedjax": Peer(
        "fedjax",
        (
            (
                "fedjax==0.0.17",
                "jax==0.4.30",
                "jaxlib==0.4.30",
                "dm-haiku==0.0.12",
                "numpy<2",
            ),
        ),
        ("fedjax", "jax"),
        "its client loop over exact batches; its stock FedAvg refills the last batch "
        "with examples used before, which is another computation",
    ),
    "pfl": Peer(
        "pfl",
        (TORCH, ("pfl==0.6.0", "torch==2.13.0")),
        ("pfl", "torch"),
        "PyTorch; the faster of 1 and 2 threads",
    ),
    "flwr": Peer(
        "flwr",
        (TORCH, ("flwr[simulation]==1.41.0", "torch==2.13.0")),
        ("flwr", "ray", "torch"),
        "PyTorch under Ray, one actor per core; it pays for isolation by processes and "
        "for messages that the others do not have",
    ),
}


def select(names: str | None) -> list[Peer]:
    """Return the peers of a comma-separated list; all of them without one.

    Raises:
        SystemExit: A name is unknown.
    """
    chosen = list(PEERS) if names is None else [n for n in names.split(",") if n]
    unknown = [n for n in chosen if n not in PEERS]
    if unknown:
        raise SystemExit(
            f"--peers: no peer is named {', '.join(map(repr, unknown))}; "
            f"expected names among {','.join(PEERS)}, separated by commas."
        )
    return [PEERS[n] for n in chosen]


def python_of(peer: Peer, folder: Path = FOLDER) -> str:
    """Return the peer's interpreter, making its environment where it is not yet.

    An environment whose installation broke off, or whose pins changed, is made anew.

    Raises:
        InstallError: pip failed.
    """
    if not peer.steps:
        return sys.executable
    home = folder / peer.name
    python = home / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    text = json.dumps([sys.version, peer.steps])
    digest = hashlib.sha256(text.encode()).hexdigest()
    stamp = home / ".installed"
    if stamp.exists() and stamp.read_text() == digest:
        return str(python)
    print(f"installing {peer.name} into {home.relative_to(folder.parent)}", flush=True)
    shutil.rmtree(home, ignore_errors=True)
    _run([sys.executable, "-m", "venv", str(home)])
    pip = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    for step in peer.steps:
        _run([*pip, *step])
    stamp.write_text(digest)
    return str(python)


def versions_of(peer: Peer, python: str) -> str:
    """Return the versions of a peer's packages as text."""
    code = (
        "import sys; from importlib.metadata import version as v; "
        "print(', '.join(f'{p} {v(p)}' for p in sys.argv[1:]))"
    )
    command = [python, "-c", code, *peer.report]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        lines = [line for line in lines if not line.startswith("WARNING")]
        errors = [line for line in lines if line.startswith("ERROR")] or lines
        raise InstallError(" ".join(errors[-2:]) or f"exit code {done.returncode}")
