"""Columns that are no plain numbers: categories, dates and gaps, by a schema and the layers that begin the network."""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from bpnet.backends import backend_of
from bpnet.errors import DataError, OptionError, shown
from bpnet.estimators.arrays import foreign, to_host
from bpnet.estimators.sparse import is_sparse
from bpnet.layer import Layer
from bpnet.layers.categorical import CategoricalInput
from bpnet.layers.numeric import NumericInput
from bpnet.layers.tabular import TabularInput
from bpnet.registry import parts_of
from bpnet.tabular.frames import Frame
from bpnet.tabular.networks import strong_widths
from bpnet.tabular.schema import Schema

from sklearn.utils.validation import _check_y, check_array, check_consistent_length, validate_data  # isort: skip

CLIPPED = 3.0
"""Where robustly scaled numbers are bent towards, in quartile ranges (Holzmueller et al. 2024)."""


def schema_of(estimator: Any, X: Any) -> Schema | None:
    """How the columns of X are read, where `categorical_features` says that some are no plain numbers; else None."""
    wanted = estimator.categorical_features
    if wanted is None or (isinstance(wanted, str) and not _is_frame(X)):
        return None
    frame = Frame.of(_table(estimator, X), "X")
    types = {} if isinstance(wanted, str) else dict.fromkeys(_names(frame, wanted), "category")
    schema = Schema.of(frame, types, dtype=estimator.dtype or "float64")
    text = any(frame.coded(name).codes is not None for name in frame.names)  # be it numbers that are written as text
    return None if schema.plain and not text else schema


def _is_frame(X: Any) -> bool:
    """Whether X is a table whose columns have names and types of their own."""
    return any(hasattr(X, name) for name in ("columns", "column_names", "__dataframe__"))


def _table(estimator: Any, X: Any) -> Any:
    """X where it is a frame or an array of another library; else an array of two axes, or the error that it is none."""
    if _is_frame(X) or foreign(X) is not None:
        return X
    return check_array(X, dtype=None, ensure_all_finite="allow-nan", estimator=estimator)


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
    X = _table(estimator, X)
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
    scaling = scaling_of(estimator, x)
    if is_sparse(x) and (scaling is not None or estimator.preset is not None):
        what = f"scaling={scaling!r}" if estimator.preset is None else f"preset={estimator.preset!r}"
        raise DataError(f"{what} is for rows that are not sparse: pass X.toarray(), or leave it out")
    numbers = numbers_of(x)
    if numbers is None:
        return None
    gaps = gaps_of(numbers)
    if scaling is None and estimator.preset is None:
        return NumericInput(missing=gaps) if gaps else None
    kind: Any = "robust" if estimator.preset is not None else scaling
    return NumericInput.fit(numbers, kind, clip=CLIPPED if kind == "robust" else None, missing=gaps)


def categorical_input(schema: Schema | None) -> CategoricalInput | None:
    """The layer for columns of categories: one-hot of up to 8 values, else embedded in 8 numbers; None without any."""
    if schema is None or not schema.entries:
        return None
    return CategoricalInput(schema.entries, strong_widths(schema.entries))


def scaling_of(estimator: Any, x: Any) -> str | None:
    """How columns of numbers are scaled: "auto" is "standard" with `categorical_features`, as a table has any units."""
    if estimator.scaling != "auto":
        return estimator.scaling  # type: ignore[no-any-return]
    return None if estimator.categorical_features is None or is_sparse(x) else "standard"


def looks_at_rows(estimator: Any, x: Any) -> bool:
    """Whether the network depends on the values of the rows, not just on their number of columns."""
    return estimator.preset is not None or scaling_of(estimator, x) is not None


def input_layer(estimator: Any, x: Any) -> Layer | None:
    """What makes features of rows like those of x; None where they are features."""
    numbers, categories = numeric_input(estimator, x), categorical_input(getattr(estimator, "_schema", None))
    if categories is None:
        return numbers
    return TabularInput(numbers or (NumericInput() if numbers_of(x) is not None else None), categories)


def gaps_of(numbers: Any) -> tuple[int, ...]:
    """The columns that have missing values."""
    xp = backend_of(numbers).xp
    with np.errstate(all="ignore"):
        sums = np.asarray(to_host(xp.sum(numbers, axis=0)))  # a mask of all numbers would be a quarter of their memory
    # infinite sums of both signs are NaN too
    return tuple(c for c in np.flatnonzero(np.isnan(sums)).tolist() if bool(xp.any(xp.isnan(numbers[:, c]))))


def check_gaps(estimator: Any, x: Any, network: Layer) -> None:
    """Raise DataError where values are missing in columns where none were when the network was made."""
    numbers = numbers_of(x)
    with np.errstate(all="ignore"):
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
