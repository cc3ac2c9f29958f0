"""Rows of a data set for the command line, and the recipe by which they become arrays and outputs become answers."""

import hashlib
import zipfile
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np

from bpnet.backends import Array
from bpnet.errors import DataError, DTypeError, MissingExtraError, OptionError, ShapeError, plural
from bpnet.losses import BinaryCrossEntropy, CrossEntropy, Loss, MeanSquaredError
from bpnet.registry import resolve

JSON = dict[str, Any]

KEY = "bpnet train"
"""Where the command line keeps what it knows in the metadata of a model file."""

DIGITS = "digits of scikit-learn"
"""Stands for the fingerprint of the built-in data."""


@dataclass(frozen=True)
class Table:
    """Rows to train on, to evaluate, or to predict for.

    `x` holds numbers, one row per sample; `y` is the target as it was found: labels of any type, or numbers.
    """

    name: str
    fingerprint: str
    x: Any
    y: Any = None
    features: list[str] | None = None
    target: str | None = None


def read(data: str, target: str | None, *, features: list[str] | None = None, needs_target: bool = True) -> Table:
    """The rows of `digits`, or of a .npz, .csv or .parquet file; `features` are the columns that a model wants.

    Raises DataError where the rows can't be used, and says which column and which row, the first being row 1.
    """
    path = Path(data)
    if data == "digits" or path.suffix.lower() == ".npz":
        if target is not None:
            raise OptionError(f"--target names a column of a .csv or .parquet file, and {data} has none")
        table = _digits() if data == "digits" else _npz(path, needs_target)
    elif path.suffix.lower() in (".csv", ".parquet"):
        table = _columns(path, target, features, needs_target)
    else:
        hint = " (did you mean digits?)" if get_close_matches(data, ["digits"]) else ""
        raise DataError(f"DATA must be digits, or a .npz, .csv or .parquet file: {data!r} is none of these{hint}")
    if len(table.x) == 0:
        raise DataError(f"{data} has no rows")
    return table


def _digits() -> Table:
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        raise MissingExtraError("the digits data", "scikit-learn", "cli") from error
    images, labels = load_digits(return_X_y=True)
    return Table("digits", DIGITS, images / 16, labels)


def _npz(path: Path, needs_target: bool) -> Table:
    fingerprint = _fingerprint(path)
    try:
        loaded = np.load(path, allow_pickle=False)
        if not isinstance(loaded, np.lib.npyio.NpzFile):
            raise ValueError("it holds a single array")
        with loaded as file:
            arrays = {name: file[name] for name in ("x", "y") if name in file.files}
            found = ", ".join(file.files) or "nothing"
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} can't be read as a .npz file: {error}") from error
    for name in ("x", "y") if needs_target else ("x",):
        if name not in arrays:
            raise DataError(f"{path} has no array {name!r}: expected x and y, found {found}")
    x, y = arrays["x"], arrays.get("y")
    if x.dtype.kind not in "fiub":
        raise DTypeError(f"x in {path} has the type {x.dtype}: expected numbers")
    if x.ndim < 2:
        raise ShapeError(f"x in {path} has the shape {x.shape}: expected one row per sample, so at least two axes")
    if not np.isfinite(x).all():
        row = int(np.argmin(np.isfinite(x.reshape(len(x), -1)).all(axis=1)))
        raise DataError(f"x in {path} has NaN or infinity, first in row {row + 1}")
    if y is not None:
        if y.dtype.kind not in "fiubU":
            raise DTypeError(f"y in {path} has the type {y.dtype}: expected labels (integers, text) or numbers")
        if len(y) != len(x) if y.ndim else True:
            raise ShapeError(
                f"y in {path} has the shape {y.shape}: expected one entry for each of the {plural(len(x), 'row')} of x"
            )
        if y.ndim == 2 and y.shape[1] == 1:
            y = y[:, 0]
        if y.ndim > 2 or (y.ndim == 2 and y.dtype.kind != "f"):
            raise ShapeError(f"y in {path} has the shape {y.shape}: expected ({len(x)},), or two axes of float numbers")
        if y.dtype.kind == "f" and not np.isfinite(y).all():
            raise DataError(f"y in {path} has NaN or infinity")
    return Table(str(path), fingerprint, x, y)


