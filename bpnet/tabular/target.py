"""What a model predicts: labels or quantities as the user has them, and their encoding for a loss."""

import math
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from bpnet.backends import Backend, backend_of
from bpnet.errors import (
    ArgumentError,
    DataError,
    DTypeError,
    FileFormatError,
    OptionError,
    ShapeError,
    kind_of,
    plural,
    shown,
)
from bpnet.losses.base import Loss
from bpnet.losses.classes import ClassLoss
from bpnet.losses.likelihood import GaussianNLL
from bpnet.losses.regression import Quantile
from bpnet.options import choice, whole
from bpnet.tabular.columns import Column, column_of
from bpnet.tabular.frames import Frame
from bpnet.tabular.values import as_number

KINDS = ("class", "number", "multilabel")
FEW = 20
"""So many distinct whole numbers are taken for classes, whatever they are."""
NUMBERED = 1000
"""And so many if they are exactly 0 ... K - 1 or 1 ... K, with PER_CLASS rows each on average."""
PER_CLASS = 5


@dataclass(frozen=True)
class Target:
    """What is learnt: one of several classes, quantities, or any number of labels for each row.

        target = Target.of(y)
        trainer.fit(x, target.encode(y, loss))
        target.decode(trainer.predict(x), loss)

    kind : "class", "number" or "multilabel"
    names : of the columns, if they have any
    classes : the sorted labels of a "class": text, whole numbers, floats or booleans, as they were given
    columns : the number of quantities or labels; 0 for a vector
    """

    kind: str
    names: tuple[str, ...] = ()
    classes: tuple[Any, ...] = ()
    columns: int = 0

    @classmethod
    def of(cls, y: Any, name: str | None = None, kind: str | None = None) -> "Target":
        """The target for the values y: a vector or column, or (rows, columns).

        Text and booleans are classes.  So are whole numbers if there are at most 20 distinct ones, or if they count
        classes from 0 or 1 without gaps; other numbers are quantities.  `kind` overrides this.  Several columns are
        labels if they hold booleans or the whole numbers 0 and 1, and quantities otherwise.
        """
        kind = None if kind is None else choice("kind", kind, KINDS)
        if not isinstance(name, str | int | None):
            raise ArgumentError(f"name is {kind_of(name)}; expected the name of a column")
        names, columns, several = _columns(y)
        names = [name] if name is not None and not several else names
        for column in columns:
            _check_present(column)
        if several or kind == "multilabel":
            whole_numbers = all(map(_are_whole, columns))
            kind = kind or ("multilabel" if whole_numbers and all(map(_are_flags, columns)) else "number")
            if kind == "class":
                raise ShapeError(f"y has {len(columns)} columns; expected one label a row")
            if kind == "number":
                _all_numbers(names, columns)
            return cls(kind, tuple(names), (), len(columns))
        if not columns:
            raise ShapeError("y has no columns")
        (column,) = columns
        if kind is None:
            kind = "class" if _are_classes(column) else "number"
        if kind == "number":
            _numbers(column)
            return cls(kind, tuple(names))
        classes = _classes(column)
        if len(classes) < 2:
            raise DataError(f"y has the single class {classes[0]!r}; expected at least two")
        return cls(kind, tuple(names), classes)

    @property
    def name(self) -> str | None:
        """The name of the column, if it is a single one with a name."""
        return self.names[0] if len(self.names) == 1 else None

    def array(self, backend: Backend | None = None, device: Any = None) -> Any:
        """The classes as an array; text is an array of objects."""
        kind = "O" if any(isinstance(label, str) for label in self.classes) else None
        host = np.array(self.classes, dtype=kind)
        return host if backend is None or kind or backend.name == "numpy" else backend.from_host(host, None, device)

    def outputs(self, loss: Loss) -> int:
        """The number of outputs that the network needs."""
        loss = loss.single
        if self.kind == "class":
            return len(self.classes) if isinstance(loss, ClassLoss) or len(self.classes) > 2 else 1
        count = self.columns or 1
        per = len(loss.quantiles) if isinstance(loss, Quantile) else 2 if isinstance(loss, GaussianNLL) else 1
        return count * per

    # ---- to a loss ----------------------------------------------------------------------------------------------

    def encode(self, y: Any, loss: Loss | None = None, like: Any = None) -> Any:
        """y as a loss takes it: labels 0 ... K - 1 of shape (rows,), or columns of numbers.

        For a loss that judges each class separately (binary cross-entropy, hinge), columns of 0 and 1, a single one
        for two classes.  Values on the host move to the library and device of `like`.
        """
        names, columns, _ = _columns(y)
        for column in columns:
            _check_present(column)
        if len(columns) != (self.columns or 1):
            raise ShapeError(f"y has {plural(len(columns), 'column')}; expected {self.columns or 1}")
        if self.kind == "class":
            labels = self._labels(columns[0])
            made = labels if loss is None or loss.labels else self._one_hot(labels)
        else:
            found = _all_numbers(names, columns)
            if self.kind == "multilabel" and not all(map(_are_flags, columns)):
                raise DataError("y has values other than 0 and 1; expected for every label whether a row has it")
            made = _side_by_side(found)
        if like is None or not isinstance(made, np.ndarray):
            return made
        backend = backend_of(like)
        if backend.name == "numpy":
            return made
        dtype = backend.xp.int32 if made.dtype.kind in "iub" else like.dtype
        return backend.from_host(made, dtype, backend.device(like))

    def _labels(self, column: Column) -> Any:
        """The index of each row's class."""
        known = self.classes
        if not column.on_host:
            return self._device_labels(column.values)
        if column.codes is None:
            values, codes = np.unique(column.values, return_inverse=True)
            objects, codes = values.tolist(), codes.reshape(-1)
        else:
            objects, codes = column.values.tolist(), column.codes
        place = {label: i for i, label in enumerate(known)}
        table = np.array([place.get(value, -1) for value in objects], dtype=np.int32)
        labels = table[codes]
        if len(labels) and labels.min() < 0:
            row = int(np.argmin(labels))
            raise self._unknown(objects[int(codes[row])], row)
        return labels

    def _device_labels(self, values: Any) -> Any:
        """The same on the values' own device."""
        backend = backend_of(values)
        xp, known = backend.xp, np.array(self.classes)
        with backend.session(device=backend.device(values)):
            if known.dtype.kind == "U":
                raise DTypeError(f"y holds {values.dtype} values; the classes are text")
            if xp.isdtype(values.dtype, "bool"):
                values = xp.astype(values, xp.int32)
            whole = xp.isdtype(values.dtype, "integral")
            if whole and known.min() >= xp.iinfo(values.dtype).min and known.max() <= xp.iinfo(values.dtype).max:
                table = backend.from_host(np.floor(known).astype(np.int64), values.dtype, backend.device(values))
            else:
                values = xp.astype(values, xp.float64) if whole else values
                table = backend.from_host(known.astype(np.float64), values.dtype, backend.device(values))
            values = xp.asarray(values, copy=True)  # in one piece, as PyTorch likes to search it
            at = xp.minimum(xp.searchsorted(table, values), len(known) - 1)
            same = xp.take(table, at) == values
            if not bool(xp.all(same)):
                wrong = int(xp.argmin(xp.astype(same, xp.int32)))
                raise self._unknown(backend.to_host(values[wrong]).item(), wrong)
            return xp.astype(at, xp.int32)

    def _unknown(self, value: Any, row: int) -> DataError:
        some = ", ".join(map(repr, self.classes[:10])) + ", ..." * (len(self.classes) > 10)
        return DataError(f"y has the class {shown(value)} in row {row}; the model knows {some}")

    def _one_hot(self, labels: Any) -> Any:
        backend = backend_of(labels)
        xp, count = backend.xp, len(self.classes)
        if count == 2:
            return xp.reshape(labels, (-1, 1))
        every = xp.arange(count, dtype=labels.dtype, device=backend.device(labels))
        return xp.astype(xp.reshape(labels, (-1, 1)) == every, labels.dtype)

    def balanced_weights(self, y: Any) -> Any:
        """For each row the weight rows / (K * rows of its class), which gives all classes the same total weight."""
        labels = self.encode(y)
        if self.kind != "class":
            raise OptionError("balanced weights are of classes; the target is " + self.kind)
        backend = backend_of(labels)
        counts = np.bincount(backend.to_host(labels), minlength=len(self.classes))
        weights = (labels.shape[0] / (len(self.classes) * np.maximum(counts, 1))).astype(np.float32)
        if backend.name == "numpy":
            return weights[labels]
        return backend.xp.take(backend.from_host(weights, None, backend.device(labels)), labels)

    # ---- from outputs -------------------------------------------------------------------------------------------

    def probabilities(self, loss: Loss, outputs: Any) -> Any:
        """Probabilities of the classes, or of each label: (rows, K).  Raises OptionError if there are none."""
        if self.kind == "number":
            raise OptionError("a model of quantities has no probabilities")
        if not gives_probabilities(loss):
            raise OptionError(
                f"{loss} gives no probabilities: train with cross_entropy, or binary_cross_entropy_with_logits"
            )
        backend = backend_of(outputs)
        with backend.session(device=backend.device(outputs)):
            return self.probabilities_of(backend, loss, outputs)

    def probabilities_of(self, backend: Backend, loss: Loss, outputs: Any) -> Any:
        """The same of what stands for arrays, too, as when a model is exported."""
        xp = backend.xp
        loss, outputs = pooled(backend, loss, outputs)
        found = loss.prediction(backend, outputs)
        if self.kind != "class":
            return found
        if len(self.classes) == 1:
            return xp.ones_like(found[:, :1])
        if found.shape[1] == 1:
            return xp.concat([1.0 - found, found], axis=1)
        if isinstance(loss, ClassLoss):
            return found
        total = xp.sum(found, axis=1, keepdims=True)  # one against the rest, each on its own
        return xp.where(total > 0.0, found / xp.where(total > 0.0, total, 1.0), 1.0 / found.shape[1])

    def decode(self, outputs: Any, loss: Loss) -> Any:
        """Labels or quantities from a network's outputs, (rows,) or (rows, columns), on their device.

        Text labels are a NumPy array of objects.  A loss for several quantiles gives a column for each; gaussian_nll
        gives the mean.
        """
        backend = backend_of(outputs)
        xp = backend.xp
        with backend.session(device=backend.device(outputs)):
            if self.kind == "number":
                found = self.quantities_of(backend, loss, outputs)
                return found if self.columns or found.shape[1] > 1 else xp.reshape(found, (-1,))
            places = self.places(outputs, loss)
            if self.kind == "multilabel":
                return places
            classes = self.array(backend, backend.device(outputs))
            if isinstance(classes, np.ndarray):
                return classes[backend.to_host(places)]
            return xp.take(classes, places)

    def quantities_of(self, backend: Backend, loss: Loss, outputs: Any) -> Any:
        """(rows, columns) in their own unit, or (rows, quantiles)."""
        loss, outputs = pooled(backend, loss, outputs)
        return outputs if isinstance(loss, Quantile) else loss.prediction(backend, outputs)

    def places_of(self, backend: Backend, loss: Loss, outputs: Any) -> Any:
        """The index of each row's class, (rows,); or whether it has each label, (rows, labels)."""
        xp = backend.xp
        loss, outputs = pooled(backend, loss, outputs)
        found = loss.prediction(backend, outputs)
        above = found > _limit(loss)
        if self.kind == "multilabel":
            return above
        if found.shape[1] > 1:
            return xp.argmax(found, axis=1)
        one = xp.astype(above[:, 0], found.dtype) if len(self.classes) > 1 else xp.zeros_like(found[:, 0])
        return xp.astype(one, xp.int32)

    def places(self, outputs: Any, loss: Loss) -> Any:
        """The number of each row's class among `classes`, (rows,), or for each label 1 or 0."""
        backend = backend_of(outputs)
        with backend.session(device=backend.device(outputs)):
            found, xp = self.places_of(backend, loss, outputs), backend.xp
            return xp.astype(found, xp.__array_namespace_info__().default_dtypes()["integral"])

    # ---- as data ------------------------------------------------------------------------------------------------

    def describe(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "kind": self.kind,
            "names": list(self.names),
            "classes": list(self.classes),
            "columns": self.columns,
        }

    @classmethod
    def restore(cls, plain: Any) -> "Target":
        """The target that `describe` described; raises FileFormatError or OptionError if it is invalid."""
        if not isinstance(plain, dict) or plain.keys() != {f.name for f in fields(cls)}:
            raise FileFormatError("the table has no target")
        names, classes = plain["names"], plain["classes"]
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise FileFormatError("the target of the table has names that are no text")
        sorts = {type(label) for label in classes} if isinstance(classes, list) else {None}
        if not sorts <= {str} and not sorts <= {bool} and not sorts <= {int, float}:
            raise FileFormatError("the target of the table has classes of several kinds")
        made = cls(
            choice("kind", plain["kind"], KINDS), tuple(names), tuple(classes), whole("columns", plain["columns"], 0)
        )
        if made.kind == "class" and made.columns:
            raise FileFormatError("the target of the table is a class of several columns")
        if (made.kind == "class") != (len(set(classes)) == len(classes) >= 1) or list(classes) != sorted(classes):
            raise FileFormatError("the target of the table has classes that are not sorted, or not different")
        return made


