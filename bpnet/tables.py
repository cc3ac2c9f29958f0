"""Rows of a data set for the command line, and what stands between them and a network."""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np

from bpnet.backends import Array
from bpnet.disk import open_ordinary
from bpnet.errors import ArgumentError, DataError, DTypeError, MissingExtraError, OptionError, ShapeError, plural
from bpnet.layers.standardize import Standardize
from bpnet.losses import BinaryCrossEntropy, CrossEntropy, Loss, MeanSquaredError
from bpnet.options import number, whole
from bpnet.registry import resolve
from bpnet.trainer import Trainer

JSON = dict[str, Any]

KEY = "bpnet train"
"""Where the command line keeps what it knows in the metadata of a model file."""


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
    scaling: Standardize | None = None
    """What brings the features to the scale of the weights, where that is known whatever the rows are."""
    remarks: tuple[str, ...] = ()
    """What the user should know before the table is trained on."""


def read(
    data: str,
    target: str | None,
    *,
    features: list[str] | None = None,
    needs_target: bool = True,
    drop: Sequence[str] | None = None,
) -> Table:
    """The rows of `digits`, or of a .npz, .csv or .parquet file; `features` are the columns that a model wants.

    Without `features`, these are all columns but the target and those to `drop`, which is None unless they are to be
    trained on.

    Raises DataError where the rows can't be used, and says which column and which row, the first being row 1.
    """
    path = Path(data)
    if data == "digits" or path.suffix.lower() == ".npz":
        for option, value in (("--target", target), ("--drop", drop)):
            if value:
                raise OptionError(f"{option} names a column of a .csv or .parquet file, and {data} has none")
        table = _digits() if data == "digits" else _npz(path, needs_target)
    elif path.suffix.lower() in (".csv", ".parquet"):
        table = _columns(path, target, features, needs_target, drop)
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
    return Table("digits", "digits of scikit-learn", images, labels, scaling=Standardize(0.0, 16.0))


def _npz(path: Path, needs_target: bool) -> Table:
    fingerprint = _fingerprint(path)
    try:
        with open_ordinary(path) as file:
            loaded = np.load(file, allow_pickle=False)
            if not isinstance(loaded, np.lib.npyio.NpzFile):
                raise ValueError("it holds a single array")
            arrays = {name: loaded[name] for name in ("x", "y") if name in loaded.files}
            found = names(loaded.files) or "nothing"
        for name, array in arrays.items():
            if not isinstance(array, np.ndarray):
                raise ValueError(f"its member {name} is no array")
    except Exception as error:  # damaged, encrypted or lying: each has an error of its own, from one of four libraries
        raise DataError(f"{path} can't be read as a .npz file: {reason(error)}") from error
    for name in ("x", "y") if needs_target else ("x",):
        if name not in arrays:
            raise DataError(f"{path} has no array {name!r}: expected x and y, found {found}")
    x, y = _plain_floats(arrays["x"]), _plain_floats(arrays["y"]) if "y" in arrays else None
    if x.dtype.kind not in "fiub":
        raise DTypeError(f"x in {path} has the type {x.dtype}: expected numbers")
    if x.ndim < 2:
        raise ShapeError(f"x in {path} has the shape {x.shape}: expected one row per sample, so at least two axes")
    if 0 in x.shape[1:]:
        raise ShapeError(f"x in {path} has the shape {x.shape}: expected at least one feature")
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


def _plain_floats(array: Array) -> Array:
    """An array, as float64 where its floats are wider."""
    with np.errstate(over="ignore"):
        return array.astype(np.float64) if array.dtype.kind == "f" and array.dtype.itemsize > 8 else array


