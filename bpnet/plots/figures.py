"""Pictures by Matplotlib, without pyplot: nothing stays behind in its list of figures, and no window opens."""

import math
import os
from collections.abc import Sequence
from io import BytesIO
from typing import Any

from matplotlib import rcParams
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

from bpnet.disk import write_atomically
from bpnet.errors import ArgumentError, OptionError, kind_of, shown
from bpnet.plots.curves import NOTHING, Curve, Panel
from bpnet.plots.diagram import Block, Box
from bpnet.table import clean

BLUE, ORANGE, GREEN, PINK, SKY, YELLOW = "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00"
PALETTE = BLUE, ORANGE, GREEN, PINK, SKY, YELLOW
"""Colours that are told apart by the colour-blind (Okabe and Ito 2008), and seen on white and on black."""
STYLES = "-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1))
MARKERS = "o", "s", "^", "D", "v", "P"
MANY = 300.0
"""A logarithmic axis has but powers of ten from this ratio on, below it also twice and five times as much."""
FEW_POINTS = 40
"""So many are marked, so that one sees where they are."""
DOTS_PER_INCH = 150


class Picture(Figure):
    """A figure that a notebook shows, whether or not pyplot has been imported there."""

    def _repr_png_(self) -> bytes:
        file = BytesIO()
        self.savefig(file, format="png", dpi=110)
        return file.getvalue()


def figure(width: float, height: float) -> Picture:
    """An empty figure of so many inches, in which nothing is cut off."""
    return Picture(figsize=(width, height), layout="constrained")


def check_format(path: str, what: str = "path", others: Sequence[str] = ()) -> str:
    """The format that the ending of a file stands for; raises OptionError where Matplotlib does not write it."""
    kind = os.path.splitext(path)[1].lower().removeprefix(".")
    formats = Figure().canvas.get_supported_filetypes()
    if kind not in formats:
        endings = ", ".join(f".{name}" for name in sorted({*formats, "txt"}))
        or_else = "".join(f"{other}, or " for other in others)
        raise OptionError(f"{what} is {shown(path)}: expected {or_else}a file that ends in one of {endings}")
    return kind


def save(drawn: Any, path: str) -> None:
    """Write a figure, as a whole or not at all; raises OptionError, and PathError where nothing can be written."""
    kind = check_format(path)
    with write_atomically(path) as file:
        drawn.savefig(file, dpi=DOTS_PER_INCH, format=kind)


def emptied(given: Any, width: float, height: float) -> Any:
    """The figure to draw in: a new one, or the one that was given, which is emptied."""
    if given is None:
        return figure(width, height)
    if not hasattr(given, "subplots") or not hasattr(given, "clear"):
        raise ArgumentError(f"figure is {kind_of(given)}; expected a figure of Matplotlib, as plt.figure() makes")
    given.clear()
    return given


# ---- curves ---------------------------------------------------------------------------------------------------------


def draw(panels: Sequence[Panel], given: Any = None) -> Any:
    """The panels, side by side in rows of three at most."""
    across = min(len(panels), 3 if len(panels) != 4 else 2)
    down = math.ceil(len(panels) / across)
    drawn = emptied(given, 4.6 * across if across > 1 else 6.4, 3.4 * down if down > 1 else 3.8)
    grid = drawn.subplots(down, across, squeeze=False)
    for axes, panel in zip(grid.flat, panels, strict=False):
        draw_panel(axes, panel)
    for axes in grid.flat[len(panels) :]:
        axes.remove()
    return drawn


def draw_panel(axes: Any, panel: Panel) -> None:
    """The curves of a panel, and the best epoch."""
    entries = [(draw_curve(axes, curve, i), curve.name) for i, curve in enumerate(panel.curves)] * panel.named
    if panel.scale.kind == "symlog":
        axes.set_yscale("symlog", linthresh=panel.scale.unit)
        axes.set_yticks(panel.scale.ticks(*axes.get_ylim()), minor=False)
    elif panel.scale.kind == "log":
        axes.set_yscale("log")
        low, high = axes.get_ylim()
        if high < MANY * low:
            axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("epoch")
    axes.set_ylabel(clean(panel.title), parse_math=False)
    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True, steps=[1, 2, 5, 10]))
    axes.grid(alpha=0.3)
    if panel.ends is None:
        axes.set(xticks=[], yticks=[])
        axes.text(0.5, 0.5, NOTHING, ha="center", va="center", transform=axes.transAxes)
    elif len(panel.curves[0].x) == 1:
        axes.set_xlim(panel.curves[0].x[0] - 0.5, panel.curves[0].x[0] + 0.5)
    if panel.best is not None:
        entries.append(draw_best(axes, panel))
    if entries:
        legend(axes, entries)


def legend(axes: Any, entries: Sequence[tuple[Any, str]], framealpha: float = 0.7) -> None:
    """What lines are called: names as they are, with a $ in them or a _ before them."""
    lines, names = zip(*((line, clean(name)) for line, name in entries), strict=True)
    for line, name in zip(lines, names, strict=True):
        line.set_label(name)
    for text in axes.legend(lines, names, fontsize="small", framealpha=framealpha).get_texts():
        text.set_parse_math(False)


