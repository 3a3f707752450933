"""The folder of a meta-training: when it may start, resume or replace what is there."""

import tomllib
from pathlib import Path

from fad._errors import RunError
from fad.experiment import _folder, _toml
from fad.experiment._config import differences
from fad.experiment._disk import writing
from fad.experiment._meta_config import MetaTraining, dump_meta


def prepare(
    config: MetaTraining, folder: Path, *, resume: bool, overwrite: bool
) -> None:
    """Check the folder and write ``config.toml``.

    Raises:
        RunError: The folder holds a run and neither option is given; there is nothing
            to resume, or another configuration; the folder cannot be written.
    """
    _folder.check_new(folder, resume=resume, overwrite=overwrite)
    file = folder / "config.toml"
    if resume:
        _check_same(config, file)
    with writing(folder):
        if overwrite:
            (folder / "theta.npz").unlink(missing_ok=True)
            _folder.remove(folder)
        folder.mkdir(parents=True, exist_ok=True)
        file.write_text(dump_meta(config), encoding="utf-8")


def _check_same(config: MetaTraining, file: Path) -> None:
    if not file.exists():
        raise RunError(
            f"{file.parent}: nothing to resume: there is no config.toml. Start without "
            f"--resume."
        )
    old, new = _toml.read(file), tomllib.loads(dump_meta(config))
    if changed := differences(old, new):
        raise RunError(
            f"{file.parent}: cannot resume with another configuration; it differs in "
            f"{', '.join(changed)}. Use --overwrite or another name."
        )
