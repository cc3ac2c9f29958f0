"""What mkdocstrings asks of the docstrings that it is to describe."""

from typing import Any

import griffe

from docs.docstrings import as_markdown


class Docstrings(griffe.Extension):  # type: ignore[misc]
    """Gives mkdocstrings the docstrings as Markdown."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)
