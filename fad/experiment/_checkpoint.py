"""Checkpoints by Orbax: the one file that knows its API."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fad._errors import RunError
from fad.distributed import guard
from fad.experiment._disk import writing
from fad.experiment._lazy import require

_NAME = "state"  # Of the folder in each checkpoint; there once it is complete.


class Checkpoints:
    """The checkpoints of a run, by round; the newest two are kept.

    A state is stored as a flat dictionary of arrays by path: any pytree survives. Of
    several processes all make the same calls; one writes.
    """

    def __init__(self, folder: Path) -> None:
        """Open or make the folder; what a killed save left half-written is removed."""
        self._folder = Path(folder).absolute()
        with writing(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
        training = require("orbax.checkpoint").v1.training
        keep = training.preservation_policies.LatestN(2)
        self._checkpointer = training.Checkpointer(
            self._folder, preservation_policy=keep, cleanup_tmp_directories=True
        )
        self._failed = False

    def rounds(self) -> list[int]:
        """Return the rounds that have a complete checkpoint, ascending."""
        steps = [c.step for c in self._checkpointer.checkpoints]
        return sorted(s for s in steps if (self._folder / str(s) / _NAME).is_dir())

    def save(self, step: int, state: Any) -> None:
        """Write the state after a round; it is complete on disk or not there."""
        named = {_NAME: _flat(state)}
        try:
            with guard(f"{self._folder / str(step)}"):
                self._checkpointer.save_checkpointables(step, named, overwrite=True)
        except Exception as error:  # Orbax raises its own, not OSError.
            self._failed = True
            if isinstance(error, RunError):  # Another process is lost.
                raise
            raise RunError(
                f"{self._folder / str(step)}: this checkpoint cannot be written: "
                f"{error}. Remove the cause, then continue with --resume."
            ) from error

    def load(self, step: int, like: Any) -> Any:
        """Read the state after a round, with the structure of ``like``."""
        want, path = _flat(like), self._folder / str(step)
        try:
            known = self._checkpointer.checkpointables_metadata(step).metadata[_NAME]
            shapes = {k: tuple(x.shape) for k, x in known.items()}
            fits = shapes == {k: x.shape for k, x in want.items()}
            got = {}
            if fits:
                named = {_NAME: want}
                got = self._checkpointer.load_checkpointables(step, named)[_NAME]
        except Exception as error:
            raise RunError(
                f"{path}: this checkpoint is damaged or cannot be read. Remove its "
                f"folder to resume from the one before, or use --overwrite."
            ) from error
        if not fits:
            raise RunError(
                f"{path}: this checkpoint does not fit the state of the algorithm, "
                f"which has changed since. Use --overwrite."
            )
        leaves, treedef = jax.tree_util.tree_flatten_with_path(like)
        return treedef.unflatten([_leaf(got.get(_name(p)), x) for p, x in leaves])

    def close(self) -> None:
        """Close the folder."""
        try:
            self._checkpointer.close()
        except Exception:
            if not self._failed:  # Orbax raises the error of a failed save once more.
                raise


def _name(path: tuple[Any, ...]) -> str:
    return _NAME + jax.tree_util.keystr(path)


def _is_key(x: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(x), jax.dtypes.prng_key)


def _flat(state: Any) -> dict[str, np.ndarray]:
    """Return the arrays by path, without empty ones, which Orbax refuses."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    data = {_name(p): jax.random.key_data(x) if _is_key(x) else x for p, x in leaves}
    return {k: np.asarray(x) for k, x in jax.device_get(data).items() if np.size(x)}


def _leaf(stored: np.ndarray | None, like: Any) -> jax.Array:
    if stored is None:
        return like
    if _is_key(like):
        data = jnp.asarray(stored)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(like))
    return jnp.asarray(stored)
