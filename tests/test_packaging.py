"""The project's shell, and the house rules that a program can check."""

import ast
import configparser
import functools
import pathlib
import subprocess
import sys
import tomllib

import pytest

import fad

pytestmark = pytest.mark.once

ROOT = pathlib.Path(__file__).parents[1]
LIBRARY = sorted((ROOT / "fad").rglob("*.py"))
ALGORITHMS = sorted((ROOT / "algorithms").rglob("*.py"))
SEMI_PUBLIC = ("jax.extend", "jax.interpreters", "jax.core", "jax._src")
EXTRAS_ONLY = (
    "dp_accounting",
    "flax",
    "matplotlib",
    "orbax",
    "rich",
    "sklearn",
    "tensorflow",
    "tensorflow_datasets",
    "tyro",
)
# setup.cfg's name for a field -> pyproject.toml's.
FIELDS = {
    "name": "name",
    "version": "version",
    "description": "description",
    "long_description": "readme",
    "author": "authors",
    "license": "license",
    "keywords": "keywords",
    "classifiers": "classifiers",
    "url": "urls",
    "project_urls": "urls",
    "python_requires": "requires-python",
    "install_requires": "dependencies",
    "entry_points": "entry-points",
}
# Fields that no [project] table knows, or that tell how to read another.
WITHOUT_COUNTERPART = {"long_description_content_type", "packages"}


def _name(path: pathlib.Path) -> str:
    return path.relative_to(ROOT).as_posix()


@functools.cache
def _tree(path: pathlib.Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"), _name(path))


@pytest.fixture(scope="module")
def setup_cfg() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


@pytest.fixture(scope="module")
def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def test_every_field_of_setup_cfg_is_dynamic_or_static(setup_cfg, project):
    given = {*setup_cfg["metadata"], *setup_cfg["options"]} - WITHOUT_COUNTERPART
    fields = {FIELDS[name] for name in given} | {"optional-dependencies"}
    static = set(project) - {"dynamic"}
    assert static | set(project["dynamic"]) == fields
    assert not static & set(project["dynamic"])


def test_what_both_files_state_agrees(setup_cfg, project):
    assert setup_cfg["metadata"]["name"] == project["name"]
    assert setup_cfg["options"]["python_requires"] == project["requires-python"]


def test_the_version_is_stated_once(setup_cfg):
    attribute = setup_cfg["metadata"]["version"].removeprefix("attr:").strip()
    assert attribute == "fad._version.__version__"
    stating = [_name(p) for p in LIBRARY if "__version__ =" in p.read_text("utf-8")]
    assert stating == ["fad/_version.py"]


def test_the_changelog_knows_the_version():
    text = (ROOT / "CHANGELOG.md").read_text("utf-8")
    assert "## [Unreleased]" in text or f"## [{fad.__version__}]" in text


def test_the_license_is_the_whole_apache_license():
    text = (ROOT / "LICENSE").read_text("utf-8")
    assert "Version 2.0, January 2004" in text
    assert all(f"\n   {i}. " in text for i in range(1, 10))
    assert text.rstrip().endswith("limitations under the License.")


def test_the_lock_uses_the_public_index_alone():
    lock = tomllib.loads((ROOT / "uv.lock").read_text("utf-8"))
    sources = [package["source"] for package in lock["package"]]
    local = [source for source in sources if "registry" not in source]
    assert local == [{"editable": "."}]
    registries = {source["registry"] for source in sources if "registry" in source}
    assert registries == {"https://pypi.org/simple"}


def _dotted(node: ast.AST) -> str:
    """Return ``a.b.c`` for such an expression, else an empty string."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (before := _dotted(node.value)):
        return f"{before}.{node.attr}"
    return ""


def _semi_public_uses(tree: ast.Module) -> set[str]:
    used = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            used |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            used |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Attribute):
            used.add(_dotted(node))
    return {
        name
        for name in used
        if any(name == p or name.startswith(p + ".") for p in SEMI_PUBLIC)
    }


def test_semi_public_uses_are_found():
    source = "from jax import core\nimport jax\njax._src.x\nimport jax.corex\n"
    assert _semi_public_uses(ast.parse(source)) == {
        "jax.core",
        "jax._src",
        "jax._src.x",
    }


@pytest.mark.parametrize("path", LIBRARY + ALGORITHMS, ids=_name)
def test_only_compat_knows_the_semi_public_api(path):
    used = _semi_public_uses(_tree(path))
    if _name(path) == "fad/_compat.py":
        used = {name for name in used if name.startswith("jax._src")}
    assert not used


@pytest.mark.parametrize("path", LIBRARY + ALGORITHMS, ids=_name)
def test_modules_are_short(path):
    limit = 300 if path in LIBRARY else 200
    assert len(path.read_text("utf-8").splitlines()) <= limit


def _body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    body = function.body
    if ast.get_docstring(function) is not None:
        body = body[1:]
    return function.end_lineno - body[0].lineno + 1 if body else 0  # type: ignore


@pytest.mark.parametrize("path", LIBRARY + ALGORITHMS, ids=_name)
def test_functions_are_short(path):
    functions = [
        node
        for node in ast.walk(_tree(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    long = {f.name: n for f in functions if (n := _body_lines(f)) > 40}
    assert not long


@pytest.mark.parametrize(
    "path", [p for p in LIBRARY if p.name == "__init__.py"], ids=_name
)
def test_init_files_only_reexport(path):
    statements = _tree(path).body
    if ast.get_docstring(_tree(path)) is not None:
        statements = statements[1:]
    others = [
        ast.unparse(node)
        for node in statements
        if not (
            isinstance(node, ast.ImportFrom)
            and all(alias.asname == alias.name for alias in node.names)
        )
    ]
    assert not others


def test_importing_fad_needs_no_extra():
    program = "import sys, fad; print(*{name.split('.')[0] for name in sys.modules})"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert not set(EXTRAS_ONLY) & set(done.stdout.split())
