"""Read TOML strictly into frozen dataclasses, and write them back.

The schema is the dataclasses themselves. Nothing is coerced except an integer given
for a float; every error names the file, the dotted key, what was expected and what
came.
"""

import dataclasses
import difflib
import json
import re
import tomllib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

from fad._errors import ConfigError, nearest

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def read(path: str | Path) -> dict[str, Any]:
    """Read a TOML file into nested dictionaries.

    Args:
        path: The file.

    Returns:
        The tables and values of the file.

    Raises:
        ConfigError: The file is missing, cannot be read, or is not TOML.
    """
    path = Path(path)
    try:
        if not path.is_file():
            raise ConfigError(f"{path}: no such file. {_near_files(path)}")
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        line = re.search(r"line (\d+)", str(error))
        where = f"{path}:{line[1]}" if line else f"{path}"
        raise ConfigError(f"{where}: not valid TOML: {error}") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not valid TOML: not UTF-8 text ({error})") from None


def convert(schema: Any, value: Any, *, where: str, key: str = "") -> Any:
    """Convert a TOML value into the type ``schema``, strictly.

    Args:
        schema: A dataclass (generic ones with their argument), ``Literal``, union,
            ``tuple``, ``dict`` (its nested tables become dotted keys), ``bool``,
            ``int``, ``float`` or ``str``.
        value: What ``tomllib`` gave.
        where: The file, for messages.
        key: The dotted key, for messages.

    Returns:
        A value of the type.

    Raises:
        ConfigError: An unknown or missing key, a wrong type or a refused value.

    Example:
        >>> convert(tuple[float, ...], [1, 2.5], where="x.toml", key="lr")
        (1.0, 2.5)
    """
    origin = typing.get_origin(schema)
    if dataclasses.is_dataclass(origin or schema):
        return _convert_table(schema, value, where, key)
    if origin is Literal:
        return _convert_literal(typing.get_args(schema), value, where, key)
    if origin in (Union, types.UnionType):
        return _convert_union(typing.get_args(schema), value, where, key)
    if origin is tuple:
        return _convert_tuple(schema, value, where, key)
    if origin is dict:
        if not isinstance(value, dict):
            raise _mismatch("a table {...}", value, where, key)
        return flatten(value)
    if schema is float and type(value) is int:
        return float(value)
    if schema not in (bool, int, float, str):
        raise TypeError(f"{key}: a config field cannot be of type {schema!r}")
    if type(value) is not schema:
        raise _mismatch(schema.__name__, value, where, key)
    return value


def dumps(config: Any, *, extra: Mapping[str, Mapping[str, Any]] | None = None) -> str:
    """Write a dataclass as TOML text that ``convert`` reads back to an equal value.

    A field that is ``None`` is left out: TOML has no null.

    Args:
        config: A dataclass instance; nested dataclasses become tables.
        extra: Further keys for the head of a table, by the table's dotted name.

    Returns:
        The text.

    Raises:
        ConfigError: A field is ``None`` and its default is not.
    """
    return "\n\n".join(_tables(config, "", extra or {})) + "\n"


def format_value(value: Any) -> str:
    """Return a plain value in TOML notation.

    Example:
        >>> print(format_value(("a", 1e-5, True)))
        ["a", 1e-05, true]
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        # JSON leaves DEL as it is; TOML wants it escaped.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, tuple | list):
        return "[" + ", ".join(map(format_value, value)) + "]"
    raise TypeError(f"cannot write {value!r} as TOML")


def flatten(tables: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the values of nested tables by dotted key.

    Example:
        >>> flatten({"a": {"b": 1}, "c": 2})
        {'a.b': 1, 'c': 2}
    """
    flat: dict[str, Any] = {}
    for key, value in tables.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _near_files(path: Path) -> str:
    """Name the files that the user may have meant."""
    folder = path.parent
    if not folder.is_dir():
        return f"The folder {folder} does not exist either."
    names = sorted(p.name for p in folder.glob("*.toml"))
    close = difflib.get_close_matches(path.name, names, n=5, cutoff=0.4) or names[:10]
    if not close:
        return f"There is no .toml file in {folder}."
    return f"Nearest in {folder}: {', '.join(close)}."


