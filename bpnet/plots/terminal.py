"""Curves drawn with characters: dots of braille, which are eight to a character, or where these can't be shown, ASCII.

Lines are lists of spans, (text, style), so that they can be put side by side before colours are written into them.
"""

import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TextIO

import numpy as np

from bpnet.backends import Array
from bpnet.callbacks.progress import columns, of_a_kernel
from bpnet.disk import write_atomically
from bpnet.plots.curves import NOTHING, Panel
from bpnet.plots.scales import spread, tick, ticks
from bpnet.table import columns_of, fit

Span = tuple[str, str]
Line = list[Span]

WIDEST, NARROWEST, HEIGHT = 100, 24, 12
"""Columns of a chart at most and at least, and lines of its plot."""
COLOURS = "38;5;32", "38;5;166", "38;5;36", "38;5;175", "38;5;74", "38;5;178"
"""Of lines, by SGR codes: blue, orange, green, pink, sky, yellow, seen on black and on white."""
BOLD, DIM = "1", "2"
DASHES = (1, 1), (4, 7), (2, 4), (5, 9), (1, 3), (3, 8)
"""How many dots of how many are drawn of each line."""
MARKS = "*o+x#%"
"""What lines are drawn with in ASCII."""
SYMBOLS = "│─└┤┴┊●⣿"
PLAIN = str.maketrans("│─└┤┴┊●→×", "|-+++:@>x")
BITS = np.asarray([[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]])
"""Of a braille character: each dot's bit, by row and column."""