def draw_curve(axes: Any, curve: Curve, i: int) -> Any:
    """A line, with a dot where a point has no neighbour."""
    colour, style = PALETTE[i % len(PALETTE)], STYLES[i % len(STYLES)]
    marker = MARKERS[i % len(MARKERS)]
    thin = curve.thinned()
    few = {"marker": marker, "markersize": 4} if len(curve.y) <= FEW_POINTS else {}
    (line,) = axes.plot(thin.x, thin.y, color=colour, linestyle=style, **few)
    if not few and curve.lonely.any():
        axes.plot(curve.x[curve.lonely], curve.y[curve.lonely], marker, color=colour, markersize=4)
    return line


def draw_best(axes: Any, panel: Panel) -> tuple[Any, str]:
    """A thin line at the best epoch, and a ring about the value there, which it gives with what it says."""
    assert panel.best is not None
    epoch, value = panel.best
    ink = rcParams["text.color"]
    said = f"best epoch {epoch:.0f}" + (f": {value:.4g}" if math.isfinite(value) else "")
    axes.axvline(epoch, color=ink, linewidth=0.8, linestyle=(0, (1, 3)), alpha=0.7)
    at = ([epoch], [value]) if math.isfinite(value) else ([], [])
    (ring,) = axes.plot(*at, "o", markersize=9, markerfacecolor="none", markeredgecolor=ink, zorder=20)
    axes.set_xlim(*spread_about(axes.get_xlim(), epoch))
    return ring, said


def spread_about(ends: tuple[float, float], x: float) -> tuple[float, float]:
    """The ends of an axis that has a point."""
    return min(ends[0], x), max(ends[1], x)


# ---- a network ------------------------------------------------------------------------------------------------------

COLUMN, LINE = 0.078, 0.155
"""Inches of a column and a line of the diagram."""
LARGEST = 120.0
"""Inches of a figure's longer side at most: of a deep network everything is smaller."""
LOOKS: dict[str, dict[str, Any]] = {
    "input": {"edgecolor": GREEN, "facecolor": GREEN + "22"},
    "layer": {"edgecolor": BLUE, "facecolor": BLUE + "22"},
    "plain": {"edgecolor": "#808080", "facecolor": "none"},
    "shared": {"edgecolor": ORANGE, "facecolor": ORANGE + "22", "linewidth": 2.0},
    "frame": {"edgecolor": "#808080", "facecolor": "none", "linestyle": (0, (4, 3))},
}
"""Of boxes by their kind."""


def draw_network(block: Block, title: str, given: Any = None) -> Any:
    """The boxes and lines of a network, data flowing downwards."""
    across, down = block.left + block.right + 5, block.height + 2
    scale = min(1.0, LARGEST / max(COLUMN * across, LINE * down))
    wide, high = max(COLUMN * across * scale, 2.5), LINE * down * scale + 0.3
    drawn = emptied(given, wide, high)
    axes = drawn.subplots()
    axes.set_axis_off()
    middle = (block.right - block.left) / 2
    half = wide / COLUMN / scale / 2
    axes.set(xlim=(middle - half, middle + half), ylim=(block.height, -2.0))
    axes.set_title(title, fontsize=10, color="#808080", parse_math=False)
    ink = rcParams["text.color"]
    for line in block.lines:
        axes.plot(*zip(*line, strict=True), color=ink, linewidth=0.9, solid_joinstyle="round", zorder=1)
    for box in block.boxes:
        draw_box(axes, box, 9.0 * scale)
    return drawn


def draw_box(axes: Any, box: Box, size: float) -> None:
    """A box with its text, which stands between the lines that its frame is drawn on."""
    ground = rcParams["figure.facecolor"]
    if box.kind == "join":
        text = box.text[0].strip("()")
        look = {"boxstyle": "circle,pad=0.25" if len(text) == 1 else "round,pad=0.3", "facecolor": ground}
        axes.text(box.x + box.width // 2, box.y, text, ha="center", va="center", fontsize=size, zorder=3, bbox=look)
        return
    corner, room = (box.x, box.y), (box.width - 1, box.height - 1)
    style = "round,pad=0,rounding_size=0.8"
    if box.kind != "frame":  # so that no line is seen through it
        axes.add_patch(FancyBboxPatch(corner, *room, boxstyle=style, facecolor=ground, edgecolor="none", zorder=2))
    axes.add_patch(FancyBboxPatch(corner, *room, boxstyle=style, **LOOKS[box.kind], zorder=2))
    if box.kind == "frame":
        place = {"ha": "left", "va": "center", "fontsize": size, "style": "italic", "parse_math": False}
        axes.text(box.x + 1.5, box.y + 1, box.text[0], **place)
        return
    for i, text in enumerate(box.text):
        bold = {"weight": "bold"} if i == 0 and len(box.text) > 1 and box.kind in ("layer", "plain") else {}
        axes.text(
            box.x + box.width // 2, box.y + i + 1, text, ha="center", va="center_baseline", fontsize=size, zorder=4,
            parse_math=False, **bold,
        )  # fmt: skip