def _convert_table(schema: Any, value: Any, where: str, key: str) -> Any:
    """Convert a table into a dataclass."""
    cls = typing.get_origin(schema) or schema
    if not isinstance(value, dict):
        raise _mismatch(f"a table [{key}]", value, where, key)
    parameters, given = getattr(cls, "__parameters__", ()), typing.get_args(schema)
    variables: dict[Any, Any] = dict(zip(parameters, given, strict=False))
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}
    prefix = f"{key}." if key else ""
    for name in value:
        if name not in fields:
            raise ConfigError(
                f"{where}: {prefix}{name}: unknown key. {nearest(name, fields, 'keys')}"
            )
    if missing := [n for n, f in fields.items() if n not in value and _required(f)]:
        raise ConfigError(
            f"{where}: {', '.join(prefix + n for n in missing)}: missing, and there "
            f"is no default. Add {'it' if len(missing) == 1 else 'them'} "
            f"{f'under [{key}]' if key else 'at the top of the file'}."
        )
    arguments = {}
    for name, item in value.items():
        hint = hints[name]
        hint = variables.get(hint, hint) if isinstance(hint, TypeVar) else hint
        arguments[name] = convert(hint, item, where=where, key=prefix + name)
    try:
        return cls(**arguments)
    except ValueError as error:
        table = f"[{key}]: " if key else ""
        raise ConfigError(f"{where}: {table}{error}") from None


def _convert_literal(choices: tuple, value: Any, where: str, key: str) -> Any:
    """Accept one of the values of a Literal; True is not 1."""
    for choice in choices:
        if type(choice) is type(value) and choice == value:
            return value
    listed = ", ".join(map(repr, choices))
    hint = ""
    if isinstance(value, str):
        close = difflib.get_close_matches(value, [str(c) for c in choices], n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
    raise ConfigError(f"{where}: {key}: must be one of {listed}; got {value!r}.{hint}")


def _convert_union(arms: tuple, value: Any, where: str, key: str) -> Any:
    """Accept the first arm that fits; an exact type goes before int-as-float."""
    arms = tuple(a for a in arms if a is not type(None))
    for arm in sorted(arms, key=lambda a: a is not type(value)):
        try:
            return convert(arm, value, where=where, key=key)
        except ConfigError:
            if len(arms) == 1:
                raise
    raise _mismatch(" or ".join(map(_arm, arms)), value, where, key)


def _arm(schema: Any) -> str:
    """Return an alternative of a union for a message."""
    if typing.get_origin(schema) is Literal:
        return " or ".join(map(repr, typing.get_args(schema)))
    return getattr(schema, "__name__", str(schema))


def _convert_tuple(schema: Any, value: Any, where: str, key: str) -> tuple:
    """Convert an array into a tuple, of any length or of a fixed one."""
    items = typing.get_args(schema)
    if not isinstance(value, list):
        raise _mismatch("an array [...]", value, where, key)
    if len(items) == 2 and items[1] is ...:
        items = (items[0],) * len(value)
    if len(items) != len(value):
        raise _mismatch(f"an array of {len(items)} values", value, where, key)
    return tuple(
        convert(item, element, where=where, key=f"{key}[{i}]")
        for i, (item, element) in enumerate(zip(items, value, strict=True))
    )


def _mismatch(expected: str, value: Any, where: str, key: str) -> ConfigError:
    kind = type(value).__name__
    return ConfigError(f"{where}: {key}: expected {expected}, got {value!r} ({kind})")


def _required(field: dataclasses.Field) -> bool:
    missing = dataclasses.MISSING
    return field.default is missing and field.default_factory is missing


def _tables(config: Any, name: str, extra: Mapping[str, Mapping[str, Any]]) -> list:
    """Return the text of each table: own values first, then the nested tables."""
    lines = [f"[{name}]"] if name else []
    lines += [f"{_key(k)} = {format_value(v)}" for k, v in extra.get(name, {}).items()]
    nested = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        dotted = f"{name}.{field.name}" if name else field.name
        if dataclasses.is_dataclass(value):
            nested += _tables(value, dotted, extra)
        elif value is not None:
            lines.append(f"{_key(field.name)} = {format_value(value)}")
        elif field.default is not None:
            raise ConfigError(
                f"{dotted}: None cannot be written, for TOML has no null; it can be "
                f"left out only where None is the default"
            )
    return ["\n".join(lines), *nested] if lines else nested


def _key(name: str) -> str:
    return name if _BARE_KEY.fullmatch(name) else format_value(name)
