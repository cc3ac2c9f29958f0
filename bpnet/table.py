"""Text and tables for people: plain at a prompt, tables as HTML in a notebook."""

import unicodedata
from collections.abc import Iterable, Sequence


class Text(str):
    """Text of several lines, which looks the same at Python's prompt."""

    __repr__ = str.__str__


class Table:
    """Rows of text under headings: plain at a prompt and in print, HTML in a notebook."""

    headings: tuple[str, ...]
    left = 2
    """How many columns, the first ones, are text; the others are numbers."""

    def cells(self) -> Iterable[Sequence[str]]:
        raise NotImplementedError

    def __str__(self) -> str:
        rows = [self.headings, *self.cells()]
        widths = [max(len(row[i]) for row in rows) for i in range(len(self.headings))]
        lines = []
        for row in rows:
            cells = [
                cell.ljust(w) if i < self.left else cell.rjust(w)
                for i, (cell, w) in enumerate(zip(row, widths, strict=True))
            ]
            lines.append("  ".join(cells).rstrip())
        return "\n".join(lines)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return html_table(self.headings, self.cells(), self.left)


def html_table(headings: Sequence[str], rows: Iterable[Sequence[str]], left: int) -> str:
    """A table for a notebook, whose first `left` columns are text and the others numbers."""
    from html import escape

    def row(cells: Sequence[str], tag: str) -> str:
        parts = (
            f'<{tag} style="text-align: {"left" if i < left else "right"}">{escape(cell)}</{tag}>'
            for i, cell in enumerate(cells)
        )
        return f"<tr>{''.join(parts)}</tr>"

    body = "".join(row(cells, "td") for cells in rows)
    return f"<table><thead>{row(headings, 'th')}</thead><tbody>{body}</tbody></table>"


def clean(text: str) -> str:
    """Text on one line: what a terminal would obey, or would turn the direction of writing, becomes a space or goes."""
    spaced = "".join(" " if c.isspace() else c for c in text)
    kept = (c for c in spaced if unicodedata.category(c) not in ("Cc", "Cs", "Co", "Cn"))
    return "".join(c for c in kept if unicodedata.bidirectional(c) not in TURNS)


TURNS = "LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"
"""Classes of characters by which text is shown in another order than it has."""


def columns_of(text: str) -> int:
    """How many columns of a terminal a text takes."""
    taken, joined = 0, False
    for c in text:
        if joined or unicodedata.combining(c) or unicodedata.category(c) in ("Cf", "Mn", "Me"):
            joined = c == "\u200d"  # what follows is drawn into the same place
            continue
        taken += 2 if unicodedata.east_asian_width(c) in "WF" else 1
    return taken


def fit(text: str, width: int) -> str:
    """The text in no more than `width` columns: its beginning, and that there is more."""
    text = clean(text).strip()
    if columns_of(text) <= width:
        return text
    while text and columns_of(text) > width - 1:
        text = text[:-1]
    return text.rstrip("\u200d") + "…"


def pad(text: str, width: int, right: bool = False) -> str:
    """The text with spaces behind it, or before it."""
    spaces = " " * (width - columns_of(text))
    return spaces + text if right else text + spaces