def _columns(path: Path, target: str | None, features: list[str] | None, needs_target: bool) -> Table:
    try:
        import pyarrow as pa
        from pyarrow import csv as arrow_csv
        from pyarrow import parquet
    except ModuleNotFoundError as error:
        raise MissingExtraError("reading .csv and .parquet", "pyarrow", "cli") from error
    fingerprint = _fingerprint(path)
    kind = path.suffix.lower()
    try:
        if kind == ".csv":
            options = arrow_csv.ConvertOptions(strings_can_be_null=True)
            table = arrow_csv.read_csv(path, convert_options=options)
        else:
            table = parquet.read_table(path)
        names = [name for name in table.column_names if not name.startswith("__index_level_")]  # pandas' row names
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise DataError(f"{path} can't be read as {kind}: {error}") from error

    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"{path} has more than one column {twice[0]!r}")
    if target is None and needs_target:
        raise OptionError(f"--target must say which column of {path} is to be learnt: {', '.join(names)}")
    if target is not None and needs_target and target not in names:
        close = get_close_matches(target, names, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise DataError(f"{path} has no column {target!r}: {hint}it has {', '.join(names)}")
    missing = [name for name in features or () if name not in names]
    if missing:
        raise DataError(
            f"{path} lacks the column{'s' * (len(missing) > 1)} {', '.join(map(repr, missing))} of the model"
        )
    wanted = features or [name for name in names if name != target]
    if not wanted:
        raise DataError(f"{path} has no column beside the target {target!r}")

    def complete(name: str) -> Any:
        column = table.column(name)
        if column.null_count:
            row = column.is_null().index(True).as_py()
            raise DataError(
                f"column {name!r} of {path} has {plural(column.null_count, 'missing value')}, first in row {row + 1}"
            )
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        return column

    def finite(name: str, column: Any) -> Any:
        values = column.cast(pa.float64(), safe=False).to_numpy()
        if not np.isfinite(values).all():
            row = int(np.argmin(np.isfinite(values)))
            raise DataError(f"column {name!r} of {path} has NaN or infinity, first in row {row + 1}")
        return values

    def is_number(kind: Any) -> bool:
        return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))

    def feature(name: str) -> Any:
        column = complete(name)
        if not (is_number(column.type) or pa.types.is_boolean(column.type)):
            raise DTypeError(
                f"column {name!r} of {path} has the type {column.type}: a feature must be a number or a boolean, "
                "so leave it out or encode it as numbers"
            )
        return finite(name, column)

    def labels(name: str) -> Any:
        column = complete(name)
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            return np.asarray(column.to_pylist(), dtype=np.str_)
        if pa.types.is_boolean(column.type) or pa.types.is_integer(column.type):
            return column.to_numpy()
        if is_number(column.type):
            return finite(name, column)
        raise DTypeError(
            f"the target {name!r} of {path} has the type {column.type}: expected text, numbers or booleans"
        )

    if table.num_rows == 0:
        raise DataError(f"{path} has no rows")
    x = np.stack([feature(name) for name in wanted], axis=1)
    y = labels(target) if target is not None and needs_target else None
    return Table(str(path), fingerprint, x, y, wanted, target)