def _columns(
    path: Path, target: str | None, features: list[str] | None, needs_target: bool, drop: Sequence[str] | None
) -> Table:
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
            # All of a file decides the types of its columns, not its beginning; and no row is longer than a block.
            block = min(max(path.stat().st_size + 1, 1 << 20), 1 << 30)
            table = arrow_csv.read_csv(
                path,
                read_options=arrow_csv.ReadOptions(block_size=block),
                convert_options=arrow_csv.ConvertOptions(strings_can_be_null=True),
            )
        else:
            table = parquet.read_table(path)
        found = table.column_names
    except Exception as error:  # a damaged file can fail in any way
        raise DataError(f"{path} can't be read as {kind}: {reason(error)}") from error

    place = {name: i for i, name in enumerate(found) if not name.startswith("__index_level_")}  # pandas' row names
    twice = sorted(name for name, times in Counter(found).items() if times > 1)
    if twice:
        raise DataError(f"{path} has more than one column {twice[0]!r}")
    separators = [sign for sign in ";\t|" if len(found) == 1 and sign in found[0]]
    hint = f" (columns are parted by commas, not by {separators[0]!r})" if separators else ""
    if target is None and needs_target:
        raise OptionError(f"--target must say which column of {path} is to be learnt: {names(place)}{hint}")
    for name in ([target] if target is not None and needs_target else []) + list(drop or ()):
        if name not in place:
            close = get_close_matches(name, place, n=1)
            meant = f"did you mean {close[0]!r}? " if close else ""
            raise DataError(f"{path} has no column {name!r}: {meant}it has {names(place)}{hint}")
    if target in (drop or ()):
        raise OptionError(f"--drop {target} is the target, which can't be left out")
    missing = [name for name in features or () if name not in place]
    if missing:
        raise DataError(
            f"{path} lacks the column{'s' * (len(missing) > 1)} {names(map(repr, missing))} of the model{hint}"
        )
    unnamed, remarks = [], []

    def numbers_rows(column: Any) -> bool:
        """Whether a column without a name looks like row numbers, which some programs write as floats."""
        if pa.types.is_integer(column.type):
            return True
        values = column.to_numpy() if pa.types.is_floating(column.type) else np.full(1, np.nan)
        return bool(np.all(values == np.floor(values))) and len(np.unique(values)) == len(values)

    if features is None:
        unnamed = [name for name in place if _NO_NAME.fullmatch(name) and name not in (target, *(drop or ()))]
        unnamed = [name for name in unnamed if numbers_rows(table.column(place[name]))]
        remarks = [
            f"column {name!r} of {path} (number {place[name] + 1}) has no name: it is left out, taken for row numbers "
            "that a program has added; give it a name to learn from it"
            for name in unnamed
        ]
    left_out = {target, *(drop or ()), *unnamed}
    wanted = features or [name for name in place if name not in left_out]
    if not wanted:
        raise DataError("; ".join([f"{path} has no column beside the target {target!r} to learn from", *remarks]))

    def complete(name: str) -> Any:
        column = table.column(place[name])
        if column.null_count:
            row = column.is_null().index(True).as_py()
            lacks = f"{plural(column.null_count, 'missing value')}, first in row {row + 1}"
            counted = "; an empty field, NA, NaN and null count as missing" if kind == ".csv" else ""
            raise DataError(f"column {name!r} of {path} has {lacks}{counted}")
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        return column

    def finite(name: str, column: Any) -> Any:
        values = column.cast(pa.float64(), safe=False).to_numpy()
        if not np.isfinite(values).all():
            row = int(np.argmin(np.isfinite(values)))
            raise DataError(f"column {name!r} of {path} has NaN or infinity, first in row {row + 1}")
        return values

    def check_text(column: Any) -> None:
        if kind == ".csv" and pa.types.is_binary(column.type):
            raise DataError(f"{path} is not written in UTF-8: save it so")

    def is_number(kind: Any) -> bool:
        return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))

    def feature(name: str) -> Any:
        column = complete(name)
        check_text(column)
        if not (is_number(column.type) or pa.types.is_boolean(column.type)):
            raise DTypeError(
                f"column {name!r} of {path} has the type {column.type}: a feature must be a number or a boolean, "
                f"so leave it out with --drop {name!r}, or encode it as numbers"
            )
        values = finite(name, column)
        counts = is_number(column.type) and len(values) >= 10 and values[0] == np.floor(values[0])
        if drop is not None and counts and np.all(np.diff(values) == 1.0):
            remarks.append(
                f"column {name!r} of {path} counts the rows: if it is their number and no quantity, leave it out with "
                f"--drop {name!r}"
            )
        return values

    def labels(name: str) -> Any:
        column = complete(name)
        check_text(column)
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            return np.asarray(column.to_pylist(), dtype=object)  # not padded to the longest, as NumPy's text is
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
    return Table(str(path), fingerprint, x, y, wanted, target, remarks=tuple(remarks))


