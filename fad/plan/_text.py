"""Numbers and lists in few characters, for the table and the drawing of a plan."""

from collections import Counter
from collections.abc import Iterable, Sequence

from fad.plan._values import Wire, Work


def bytes_text(nbytes: float) -> str:
    """Return bytes with a unit.

    Example:
        >>> bytes_text(204), bytes_text(31_400), bytes_text(999_999)
        ('204 B', '31.4 kB', '1 MB')
    """
    return _with_prefix(nbytes, "B")


def flops_text(flops: float) -> str:
    """Return floating-point operations with a unit.

    Example:
        >>> flops_text(3_987), flops_text(2.5e12)
        ('3.99 kFLOP', '2.5 TFLOP')
    """
    return _with_prefix(flops, "FLOP")


def names_text(work: Iterable[Work], width: int) -> str:
    """Return the names of a round's maps, the heaviest first.

    Example:
        >>> names_text([Work("_weigh", 1), Work("local", 9), Work("local", 9)], 20)
        'local x2, weigh'
    """
    heaviest_first = sorted(work, key=lambda w: -w.flops)
    return list_text([w.name.lstrip("_") or w.name for w in heaviest_first], width)


def wires_text(wires: Iterable[Wire], width: int) -> str:
    """Return the types of what is sent, the largest first.

    Example:
        >>> wires_text([Wire("f32[9]", 36), Wire("f32[784,200]", 627_200)], 24)
        'f32[784,200], f32[9]'
    """
    largest_first = sorted(wires, key=lambda w: -w.nbytes)
    return list_text([w.text for w in largest_first], width)


def list_text(texts: Sequence[str], width: int) -> str:
    """Return as many texts as fit, and how many more there are.

    Example:
        >>> list_text(["f32[3,4]", "f32[4]", "f32[4]"], 20)
        'f32[3,4], f32[4] x2'
        >>> list_text(["f32[3,4]", "f32[4]", "f32[4]"], 18)
        'f32[3,4] + 2 more'
    """
    if not texts:
        return "-"
    counts = Counter(texts)
    whole = ", ".join(t if n == 1 else f"{t} x{n}" for t, n in counts.items())
    if len(whole) <= width:
        return whole
    rest = f" + {len(texts) - 1} more" if len(texts) > 1 else ""
    return clip(texts[0], width - len(rest)) + rest


def clip(text: str, width: int) -> str:
    """Return the text, cut off to ``width`` characters.

    Example:
        >>> clip("a_long_function_name", 10)
        'a_long_...'
    """
    return text if len(text) <= width else text[: max(width - 3, 0)] + "..."


def rounds_text(numbers: range) -> str:
    """Return round numbers in short.

    Example:
        >>> [rounds_text(range(*r)) for r in ((3, 4), (2, 11), (3, 6, 2), (3, 20, 2))]
        ['3', '2-10', '3,5', '3,5..19']
    """
    first, last = numbers[0], numbers[-1]
    if len(numbers) == 1:
        return f"{first}"
    if numbers.step == 1:
        return f"{first}-{last}"
    second = "" if len(numbers) == 2 else f"{first + numbers.step}.."
    return f"{first},{second}{last}"


def _with_prefix(number: float, unit: str) -> str:
    prefixes = ["", "k", "M", "G", "T", "P"]
    while float(f"{number:.3g}") >= 1000 and len(prefixes) > 1:
        number, prefixes = number / 1000, prefixes[1:]
    return f"{number:.3g} {prefixes[0]}{unit}"