class Canvas:
    """Dots in a rectangle of characters, each of which belongs to one of several lines."""

    def __init__(self, width: int, height: int, lines: int, plain: bool) -> None:
        self.fine = (1, 1) if plain else (4, 2)
        self.dots = np.zeros((lines, height * self.fine[0], width * self.fine[1]), bool)
        self.marks: dict[tuple[int, int], Span] = {}
        self.plain = plain

    def line(self, which: int, x: Array, y: Array) -> None:
        """A line through points of the square 0 ... 1, broken where y is NaN."""
        _, high, wide = self.dots.shape
        on, of = (1, 1) if self.plain else DASHES[which % len(DASHES)]
        known = np.flatnonzero(np.isfinite(y))
        across = np.rint(x * (wide - 1)).astype(int)
        down = high - 1 - np.rint(np.nan_to_num(y) * (high - 1)).astype(int)
        length, before = 0, -2
        for i in known.tolist():
            if i == before + 1:
                steps = max(abs(across[i] - across[before]), abs(down[i] - down[before]), 1)
                along = np.arange(steps + 1)
                drawn = (length + along) % of < on
                columns = np.rint(np.linspace(across[before], across[i], steps + 1)).astype(int)[drawn]
                rows = np.rint(np.linspace(down[before], down[i], steps + 1)).astype(int)[drawn]
                self.dots[which, rows, columns] = True
                length += int(steps)
            elif i + 1 == len(y) or not np.isfinite(y[i + 1]):  # a point by itself, larger than that of a line
                row, column = max(down[i] - self.fine[0] // 2, 0), max(across[i] - self.fine[1] // 2, 0)
                self.dots[which, row : down[i] + 1, column : across[i] + 1] = True
            before = i

    def rows(self) -> list[Line]:
        """The characters.  One in which several lines meet has the style of that with most dots in it."""
        lines, high, wide = self.dots.shape
        tall, broad = self.fine
        cells = self.dots.reshape(lines, high // tall, tall, wide // broad, broad).transpose(0, 1, 3, 2, 4)
        counts = cells.sum(axis=(3, 4))
        owner = lines - 1 - counts[::-1].argmax(axis=0)
        bits = (cells.any(axis=0) * (1 if self.plain else BITS)).sum(axis=(2, 3))
        found = []
        for row in range(bits.shape[0]):
            line: Line = []
            for column in range(bits.shape[1]):
                mark, bit, of = self.marks.get((row, column)), int(bits[row, column]), int(owner[row, column])
                if mark is not None and (mark[1] != DIM or not bit):
                    line.append(mark)
                elif bit:
                    line.append((MARKS[of % len(MARKS)] if self.plain else chr(0x2800 + bit), style_of(of)))
                else:
                    line.append((" ", ""))
            found.append(line)
        return found


def style_of(which: int) -> str:
    """The colour of a line."""
    return COLOURS[which % len(COLOURS)]


def chart(panel: Panel, head: Sequence[Line], width: int, height: int, plain: bool) -> list[Line]:
    """A panel in lines of `width` columns, `height` of which are the plot; above it stands the head."""
    ends = panel.ends
    if ends is None:
        return [*head, [(fit(NOTHING, width), "")]]
    scale, (low, high) = panel.scale, ends
    bottom, top = spread(*(float(v) for v in scale.place(np.asarray(ends))))
    marks = [v for v in scale.ticks(low, high, max(height // 2, 2)) if low <= v <= high] or [low, high]
    at: dict[int, str] = {}
    canvas_rows = height
    for value in marks:
        share = (float(scale.place(np.asarray(value))) - bottom) / (top - bottom)
        at.setdefault(canvas_rows - 1 - round(share * (canvas_rows - 1)), tick(float(f"{value:.3g}")))
    margin = max(map(len, at.values()))
    canvas = Canvas(width - margin - 2, height, len(panel.curves), plain)
    epochs = panel.curves[0].x
    left, right = float(epochs.min()), float(epochs.max())
    if right <= left:
        left, right = left - 0.5, right + 0.5
    for i, curve in enumerate(panel.curves):
        thin = curve.thinned(8 * width)
        y = (scale.place(thin.y) - bottom) / (top - bottom)
        canvas.line(i, (thin.x - left) / (right - left), y)
    if panel.best is not None:
        mark_best(canvas, panel, (left, right), (bottom, top))
    lines = [[(at.get(i, "").rjust(margin) + (" ┤" if i in at else " │"), ""), *row] for i, row in
             enumerate(canvas.rows())]  # fmt: skip
    axis, labels = x_axis(left, right, width - margin - 2)
    lines += [[(" " * margin + " └" + axis, "")], [(" " * (margin + 2) + labels, "")]]
    return [*head, *lines]


def mark_best(canvas: Canvas, panel: Panel, x_ends: tuple[float, float], y_ends: tuple[float, float]) -> None:
    """A dotted line at the best epoch, and a dot at the value there."""
    assert panel.best is not None
    epoch, value = panel.best
    wide, high = canvas.dots.shape[2], canvas.dots.shape[1]
    column = round((epoch - x_ends[0]) / (x_ends[1] - x_ends[0]) * (wide - 1)) // canvas.fine[1]
    for row in range(high // canvas.fine[0]):
        canvas.marks[row, column] = "┊", DIM
    y = (float(panel.scale.place(np.asarray(value))) - y_ends[0]) / (y_ends[1] - y_ends[0])
    if np.isfinite(y):
        canvas.marks[(high - 1 - round(y * (high - 1))) // canvas.fine[0], column] = "●", BOLD


def header(panel: Panel, width: int, plain: bool) -> list[Line]:
    """The name of a panel, and what its lines are."""
    parts: list[Line] = [[(fit(panel.title, width), BOLD)]]
    if panel.named:
        for i, curve in enumerate(panel.curves):
            parts.append([(f"{sample(i, plain)} ", style_of(i)), (fit(curve.name, width - 6), "")])
    if panel.best is not None:
        epoch, value = panel.best
        text = f"best epoch {epoch:.0f}" + (f": {value:.4g}" if value == value else "")
        parts.append([("● ", BOLD), (fit(text, width - 2), "")])
    lines: list[Line] = [[]]
    for part in parts:
        if lines[-1] and length(lines[-1]) + 3 + length(part) > width:
            lines.append([("  ", "")])
        lines[-1] += [("   ", "")] * (len(lines[-1]) > 1 or bool(lines[-1] and lines[-1][0][0].strip())) + part
    return lines


def sample(which: int, plain: bool) -> str:
    """A short piece of a line."""
    if plain:
        return MARKS[which % len(MARKS)] * 3
    on, of = DASHES[which % len(DASHES)]
    dots = [i % of < on for i in range(8)]
    return "".join(chr(0x2800 + 0x04 * a + 0x20 * b) for a, b in zip(dots[::2], dots[1::2], strict=True))


def x_axis(left: float, right: float, width: int) -> tuple[str, str]:
    """A line with marks, and the numbers of epochs below it, as many as there is room for beside the word."""
    axis, labels, end, name = ["─"] * width, [" "] * width, -2, "epoch"
    for value in [v for v in ticks(left, right, max(width // 12, 1)) if v == round(v)]:
        text = f"{value:,.0f}"
        column = min(int((value - left) / (right - left) * width), width - 1)
        begin = min(max(column - len(text) // 2, 0), width - len(text))
        if end + 1 < begin and begin + len(text) < width - len(name):
            axis[column] = "┴"
            labels[begin : begin + len(text)] = text
            end = begin + len(text)
    labels[-len(name) :] = name
    return "".join(axis), "".join(labels)


# ---- lines ----------------------------------------------------------------------------------------------------------


def length(line: Iterable[Span]) -> int:
    """How many columns of a terminal it takes."""
    return sum(columns_of(text) for text, _ in line)


def beside(charts: Sequence[Sequence[Line]], width: int, gap: int = 3) -> list[Line]:
    """Charts side by side, each so wide."""
    lines: list[Line] = []
    for i in range(max(map(len, charts))):
        line: Line = []
        for k, one in enumerate(charts):
            part = list(one[i]) if i < len(one) else []
            fill = (width - length(part) + gap) if k < len(charts) - 1 else 0
            line += [*part, (" " * fill, "")]
        lines.append(line)
    return lines


def lines_of(panels: Sequence[Panel], width: int, most: int | None = None, plain: bool = False) -> list[Line]:
    """All panels, in two columns where there is room, and in no more than `most` lines where that is possible."""
    across = 2 if len(panels) > 1 and width >= 2 * 48 + 3 else 1
    each = max(min((width - 3 * (across - 1)) // across, WIDEST), NARROWEST)
    down = -(-len(panels) // across)
    height = HEIGHT
    if most is not None:
        height = max(min(HEIGHT, most // down - 4 - (down > 1)), 3)
        down = max(min(down, most // (height + 5)), 1)
        panels = panels[: down * across]
    found: list[Line] = []
    for i in range(0, len(panels), across):
        row = panels[i : i + across]
        heads = [header(panel, each, plain) for panel in row]
        tall = max(map(len, heads))
        heads = [head + [[]] * (tall - len(head)) for head in heads]
        charts = [chart(panel, head, each, height, plain) for panel, head in zip(row, heads, strict=True)]
        found += [*([[]] if i else []), *beside(charts, each)]
    return found


@dataclass(frozen=True)
class Lines:
    """Panels as what `put` takes."""

    panels: Sequence[Panel]

    def __call__(self, width: int, plain: bool) -> list[Line]:
        return lines_of(self.panels, width, plain=plain)


def written(lines: Sequence[Line], colour: bool = False, plain: bool = False) -> str:
    """The lines as text."""
    rows = []
    for line in lines:
        text, last = "", ""
        for part, style in line:
            if colour and style != last:
                text += "\x1b[0m" * bool(last) + (f"\x1b[{style}m" if style else "")
                last = style
            text += part
        rows.append(text + "\x1b[0m" if last else text.rstrip())
    found = "\n".join(rows)
    return found.translate(PLAIN) if plain else found


def is_coloured(stream: Any) -> bool:
    """Whether colours are wanted: in a terminal that has them, unless NO_COLOR says otherwise."""
    terminal = hasattr(stream, "isatty") and stream.isatty() and not of_a_kernel(stream)
    return terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def encoding_of(stream: Any) -> str:
    """What a stream makes of text; one in memory says nothing, and takes any."""
    return getattr(stream, "encoding", None) or "utf-8"


def is_plain(stream: Any) -> bool:
    """Whether a stream's encoding has no more than ASCII of what is drawn with."""
    try:
        SYMBOLS.encode(encoding_of(stream))
    except (UnicodeEncodeError, LookupError):
        return True
    return False


def put(
    lines: Callable[[int, bool], Sequence[Line]],
    path: str | None = None,
    stream: TextIO | None = None,
    width: int = WIDEST,
) -> None:
    """Write what `lines(width, plain)` gives to a file, so wide, or else to a stream, by default standard output.

    A stream gets it as wide as its terminal, with colours where that has them, in ASCII where it can't encode others.
    """
    if path is not None:
        with write_atomically(path, "w", encoding="utf-8", newline="\n") as file:
            file.write(written(lines(width, False)) + "\n")
        return
    stream = stream or sys.stdout
    if stream is not None:  # as in a process without a console
        plain = is_plain(stream)
        text = written(lines(columns(stream), plain), is_coloured(stream), plain)
        code = encoding_of(stream)
        stream.write(text.encode(code, "replace").decode(code) + "\n")  # names may have any letters
        stream.flush()
