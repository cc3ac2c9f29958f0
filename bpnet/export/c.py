"""To come."""

from typing import Any


def to_c(*args: Any, **options: Any) -> Any:
    raise NotImplementedError
