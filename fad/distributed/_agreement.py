"""Do all processes call the same program with the same arguments?"""

import hashlib
import re
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from fad._errors import FadError
from fad.distributed._gather import gather, gather_text
from fad.distributed._guard import guard

_ADDRESS = re.compile(r"0x[0-9a-f]+")  # of objects: differ between processes


class _Item(NamedTuple):
    name: str  # of an argument; empty for the call and for the program's lines
    text: str


def check_agreement(
    call: str, arguments: Sequence[tuple[str, str]], program_text: str = ""
) -> None:
    """Raise in all processes if they disagree about a call.

    What is exchanged first has one size whatever the processes think, so none waits
    for another. In a program of one process it does nothing.

    Args:
        call: The call as the user wrote it, ``fad.jit(train)``.
        arguments: Path and description, shape and type or static value, of each leaf
            of the arguments.
        program_text: The traced program as text. Addresses in it do not count.

    Raises:
        FadError: Naming the first thing that differs, and what each process has.
        RunError: If a process is lost meanwhile.

    Example:
        >>> check_agreement("fad.jit(f)", [("x", "float32[3]")], "{ lambda ; ... }")
    """
    if jax.process_count() == 1:
        return
    items = [_Item("", call), *(_Item(*pair) for pair in arguments)]
    items += [_Item("", line) for line in program_text.splitlines()]
    digests = np.stack([_digest(item) for item in items])
    summary = np.array([len(items), *_hash(digests.tobytes())], np.uint32)
    with guard(call):
        summaries = gather(summary)
        if (summaries == summaries[0]).all():
            return
        longest = int(summaries[:, 0].max())
        padded = np.zeros((longest, digests.shape[1]), np.uint32)
        padded[: len(items)] = digests
        tables = gather(padded)
        differs = (tables != tables[0]).any(axis=2)
        first = int(np.argmax(differs.any(axis=0)))
        other = int(np.argmax(differs[:, first]))
        known = items[first] if first < len(items) else _Item("", "")
        names, texts = gather_text(known.name), gather_text(known.text)
    raise FadError(_message(call, first, other, names, texts))


def _message(
    call: str, first: int, other: int, names: list[str], texts: list[str]
) -> str:
    texts = [text.strip() for text in texts]
    has = [f"{n}: {t}" if n else t for n, t in zip(names, texts, strict=True)]
    if len(set(names)) == 1:
        has = texts
    differ = f"process 0 has {has[0] or 'nothing'}, process {other} has " + (
        has[other] or "nothing"
    )
    if first == 0:
        return (
            f"{call}: the processes run different calls: {differ}. All processes must "
            "run the same calls in the same order."
        )
    if any(names):
        where = f"argument {names[0]}" if len(set(names)) == 1 else "the arguments"
        return (
            f"{call}: the processes disagree about {where}: {differ}. All processes "
            "must call it with the same structure, shapes, types and static values."
        )
    return (
        f"{call}: the arguments agree, but the processes traced different programs; "
        f"the first line that differs: {differ}. A program must not depend on "
        "jax.process_index(), the clock, the order of a set, or what one process alone "
        "has read."
    )


def _digest(item: _Item) -> np.ndarray:
    return _hash(f"{item.name}\0{_ADDRESS.sub('0x', item.text)}".encode())


def _hash(raw: bytes) -> np.ndarray:
    return np.frombuffer(hashlib.sha256(raw).digest()[:16], np.uint32)