def pooled(backend: Backend, loss: Loss, outputs: Any) -> tuple[Loss, Any]:
    """The loss of one member, and a single output (rows, units) that gives the average of the members' predictions."""
    return loss.single, loss.pooled(backend, outputs)


def _has_margins(loss: Loss) -> bool:
    """Whether outputs are compared with 0 but are not logits."""
    return loss.boundary == 0.0 and not loss.logits


def gives_probabilities(loss: Loss) -> bool:
    """Whether the predictions of a loss are probabilities."""
    return loss.logits or (loss.probabilities and not _has_margins(loss))


def _limit(loss: Loss) -> float:
    """The prediction above which a row has a label."""
    return 0.0 if _has_margins(loss) else 0.5


def _columns(y: Any) -> tuple[list[str], list[Column], bool]:
    """Names and columns of y, and whether there are several."""
    if isinstance(y, Column):
        return [], [y], False
    if isinstance(y, Frame):
        return list(y.names), [y.coded(name) for name in y.names], True
    shape = getattr(y, "shape", None)
    one_axis = shape is not None and len(shape) == 1 and getattr(getattr(y, "dtype", None), "names", None) is None
    listed = isinstance(y, list | tuple) and not (y and isinstance(y[0], list | tuple | dict))
    series = hasattr(y, "to_physical") or (hasattr(y, "null_count") and not hasattr(y, "columns"))
    if one_axis or listed or series:
        name = getattr(y, "name", None)
        named = isinstance(name, str | int) and name != ""  # as that of polars is where it has none
        return [str(name)] if named else [], [column_of(y, "y")], False
    frame = Frame.of(y, "y")
    columns = [frame.coded(name) for name in frame.names]
    return list(frame.names) if frame.named else [], columns, len(columns) > 1


