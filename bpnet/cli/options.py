"""Options of several commands: how a text is written."""

from collections.abc import Sequence
from typing import Annotated

from bpnet.cli.sources import TextOptions
from bpnet.cli.terminal import option

TEXT = "Text files"
"""The panel of the help in which these options are shown."""

Sep = Annotated[str | None, option("CHAR", "What parts columns; found out if not given.", rich_help_panel=TEXT)]
Encoding = Annotated[str, option("NAME", "Such as latin-1, cp1252, utf-16.", rich_help_panel=TEXT)]
Missing = Annotated[
    list[str] | None,
    option(
        "TEXT", "Stands for a missing value, as empty fields, NA, NaN, null and ? do; may be given again.",
        rich_help_panel=TEXT,
    ),
]  # fmt: skip


def text_options(sep: str | None, encoding: str, missing: Sequence[str] | None) -> TextOptions:
    """The three options in one; raises OptionError."""
    return TextOptions(sep, encoding, tuple(missing or ()))
