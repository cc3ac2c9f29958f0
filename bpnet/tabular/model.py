"""A trained network that takes tables and predicts labels or quantities."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from math import prod
from typing import Any

import numpy as np

from bpnet.backends import backend_of
from bpnet.backends.interrupts import methods_end_sessions
from bpnet.errors import ArgumentError, DataError, FileFormatError, OptionError, ShapeError, kind_of, plural
from bpnet.layers.categorical import CategoricalInput
from bpnet.layout import Layout
from bpnet.metrics.base import Metric
from bpnet.options import flag, whole
from bpnet.registry import parts_of
from bpnet.table import Text
from bpnet.tabular import calibration, distributions
from bpnet.tabular.frames import Frame
from bpnet.tabular.sampling import samples as drawn_networks
from bpnet.tabular.schema import Schema, some
from bpnet.tabular.target import Target
from bpnet.trainer import Trainer
from bpnet.typing import MetricName

ROWS = 16384
"""Rows that are predicted at a time, so that memory use does not grow with the table."""


@methods_end_sessions
class TableModel:
    """A network trained on a table: it takes tables with the same columns, and predicts the target.

        model = bp.load("model.safetensors")
        model.predict(frame)          # labels, or quantities in their own unit
        model.predict_proba(frame)    # (rows, classes), in the order of model.classes_

    A table is an array (rows, columns) of numbers of any library, a DataFrame of pandas or polars, a table of Arrow, a
    structured array, a dict of columns, a list of dicts or of lists.  Columns are found by their names, in any
    order; additional columns are ignored.  Results are NumPy arrays; an array of numbers on a device gives arrays
    there, except for text labels.

    Parameters
    ----------
    schema : how the columns of a table are read
    target : what the network predicts
    trainer : a `bp.Trainer` of the network, which takes tables and y as the schema and the target encode them
    settings : how it was trained; anything that JSON can hold
    """

    def __init__(
        self, schema: Schema, target: Target, trainer: Trainer, settings: Mapping[str, Any] | None = None
    ) -> None:
        for what, value, kind in (
            ("schema", schema, Schema),
            ("target", target, Target),
            ("trainer", trainer, Trainer),
        ):
            if not isinstance(value, kind):
                raise ArgumentError(f"{what} is {kind_of(value)}; expected a {kind.__name__}")
        self.schema, self.target, self.trainer = schema, target, trainer
        self.settings: Mapping[str, Any] = dict(settings or {})
        if trainer._engine is not None:
            self._check(trainer.layout)
        if target.kind == "class" and trainer.classes is None and len(target.classes) > 1:
            trainer.classes = list(target.classes)

    def _check(self, layout: Layout) -> None:
        """Raise ShapeError if the network was built for other rows, or its outputs don't fit the target."""
        given = layout.in_shape
        parts = ("numbers", self.schema.n_numbers), ("categories", len(self.schema.categories))
        counts = {name: count for name, count in parts if count}
        several = bool(given) and isinstance(given[0], tuple)
        found = (
            {name: prod(shape) for name, shape in given} if several else dict.fromkeys(list(counts)[:1], prod(given))
        )
        if found != counts:
            raise ShapeError(f"the network was built for rows of {given}; the schema makes {counts} of them")
        codes = list(parts_of(layout.network, CategoricalInput))
        if len(codes) == 1 and codes[0].entries != self.schema.entries:
            raise ShapeError(f"the network has {codes[0].entries} codes; the schema {self.schema.entries}")
        outputs = self.target.outputs(self.trainer.loss)
        if layout.out_shape[-1:] != (outputs,):
            raise ShapeError(f"the network has outputs of {layout.out_shape}; the target needs {outputs} of them")

    def __repr__(self) -> str:
        target, trainer = self.target, self.trainer
        what = {
            "class": plural(len(target.classes), "class"),
            "number": "a number" if target.columns < 2 else f"{target.columns} numbers",
            "multilabel": f"{target.columns} labels",
        }[target.kind]
        name = "" if target.name is None else f"{target.name!r}: "
        size = "not trained" if trainer._engine is None else plural(trainer.layout.size, "parameter")
        return f"<TableModel of {name}{what} from {plural(len(self.schema.features), 'column')}, {size}>"

    # ---- properties ---------------------------------------------------------------------------------------------

    @property
    def metadata(self) -> Mapping[str, Any]:
        """Your data saved with the model."""
        return self.trainer.metadata

    @metadata.setter
    def metadata(self, value: Mapping[str, Any]) -> None:
        self.trainer.metadata = value

    @property
    def classes_(self) -> Any:
        """The classes, in the order of the columns of `predict_proba`; for several labels per row, their indices."""
        if self.target.kind == "multilabel":
            return np.arange(self.target.columns)
        if self.target.kind != "class":
            raise AttributeError("a model of quantities has no classes")
        return self.target.array()

    @property
    def feature_names_in_(self) -> Any:
        """Names of the columns that the model uses."""
        if not self.schema.named:
            raise AttributeError("the model was trained on a table without names")
        return np.array(self.schema.names, dtype=object)

    @property
    def n_features_in_(self) -> int:
        """The number of columns that the model uses."""
        return len(self.schema.features)

    @property
    def target_name(self) -> str | None:
        """The name of the predicted column, if it has one."""
        return self.target.name

    # ---- use ----------------------------------------------------------------------------------------------------

    def predict(self, table: Any, *, return_std: bool = False, samples: int = 0, batch_size: int = ROWS) -> Any:
        """The label of each row, or its quantity in the target's own unit: (rows,), or (rows, columns) for several.

        A loss for several quantiles gives a column for each.  `batch_size` bounds the rows that are computed at a time.

        For quantities, `return_std=True` also gives standard deviations of the same shape: with the loss gaussian_nll
        the predicted ones, with an ensemble those of its members' predictions.  With `samples`, the prediction is the
        mean over this many networks drawn by dropout, and their variance is part of the predicted one (Gal and
        Ghahramani 2016).  Raises OptionError where the model gives no standard deviation.
        """
        return_std, samples = flag("return_std", return_std), whole("samples", samples, 0)
        if not (return_std or samples):
            return _joined([self.target.decode(some, self.trainer.loss) for some in self._batches(table, batch_size)])
        if self.target.kind != "number":
            raise OptionError(
                "return_std and samples are for quantities; predict_proba gives the probability of each class"
            )
        mean, variance = (
            _joined(list(parts)) for parts in zip(*self._moments(table, samples, batch_size), strict=True)
        )
        if not return_std:
            return self._shaped(mean)
        return self._shaped(mean), self._shaped(backend_of(variance).xp.sqrt(variance))

    def _moments(self, table: Any, samples: int, batch_size: int) -> Iterator[tuple[Any, Any]]:
        """Predictions and their variances, batch by batch."""
        loss = self.trainer.loss
        if samples:
            count = whole("samples", samples, 1)
            draw = partial(drawn_networks, self.trainer, count=count, seed=self.trainer.seed)
            yield from self._batches(table, batch_size, lambda x: distributions.drawn_moments(loss, draw(x)))
            return
        for outputs in self._batches(table, batch_size):
            mean, variance = distributions.moments(backend_of(outputs), loss, outputs)
            if variance is None:
                raise OptionError(distributions.no_deviation(loss))
            yield mean, variance

    def predict_proba(self, table: Any, *, batch_size: int = ROWS) -> Any:
        """Probabilities (rows, classes) in the order of `classes_`, or (rows, labels).

        Raises OptionError where the loss gives none, such as a loss for quantities, or hinge.
        """
        loss, found = self.trainer.loss, self._batches(table, batch_size)
        return _joined([self.target.probabilities(loss, some) for some in found])

    def outputs(self, table: Any, *, batch_size: int = ROWS) -> Any:
        """The network's own outputs: (rows, units), or (rows, members, units)."""
        return _joined(list(self._batches(table, batch_size)))

    def predict_deviation(self, table: Any, *, batch_size: int = ROWS) -> Any:
        """The standard deviation of every quantity, (rows,) or (rows, columns): the second of `predict(table,
        return_std=True)`."""
        return self.predict(table, return_std=True, batch_size=batch_size)[1]

    def predict_quantiles(self, table: Any, quantiles: Sequence[float] | None = None) -> Any:
        """Quantiles of each row's quantity: (rows, quantiles), or (rows, columns, quantiles).

        The loss "quantile" gives the ones it was trained for, "gaussian_nll" any: see `distributions.quantiles`.
        """
        outputs = self.outputs(table)
        return self._shaped(distributions.quantiles(backend_of(outputs), self.trainer.loss, outputs, quantiles))

    def calibrate(self, table: Any, y: Any = None) -> "TableModel":
        """Measure the errors on rows that the model was not trained on, for `predict_interval` and `predict_set`.

        y is as in `evaluate`.  The result is kept in `settings`, and so in files.
        """
        frame, loss = Frame.of(table), self.trainer.loss
        outputs = self.outputs(frame)
        target = self.target.encode(self.answers(frame, y), loss, like=outputs)
        xp = backend_of(outputs).xp
        if self.target.kind == "number":
            scores = calibration.interval_scores(loss, outputs, xp.reshape(target, (outputs.shape[0], -1)))
        elif self.target.kind == "class":
            p = self.target.probabilities(loss, outputs)
            codes = xp.astype(target, xp.__array_namespace_info__().default_dtypes()["integral"])
            codes = codes if codes.ndim == 1 else codes[:, 0] if codes.shape[1] == 1 else xp.argmax(codes, axis=1)
            scores = calibration.set_scores(p, codes)
        else:
            raise OptionError("calibrate is for one label a row, of which a set holds the true one; rows have several")
        self.settings = {**self.settings, "calibration": calibration.kept(scores)}
        return self

    def predict_interval(self, table: Any, coverage: float = 0.9) -> Any:
        """The ends of an interval that contains each quantity with probability `coverage`: (rows, 2) or
        (rows, columns, 2).  It needs `calibrate`; see `calibration.intervals`."""
        if self.target.kind != "number":
            raise OptionError("predict_interval is for quantities; predict_set gives sets of classes")
        outputs = self.outputs(table)
        scores = calibration.restored(self.settings, outputs)
        return self._shaped(calibration.intervals(self.trainer.loss, outputs, scores, coverage))

    def predict_set(self, table: Any, coverage: float = 0.9, method: str = "lac") -> Any:
        """A set of classes that contains the true one with probability `coverage`: (rows, classes) of True and False.

        It needs `calibrate`; `method` is "lac" or "aps", see `conformal.label_scores`.
        """
        if self.target.kind != "class":
            raise OptionError("predict_set is for classes; predict_interval gives intervals of quantities")
        p = self.predict_proba(table)
        scores = calibration.restored(self.settings, p)
        return calibration.sets(p, scores, coverage, method)

    def _shaped(self, values: Any) -> Any:
        """(rows, columns, ...), without the axis of columns for a single quantity."""
        return values if self.target.columns else values[:, 0, ...]

    def evaluate(
        self,
        table: Any,
        y: Any = None,
        *,
        sample_weight: Any = None,
        metrics: Sequence[MetricName | Metric] = (),
        batch_size: int = ROWS,
    ) -> dict[str, Any]:
        """The loss over the rows, for classes the accuracy, and `metrics`, as in `Trainer.evaluate`.

        y is a vector, (rows, columns), or the name of a column; None takes the target's columns from the table.
        """
        frame = Frame.of(table)
        x = self.inputs(frame)
        y = self.target.encode(self.answers(frame, y), self.trainer.loss, like=self.trainer.theta)
        with self._named(frame, x, 0):
            return self.trainer.evaluate(x, y, sample_weight=sample_weight, batch_size=batch_size, metrics=metrics)

    def answers(self, table: Any, y: Any = None) -> Any:
        """The values of y: y itself, the column with that name, or for None the target's columns."""
        if y is not None and not isinstance(y, str):
            return y
        names = (y,) if isinstance(y, str) else self.target.names
        if not names:
            raise DataError("y is missing: the target has no name by which it could be found in the table")
        frame = Frame.of(table)
        return frame.coded(names[0]) if len(names) == 1 else frame.select(names)

    def inputs(self, table: Any) -> Any:
        """The rows of a table as the network takes them, on the device of its parameters."""
        frame = Frame.of(table)
        return self._placed(self.schema.encode(frame), frame)

    # ---- batches ------------------------------------------------------------------------------------------------

    def _batches(self, table: Any, batch_size: int, compute: Callable[[Any], Any] | None = None) -> Iterator[Any]:
        """The network's outputs batch by batch, or what `compute` makes of its inputs."""
        size, frame = whole("batch_size", batch_size, 1), Frame.of(table)
        if frame.rows == 0:
            raise DataError(f"{frame.what} has no rows")
        encoder, moves, own = self.schema.encoder(frame), self._moves(frame), self.trainer.backend
        compute = compute or self.trainer.predict
        for start in range(0, frame.rows, size):
            x = encoder(slice(start, start + size))
            on_host = backend_of(next(iter(x.values())) if isinstance(x, dict) else x).name == "numpy"
            x = self._placed(x, frame, start)
            with self._named(frame, x, start):
                found = compute(x)
            if moves and on_host:
                found = tuple(map(own.to_host, found)) if isinstance(found, tuple) else own.to_host(found)
            yield found

    def _moves(self, frame: Frame) -> bool:
        """Whether rows of a table on the host move to another library; rows of an array never do."""
        return self.trainer.backend.name != "numpy" and self.trainer.device is None and frame.matrix is None

    @contextmanager
    def _named(self, frame: Frame, x: Any, start: int) -> Iterator[None]:
        """While the rows x, from `start` on, are computed with: errors name the column that has no numbers there."""
        try:
            yield
        except DataError:
            x = x["numbers"] if isinstance(x, dict) else x
            host = backend_of(x).to_host(x)
            wrong = np.isinf(host)
            wrong = wrong if wrong.any() else np.isnan(host)
            if not self.schema.numbers or not wrong.any():
                raise
            row, column = np.argwhere(wrong)[0].tolist()
            what = "is infinite" if np.isinf(host[row, column]) else "is missing"
            takes = (
                "finite numbers" if what == "is infinite" else "no missing ones (a network that does has NumericInput)"
            )
            name = self.schema.places(frame)[self.schema.owners[column]]
            raise DataError(
                f"column {name!r} of {frame.what} {what} in row {start + row}; the model takes {takes}"
            ) from None

    def _placed(self, x: Any, frame: Frame, start: int = 0) -> Any:
        """The rows x of a table, from `start` on, in the shape and type and on the device that the network takes."""
        if isinstance(x, dict):
            return {name: self._converted(array, frame, start) for name, array in x.items()}
        x, shape = self._converted(x, frame, start), self.trainer.layout.in_shape
        return x if len(shape) == 1 else backend_of(x).xp.reshape(x, (x.shape[0], *shape))

    def _converted(self, x: Any, frame: Frame, start: int) -> Any:
        """In the parameters' type, and on their device if it moves."""
        backend, own, theta = backend_of(x), self.trainer.backend, self.trainer.theta
        xp, floats = backend.xp, backend.xp.isdtype(x.dtype, "real floating")
        if backend.name == "numpy" and self._moves(frame):
            return own.from_host(x, theta.dtype if floats else own.xp.int32, own.device(theta))
        dtype = (xp.float32 if theta.dtype == own.xp.float32 else xp.float64) if floats else x.dtype
        if x.dtype == dtype:
            return x
        if backend.name != "numpy":
            return xp.astype(x, dtype)
        with np.errstate(over="ignore"):
            made = x.astype(dtype)
        lost = np.isinf(made) & ~np.isinf(x)
        if lost.any():
            row, column = np.argwhere(lost)[0].tolist()
            name = self.schema.places(frame)[self.schema.owners[column]]
            raise DataError(
                f"column {name!r} of {frame.what} has {x[row, column]:g} in row {start + row}, which is too large for "
                f"{made.dtype}"
            )
        return made

    # ---- files --------------------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str], metadata: Mapping[str, Any] | None = None) -> None:
        """Write the model to a .safetensors file, for `bp.load`, which gives a TableModel again.

        `metadata` is any data of yours that JSON can hold.  Raises what `Trainer.save` raises.
        """
        from bpnet.files.model import write_checkpoint

        write_checkpoint(path, replace(self.trainer._checkpoint(metadata), table=self.describe()))

    def describe(self) -> dict[str, Any]:
        """What a file holds of it besides the trainer: columns, target and settings, as JSON values."""
        return {"schema": self.schema.describe(), "target": self.target.describe(), "settings": dict(self.settings)}

    def summary(self) -> str:
        """The columns and how they are read, the target, and the network."""
        columns = [(feature.name, feature.kind, feature.details) for feature in self.schema.features]
        widths = [max(len(row[i]) for row in columns) for i in range(2)]
        lines = [repr(self)]
        if self.target.classes:
            lines.append(f"classes: {some(self.target.classes)}")
        lines += [f"  {name:{widths[0]}}  {kind:{widths[1]}}  {more}".rstrip() for name, kind, more in columns]
        return Text("\n".join([*lines, repr(self.trainer.network), f"loss: {self.trainer.loss}"]))


def restored(table: Any, trainer: Trainer) -> TableModel:
    """The model that an entry of a file describes, with its trainer."""
    if not isinstance(table, dict) or not isinstance(table.get("settings"), dict):
        raise FileFormatError("the entry of the table is none")
    schema, target = Schema.restore(table["schema"]), Target.restore(table["target"])
    return TableModel(schema, target, trainer, table["settings"])


def _joined(parts: list[Any]) -> Any:
    if len(parts) == 1:
        return parts[0]
    return backend_of(parts[0]).xp.concat(parts) if not isinstance(parts[0], np.ndarray) else np.concatenate(parts)
