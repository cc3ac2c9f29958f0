"""A trained model as an ONNX file."""

import importlib
import os
from collections.abc import Mapping
from typing import Any

from bpnet.disk import checked_path, write_atomically
from bpnet.errors import MissingExtraError
from bpnet.export.models import exported
from bpnet.options import choice, flag, whole

OPSETS = (18, 23)
"""The first and the last version of ONNX's operators that can be written."""


def to_onnx(
    model: Any,
    path: str | os.PathLike[str] | None,
    *,
    dtype: str | None = None,
    probabilities: bool = False,
    opset: int = OPSETS[0],
    metadata: Mapping[str, Any] | None = None,
) -> Any:
    """Write what `model` predicts as an ONNX file, for any number of rows; give it as an `onnx.ModelProto` too."""
    if dtype is not None:
        choice("dtype", dtype, ("float32", "float64"))
    flag("probabilities", probabilities)
    whole("opset", opset, *OPSETS)
    if path is not None:
        path = checked_path(path)
    try:
        building = importlib.import_module("bpnet.export.onnx.model")
    except ModuleNotFoundError as error:
        if error.name != "onnx":
            raise
        raise MissingExtraError("to_onnx", "onnx", "onnx") from error
    made = building.model_of(exported(model), dtype, probabilities, opset, metadata)
    if path is not None:
        with write_atomically(path) as file:
            file.write(made.SerializeToString())
    return made
