"""An extension of Python-Markdown: `$...$` and `$$...$$` are LaTeX, and become MathML, which browsers can show."""

import re
from typing import Any

from latex2mathml.converter import convert
from markdown import Markdown
from markdown.extensions import Extension
from markdown.inlinepatterns import InlineProcessor


class Formula(InlineProcessor):  # type: ignore[misc]
    """A formula in the text, or where it is between two dollars, in the middle of a line of its own."""

    def handleMatch(self, m: re.Match[str], data: str) -> tuple[str, int, int]:
        made = convert(m[2].strip(), display="block" if m[1] == "$$" else "inline")
        return self.md.htmlStash.store(made), m.start(0), m.end(0)


class Formulas(Extension):  # type: ignore[misc]
    """Finds formulas before anything in them is taken for emphasis; a dollar of money is `\\$`."""

    def extendMarkdown(self, md: Markdown) -> None:
        md.inlinePatterns.register(Formula(r"(?<!\\)(\$\$)(.+?)\$\$", md), "displayed formula", 186)
        md.inlinePatterns.register(Formula(r"(?<!\\)(\$)(?!\s)([^$]+?)(?<![\s\\])\$(?!\d)", md), "formula", 185)
        md.ESCAPED_CHARS = [*md.ESCAPED_CHARS, "$"]


def makeExtension(**options: Any) -> Formulas:
    """What Python-Markdown asks a module of extensions for."""
    return Formulas(**options)
