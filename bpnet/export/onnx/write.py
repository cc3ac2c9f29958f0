"""A trained model as an ONNX file."""

import importlib
import os
from collections.abc import Mapping
from typing import Any

from bpnet.disk import checked_path, write_atomically
from bpnet.errors import ArgumentError, ExportError, MissingExtraError, kind_of
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
    """Write what `model` predicts as an ONNX file, for any number of rows, and give it as an `onnx.ModelProto`.

        bp.files.to_onnx(trainer, "model.onnx")
        session = onnxruntime.InferenceSession("model.onnx")
        (output,) = session.run(None, {"x": x})

    Of a `Trainer` the input is "x", or as the branches of `Inputs` are called, and the output "output", what `predict`
    gives: logits where the loss takes logits.  With `probabilities` they are "label" and "probabilities" instead.

    Of a `TableModel` or a fitted estimator the input is "X", (rows, columns), where all columns are numbers or
    booleans, and else one for each column, (rows, 1), by its name: numbers, text, or int64, which dates are too, in
    microseconds since 1970 as NumPy's datetime64[us].  NaN is a missing number, the empty text a missing text, and
    -2**63 (as of NaT) a missing int64.  Outputs are "label" and "probabilities" ("scores" of losses without, as hinge),
    or of quantities "prediction", with "deviation" and "quantiles" where the model has them.

    The file has what is predicted with: averages of parameters and running statistics, no dropout; what depends on
    parameters alone, as a normalized weight, is computed beforehand.  Inputs are not checked: NaN gives NaN, and a code
    that an `Embedding` does not have is an error of the runtime, or another row.  ONNX's checker and its inference of
    shapes have passed what is written.

    Parameters
    ----------
    model : a Trainer, a TableModel, a fitted estimator, or the path of a file that one of them was saved in
    path : of the file, which is written whole or not at all; None writes none
    dtype : "float32" or "float64", of numbers in the file; None for the model's own.  float32 has 7 digits, of inputs
        too, which is few for times in seconds.  onnxruntime has no float64 kernels of acos, acosh, asin, asinh, atan,
        atanh, cosh, sinh and tan, which no layer of bpnet uses, and leaves out additions of a single number below 1e-8
    probabilities : of a Trainer, that probabilities and labels are wanted
    opset : the version of ONNX's operators, from 18, of 2022, the oldest in which all reductions are alike and which
        runtimes of the years since know, to 23
    metadata : further entries for the file's, which has those of the model: text, or what JSON can hold

    Raises ExportError, which names the layer, where one does what a file can't say: looks at values, or depends on the
    number of rows otherwise than by shapes; DivergedError where parameters have NaN; MissingExtraError without `onnx`.
    """
    if dtype is not None:
        choice("dtype", dtype, ("float32", "float64"))
    flag("probabilities", probabilities)
    whole("opset", opset, *OPSETS)
    if path is not None:
        path = checked_path(path)
    if not isinstance(metadata, Mapping | None):
        raise ArgumentError(f"metadata is {kind_of(metadata)}; expected a dict")
    try:
        building = importlib.import_module("bpnet.export.onnx.model")
    except ModuleNotFoundError as error:
        if error.name != "onnx":
            raise
        raise MissingExtraError("to_onnx", "onnx", "onnx") from error
    try:
        made = building.model_of(exported(model), dtype, probabilities, opset, metadata or {})
    except UnicodeEncodeError as error:  # half of a pair of UTF-16, as a name or a label from JSON may have
        raise ExportError(
            f"the model has the text {error.object!r}, which is no Unicode that a file can hold"
        ) from None
    if path is not None:
        with write_atomically(path) as file:
            file.write(made.SerializeToString())
    return made
