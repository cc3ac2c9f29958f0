"""Small plots as SVG, whose colours are those of the page that they stand in."""

import math
from collections.abc import Iterable, Sequence
from html import escape

from bpnet.backends import Array
from bpnet.plots.scales import Scale, spread, tick
from bpnet.report.words import short
from bpnet.table import columns_of

LEFT, RIGHT, TOP, BOTTOM = 78, 22, 24, 44
"""Margins about the axes, for their numbers and names."""


class Plot:
    """Two axes and what is drawn between them; elements have classes, which the page gives colours."""

    def __init__(
        self,
        x: tuple[float, float],
        y: tuple[float, float],
        names: tuple[str, str],
        *,
        size: tuple[int, int] = (460, 300),
        scale: Scale = Scale(),  # noqa: B008 - it is frozen
        whole_x: bool = False,
        percent: tuple[bool, bool] = (False, False),
    ) -> None:
        self.width, self.height = size
        self.scale = scale
        self.ends = spread(*x), (y if y[1] > y[0] else spread(*y))
        self.span = spread(*(float(scale.place(v)) for v in self.ends[1]))
        self.parts: list[str] = []
        self.legend: list[tuple[str, str]] = []
        self.label = f"{names[1]} by {names[0]}"
        self._axes(names, whole_x, percent)

    def place(self, x: float, y: float) -> tuple[float, float]:
        """Where a point of the data lies in the picture."""
        (x0, x1), (y0, y1) = self.ends[0], self.span
        y = float(self.scale.place(y))
        across = LEFT + (x - x0) / (x1 - x0) * (self.width - LEFT - RIGHT)
        return across, self.height - BOTTOM - (y - y0) / (y1 - y0) * (self.height - TOP - BOTTOM)

    def _axes(self, names: tuple[str, str], whole_x: bool, percent: tuple[bool, bool]) -> None:
        (x0, x1), (y0, y1) = self.ends
        bottom, right = self.height - BOTTOM, self.width - RIGHT
        at_x = [v for v in Scale().ticks(x0, x1) if not whole_x or v == round(v)]
        for value in at_x:
            across = self.place(value, y0)[0]
            self.parts.append(f'<path class="grid" d="M{across:.1f} {TOP}V{bottom}"/>')
            self.parts.append(text(across, bottom + 16, tick(value, percent[0]), "middle"))
        for value in self.scale.ticks(y0, y1):
            down = self.place(x0, value)[1]
            self.parts.append(f'<path class="grid" d="M{LEFT} {down:.1f}H{right}"/>')
            self.parts.append(text(LEFT - 6, down + 4, tick(value, percent[1]), "end"))
        self.parts.append(f'<path class="axis" d="M{LEFT} {TOP}V{bottom}H{right}"/>')
        self.parts.append(text((LEFT + right) / 2, self.height - 8, names[0], "middle", "name"))
        middle = (TOP + bottom) / 2
        turned = f' transform="rotate(-90 14 {middle:.0f})"'
        self.parts.append(text(14, middle, names[1], "middle", "name", turned))

    def line(self, points: Iterable[tuple[float, float]], kind: str, name: str = "") -> None:
        """A line through the points; where one is not finite it is broken."""
        path, begun = [], False
        for x, y in points:
            finite = math.isfinite(x) and math.isfinite(y)
            if finite:
                across, down = self.place(x, y)
                path.append(f"{'L' if begun else 'M'}{across:.1f} {down:.1f}")
            begun = finite
        self.parts.append(f'<path class="line {kind}" d="{"".join(path)}"/>')
        if name:
            self.legend.append((kind, name))

    def dots(
        self, points: Iterable[Sequence[float]], kind: str, radius: float = 2.0, titles: Sequence[str] = ()
    ) -> None:
        """A dot at each point, with what the pointer shows of it."""
        for i, (x, y) in enumerate(points):
            across, down = self.place(x, y)
            said = f"<title>{escape(titles[i])}</title>" if titles else ""
            self.parts.append(
                f'<circle class="dot {kind}" cx="{across:.1f}" cy="{down:.1f}" r="{radius}">{said}</circle>'
            )

    def bars(self, edges: Sequence[float], heights: Sequence[float], kind: str) -> None:
        """A bar from 0 up between each two edges."""
        for low, high, height in zip(edges, edges[1:], heights, strict=False):
            if height:
                (left, top), (right, bottom) = self.place(low, height), self.place(high, 0.0)
                self.parts.append(
                    f'<rect class="bar {kind}" x="{left:.1f}" y="{top:.1f}" width="{max(right - left - 1, 0.5):.1f}" '
                    f'height="{bottom - top:.1f}"><title>{short(low)} to {short(high)}: {short(height)}</title></rect>'
                )

    def mark(self, x: float, y: float, words: str, anchor: str = "start") -> None:
        """A few words at a point."""
        across, down = self.place(x, y)
        self.parts.append(text(across, down, words, anchor, "name"))

    def svg(self) -> str:
        """The picture."""
        for i, (kind, name) in enumerate(self.legend):
            left = LEFT + 100 * i
            self.parts.append(f'<path class="line {kind}" d="M{left} 10h18"/>{text(left + 24, 14, name)}')
        return picture(self.width, self.height, self.label, self.parts)


def picture(width: int, height: int, label: str, parts: Iterable[str]) -> str:
    """An SVG that fills the width that it is given."""
    return (
        f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
        f'aria-label="{escape(label)}">{"".join(parts)}</svg>'
    )


def text(x: float, y: float, words: str, anchor: str = "start", kind: str = "", more: str = "") -> str:
    """Words in a picture."""
    named = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{named}{more}>{escape(words)}</text>'


def bar_chart(names: Sequence[str], values: Sequence[float], deviations: Sequence[float], words: Sequence[str]) -> str:
    """A bar to the right for every name, with its deviation as a whisker and some words behind it."""
    width, row, right = 720, 24, 150
    left = 20 + round(6.6 * max(map(columns_of, names)))
    top = max([*(v + d for v, d in zip(values, deviations, strict=True)), 1e-300])
    scale, parts = (width - left - right) / top, []
    for i, (name, value, deviation) in enumerate(zip(names, values, deviations, strict=True)):
        y, end = 6 + row * i, max(value, 0.0) * scale
        parts.append(text(left - 8, y + 13, name, "end"))
        parts.append(f'<rect class="bar one" x="{left}" y="{y}" width="{end:.1f}" height="16"/>')
        low, high = (left + max(value + sign * deviation, 0.0) * scale for sign in (-1, 1))
        if high > low:
            parts.append(f'<path class="whisker" d="M{low:.1f} {y + 8}H{high:.1f}"/>')
        parts.append(text(max(high, left + end) + 8, y + 13, words[i], kind="name"))
    return picture(width, row * len(names) + 12, "importance of columns", parts)


def heat_map(shares: Array, titles: Sequence[Sequence[str]]) -> str:
    """A square of shares, the larger the stronger; the first row is on top."""
    count = len(shares)
    cell = max(440 // count, 2)
    parts = [
        f'<rect class="heat" x="{j * cell}" y="{i * cell}" width="{cell}" height="{cell}" '
        f'fill-opacity="{shares[i, j]:.2f}"><title>{escape(titles[i][j])}</title></rect>'
        for i in range(count)
        for j in range(count)
        if shares[i, j] > 0.005
    ]
    size = cell * count
    frame = f'<rect class="frame" x="0" y="0" width="{size}" height="{size}"/>'
    return picture(size, size, "confusion of classes", [frame, *parts])
