"""Columns that are no plain numbers: categories, dates and gaps, by a schema and the layers that begin the network."""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from bpnet.backends import backend_of
from bpnet.errors import DataError, OptionError, shown
from bpnet.estimators.arrays import to_host
from bpnet.estimators.sparse import is_sparse
from bpnet.layer import Layer
from bpnet.layers.categorical import CategoricalInput
from bpnet.layers.numeric import NumericInput
from bpnet.layers.tabular import TabularInput
from bpnet.registry import parts_of
from bpnet.tabular.frames import Frame
from bpnet.tabular.networks import strong_widths
from bpnet.tabular.schema import Schema

from sklearn.utils.validation import _check_y, check_consistent_length, validate_data  # isort: skip

CLIPPED = 3.0
"""Where robustly scaled numbers are bent towards, in quartile ranges (Holzmueller et al. 2024)."""


def schema_of(estimator: Any, X: Any) -> Schema | None:
    """How the columns of X are read, where `categorical_features` says that some are no plain numbers; else None."""
    wanted = estimator.categorical_features
    if wanted is None:
        return None
    if is_sparse(X):
        raise DataError("categorical_features are columns of a table or an array: pass X.toarray(), or leave them out")
    frame = Frame.of(X, "X")
    types = {} if isinstance(wanted, str) else dict.fromkeys(_names(frame, wanted), "category")
    if isinstance(wanted, str) and wanted != "from_dtype":
        raise OptionError(
            f"categorical_features is {shown(wanted)}; expected 'from_dtype', or names, numbers or a mask of columns"
        )
    schema = Schema.of(frame, types, dtype=estimator.dtype or "float64")
    return None if schema.plain else schema


def _names(frame: Frame, wanted: Any) -> list[str]:
    """Which columns are meant; raises OptionError or DataError."""
    columns = np.asarray(list(wanted) if isinstance(wanted, Iterable) else wanted)
    if columns.dtype == bool and columns.shape == (len(frame.names),):
        return [name for name, chosen in zip(frame.names, columns.tolist(), strict=True) if chosen]
    if columns.ndim == 1 and columns.dtype.kind in "iu" and np.all((columns >= 0) & (columns < len(frame.names))):
        return [frame.names[i] for i in columns.tolist()]
    if columns.ndim != 1 or columns.dtype.kind not in "UO" or not all(isinstance(c, str) for c in columns.tolist()):
        raise OptionError(
            f"categorical_features is {shown(wanted)}; expected 'from_dtype', or names, numbers or a mask of the "
            f"{len(frame.names)} columns of X"
        )
    for name in columns.tolist():
        frame.check(name)
    return list(columns.tolist())


def encoded(estimator: Any, schema: Schema, X: Any, y: Any = "no_validation", *, reset: bool, **checks: Any) -> Any:
    """X as the network takes it, and y on the host; scikit-learn's checks of names and numbers of columns are made."""
    y = y if isinstance(y, str) else to_host(y)
    validate_data(estimator, X, y, reset=reset, skip_check_array=True)
    x = schema.encode(X)
    if isinstance(y, str):
        return x
    y = _check_y(y, multi_output=True, y_numeric=checks.get("y_numeric", False), estimator=estimator)
    check_consistent_length(X, y)
    return x, y


# ---- the layers that begin the network ------------------------------------------------------------------------------


def numbers_of(x: Any) -> Any:
    """The columns of numbers in what a network takes; None where there are none, and of sparse rows, without gaps."""
    if isinstance(x, dict):
        return x.get("numbers")
    return x if not is_sparse(x) and backend_of(x).xp.isdtype(x.dtype, "real floating") else None


def numeric_input(estimator: Any, x: Any) -> NumericInput | None:
    """The layer for columns of numbers that have gaps, or are to be scaled; None where neither is so."""
    if is_sparse(x) and (estimator.scaling is not None or estimator.preset is not None):
        what = f"scaling={estimator.scaling!r}" if estimator.preset is None else f"preset={estimator.preset!r}"
        raise DataError(f"{what} is for rows that are not sparse: pass X.toarray(), or leave it out")
    numbers = numbers_of(x)
    if numbers is None:
        return None
    gaps = gaps_of(numbers)
    if estimator.scaling is None and estimator.preset is None:
        return NumericInput(missing=gaps) if gaps else None
    kind: Any = "robust" if estimator.preset is not None else estimator.scaling
    return NumericInput.fit(numbers, kind, clip=CLIPPED if kind == "robust" else None, missing=gaps)


def categorical_input(schema: Schema | None) -> CategoricalInput | None:
    """The layer for columns of categories: one-hot of up to 8 values, else embedded in 8 numbers; None without any."""
    if schema is None or not schema.entries:
        return None
    return CategoricalInput(schema.entries, strong_widths(schema.entries))


def looks_at_rows(estimator: Any) -> bool:
    """Whether the network that is made depends on the values of rows, and not on how many columns they have alone."""
    return estimator.preset is not None or estimator.scaling is not None


def input_layer(estimator: Any, x: Any) -> Layer | None:
    """What makes features of rows like those of x; None where they are features."""
    numbers, categories = numeric_input(estimator, x), categorical_input(getattr(estimator, "_schema", None))
    if categories is None:
        return numbers
    return TabularInput(numbers or (NumericInput() if numbers_of(x) is not None else None), categories)


def gaps_of(numbers: Any) -> tuple[int, ...]:
    """The columns that have missing values."""
    backend = backend_of(numbers)
    xp = backend.xp
    found = to_host(xp.any(xp.isnan(numbers), axis=0))
    return tuple(np.flatnonzero(np.asarray(found)).tolist())


def check_gaps(estimator: Any, x: Any, network: Layer) -> None:
    """Raise DataError where values are missing in columns where none were when the network was made."""
    numbers = numbers_of(x)
    if numbers is None or not math.isnan(float(backend_of(numbers).xp.sum(numbers))):
        return
    known = next(iter(parts_of(network, NumericInput)), None)
    new = [column for column in gaps_of(numbers) if known is None or column not in known.missing]
    if new:
        names = getattr(estimator, "feature_names_in_", None)
        schema = getattr(estimator, "_schema", None)
        named = schema.numbers if schema is not None else names
        which = f"column {new[0]}" if named is None else f"column {named[new[0]]!r}"
        raise DataError(
            f"Input X contains NaN in {which}, which had no missing values when {type(estimator).__name__} was first "
            "fitted: fill them in, or fit it with rows that have some"
        )
