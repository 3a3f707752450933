"""A learned aggregator as a file: its parameters, and how it is made."""

import json
import zipfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fad._errors import RunError, path_str
from fad.aggregators._aggregator import Aggregator
from fad.aggregators._make import make

_FILE = "theta.npz"
_SPEC = "aggregator"  # the entry that says how it is made; no path of theta is so


def save(
    path: str | Path, theta: Any, *, name: str, rounds: int, **options: Any
) -> Path:
    """Write a learned aggregator to a file.

    Args:
        path: The file, ending in ``.npz``; or the folder, which gets ``theta.npz``.
        theta: The parameters.
        name: The aggregator's name for ``fad.aggregators.make``.
        rounds: The length of training that it was meta-trained for.
        options: The aggregator's own.

    Returns:
        The file.

    Raises:
        RunError: A parameter is not finite.

    Example:
        >>> import tempfile
        >>> aggregator = make("learned", rounds=10)
        >>> theta = aggregator.init_theta(jax.random.key(0))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = save(folder, theta, name="learned", rounds=10)
        ...     _, again = load(folder)
        >>> bool(jnp.all(again["mix"] == theta["mix"]))
        True
    """
    path = _file(path)
    flat = {k: np.asarray(x) for k, x in _named(jax.device_get(theta)).items()}
    bad = [k for k, x in flat.items() if not np.isfinite(x).all()]
    if bad:
        raise RunError(
            f"fad.aggregators.save: {bad[0]} is not finite, and nothing was "
            f"written. Keep the last finite theta."
        )
    spec = {"name": name, "rounds": rounds, "options": options}
    whole: dict[str, Any] = {_SPEC: np.array(json.dumps(spec)), **flat}
    with path.open("wb") as file:
        np.savez(file, **whole)
    return path


def load(path: str | Path, *, rounds: int | None = None) -> tuple[Aggregator, Any]:
    """Read a learned aggregator and its parameters.

    Args:
        path: The file, or the folder with ``theta.npz``: a meta-training run.
        rounds: The length of the training to come; without it, that of meta-training.

    Returns:
        The aggregator and ``theta``.

    Raises:
        RunError: There is no such file, or it holds something else.
        ConfigError: The aggregator is not known here.

    Example:
        See ``fad.aggregators.save``.

        >>> load("nowhere")
        Traceback (most recent call last):
            ...
        fad._errors.RunError: nowhere/theta.npz: no such file. Give the folder of a ...
    """
    path = _file(path)
    if not path.is_file():
        raise RunError(
            f"{path}: no such file. Give the folder of a finished meta-training run, "
            f"or a file that fad.aggregators.save wrote."
        )
    try:
        with np.load(path, allow_pickle=False) as file:
            stored = dict(file)
        spec = json.loads(str(stored.pop(_SPEC)))
        name, length, options = spec["name"], spec["rounds"], spec["options"]
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise RunError(
            f"{path}: not a learned aggregator: {error}. Expected a file that "
            f"fad.aggregators.save wrote."
        ) from error
    options = {k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}
    aggregator = make(name, rounds=rounds or length, **options)
    like = jax.eval_shape(aggregator.init_theta, jax.random.key(0))
    fits = {k: (x.shape, x.dtype) for k, x in _named(like).items()}
    if fits != {k: (x.shape, x.dtype) for k, x in stored.items()}:
        raise RunError(
            f"{path}: its parameters do not fit the aggregator {name!r}, which has "
            f"changed since. Meta-train it again."
        )
    leaves, treedef = jax.tree_util.tree_flatten_with_path(like)
    theta = [jnp.asarray(stored[path_str("theta", p)]) for p, _ in leaves]
    return aggregator, treedef.unflatten(theta)


def _file(path: str | Path) -> Path:
    path = Path(path)
    return path if path.suffix == ".npz" else path / _FILE


def _named(theta: Any) -> dict[str, Any]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(theta)
    return {path_str("theta", p): x for p, x in leaves}
