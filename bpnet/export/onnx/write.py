"""To come."""

from typing import Any


def to_onnx(*args: Any, **options: Any) -> Any:
    raise NotImplementedError
