"""The rows of a data set: handwritten digits, or a .npz, .csv or .parquet file."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

import numpy as np

from bpnet import Standardize
from bpnet.backends import Array
from bpnet.cli.terminal import load_extra, names, reason
from bpnet.disk import open_ordinary
from bpnet.errors import ArgumentError, DataError, DTypeError, OptionError, ShapeError, plural
from bpnet.options import number, whole


@dataclass(frozen=True)
class Dataset:
    """Rows to train on, to evaluate or to predict: `x` holds numbers, one row a sample, `y` the target as it came.

    `features` are the columns that x was made of, and `titles` what messages call them.  `scaling` brings them to the
    scale of the weights, where that is known whatever the rows are.
    """

    name: str
    fingerprint: str
    x: Array
    y: Array = None
    features: list[str] | None = None
    titles: list[str] | None = None
    target: str | None = None
    scaling: Standardize | None = None

    def title(self, feature: int) -> str:
        """What messages call a feature."""
        return self.titles[feature] if self.titles else f"feature {feature + 1} of {self.name}"


@dataclass(frozen=True)
class Provenance:
    """What a model was trained on: data, columns, and which share of the rows `seed` held out."""

    fingerprint: str = ""
    fraction: float = 0.0
    seed: int = 0
    features: list[str] | None = None
    target: str | None = None

    def __post_init__(self) -> None:
        """Raise an error where a value is of another kind, since a file may hold anything."""
        number("fraction", self.fraction, 0.0, 1.0, closed="left")
        whole("seed", self.seed, 0)
        texts = [self.fingerprint, self.target or "", *(self.features or [])]
        if not isinstance(self.features, list | None) or not all(isinstance(text, str) for text in texts):
            raise ArgumentError("a name that is no text")

    def held_out(self, dataset: Dataset) -> Array | None:
        """The rows of `dataset` that were held out, None where it is other data or none were."""
        if dataset.fingerprint != self.fingerprint or self.fraction == 0:
            return None
        return split(len(dataset.x), self.fraction, self.seed)[1]


def split(rows: int, fraction: float, seed: int) -> tuple[Array, Array]:
    """Row numbers to train on, and those held out: a `fraction` of them, chosen by `seed`, at least one of each."""
    order = np.random.default_rng(seed).permutation(rows)
    held_out = min(max(round(fraction * rows), 1), rows - 1) if fraction > 0 else 0
    return order[held_out:], order[:held_out]


def read(
    data: str,
    target: str | None = None,
    *,
    model: Provenance | None = None,
    drop: Sequence[str] | None = None,
    labelled: bool = True,
) -> Dataset:
    """The rows of `digits`, or of a .npz, .csv or .parquet file, with their target if they are to be `labelled`.

    Where a `model` was trained on columns, these are its features, and its target the default; otherwise all columns
    but the target and those to `drop` are features.  `drop` is None unless they are to be trained on.

    Raises DataError where the rows can't be used, and says which column and which row, the first being row 1.
    """
    path = Path(data)
    if path.suffix.lower() in (".csv", ".parquet"):
        read_columns = load_extra("bpnet.cli.columns", "reading .csv and .parquet", "pyarrow").read_columns
        dataset: Dataset = read_columns(path, target, model or Provenance(), drop, labelled)
        return dataset
    for option, value in (("--target", target), ("--drop", drop)):
        if value:
            raise OptionError(f"{option} names a column of a .csv or .parquet file, and {data} has none")
    if data == "digits":
        load_digits = load_extra("sklearn.datasets", "the digits data", "scikit-learn").load_digits
        x, y = load_digits(return_X_y=True)
        return Dataset("digits", "digits of scikit-learn", x, y, scaling=Standardize(0.0, 16.0))
    if path.suffix.lower() == ".npz":
        return read_npz(path, labelled)
    hint = " (did you mean digits?)" if get_close_matches(data, ["digits"]) else ""
    raise DataError(f"DATA must be digits, or a .npz, .csv or .parquet file: {data!r} is none of these{hint}")


def read_npz(path: Path, labelled: bool) -> Dataset:
    """The arrays x and y of a file that numpy.savez has written."""
    known, wanted = fingerprint(path), ("x", "y")[: 1 + labelled]
    try:
        with open_ordinary(path) as file:
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
    check_finite(x, f"x in {path} has NaN or infinity")
    if y is not None:
        if y.shape[:1] != x.shape[:1]:
            fits = f"one entry for each of the {plural(len(x), 'row')} of x"
        elif y.ndim > 2 or (y.shape[1:] > (1,) and y.dtype.kind != "f"):
            fits = f"({len(x)},), or two axes of float numbers"
        if fits:
            raise ShapeError(f"y in {path} has the shape {y.shape}: expected {fits}")
        if y.dtype.kind == "f":
            check_finite(y, f"y in {path} has NaN or infinity")
        y = y[:, 0] if y.shape[1:] == (1,) else y
    return Dataset(str(path), known, x, y)


def check_finite(values: Array, problem: str) -> None:
    """Raise DataError with the `problem`, and the first row that has it, where one of the values is not finite."""
    finite = np.isfinite(values).reshape(len(values), -1).all(axis=1)
    if not finite.all():
        raise DataError(f"{problem}, first in row {int(np.argmin(finite)) + 1}")


def fingerprint(path: Path) -> str:
    """What a file's content is known again by."""
    with open_ordinary(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
