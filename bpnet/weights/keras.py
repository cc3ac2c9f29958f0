"""To come."""

from typing import Any


def from_keras(*args: Any, **options: Any) -> Any:
    raise NotImplementedError


def to_keras(*args: Any, **options: Any) -> Any:
    raise NotImplementedError
