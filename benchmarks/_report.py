"""Results as JSON and as tables, each with the machine and the date."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks._machine import describe, machine

ROOT = Path(__file__).resolve().parents[1]


@dataclass
class Report:
    """What a benchmark found.

    Attributes:
        name: The name of its files.
        title: The heading of its page.
        command: What runs it again.
        text: Paragraphs before the table.
        rows: One dict per line of the table; values that no column names are kept in
            the JSON alone.
        columns: The table's keys and headings.
        notes: Lines after the table.
        settings: What else is needed to read the numbers.
        figure: A picture's file name, in the folder of the pages.
    """

    name: str
    title: str
    command: str
    columns: Mapping[str, str]
    text: str = ""
    rows: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    figure: str | None = None
    machine: dict[str, Any] = field(default_factory=machine)

    def markdown(self) -> str:
        """Return the page."""
        parts = [f"# {self.title}", self.text, table(self.rows, self.columns)]
        parts.append("\n".join(f"- {note}" for note in self.notes))
        if self.figure:
            parts.append(f"![{self.title}]({self.figure})")
        parts.append(f"Measured on: {describe(self.machine)}.")
        parts.append(f"Run it again: `{self.command}`.")
        return "\n\n".join(part for part in parts if part) + "\n"

    def write(self, *, complete: bool, root: Path = ROOT) -> tuple[Path, Path]:
        """Write both files and return their paths.

        A run that left something out goes to ``.benchmarks/partial/``, so that it does
        not replace the published one.
        """
        results, pages = results_folder(complete, root), pages_folder(complete, root)
        data = {
            "benchmark": self.name,
            "machine": self.machine,
            "command": self.command,
            "settings": self.settings,
            "rows": self.rows,
        }
        text = json.dumps(data, indent=1, default=float) + "\n"
        (results / f"{self.name}.json").write_text(text)
        (pages / f"{self.name}.md").write_text(self.markdown())
        return results / f"{self.name}.json", pages / f"{self.name}.md"


def results_folder(complete: bool, root: Path = ROOT) -> Path:
    """Return the folder of the JSON files, made where needed."""
    folder = root / ("benchmarks/results" if complete else ".benchmarks/partial")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def pages_folder(complete: bool, root: Path = ROOT) -> Path:
    """Return the folder of the pages and figures, made where needed."""
    folder = root / ("docs/benchmarks" if complete else ".benchmarks/partial")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def table(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> str:
    """Return a Markdown table; a value that is missing or None is a dash.

    Args:
        rows: The lines.
        columns: Keys of the rows, with their headings.
    """
    lines = [list(columns.values()), ["---"] * len(columns)]
    lines += [[_cell(row.get(key)) for key in columns] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
    return str(value).replace("|", "\\|").replace("\n", " ")
