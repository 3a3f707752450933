"""Checkpoints by Orbax: the one file that knows its API."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fad._errors import RunError
from fad.experiment._disk import writing
from fad.experiment._lazy import require

_HALF = "orbax-checkpoint-tmp"  # in the name of what Orbax has not finished
_WHOLE = "_METADATA"  # in what it has
_KEPT = 2


@dataclasses.dataclass(frozen=True)
class AnyLength:
    """In the place of an array ``[any, *row]`` to be read."""

    row: tuple[int, ...]
    dtype: np.dtype

    @classmethod
    def like(cls, x: np.ndarray) -> "AnyLength":
        """Return one of the rows of ``x``."""
        return cls(x.shape[1:], x.dtype)

    def of(self, length: int) -> np.ndarray:
        """Return an array of this length."""
        return np.zeros((length, *self.row), self.dtype)


class Checkpoints:
    """The checkpoints of a run, by round; the newest two are kept.

    A state is stored as a flat dictionary of arrays by path: any pytree survives. Of
    several processes each reads for itself, and the first alone may ``save``: Orbax's
    own barriers would wait minutes for a process that is lost.
    """

    def __init__(self, folder: Path) -> None:
        """Open or make the folder; what a killed save left half-written is removed."""
        self._folder = Path(folder).absolute()
        self._orbax = require("orbax.checkpoint")
        with writing(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            if jax.process_index() == 0:
                for half in self._folder.glob(f"*{_HALF}*"):
                    shutil.rmtree(half)
        me = jax.process_index()
        alone = self._orbax.options.MultiprocessingOptions(
            primary_host=me, active_processes={me}
        )
        handler = self._orbax.StandardCheckpointHandler(multiprocessing_options=alone)
        self._checkpointer = self._orbax.Checkpointer(
            handler, multiprocessing_options=alone
        )

    def rounds(self) -> list[int]:
        """Return the rounds that have a complete checkpoint, ascending.

        Raises:
            RunError: If one is there that this version cannot read.
        """
        found = []
        for path in self._folder.iterdir():
            if not path.name.isdecimal() or not any(path.iterdir()):
                continue
            if not (path / _WHOLE).exists():
                raise RunError(
                    f"{path}: this checkpoint is damaged, or another version of fad "
                    f"wrote it: there is no {_WHOLE}. Remove its folder to resume from "
                    f"the one before, or use --overwrite."
                )
            found.append(int(path.name))
        return sorted(found)

    def save(self, step: int, state: Any) -> None:
        """Write the state after a round; it is complete on disk or not there."""
        path = self._folder / str(step)
        try:
            args = self._orbax.args.StandardSave(_flat(state))
            self._checkpointer.save(path, args=args, force=True)
            for old in self.rounds()[:-_KEPT]:
                shutil.rmtree(self._folder / str(old))
        except Exception as error:  # Orbax raises its own, not OSError.
            raise RunError(
                f"{path}: this checkpoint cannot be written: {error}. Remove the "
                f"cause, then continue with --resume."
            ) from error

    def load(self, step: int, like: Any) -> Any:
        """Read the state after a round, with the structure of ``like``."""
        flexible = _flexible(like)
        want, path = _flat(like), self._folder / str(step)
        try:
            known = self._checkpointer.metadata(path).item_metadata
            for name, x in flexible.items():
                # No rows at all are not stored.
                if name in known:
                    want[name] = x.of(known[name].shape[0])
            fits = {k: _kind(x) for k, x in known.items()} == {
                k: _kind(x) for k, x in want.items()
            }
            got = {}
            if fits:
                args = self._orbax.args.StandardRestore(want)
                got = self._checkpointer.restore(path, args=args)
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


def _name(path: tuple[Any, ...]) -> str:
    return "state" + jax.tree_util.keystr(path)


def _is_key(x: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(x), jax.dtypes.prng_key)


def _flat(state: Any) -> dict[str, np.ndarray]:
    """Return the arrays by path, without empty ones, which Orbax refuses."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    leaves = [(p, x) for p, x in leaves if not isinstance(x, AnyLength)]
    data = {_name(p): jax.random.key_data(x) if _is_key(x) else x for p, x in leaves}
    return {k: np.asarray(x) for k, x in jax.device_get(data).items() if np.size(x)}


def _flexible(state: Any) -> dict[str, AnyLength]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    return {_name(p): x for p, x in leaves if isinstance(x, AnyLength)}


def _kind(x: Any) -> tuple[tuple[int, ...], np.dtype]:
    return tuple(x.shape), np.dtype(x.dtype)


def _leaf(stored: np.ndarray | None, like: Any) -> Any:
    if isinstance(like, AnyLength):
        return like.of(0) if stored is None else np.asarray(stored)
    if stored is None:
        return like
    if _is_key(like):
        data = jnp.asarray(stored)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(like))
    return stored if isinstance(like, np.ndarray) else jnp.asarray(stored)
