"""What a shell offers for the values of options: names that bpnet knows, and columns of the data."""

import os
import re
import shlex
from collections.abc import Callable, Sequence
from itertools import pairwise

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


def columns(incomplete: str) -> list[str]:
    """The columns of DATA, if it is on the line; of several with commas between the one that is being written."""
    try:
        found = columns_of(shlex.split(os.environ.get("COMP_WORDS") or os.environ.get("_TYPER_COMPLETE_ARGS", "")))
    except Exception:  # a file that can't be read has no columns to offer, and there is nobody to tell
        return []
    before = incomplete[: incomplete.rfind(",") + 1]
    return [before + escaped(name) for name in found if name.strip()]


def columns_of(words: Sequence[str]) -> list[str]:
    """The columns of the first file on a command line that is no model."""
    from bpnet.cli.columns import Columns
    from bpnet.cli.sources import TextOptions, find_source

    data = next((word for word in words[1:] if not word.endswith(".safetensors") and os.path.isfile(word)), None)
    if data is None:
        return []
    given = dict(pairwise(words))
    return list(Columns(find_source(data), TextOptions(given.get("--sep"), given.get("--encoding", "utf-8"))).position)


def escaped(name: str) -> str:
    """A name as bash has to be given it; other shells see to that themselves."""
    if os.environ.get("_BPNET_COMPLETE") != "complete_bash":
        return name
    return re.sub(r"([^\w@%+=:,./-])", r"\\\1", name)
