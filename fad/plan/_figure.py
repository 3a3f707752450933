"""A plan as a drawing: the server's line above, the clients' line below.

Each column is a round: an arrow down, the client's work as a box on the clients' line,
an arrow up. Below them stands the state that a client keeps, an area that rises and
falls. Equal rounds are one column, and a bracket says how often they happen. A plan of
many columns is cut into strips.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fad._errors import PlanError
from fad._optional import require
from fad.plan._fold import Block, Folded, fold
from fad.plan._text import bytes_text, clip, flops_text, names_text, rounds_text
from fad.plan._values import Round

if TYPE_CHECKING:
    from fad.plan._plan import Plan

_COLUMNS = 7  # in a strip
# Inches, as are all coordinates.
_COLUMN, _LEFT, _RIGHT, _TOP, _BOTTOM, _NARROWEST = 1.75, 1.1, 0.25, 0.8, 0.45, 6.8
_NUMBER, _WIRES, _BOX, _STATE, _BRACKET = 0.45, 1.65, 0.52, 0.95, 0.45
# Okabe and Ito's colours, which colour-blind readers can tell apart.
_DOWN, _UP, _KEPT = "#0072B2", "#009E73", "#CC79A7"
_ANY, _SAME, _EDGE = "#FFFFFF", "#F9DDB1", "0.25"
_TEXT, _SMALL = 9, 8  # points
_NAMES = 20  # characters: what a box holds in a monospaced font
_CENTRE = {"ha": "center", "va": "center"}


def draw(plan: "Plan") -> Any:
    """Return the matplotlib figure of a plan."""
    blocks = fold(plan.rounds)
    strips = _strips(blocks)
    most = max((r.state_bytes for r in plan.rounds), default=0)
    below = bool(most) * _STATE + any(b.times > 1 for b in blocks) * _BRACKET
    strip_height = _NUMBER + _WIRES + _BOX + below + 0.3
    columns = max(sum(len(b.pattern) for b in strip) for strip in strips)
    width = max(_LEFT + columns * _COLUMN + _RIGHT, _NARROWEST)
    height = _TOP + len(strips) * strip_height + _BOTTOM
    figure = _matplotlib("figure").Figure(figsize=(width, height))
    _matplotlib("backends.backend_agg").FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(0, height))
    axes.set_axis_off()
    _titles(axes, plan, height)
    kept = 0
    for i, blocks in enumerate(strips):
        strip = _Strip(axes, plan, height - _TOP - i * strip_height, most)
        kept = strip.draw(blocks, kept)
    _legend(axes, plan)
    return figure


def _matplotlib(module: str) -> Any:
    needs, hint = "fad.plan: drawing a plan needs", ". print(plan) needs no package."
    return require(f"matplotlib.{module}", PlanError, needs, hint)


def _strips(blocks: Sequence[Block]) -> list[list[Block]]:
    """Cut the blocks into strips of so many columns; a pattern stays together."""
    strips: list[list[Block]] = [[]]
    for block in blocks:
        if sum(len(b.pattern) for b in [*strips[-1], block]) > _COLUMNS:
            strips.append([])
        strips[-1].append(block)
    return strips


class _Strip:
    """Draws columns from left to right, below the height ``top``."""

    def __init__(self, axes: Any, plan: "Plan", top: float, most: int):
        self.axes, self.plan, self.most = axes, plan, most
        self.widest = max(
            (max(r.bytes_down, r.bytes_up) for r in plan.rounds), default=0
        )
        self.server = top - _NUMBER
        self.clients = self.server - _WIRES - _BOX / 2
        self.state = self.clients - _BOX / 2 - _STATE  # its text; the area is above
        self.bracket = (self.state if most else self.clients - _BOX / 2) - 0.2

    def draw(self, blocks: Sequence[Block], kept: int) -> int:
        """Draw the blocks, with ``kept`` bytes of state before; return those after."""
        x, heights = _LEFT, [kept]
        for block in blocks:
            if block.times > 1:
                self._bracket(x, x + len(block.pattern) * _COLUMN, block.times)
            for folded in block.pattern:
                self._column(x, folded)
                x += _COLUMN
                heights.append(folded.kept[1])
        self._line(self.server, "server", 1, x)
        self._line(self.clients, f"{self.plan.clients:,}\nclients", 3, x)
        if self.most:
            self._area(heights)
        return heights[-1]

    def _line(self, y: float, label: str, copies: int, end: float) -> None:
        for i in range(copies):
            height = y + 0.05 * (i - (copies - 1) / 2)
            self.axes.plot((_LEFT, end), (height, height), c="0.35", lw=1.2, zorder=1)
        style = {"ha": "right", "va": "center", "fontsize": _TEXT, "weight": "bold"}
        self.axes.text(_LEFT - 0.1, y, label, **style)

    def _column(self, x: float, folded: Folded) -> None:
        r, middle = folded.round, x + _COLUMN / 2
        label = "rounds" if len(folded.numbers) > 1 else "round"
        label = f"{label} {rounds_text(folded.numbers)}"
        self.axes.text(middle, self.server + 0.2, label, fontsize=_TEXT, **_CENTRE)
        low = self.clients + (_BOX / 2 if r.work else 0)
        down, up = x + 0.3, x + _COLUMN - 0.3
        if r.bytes_down:
            self._arrow(down, self.server, low, r.bytes_down, _DOWN, 0.1)
        if r.bytes_up:
            self._arrow(up, low, self.server, r.bytes_up, _UP, -0.1)
        if r.work:
            self._work(x, r)
        if self.most:
            first, last = map(bytes_text, folded.kept)
            text = first if first == last else f"{first} to {last}"
            self.axes.text(middle, self.state, text, fontsize=_SMALL, **_CENTRE)

    def _arrow(
        self, x: float, start: float, end: float, nbytes: int, colour: str, aside: float
    ) -> None:
        """Draw a wire, the wider the more it carries; its text stands near its tail."""
        width = 1 + 2.5 * nbytes / self.widest
        style = {"arrowstyle": "-|>", "color": colour, "lw": width}
        style |= {"shrinkA": 0, "shrinkB": 0, "mutation_scale": 12 + 2 * width}
        self.axes.annotate("", (x, end), (x, start), arrowprops=style)
        place = {"ha": "left" if aside > 0 else "right", "va": "center"}
        y, text = start + 0.3 * (end - start), bytes_text(nbytes)
        self.axes.text(x + aside, y, text, color=colour, fontsize=_TEXT, **place)

    def _work(self, x: float, r: Round) -> None:
        corner = x + 0.12, self.clients - _BOX / 2
        box = _matplotlib("patches").FancyBboxPatch(
            corner, _COLUMN - 0.24, _BOX,
            boxstyle="round,pad=0,rounding_size=0.06", zorder=2,
            facecolor=_SAME if r.returns else _ANY, edgecolor=_EDGE,
        )  # fmt: skip
        self.axes.add_patch(box)
        middle, style = x + _COLUMN / 2, {"fontsize": _SMALL, "zorder": 3, **_CENTRE}
        names = names_text(r.work, _NAMES)
        self.axes.text(middle, self.clients + 0.11, names, family="monospace", **style)
        flops = flops_text(r.flops)
        self.axes.text(middle, self.clients - 0.12, flops, **style)

    def _area(self, heights: Sequence[int]) -> None:
        """Draw the state before, between and after the columns."""
        base, scale = self.state + 0.18, (_STATE - 0.33) / self.most
        xs = [_LEFT + i * _COLUMN for i in range(len(heights))]
        tops = [base + scale * kept for kept in heights]
        self.axes.fill_between(xs, tops, base, color=_KEPT, alpha=0.45, lw=0)
        style = {"ha": "right", "va": "center", "fontsize": _TEXT, "weight": "bold"}
        self.axes.text(_LEFT - 0.1, self.state, "client keeps", **style)

    def _bracket(self, left: float, right: float, times: int) -> None:
        left, right, y = left + 0.12, right - 0.12, self.bracket
        ends = (left, left, right, right), (y, y - 0.08, y - 0.08, y)
        self.axes.plot(*ends, color=_EDGE, lw=1)
        middle = (left + right) / 2
        self.axes.text(
            middle,
            y - 0.2,
            f"\N{MULTIPLICATION SIGN} {times}",
            fontsize=_TEXT,
            **_CENTRE,
        )


def _titles(axes: Any, plan: "Plan", height: float) -> None:
    cost = plan.cost()
    title = f"{clip(plan.name, 32)}: {cost.rounds} round{'s' * (cost.rounds != 1)}"
    state = f"at most {bytes_text(cost.client_state_bytes)}"
    some = "On average" if any(r.uneven for r in plan.rounds) else "In all"
    totals = (
        f"{some}, a client receives {bytes_text(cost.bytes_down)}, "
        f"sends {bytes_text(cost.bytes_up)}, "
        f"computes {flops_text(cost.client_flops)}, "
        f"keeps {state if cost.client_state_bytes else 'nothing'}."
    )
    axes.text(0.15, height - 0.2, title, fontsize=12, weight="bold", va="top")
    axes.text(0.15, height - 0.5, totals, fontsize=_TEXT, va="top", color="0.25")


def _legend(axes: Any, plan: "Plan") -> None:
    """Say what the colours mean, where they are used."""
    patch = _matplotlib("patches").Patch
    shown = [patch(facecolor=_ANY, edgecolor=_EDGE, label="any clients may take part")]
    if any(r.returns for r in plan.rounds):
        label = "clients of an earlier round must come back"
        shown.append(patch(facecolor=_SAME, edgecolor=_EDGE, label=label))
    if any(r.state_bytes for r in plan.rounds):
        label = "state kept for a later round"
        shown.append(patch(facecolor=_KEPT, alpha=0.45, label=label))
    axes.legend(
        handles=shown, loc="lower left", ncols=len(shown), frameon=False,
        fontsize=_SMALL, borderaxespad=0.6, handlelength=1.4,
    )  # fmt: skip
