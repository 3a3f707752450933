"""The types of values, their bytes and their texts."""

from typing import Any

from fad._compat import ShapedArray
from fad.plan._values import Value


def nbytes(aval: ShapedArray) -> int:
    """Return the bytes of an array of this type (a PRNG key counts its data)."""
    return aval.size * aval.dtype.itemsize


def type_text(aval: ShapedArray) -> str:
    """Return a type as ``f32[3]``."""
    return aval.update(sharding=None).str_short(short_dtypes=True)


def one_of(aval: ShapedArray) -> ShapedArray:
    """Return the type of one client's value, of that of all."""
    return aval.update(shape=aval.shape[1:], sharding=None)


def server_value(aval: ShapedArray) -> Value:
    """Return a value at the server."""
    return Value("server", nbytes(aval), type_text(aval))


def aval_of(atom: Any) -> ShapedArray:
    """Return the type of a variable or literal."""
    return atom.aval
