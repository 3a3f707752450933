"""Sets that are not there: downloaded where there is a network, else what to do."""

import difflib
import shlex
import socket
import threading
import urllib.parse
import urllib.request
from pathlib import Path

from fad._errors import DataError
from fad.data._bundled import BUNDLED

# Where tensorflow-datasets keeps its own files.
_HOST, _PORT = "storage.googleapis.com", 443
_PATIENCE = 2.0


def prepare(name: str, data_dir: Path, origin: str) -> None:
    """Download a set and prepare it as array_record.

    Args:
        name: The set, as tensorflow-datasets names it.
        data_dir: The folder of all sets.
        origin: Where the name of that folder came from.

    Raises:
        DataError: If there is no network or no such set, or preparing it fails.
    """
    if not online():
        raise missing(name, data_dir, origin, "there is no network to get it from")
    try:
        import tensorflow_datasets as tfds

        builder = tfds.builder(name, data_dir=str(data_dir), file_format="array_record")
        builder.download_and_prepare()
    except Exception as error:  # Whatever a builder of any set raises.
        why = f"preparing it failed with {type(error).__name__}: {error}"
        raise missing(name, data_dir, origin, why) from error


def online() -> bool:
    """Return whether the host, or the proxy, answers within two seconds.

    A thread asks, because looking up a name has no time limit of its own.

    Returns:
        Whether a connection could be made.
    """
    answered = threading.Event()
    thread = threading.Thread(target=_connect, args=(answered,), daemon=True)
    thread.start()
    thread.join(_PATIENCE)
    return answered.is_set()


def missing(name: str, data_dir: Path, origin: str, why: str) -> DataError:
    """Return the error for a set that is not there: what is, and what to do.

    Args:
        name: The set.
        data_dir: The folder that was searched.
        origin: Where the name of that folder came from.
        why: Why it was not downloaded.

    Returns:
        The error.
    """
    there = sorted({path.parts[len(data_dir.parts)] for path in _infos(data_dir)})
    sets = ", ".join(there) if there else "none"
    close = difflib.get_close_matches(name, [*there, *BUNDLED], n=1)
    hint = f" Did you mean {close[0]!r}?" if close and close[0] != name else ""
    return DataError(
        f"fad.data.load(name={name!r}): this set is not prepared in {data_dir} "
        f"({origin}), and {why}.{hint} Sets that are there: {sets}. Sets that need no "
        f"download: {', '.join(BUNDLED)}. On a machine with internet run\n"
        f"{prepare_command(name, data_dir)}\n"
        f"and copy what it makes to {data_dir} here."
    )


def unreadable(
    name: str, data_dir: Path, folder: Path, what: str, error: Exception
) -> DataError:
    """Return the error for a prepared set with damaged files.

    Args:
        name: The set.
        data_dir: The folder of all sets.
        folder: Its own folder.
        what: The files that cannot be read.
        error: What reading them raised.

    Returns:
        The error.
    """
    return DataError(
        f"fad.data.load(name={name!r}): {what} cannot be read "
        f"({type(error).__name__}: {error}). Remove {folder}, then prepare the set "
        f"again on a machine with internet:\n{prepare_command(name, data_dir)}"
    )


def prepare_command(name: str, data_dir: Path) -> str:
    """Return the commands that prepare a set as array_record.

    Preparing needs TensorFlow for most sets; reading never does.

    Args:
        name: The set.
        data_dir: The folder of all sets.

    Returns:
        Two lines for a shell.

    Example:
        >>> print(prepare_command("mnist", Path("/data")).splitlines()[0])
            pip install "fad[data]" tensorflow
    """
    program = (
        "import tensorflow_datasets as tfds; "
        f"tfds.builder({name!r}, data_dir={str(data_dir)!r}, "
        'file_format="array_record").download_and_prepare()'
    )
    return (
        f'    pip install "fad[data]" tensorflow\n    python -c {shlex.quote(program)}'
    )


def _infos(data_dir: Path) -> list[Path]:
    patterns = ("*/*/dataset_info.json", "*/*/*/dataset_info.json")
    return [path for pattern in patterns for path in data_dir.glob(pattern)]


def _connect(answered: threading.Event) -> None:
    host, port = _HOST, _PORT
    given = urllib.request.getproxies().get("https", "")
    try:
        # "proxy:3128" is a host and a port, not a scheme and a path.
        proxy = urllib.parse.urlsplit(given if "://" in given else f"//{given}")
        if proxy.hostname:
            host, port = proxy.hostname, proxy.port or 80
        socket.create_connection((host, port), timeout=_PATIENCE).close()
    except (OSError, ValueError):  # A ValueError: the proxy is not an address.
        return
    answered.set()
