"""Pictures by Matplotlib, without pyplot: nothing stays behind in its list of figures, and no window opens."""

import math
import os
from collections.abc import Sequence
from io import BytesIO
from typing import Any

import numpy as np
from matplotlib import rcParams
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from bpnet.disk import write_atomically
from bpnet.errors import ArgumentError, OptionError, kind_of
from bpnet.plots.panels import Curve, Panel

BLUE, ORANGE, GREEN, PINK, SKY, YELLOW = "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00"
PALETTE = BLUE, ORANGE, GREEN, PINK, SKY, YELLOW
"""Colours that are told apart by the colour-blind (Okabe and Ito 2008), and seen on white and on black."""
STYLES = "-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1))
MARKERS = "o", "s", "^", "D", "v", "P"
FEW_POINTS = 40
"""So many are marked, so that one sees where they are."""
DOTS_PER_INCH = 150


class Picture(Figure):  # type: ignore[misc]
    """A figure that a notebook shows, whether or not pyplot has been imported there."""

    def _repr_png_(self) -> bytes:
        file = BytesIO()
        self.savefig(file, format="png", dpi=110)
        return file.getvalue()


def figure(width: float, height: float) -> Picture:
    """An empty figure of so many inches, in which nothing is cut off."""
    return Picture(figsize=(width, height), layout="constrained")


def check_format(path: str, what: str = "path") -> str:
    """The format that the ending of a file stands for; raises OptionError where Matplotlib does not write it."""
    kind = os.path.splitext(path)[1].lower().removeprefix(".")
    formats = Figure().canvas.get_supported_filetypes()
    if kind not in formats:
        endings = ", ".join(f".{name}" for name in sorted({*formats, "txt"}))
        raise OptionError(f"{what} is {path}: expected a file that ends in one of {endings}")
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
    for i, curve in enumerate(panel.curves):
        draw_curve(axes, curve, i, len(panel.curves))
    if panel.scale.kind == "symlog":
        axes.set_yscale("symlog", linthresh=panel.scale.unit)
        axes.set_yticks(panel.scale.ticks(*axes.get_ylim()), minor=False)
    elif panel.scale.kind == "log":
        axes.set_yscale("log")
    axes.set_title(panel.title)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
    axes.grid(alpha=0.3)
    if panel.best is not None:
        draw_best(axes, panel)
    if len(panel.curves) > 1 or panel.best is not None:
        axes.legend(fontsize="small", framealpha=0.7)


def draw_curve(axes: Any, curve: Curve, i: int, count: int) -> None:
    """A line, with a dot where a point has no neighbour."""
    colour, style = PALETTE[i % len(PALETTE)], STYLES[i % len(STYLES)]
    marker = MARKERS[i % len(MARKERS)]
    thin = curve.thinned()
    few = {"marker": marker, "markersize": 4} if len(curve.y) <= FEW_POINTS else {}
    axes.plot(thin.x, thin.y, color=colour, linestyle=style, label=curve.name, zorder=2 + count - i, **few)
    if not few and curve.lonely.any():
        axes.plot(curve.x[curve.lonely], curve.y[curve.lonely], marker, color=colour, markersize=4)


def draw_best(axes: Any, panel: Panel) -> None:
    """A thin line at the best epoch, and a ring about the value there."""
    assert panel.best is not None
    epoch, value = panel.best
    ink = rcParams["text.color"]
    said = f"epoch {epoch:.0f}" + (f": {value:.4g}" if math.isfinite(value) else "")
    said = f"best, {said}" if panel.judged else said
    axes.axvline(epoch, color=ink, linewidth=0.8, linestyle=(0, (1, 3)), alpha=0.7)
    at = ([epoch], [value]) if math.isfinite(value) else ([], [])
    axes.plot(*at, "o", markersize=9, markerfacecolor="none", markeredgecolor=ink, label=said, zorder=20)
    axes.set_xlim(*spread_about(axes.get_xlim(), epoch))


def spread_about(ends: tuple[float, float], x: float) -> tuple[float, float]:
    """The ends of an axis that has a point."""
    return min(ends[0], x), max(ends[1], x)


def finite_range(values: Any) -> tuple[float, float]:
    """The least and the largest finite value, 0 and 1 where there is none."""
    found = values[np.isfinite(values)]
    return (float(found.min()), float(found.max())) if found.size else (0.0, 1.0)