_NO_NAME = re.compile(r"\s*|Unnamed: \d+")
"""Names of columns without one, as they are written and as pandas writes them again."""


def _fingerprint(path: Path) -> str:
    with open_ordinary(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]  # it has readinto


def names(several: Iterable[str], most: int = 20) -> str:
    """The names with commas between, of many the first."""
    listed = list(several)
    return ", ".join(listed[:most]) + (f", ... ({len(listed):,} in all)" if len(listed) > most else "")


def reason(error: Exception) -> str:
    """What an error of another library says, or its kind where it says nothing."""
    return str(error) or type(error).__name__


# ---- between a table and a network ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Preprocessing:
    """How rows of a table become arrays for a network, which has the scaling of both ends as layers of its own.

    `inputs` brings features to the scale of the weights, and `outputs` numbers back to the unit of the target, which
    is `unit`.  `needs_float64` says why float32 can't hold the table, if it can't.
    """

    classes: list[Any] | None = None
    inputs: Standardize | None = None
    outputs: Standardize | None = None
    needs_float64: str | None = None

    @property
    def unit(self) -> float:
        """What one of the standardised target is in its own unit."""
        return 1.0 if self.outputs is None else float(self.outputs.scale)  # type: ignore[arg-type]

    @property
    def dtype(self) -> Any:
        """The type of the network's numbers."""
        return np.dtype(np.float64 if self.needs_float64 else np.float32)

    @classmethod
    def of(cls, table: Table, loss: Loss, rows: Array) -> "Preprocessing":
        """The preprocessing for a table of which `rows` are trained on."""
        made, wide = cls(), []
        if loss.labels or loss.probabilities:
            classes = sorted(set(table.y.tolist()))
            if len(classes) < 2:
                raise DataError(
                    f"the target of {table.name} has the single class {classes[0]!r}: expected at least two"
                )
            if not loss.labels and len(classes) > 2:
                raise DataError(f"the target of {table.name} has {len(classes)} classes: {loss} tells two apart")
            made = replace(made, classes=classes)
        else:
            mean, deviation, lost = _moments(table.y[rows].reshape(len(rows), -1))
            largest = float(deviation.max())
            unit = largest * float(np.sqrt(np.square(deviation / largest).mean())) if largest else 1.0
            if not 1e-60 <= unit <= 1e60:
                raise DataError(
                    f"the target of {table.name} has the deviation {unit:.3g}, of which float64 can't hold the powers "
                    "that training takes: bring it between 1e-60 and 1e60, by a power of ten"
                )
            # under 1.9e-5, Adam's epsilon in this unit would be less than float32 gradients have squares for
            if not 2e-5 <= unit <= 1e7 or np.any(lost > 1e-4 * unit):
                wide.append(f"the target of {table.name}")
            mean = tuple(mean.tolist()) if len(mean) > 1 else float(mean[0])
            made = replace(made, outputs=Standardize(mean, unit, invert=True))
        if table.scaling is not None:
            return replace(made, inputs=table.scaling, needs_float64=wide[0] if wide else None)
        mean, deviation, lost = _moments(table.x[rows].reshape(len(rows), -1))
        varies = deviation > 0.0
        scale = np.where(varies, deviation, 1.0)

        def name(i: int) -> str:
            return f"feature {i + 1} of {table.name}" if table.features is None else f"column {table.features[i]!r}"

        for i in np.flatnonzero(varies & ((deviation < 1e-300) | (np.abs(mean) + deviation > 1e300))).tolist():
            raise DataError(
                f"{name(i)} has the mean {mean[i]:.3g} and the deviation {deviation[i]:.3g}, at the end of what "
                "float64 holds: multiply or divide it by a power of ten"
            )
        most = np.where(varies, 1e-4 * deviation, np.finfo(np.float32).max)
        wide += [name(i) for i in np.flatnonzero(lost > most).tolist()[:1]]
        made = replace(made, inputs=Standardize(mean.tolist(), scale.tolist()))
        return replace(made, needs_float64=wide[0] if wide else None)


