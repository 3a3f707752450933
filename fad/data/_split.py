"""Which rows of which split: the syntax of tensorflow-datasets."""

import dataclasses
import re
from collections.abc import Mapping, Sequence

from fad._errors import DataError

_PART = re.compile(r"(?P<split>[\w-]+)(\[(?P<slice>[\w%:.-]+)\])?")
_BOUND = re.compile(r"((?P<number>-?[\d_.]+)(?P<unit>%|shard)?)?")
_FORMS = (
    "'train', 'train[:100]', 'train[80%:]', 'train[10%:20%]+test', 'train[2shard]' "
    "or 'all'"
)


@dataclasses.dataclass(frozen=True)
class Part:
    """The rows ``start..stop-1`` of a split."""

    split: str
    start: int
    stop: int


def parse_split(
    name: str, spec: str, shards: Mapping[str, Sequence[int]]
) -> list[Part]:
    """Return the parts that ``spec`` names, in its order.

    Percentages round to the nearest row and half to the even one, negative numbers
    count from the end, and a unit at one bound holds for both, all as in
    tensorflow-datasets. Other than there, a slice that falls and one of two units are
    refused, and "train[:0shard]" is empty, not everything.

    Args:
        name: The set, for messages.
        spec: Parts joined by "+", each a split or a slice of it, or "all".
        shards: The number of rows of every shard of every split.

    Returns:
        The parts.

    Raises:
        DataError: If the syntax or a split is unknown, a bound is outside, or a slice
            falls.

    Example:
        >>> parse_split("digits", "train[:25%]", {"train": [10]})
        [Part(split='train', start=0, stop=2)]
    """
    parts = []
    for piece in re.split(r"\s*\+\s*", spec):
        match = _PART.fullmatch(piece)
        if not match:
            raise _unreadable(name, spec)
        if piece == "all":
            parts += [Part(split, 0, sum(rows)) for split, rows in shards.items()]
            continue
        if match["split"] not in shards:
            raise DataError(
                f"fad.data.load(name={name!r}, split={spec!r}): there is no split "
                f"{match['split']!r}. The splits are {', '.join(shards)}."
            )
        parts.append(_part(name, spec, match, shards[match["split"]]))
    return parts


def _part(name: str, spec: str, match: re.Match, shards: Sequence[int]) -> Part:
    """Return the rows of one split that one piece of ``spec`` names."""
    rows = sum(shards)
    if match["slice"] is None:
        return Part(match["split"], 0, rows)
    bounds = [_BOUND.fullmatch(text) for text in match["slice"].split(":")]
    given = [bound for bound in bounds if bound and bound["number"]]
    units = {bound["unit"] for bound in given if bound["unit"]}
    if None in bounds or not given or len(bounds) > 2 or len(units) > 1:
        raise _unreadable(name, spec)
    unit = units.pop() if units else ""
    try:
        numbers = [_number(bound["number"], unit) for bound in bounds if bound]
    except ValueError as error:
        raise _unreadable(name, spec) from error
    if len(numbers) == 1:
        if unit != "shard" or numbers[0] is None:
            raise _unreadable(name, spec)
        # The shard after the last is the end, not shard 0.
        numbers.append(numbers[0] + 1 or None)
    start, stop = (_row(number, unit, shards) for number in numbers)
    start, stop = 0 if start is None else start, rows if stop is None else stop
    inside = max(abs(start), abs(stop)) <= rows
    first, last = start + rows * (start < 0), stop + rows * (stop < 0)
    if not inside or first > last:
        raise DataError(
            f"fad.data.load(name={name!r}, split={spec!r}): expected a rising slice of "
            f"the {rows} rows of {match['split']!r}; got {start} to {stop}."
        )
    return Part(match["split"], first, last)


def _number(text: str | None, unit: str) -> float | int | None:
    if text is None:
        return None
    number = float(text) if unit == "%" else int(text)
    if unit == "%" and abs(number) > 100:
        raise ValueError("a percentage is at most 100")
    return number


def _row(number: float | None, unit: str, shards: Sequence[int]) -> int | None:
    """Return the row at a bound; a negative one counts from the end."""
    if number is None:
        return None
    if unit == "%":
        return round(number * sum(shards) / 100.0)
    return sum(shards[: int(number)]) if unit == "shard" else int(number)


def _unreadable(name: str, spec: str) -> DataError:
    return DataError(
        f"fad.data.load(name={name!r}, split={spec!r}): this is not a split. Write "
        f"{_FORMS}, in the syntax of tensorflow-datasets."
    )
