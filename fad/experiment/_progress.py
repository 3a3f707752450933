"""Live progress on stderr: a bar on a terminal, plain lines elsewhere."""

import logging
import sys
import time
from collections.abc import Mapping
from typing import Any

from fad.experiment._lazy import require

_log = logging.getLogger(__name__)


class Progress:
    """Shows how far a run is. It never raises into the run: a fault switches it off.

    Args:
        label: Name of the run.
        rounds: Number of rounds in all.
        start: Rounds already done.
        enabled: Whether to show anything.
    """

    def __init__(
        self, label: str, rounds: int, *, start: int = 0, enabled: bool = True
    ) -> None:
        """Choose the way of showing."""
        self._shown: dict[str, float] = {}
        self._view: Any = None
        if enabled:
            view = _Bar if sys.stderr.isatty() else _Lines
            self._safely(lambda: setattr(self, "_view", view(label, rounds, start)))

    def update(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show that a round is done; metrics stay shown until they come again."""
        known = ("accuracy", "loss", "train_loss")
        self._shown |= {k: metrics[k] for k in known if k in metrics}
        text = "  ".join(f"{k} {v:.4f}" for k, v in self._shown.items())
        if self._view is not None:
            self._safely(lambda: self._view.update(step, text))

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._view is not None:
            self._safely(lambda: self._view.close())

    def _safely(self, action: Any) -> None:
        try:
            action()
        except Exception:
            self._view = None
            _log.warning("the progress display failed; going on", exc_info=True)


class _Rate:
    """Rounds per second since the first one, which compiles."""

    def __init__(self) -> None:
        self._first: tuple[int, float] | None = None

    def after(self, step: int) -> float | None:
        now = time.perf_counter()
        if self._first is None:
            self._first = (step, now)
            return None
        first, began = self._first
        return (step - first) / max(now - began, 1e-9)


class _Bar:
    """A live bar: round, metrics, rounds/s, time left."""

    def __init__(self, label: str, rounds: int, start: int) -> None:
        rich = require("rich.progress")
        console = require("rich.console").Console(stderr=True)
        self._bar = rich.Progress(
            rich.TextColumn("{task.description}"),
            rich.BarColumn(bar_width=24),
            rich.TextColumn("round {task.completed:.0f}/{task.total:.0f}"),
            rich.TextColumn("{task.fields[text]}"),
            rich.TextColumn("{task.fields[rate]}"),
            rich.TimeRemainingColumn(),
            console=console,
        )
        self._rate = _Rate()
        fields = {"text": "", "rate": "compiling"}
        self._task = self._bar.add_task(label, total=rounds, completed=start, **fields)
        self._bar.start()

    def update(self, step: int, text: str) -> None:
        rate = self._rate.after(step)
        shown = f"{rate:.1f} rounds/s" if rate else "compiled"
        self._bar.update(self._task, completed=step, text=text, rate=shown)

    def close(self) -> None:
        self._bar.stop()


class _Lines:
    """About ten plain lines a run, for logs."""

    def __init__(self, label: str, rounds: int, start: int) -> None:
        self._label, self._rounds = label, rounds
        self._every = max(1, rounds // 10)
        self._rate = _Rate()

    def update(self, step: int, text: str) -> None:
        rate = self._rate.after(step)
        if step % self._every and step != self._rounds:
            return
        speed = ""
        if rate:
            left = (self._rounds - step) / rate
            speed = f"  {rate:.1f} rounds/s  {left:.0f} s left"
        line = f"{self._label}: round {step}/{self._rounds}  {text}{speed}"
        sys.stderr.write(f"{line}\n")

    def close(self) -> None:
        sys.stderr.flush()
