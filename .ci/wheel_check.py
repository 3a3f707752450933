"""Build the wheel, install it alone and run the README's first example with it."""

import os
import pathlib
import re
import subprocess
import sys
import tempfile
import venv
import zipfile

ROOT = pathlib.Path(__file__).resolve().parents[1]


def run(*command: str | pathlib.Path, cwd: pathlib.Path) -> None:
    """Run a command that sees neither the checkout nor this environment."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    env["PIP_DISABLE_PIP_VERSION_CHECK"] = "1"
    print("+", *command, flush=True)
    subprocess.run([str(c) for c in command], cwd=cwd, env=env, check=True)


def build(folder: pathlib.Path) -> pathlib.Path:
    """Build the wheel from the sdist, as an index would serve it."""
    run(sys.executable, "-m", "build", "--quiet", "--outdir", folder, ROOT, cwd=folder)
    (wheel,) = folder.glob("*.whl")
    return wheel


def check_contents(wheel: pathlib.Path) -> None:
    """Stop unless the wheel installs ``fad`` and nothing else."""
    names = zipfile.ZipFile(wheel).namelist()
    top = {name.split("/")[0] for name in names}
    packages = {name for name in top if not name.endswith(".dist-info")}
    if packages != {"fad"}:
        sys.exit(f"{wheel.name} must install exactly fad; it installs {packages}.")
    if "fad/py.typed" not in names:
        sys.exit(f"{wheel.name} lacks fad/py.typed: its types would not be seen.")
    if not any(name.endswith("/licenses/LICENSE") for name in names):
        sys.exit(f"{wheel.name} lacks the LICENSE.")


def first_example() -> str:
    """Return the first python block of the README."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    block = re.search(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    if block is None:
        sys.exit("README.md has no ```python block to run.")
    return block[1]


def main() -> None:
    """Build, inspect, install and use the wheel."""
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        wheel = build(folder)
        check_contents(wheel)
        venv.create(folder / "venv", with_pip=True)
        python = folder / "venv" / "bin" / "python"
        run(python, "-m", "pip", "install", "--quiet", wheel, cwd=folder)
        script = folder / "example.py"
        script.write_text(first_example(), encoding="utf-8")
        run(python, script, cwd=folder)
        print(f"{wheel.name}: top level is fad, and the README's example runs.")


if __name__ == "__main__":
    main()