def _check_present(column: Column) -> None:
    missing = column.missing()
    backend = backend_of(missing)
    if bool(backend.xp.any(missing)):
        row = int(backend.xp.argmax(backend.xp.astype(missing, backend.xp.int32)))
        raise DataError(f"y is missing in row {row}: leave out such rows")
    if column.rows == 0:
        raise DataError("y has no rows")


def _all_numbers(names: list[str], columns: list[Column]) -> list[Any]:
    """Those of every column; of several, an error says in which."""
    several = len(columns) > 1 and len(names) == len(columns)
    places = [f" of column {name!r}" for name in names] if several else [""] * len(columns)
    return [_numbers(column, place) for column, place in zip(columns, places, strict=True)]


def _numbers(column: Column, place: str = "") -> Any:
    """Finite numbers, one per row, those written as text included; `place` is what an error says after the row."""
    values = column.values
    if column.codes is not None:
        read = list(map(as_number, values.tolist()))
        wrong = next((i for i, number in enumerate(read) if number is None or math.isnan(number)), None)
        if wrong is not None:
            row = int(np.argmax(column.codes == wrong))
            raise DTypeError(f"y holds {shown(values[wrong])} in row {row}{place}; expected numbers")
        values = np.array(read, dtype=np.float64)[column.codes]
    elif column.on_host and values.dtype.kind in "mM":
        raise DTypeError(f"y {_time_of(values)}{place and f' in{place[3:]}'}; expected numbers")
    backend = backend_of(values)
    if backend.xp.isdtype(values.dtype, "real floating"):
        bad = backend.xp.isinf(values)
        if bool(backend.xp.any(bad)):
            row = int(backend.xp.argmax(backend.xp.astype(bad, backend.xp.int32)))
            raise DataError(f"y is infinite in row {row}{place}")
    return values