def _fingerprint(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ---- between a table and a network ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recipe:
    """How rows of a table become arrays for the network, and its outputs become answers; kept in the model file.

    `inputs` and `outputs` are {"mean", "scale"} of the rows trained on, or None where numbers are used as they are.
    The scale of `outputs` is one number for all its columns, so the network's loss is the mean squared error in the
    target's own units, divided by `unit`.
    """

    classes: list[Any] | None = None
    inputs: JSON | None = None
    outputs: JSON | None = None
    features: list[str] | None = None
    target: str | None = None

    @classmethod
    def of(cls, table: Table, loss: Loss, rows: Array) -> "Recipe":
        """The recipe for a table of which `rows` are trained on."""
        classes = outputs = None
        if loss.labels or loss.probabilities:
            classes = np.unique(table.y).tolist()
            if len(classes) < 2:
                raise DataError(
                    f"the target of {table.name} has the single class {classes[0]!r}: expected at least two"
                )
            if not loss.labels and len(classes) > 2:
                raise DataError(f"the target of {table.name} has {len(classes)} classes: {loss} tells two apart")
        else:
            y = table.y[rows].astype(np.float64)
            outputs = {"mean": y.mean(axis=0).tolist(), "scale": float(np.sqrt(y.var(axis=0).mean())) or 1.0}
        inputs = None
        if table.fingerprint != DIGITS:
            scale = table.x[rows].std(axis=0, dtype=np.float64)
            mean = table.x[rows].mean(axis=0, dtype=np.float64)
            inputs = {"mean": mean.tolist(), "scale": np.where(scale > 0, scale, 1.0).tolist()}
        return cls(classes, inputs, outputs, table.features, table.target)

    @property
    def unit(self) -> float:
        """What one of the network's loss is in squares of the target's own units."""
        return 1.0 if self.outputs is None else float(self.outputs["scale"]) ** 2

    def x(self, table: Table) -> Array:
        """The table's features as the network wants them."""
        x = table.x
        if self.inputs is not None:
            mean, scale = np.asarray(self.inputs["mean"]), np.asarray(self.inputs["scale"])
            if x.shape[1:] != mean.shape:
                raise ShapeError(
                    f"{table.name} has rows of the shape {x.shape[1:]}; the model was trained on {mean.shape}"
                )
            x = (x - mean) / scale
        return np.ascontiguousarray(x, dtype=np.float32)

    def y(self, table: Table, loss: Loss) -> Array:
        """The table's target as the loss wants it."""
        if self.classes is None:
            y = table.y
            if y.dtype.kind == "U":
                raise DTypeError(f"the target of {table.name} is text, but the model predicts numbers")
            if loss.labels and y.dtype.kind in "iub":
                return y
            if self.outputs is not None:
                y = (y - np.asarray(self.outputs["mean"])) / self.outputs["scale"]
            return np.ascontiguousarray(y.reshape(len(y), -1), dtype=np.float32)
        number = {name: i for i, name in enumerate(self.classes)}
        found, where = np.unique(table.y, return_inverse=True)
        strange = [name for name in found.tolist() if name not in number]
        if strange:
            known = ", ".join(map(repr, self.classes[:20])) + ", ..." * (len(self.classes) > 20)
            raise DataError(f"the target of {table.name} has the class {strange[0]!r}; the model knows {known}")
        labels = np.asarray([number[name] for name in found.tolist()], dtype=np.int32)[where]
        return labels if loss.labels else labels[:, None].astype(np.float32)

    def answers(self, output: Array, loss: Loss) -> Array:
        """Classes, or numbers in the target's own units, from the network's outputs."""
        if loss.labels:
            number = output.argmax(axis=-1)
        elif loss.probabilities and output.shape[1:] == (1,):
            number = (output[:, 0] > (0.5 if isinstance(loss, BinaryCrossEntropy) else 0.0)).astype(np.int64)
        else:
            if self.outputs is not None:
                output = output.astype(np.float64) * self.outputs["scale"] + np.asarray(self.outputs["mean"])
            return output[:, 0] if output.shape[1:] == (1,) else output
        return number if self.classes is None else np.asarray(self.classes)[number]


@dataclass(frozen=True)
class Source:
    """What a model was trained on: the data, and which share of its rows `seed` held out."""

    fingerprint: str = ""
    fraction: float = 0.0
    seed: int = 0

    def held_out(self, table: Table) -> Array | None:
        """The rows of `table` that were held out, None where it is other data or none were."""
        if table.fingerprint != self.fingerprint or self.fraction == 0:
            return None
        return split(len(table.x), self.fraction, self.seed)[1]


def split(rows: int, fraction: float, seed: int) -> tuple[Array, Array]:
    """Row numbers to train on, and those held out: a `fraction` of them, chosen by `seed`, at least one of each."""
    order = np.random.default_rng(seed).permutation(rows)
    held_out = min(max(round(fraction * rows), 1), rows - 1) if fraction > 0 else 0
    return order[held_out:], order[:held_out]


def choose_loss(name: str, table: Table) -> Loss:
    """The loss called `name`; "auto" is cross-entropy for classes and mean squared error for numbers."""
    kind = table.y.dtype.kind
    if name == "auto":
        return MeanSquaredError() if kind == "f" else CrossEntropy()
    loss = resolve(Loss, "loss", name)
    wants_classes = loss.labels or loss.probabilities
    if wants_classes and kind == "f":
        raise DTypeError(f"the target of {table.name} holds numbers of type {table.y.dtype}: {name} needs classes")
    if not wants_classes and kind == "U":
        raise DTypeError(f"the target of {table.name} is text: {name} needs numbers")
    return loss
