"""Text and tables for people: plain at a prompt, tables as HTML in a notebook."""

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
