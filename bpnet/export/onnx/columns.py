"""The inputs of a model of tables, and how their columns become the numbers and codes that the network takes."""

from typing import Any

import numpy as np

from bpnet.export.onnx.dates import date_parts
from bpnet.export.onnx.graph import Graph, Tensor
from bpnet.export.record import Rows
from bpnet.tabular.encoding import FIRST, MISSING, UNSEEN
from bpnet.tabular.schema import Feature, Schema

ROWS = Rows()
MATRIX = "X"
"""What the input is called where all columns are numbers."""
NO_NUMBER = -(2**63)
"""The whole number that stands for a missing value."""


def add_inputs(g: Graph, schema: Schema, dtype: Any) -> dict[str, Tensor]:
    """Inputs for the columns of a table, and of them "numbers" of that type, (rows, n), and "categories", (rows, c)."""
    if all(feature.kind in ("number", "boolean") for feature in schema.features):
        return {"numbers": _matrix(g, schema, dtype)}
    found: dict[str, list[Tensor]] = {}
    for feature in schema.features:
        kind = np.dtype(_input_type(feature, dtype))
        column = g.input(feature.name, kind, (ROWS, 1), _about(feature, kind))
        if feature.kind == "category":
            found.setdefault("categories", []).append(_codes(g, feature, column))
        elif feature.kind == "date":
            parts = date_parts(g, column, feature.parts, feature.origin, NO_NUMBER)
            found.setdefault("numbers", []).append(g.cast(parts, dtype))
        else:
            found.setdefault("numbers", []).append(_scaled(g, (feature,), column, dtype))
    return {name: g.node("Concat", *some, axis=1) if len(some) > 1 else some[0] for name, some in found.items()}


def _matrix(g: Graph, schema: Schema, dtype: Any) -> Tensor:
    """Numbers alone come in one matrix, of the columns of the table, or where these have names those of the model."""
    places = list(range(len(schema.features))) if schema.named else [int(name[1:]) for name in schema.names]
    width = len(places) if schema.named else schema.width
    x = g.input(MATRIX, np.float64 if any(map(_is_wide, schema.features)) else dtype, (ROWS, width))
    if places != list(range(width)):
        x = g.node("Gather", x, g.integers(*places), axis=1)
    return _scaled(g, schema.features, x, dtype)


def _is_wide(feature: Feature) -> bool:
    """Whether float32 could not tell its values apart, so that they come as float64."""
    return feature.origin != 0.0 or feature.unit != 1.0


def _input_type(feature: Feature, dtype: Any) -> Any:
    """Of NumPy; objects stand for text."""
    if feature.kind == "date":
        return np.int64
    if feature.kind != "category":
        return np.float64 if _is_wide(feature) else dtype
    kinds = {type(value) for value in feature.values}
    return object if str in kinds else np.float64 if float in kinds else np.int64


def _about(feature: Feature, dtype: Any) -> str:
    """What an input of that type says of itself."""
    if feature.kind == "category":
        missing = {np.dtype(object): "the empty text", np.dtype(np.float64): "NaN"}.get(dtype, "-2**63")
        return f"category; {missing} is missing"
    if feature.kind == "date":
        zone = f" of {feature.zone}" if feature.zone else ""
        return f"date, in microseconds since 1970 as clocks{zone} show it; -2**63 is missing"
    return f"{feature.kind}; NaN is missing"


def _scaled(g: Graph, features: tuple[Feature, ...], x: Tensor, dtype: Any) -> Tensor:
    """(x - origin) / unit of their columns, in float64 where that is not x itself."""
    if any(map(_is_wide, features)):
        x = g.node("Sub", x, g.array([f.origin for f in features], dtype=np.float64))
        x = g.node("Div", x, g.array([f.unit for f in features], dtype=np.float64))
    return g.cast(x, dtype)


def _codes(g: Graph, feature: Feature, column: Tensor) -> Tensor:
    """0 where a value is missing, 1 where it is unseen, else its place among the known ones and 2."""
    known = range(FIRST, FIRST + len(feature.values))
    if column.dtype == np.float64:  # which LabelEncoder knows in later versions alone
        same = g.node("Equal", column, g.array(list(map(float, feature.values)), dtype=np.float64), dtype=bool)
        code = g.node("Where", same, g.integers(*known), g.array(UNSEEN, dtype=np.int64), dtype=np.int64)
        code = g.node("ReduceMax", code, g.integers(1), keepdims=1)
        missing = g.node("IsNaN", column, dtype=bool)
        return g.node("Where", missing, g.array(MISSING, dtype=np.int64), code, dtype=np.int64)
    text = column.dtype.kind == "O"
    keys = ["", *feature.values] if text else [NO_NUMBER, *map(int, feature.values)]
    options: dict[str, Any] = {
        "keys_strings" if text else "keys_int64s": keys,
        "values_int64s": [MISSING, *known],
        "default_int64": UNSEEN,
    }
    return g.node("LabelEncoder", column, domain="ai.onnx.ml", dtype=np.int64, **options)