def _time_of(values: Any) -> str:
    return f"is a {'date' if values.dtype.kind == 'M' else 'duration'} ({values.dtype})"


def _side_by_side(columns: list[Any]) -> Any:
    """Columns of numbers as one array, floating if any of them is."""
    xp = backend_of(columns[0]).xp
    floats = [column.dtype for column in columns if xp.isdtype(column.dtype, "real floating")]
    if floats and len({column.dtype for column in columns}) > 1:
        columns = [xp.astype(column, xp.result_type(*floats)) for column in columns]
    return xp.stack(columns, axis=1)


def _are_whole(column: Column) -> bool:
    """Whether the values have an integer or boolean type."""
    if column.codes is not None:
        return False
    return bool(backend_of(column.values).xp.isdtype(column.values.dtype, ("bool", "integral")))


def _are_flags(column: Column) -> bool:
    """Whether all values are 0 or 1."""
    if column.codes is not None or (column.on_host and column.values.dtype.kind not in "biuf"):
        return False
    xp = backend_of(column.values).xp
    values = xp.astype(column.values, xp.int32) if column.values.dtype == xp.bool else column.values
    return bool(xp.all((values == 0) | (values == 1)))


def _are_classes(column: Column) -> bool:
    """Whether the values are taken for labels: see `Target.of`."""
    if column.codes is not None:
        return True
    values = column.values if column.on_host else backend_of(column.values).to_host(column.values)
    without_fractions = values.dtype.kind == "f" and bool(np.all(np.isfinite(values) & (values == np.floor(values))))
    if values.dtype.kind in "biu" or without_fractions:
        if values.dtype.kind == "b":
            return True
        different = np.unique(values)
        count, first = len(different), different[0]
        numbered = first in (0, 1) and different[-1] - first == count - 1 and count <= NUMBERED
        return count <= FEW or (bool(numbered) and values.dtype.kind != "f" and len(values) >= PER_CLASS * count)
    if values.dtype.kind in "mM":
        raise DTypeError(f"y {_time_of(values)}; expected labels or numbers")
    return False


def _classes(column: Column) -> tuple[Any, ...]:
    """The labels, sorted."""
    if column.codes is None:
        values = column.values if column.on_host else backend_of(column.values).to_host(column.values)
        return tuple(np.unique(values).tolist())
    used = np.bincount(column.codes, minlength=len(column.values)) > 0
    labels = [label for label, there in zip(column.values.tolist(), used, strict=True) if there]
    if all(isinstance(label, bool) for label in labels) or all(isinstance(label, str) for label in labels):
        return tuple(sorted(labels))
    if all(isinstance(label, int | float) and not isinstance(label, bool) for label in labels):
        return tuple(sorted(labels))
    odd = next(label for label in labels if type(label) is not type(labels[0]))
    raise DTypeError(f"y mixes {shown(labels[0])} and {shown(odd)}: expected labels of one kind, such as all text")
