"""What a shell offers for the values of options: names that bpnet knows, and columns of the data."""

import os
import re
from collections.abc import Callable

import typer

from bpnet.names import STRINGS


def choices(*values: str) -> Callable[[str], list[str]]:
    """What offers these values."""

    def offer(incomplete: str) -> list[str]:
        return list(values)

    return offer


def names_of(kind: str, *others: str) -> Callable[[str], list[str]]:
    """What offers the names of a kind, "loss" or "metric" for example, and some others."""
    return choices(*others, *sorted(" ".join(STRINGS[kind].values()).split()))


def activations(incomplete: str) -> list[str]:
    """The names of activations, which are layers."""
    return names_of("layer")(incomplete)


def columns(context: typer.Context, incomplete: str) -> list[str]:
    """The columns of DATA, if it stands before; of several with commas between the one that is being written."""
    from bpnet.cli.columns import Columns
    from bpnet.cli.sources import TextOptions, find_source

    given = context.params
    try:
        text = TextOptions(given.get("sep"), given.get("encoding") or "utf-8", ())
        found = list(Columns(find_source(given["data"]), text).position)
    except Exception:  # no file yet, or none that can be read: there is nothing to offer, and nobody to tell
        return []
    before = incomplete[: incomplete.rfind(",") + 1]
    return [before + escaped(name) for name in found if name.strip()]


def escaped(name: str) -> str:
    """A name as bash has to be given it; other shells see to that themselves."""
    if os.environ.get("_BPNET_COMPLETE") != "complete_bash":
        return name
    return re.sub(r"([^\w@%+=:,./-])", r"\\\1", name)
