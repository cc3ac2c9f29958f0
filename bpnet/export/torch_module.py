"""To come."""

from typing import Any


def to_torch_module(*args: Any, **options: Any) -> Any:
    raise NotImplementedError
