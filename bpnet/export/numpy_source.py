"""To come."""

from typing import Any


def to_numpy_source(*args: Any, **options: Any) -> Any:
    raise NotImplementedError
