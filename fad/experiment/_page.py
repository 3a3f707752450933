"""A comparison as a page of documentation: its table and its figure."""

import shutil
from pathlib import Path

from fad.experiment._comparison import Comparison
from fad.experiment._disk import writing


def write_page(
    comparison: Comparison, path: Path, folder: Path, target: float | None, page: Path
) -> Path:
    """Write ``<name>.md`` and ``<name>.png`` of a finished comparison.

    The comment on top of the comparison's file becomes the page's introduction.

    Args:
        comparison: The comparison.
        path: Its file.
        folder: Its run folder, with ``figure.png`` and ``table.md``.
        target: The level that counts as reached.
        page: The folder for the page.

    Returns:
        The Markdown file.

    Raises:
        RunError: The folder cannot be written.
    """
    name, metric = comparison.name, comparison.metric
    mean = f"the mean of its last {comparison.window} evaluations"
    notes = [f"The metric is {metric}, {mean}." if comparison.window > 1 else ""]
    notes.append(f"The target is {target:.4f}." if target is not None else "")
    notes.append("MB are those of a client that takes part in every round.")
    parts = [
        f"# {comparison.title}",
        _introduction(path),
        f"```sh\npython -m algorithms compare {path}\n```",
        (folder / "table.md").read_text(encoding="utf-8").strip(),
        " ".join(filter(None, notes)),
        f"![{comparison.title}]({name}.png)",
    ]
    made = page / f"{name}.md"
    with writing(made):
        page.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / "figure.png", page / f"{name}.png")
        made.write_text("\n\n".join(filter(None, parts)) + "\n", encoding="utf-8")
    return made


def _introduction(path: Path) -> str:
    """Return the comment on top of a file."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").strip())
    return "\n".join(lines)
