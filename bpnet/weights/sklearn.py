"""To come."""

from typing import Any


def from_sklearn(*args: Any, **options: Any) -> Any:
    raise NotImplementedError
