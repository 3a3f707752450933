"""The run folder: when a run may start, resume or replace what is there."""

import shutil
import tomllib
from pathlib import Path

from fad._errors import RunError
from fad.experiment import _toml
from fad.experiment._config import Experiment, differences, dump
from fad.experiment._disk import writing

# What a run writes; nothing else is ever removed from its folder.
_FILES = ("metrics.jsonl", "figure.png", "checkpoints", "config.toml")


def prepare(
    experiment: Experiment, folder: Path, *, resume: bool, overwrite: bool
) -> None:
    """Check the folder and write ``config.toml``.

    Raises:
        RunError: The folder holds a run and neither option is given; there is nothing
            to resume; the experiment differs from the one to be resumed; the folder
            cannot be written.
    """
    check_new(folder, resume=resume, overwrite=overwrite)
    config = folder / "config.toml"
    if resume:
        _check_resumable(experiment, config)
    with writing(folder):
        if overwrite:
            remove(folder)
        folder.mkdir(parents=True, exist_ok=True)
        config.write_text(dump(experiment), encoding="utf-8")


def check_new(folder: Path, *, resume: bool, overwrite: bool) -> None:
    """Refuse a folder that holds something, unless an option says what to do.

    Raises:
        RunError: It does and neither option is given, or both are.
    """
    if resume and overwrite:
        raise RunError("--resume and --overwrite exclude each other: give one")
    if resume or overwrite or not folder.exists():
        return
    with writing(folder):
        found = sorted(path.name for path in folder.iterdir())
    if found:
        raise RunError(
            f"{folder}: the folder exists and holds {', '.join(found[:6])}. Continue "
            f"the run with --resume, replace it with --overwrite, or choose another "
            f"name."
        )


def remove(folder: Path) -> None:
    """Remove what a run wrote; ``config.toml`` goes last, so that it marks a run."""
    for path in (folder / name for name in _FILES):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _check_resumable(experiment: Experiment, config: Path) -> None:
    if not config.exists():
        raise RunError(
            f"{config.parent}: nothing to resume: there is no config.toml. Start the "
            f"run without --resume."
        )
    old, new = _toml.read(config), tomllib.loads(dump(experiment))
    if new["rounds"] < old.get("rounds", 0):
        raise RunError(
            f"{config.parent}: cannot resume: rounds ({old['rounds']} -> "
            f"{new['rounds']}) may only grow"
        )
    if changed := differences({**old, "rounds": new["rounds"]}, new):
        raise RunError(
            f"{config.parent}: cannot resume with another configuration; it differs "
            f"in {', '.join(changed)}. Only rounds may grow. Use --overwrite or "
            f"another name."
        )
