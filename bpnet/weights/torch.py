"""To come."""

from typing import Any


def from_torch(*args: Any, **options: Any) -> Any:
    raise NotImplementedError


def to_torch(*args: Any, **options: Any) -> Any:
    raise NotImplementedError
