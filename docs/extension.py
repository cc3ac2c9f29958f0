"""What mkdocstrings asks of the docstrings that it is to describe."""

from collections.abc import Mapping
from typing import Any

import griffe

from bpnet.cli.info import FAMILIES
from bpnet.registry import own_catalogue
from docs.docstrings import as_markdown


def by_name() -> dict[str, str]:
    """How the classes of the catalogue are called by name, where that is another than the class's: by their path."""
    calls: dict[str, list[str]] = {}
    for base in FAMILIES.values():
        for name, (cls, options) in own_catalogue(base).items():
            if name != cls.__name__:
                calls.setdefault(f"{cls.__module__}.{cls.__qualname__}", []).append(called(name, options))
    return {path: f"\n\nBy name: {', '.join(names)}." for path, names in calls.items()}


def called(name: str, options: Mapping[str, Any]) -> str:
    """A name, and the options it stands for."""
    given = ", ".join(f"{option}={value!r}" for option, value in options.items())
    return f'`"{name}"`' + (f" ({given})" if given else "")


class Docstrings(griffe.Extension):  # type: ignore[misc]
    """Gives mkdocstrings the docstrings as Markdown."""

    def __init__(self) -> None:
        self.by_name = by_name()

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value + self.by_name.get(obj.path, ""))
