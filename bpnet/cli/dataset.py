"""The rows of a data set: handwritten digits, or a table or arrays from a file or standard input."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bpnet.backends import Array
from bpnet.cli.sources import Source, TextOptions, find_source
from bpnet.cli.terminal import load_extra, names, reason
from bpnet.errors import DataError, DTypeError, OptionError, ShapeError, plural
from bpnet.tabular.frames import Frame


@dataclass(frozen=True)
class Dataset:
    """Rows to train on, to evaluate or to predict: a frame of features, and the target as it came.

    Rows without a target are left out, and `numbers` are those of the rows that are left, the first of all being row 1
    (None: all are there); `keys` are columns to be given back beside predictions, and `titles` what messages call the
    features.
    """

    name: str
    fingerprint: str
    frame: Frame
    y: Any = None
    targets: tuple[str, ...] = ()
    keys: Frame | None = None
    titles: Mapping[str, str] = field(default_factory=dict)
    numbers: Array | None = None


@dataclass(frozen=True)
class Request:
    """What is wanted of a data set.

    `known` are the features of a model, of which `texts` are text; without one all columns but the target and those to
    `drop` are features, unless `features` names them.  `types` is what the user says that columns are.
    """

    targets: Sequence[str] = ()
    labelled: bool = True
    known: Sequence[str] | None = None
    texts: Sequence[str] = ()
    features: Sequence[str] = ()
    drop: Sequence[str] = ()
    types: Mapping[str, str] = field(default_factory=dict)
    keys: Sequence[str] = ()
    text: TextOptions = field(default_factory=TextOptions)


def read(data: str, request: Request) -> Dataset:
    """The rows of `digits`, of a file or of standard input, with their target if they are to be `labelled`.

    Raises DataError where the rows can't be used, and says which column and which row, the first being row 1.
    """
    if data != "digits":
        source = find_source(data)
        if source.kind != "npz":
            read_columns = load_extra("bpnet.cli.columns", f"reading {source.ending}", "pyarrow").read_columns
            dataset: Dataset = read_columns(source, request)
            return dataset
    options: dict[str, Any] = {
        "--target": request.targets if request.known is None else None,
        "--features": request.features,
    }
    options |= {"--drop": request.drop, "--types": request.types, "--keys": request.keys}
    for option, value in options.items():
        if value:
            raise OptionError(f"{option} names a column of a table, and {data} has none")
    if data == "digits":
        load_digits = load_extra("sklearn.datasets", "the digits data", "scikit-learn").load_digits
        x, y = load_digits(return_X_y=True)
        return Dataset("digits", "digits of scikit-learn", Frame.of(x.astype(np.float32), "digits"), y)
    return read_npz(source, request.labelled)


def read_npz(source: Source, labelled: bool) -> Dataset:
    """The arrays x and y of a file that numpy.savez has written; rows of several axes become rows of one."""
    path, known, wanted = source.name, source.fingerprint(), ("x", "y")[: 1 + labelled]
    try:
        with source.open() as file:
            loaded = np.load(file, allow_pickle=False)
            if not isinstance(loaded, np.lib.npyio.NpzFile):
                raise ValueError("it holds a single array")
            arrays = {name: loaded[name] for name in wanted if name in loaded.files}
            for name, array in arrays.items():
                if not isinstance(array, np.ndarray):
                    raise ValueError(f"its member {name} is no array")
    except Exception as error:  # damaged, encrypted or lying: each has an error of its own, from one of four libraries
        raise DataError(f"{path} can't be read as a .npz file: {reason(error)}") from error
    kinds = {"x": ("fiub", "numbers"), "y": ("fiubU", "labels (integers, text) or numbers")}
    for name in wanted:
        if name not in arrays:
            found = names(loaded.files) or "nothing"
            raise DataError(f"{path} has no array {name!r}: expected {' and '.join(wanted)}, found {found}")
        if arrays[name].dtype.kind not in kinds[name][0]:
            raise DTypeError(f"{name} in {path} has the type {arrays[name].dtype}: expected {kinds[name][1]}")
        if arrays[name].dtype.kind == "f" and arrays[name].dtype.itemsize > 8:
            with np.errstate(over="ignore"):
                arrays[name] = arrays[name].astype(np.float64)
    x, y, fits = arrays["x"], arrays.get("y"), None
    if x.ndim < 2 or 0 in x.shape[1:]:
        lacks = "one row per sample, so at least two axes" if x.ndim < 2 else "at least one feature"
        raise ShapeError(f"x in {path} has the shape {x.shape}: expected {lacks}")
    if len(x) == 0:
        raise DataError(f"{path} has no rows")
    check_values(x, np.isinf, f"x in {path} has infinity")
    if y is not None:
        if y.shape[:1] != x.shape[:1]:
            fits = f"one entry for each of the {plural(len(x), 'row')} of x"
        elif y.ndim > 2 or (y.shape[1:] > (1,) and y.dtype.kind != "f"):
            fits = f"({len(x)},), or two axes of float numbers"
        if fits:
            raise ShapeError(f"y in {path} has the shape {y.shape}: expected {fits}")
        if y.dtype.kind == "f":
            check_values(y, lambda values: ~np.isfinite(values), f"y in {path} has NaN or infinity")
        y = y[:, 0] if y.shape[1:] == (1,) else y
    return Dataset(path, known, Frame.of(x.reshape(len(x), -1), path), y)


def check_values(values: Array, wrong: Any, problem: str) -> None:
    """Raise DataError with the `problem`, and the first row that has it, where `wrong` holds of one of the values."""
    if values.dtype.kind == "f" and (rows := wrong(values).reshape(len(values), -1).any(axis=1)).any():
        raise DataError(f"{problem}, first in row {int(np.argmax(rows)) + 1}")