def _moments(values: Array) -> tuple[Array, Array, Array]:
    """Mean and deviation of every column, 0 if it is constant, and the most that float32 takes off one of its values.

    The largest magnitude of a column is taken out before anything is squared, so that nothing overflows or vanishes.
    Columns are taken a few at a time, since each needs float64 copies.
    """
    rows, columns = values.shape
    found = []
    for i in range(0, columns, step := max(1, (1 << 23) // rows)):
        part = values[:, i : i + step].astype(np.float64)
        low, high = part.min(axis=0), part.max(axis=0)
        with np.errstate(all="ignore"):
            single = part.astype(np.float32)
            # what is subnormal counts as lost: processors of graphics make it 0
            single = np.where(np.abs(single) < np.finfo(np.float32).smallest_normal, np.float32(0.0), single)
            lost = np.abs(part - single).max(axis=0)
        exponent = np.frexp(np.maximum(np.abs(low), np.abs(high)))[1]
        part = np.ldexp(part, -exponent)
        middle = part.mean(axis=0)
        deviation = np.sqrt(np.square(part - middle).mean(axis=0))
        constant = low == high
        mean = np.where(constant, low, np.ldexp(middle, exponent))
        found.append((mean, np.where(constant, 0.0, np.ldexp(deviation, exponent)), lost))
    mean, deviation, lost = (np.concatenate(part) for part in zip(*found, strict=True))
    return mean, deviation, lost


def features_of(table: Table, dtype: Any) -> Array:
    """The table's features as the network wants them."""
    return _cast(table, table.x, dtype, "a feature")


def _cast(table: Table, values: Array, dtype: Any, what: str) -> Array:
    """`values` of a type; raises DataError where it can't hold them."""
    with np.errstate(over="ignore"):
        cast = np.ascontiguousarray(values, dtype=dtype)
    if not np.isfinite(cast).all():
        row = int(np.argmin(np.isfinite(cast.reshape(len(cast), -1)).all(axis=1)))
        raise DataError(f"{table.name} has {what} too large for {dtype}, first in row {row + 1}")
    return cast


def target_of(table: Table, loss: Loss, classes: Sequence[Any] | None, dtype: Any) -> Array:
    """The table's target as the loss wants it; `classes` are a classifier's."""
    y = table.y
    if classes is None:
        if y.dtype.kind in "UO":
            raise DTypeError(f"the target of {table.name} is text, but the model predicts numbers")
        if loss.labels and y.dtype.kind in "iub":
            return y
        return _cast(table, y.reshape(len(y), -1), dtype, "a target")
    place = {name: i for i, name in enumerate(classes)}
    try:
        labels = np.asarray([place[name] for name in y.tolist()], dtype=np.int32)
    except (KeyError, TypeError):  # numbers of several outputs are no classes either
        strange = next((name for name in y.tolist() if isinstance(name, list) or name not in place), None)
        known = names(map(repr, classes))
        raise DataError(f"the target of {table.name} has the class {strange!r}; the model knows {known}") from None
    return labels if loss.labels else labels[:, None].astype(dtype)


def answers(output: Array, trainer: Trainer) -> list[Any]:
    """Of every row of outputs its class, by name where the model knows names, or its number or numbers."""
    loss = trainer.loss
    if loss.labels:
        which = output.argmax(axis=-1)
    elif loss.probabilities and output.shape[1:] == (1,):
        which = (output[:, 0] > (0.5 if isinstance(loss, BinaryCrossEntropy) else 0.0)).astype(np.int64)
    else:
        values: list[Any] = (output[:, 0] if output.shape[1:] == (1,) else output).tolist()
        return values
    classes = trainer.classes
    return which.tolist() if classes is None else [classes[i] for i in which.tolist()]


@dataclass(frozen=True)
class Source:
    """What a model was trained on: columns, data, and which share of its rows `seed` held out."""

    fingerprint: str = ""
    fraction: float = 0.0
    seed: int = 0
    features: list[str] | None = None
    target: str | None = None

    def __post_init__(self) -> None:
        """What comes out of a file may be anything."""
        number("fraction", self.fraction, 0.0, 1.0, closed="left")
        whole("seed", self.seed, 0)
        texts = [self.fingerprint, self.target or "", *(self.features or [])]
        lists = self.features is None or isinstance(self.features, list)
        if not lists or not all(isinstance(text, str) for text in texts):
            raise ArgumentError("a name that is no text")

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
    if not wants_classes and kind in "UO":
        raise DTypeError(f"the target of {table.name} is text: {name} needs numbers")
    return loss
