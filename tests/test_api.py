"""The conventions of the public API hold for every public name."""

import importlib
import inspect
import types
from collections.abc import Callable
from typing import Any

import pytest

pytestmark = pytest.mark.once

MODULES = (
    "fad",
    "fad.aggregators",
    "fad.local",
    "fad.data",
    "fad.decoders",
    "fad.estimators",
    "fad.solvers",
    "fad.submodels",
    "fad.models",
    "fad.experiment",
)
# Positional parameters that may have a default, by the public name of their function:
# a decorator with or without options, and the usual main(argv).
POSITIONAL_DEFAULTS: dict[str, set[str]] = {
    "fad.program": {"fn"},
    "fad.experiment.main": {"argv"},
    "fad.grad": {"argnums"},  # as in JAX
    "fad.jacobian": {"argnums"},
    "fad.value_and_grad": {"argnums"},
}
# JAX calls these, users do not.
PYTREE_PROTOCOL = {"tree_flatten", "tree_flatten_with_keys", "tree_unflatten"}


def _public(module: str) -> dict[str, Any]:
    return {
        f"{module}.{name}": value
        for name, value in vars(importlib.import_module(module)).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    }


PUBLIC = {name: value for module in MODULES for name, value in _public(module).items()}
CLASSES = {name: value for name, value in PUBLIC.items() if inspect.isclass(value)}
FUNCTIONS = {
    name: inspect.unwrap(value)
    for name, value in PUBLIC.items()
    if inspect.isfunction(inspect.unwrap(value))
}
METHODS = {
    f"{name}.{attribute}": getattr(value, "__func__", value)
    for name, cls in CLASSES.items()
    for attribute, value in vars(cls).items()
    if not attribute.startswith("_")
    and attribute not in PYTREE_PROTOCOL
    and inspect.isfunction(getattr(value, "__func__", value))
}
DOCUMENTED = FUNCTIONS | METHODS | CLASSES
CALLED = FUNCTIONS | METHODS


def _table(subjects: dict[str, Any]) -> Callable[[Callable], Callable]:
    return pytest.mark.parametrize(
        ("name", "value"),
        [pytest.param(*pair, id=pair[0]) for pair in subjects.items()],
    )


def _parameters(function: Callable) -> list[inspect.Parameter]:
    parameters = inspect.signature(function).parameters.values()
    return [p for p in parameters if p.name not in ("self", "cls")]


def _doc(value: Any) -> str:
    return inspect.cleandoc(value.__doc__ or "")


@_table(DOCUMENTED)
def test_has_a_summary_line(name, value):
    lines = _doc(value).splitlines()
    assert lines, f"{name} has no docstring"
    assert lines[0].endswith("."), f"{name}: the first line is no full sentence"
    assert len(lines) == 1 or not lines[1], f"{name}: no empty line after the first"


@_table(FUNCTIONS)
def test_documents_arguments_and_result(name, value):
    doc = _doc(value)
    if _parameters(value):
        assert "\nArgs:\n" in doc, f"{name} has no Args"
    if inspect.signature(value).return_annotation not in (None, "None"):
        assert "\nReturns:\n" in doc or "\nYields:\n" in doc, f"{name} has no Returns"


@_table(FUNCTIONS)
def test_has_an_example(name, value):
    assert "\nExample" in _doc(value), f"{name} has no Example"
    assert ">>> " in _doc(value), f"{name}: the Example does not run"


@_table(FUNCTIONS)
def test_documents_every_parameter(name, value):
    doc = _doc(value)
    missing = [p.name for p in _parameters(value) if f"{p.name}: " not in doc]
    assert not missing, f"{name} does not document {missing}"


@_table(CALLED)
def test_is_annotated(name, value):
    empty = inspect.Parameter.empty
    bare = [p.name for p in _parameters(value) if p.annotation is empty]
    assert not bare, f"{name} does not annotate {bare}"
    result = inspect.signature(value).return_annotation
    assert result is not inspect.Signature.empty, f"{name} does not annotate its result"


@_table(CALLED)
def test_says_key_for_a_random_key(name, value):
    names = {p.name for p in _parameters(value)}
    assert not names & {"rng", "prng", "prng_key", "rng_key", "random_key"}, name


@_table(CALLED)
def test_defaults_stand_on_keyword_only_parameters(name, value):
    defaulted = {
        p.name
        for p in _parameters(value)
        if p.default is not p.empty and p.kind is not p.KEYWORD_ONLY
    }
    assert defaulted == POSITIONAL_DEFAULTS.get(name, set())


def test_allowed_positional_defaults_exist():
    assert set(POSITIONAL_DEFAULTS) <= set(CALLED)
