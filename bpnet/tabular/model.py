"""A trained network that takes tables and gives labels or quantities."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np

from bpnet.backends import backend_of
from bpnet.errors import ArgumentError, DataError, FileFormatError, OptionError, ShapeError, kind_of, plural
from bpnet.layers.categorical import CategoricalInput
from bpnet.layout import Layout
from bpnet.losses.likelihood import GaussianNLL
from bpnet.metrics.base import Metric
from bpnet.options import whole
from bpnet.registry import parts_of
from bpnet.table import Text
from bpnet.tabular import calibration, distributions
from bpnet.tabular.frames import Frame
from bpnet.tabular.schema import Schema, some
from bpnet.tabular.target import Target, plain_loss, pooled
from bpnet.trainer import Trainer
from bpnet.typing import MetricName

ROWS = 16384
"""Rows that are predicted at a time, so that memory does not grow with the table."""


class TableModel:
    """A network that was trained on a table: it takes tables of the same columns, and gives what was to be learnt.

        model = bp.load("model.safetensors")
        model.predict(frame)          # labels, or quantities in their own unit
        model.predict_proba(frame)    # (rows, classes), in the order of model.classes_

    A table is an array (rows, columns) of numbers of any library, a DataFrame of pandas or polars, a table of Arrow, a
    structured array, a dict of columns, a list of dicts or of lists.  Columns are found by their names, in whatever
    order; further ones don't matter.  Results are NumPy arrays; for an array of numbers on a device, arrays there,
    but for labels that are text.

    Parameters
    ----------
    schema : what the columns of a table are
    target : what the network says of a row
    trainer : a `bp.Trainer` of the network, on what the schema makes of tables and the target of y
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
        if target.kind == "class" and trainer.classes is None:
            trainer.classes = list(target.classes)

    def _check(self, layout: Layout) -> None:
        """Raise ShapeError where the network was built for other rows, or gives something else than the target."""
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
            "class": f"{len(target.classes)} classes",
            "number": "a number" if target.columns < 2 else f"{target.columns} numbers",
            "multilabel": f"{target.columns} labels",
        }[target.kind]
        name = "" if target.name is None else f"{target.name!r}: "
        size = "not trained" if trainer._engine is None else plural(trainer.layout.size, "parameter")
        return f"<TableModel of {name}{what} from {plural(len(self.schema.features), 'column')}, {size}>"

    # ---- what it is of ------------------------------------------------------------------------------------------

    @property
    def metadata(self) -> Mapping[str, Any]:
        """What was saved beside the model."""
        return self.trainer.metadata

    @metadata.setter
    def metadata(self, value: Mapping[str, Any]) -> None:
        self.trainer.metadata = value

    @property
    def classes_(self) -> Any:
        """The classes, in the order of the columns of `predict_proba`; of labels, their numbers."""
        if self.target.kind == "multilabel":
            return np.arange(self.target.columns)
        if self.target.kind != "class":
            raise AttributeError("a model of quantities has no classes")
        return self.target.array()

    @property
    def feature_names_in_(self) -> Any:
        """Names of the columns that it looks at."""
        if not self.schema.named:
            raise AttributeError("the model was trained on a table without names")
        return np.array(self.schema.names, dtype=object)

    @property
    def n_features_in_(self) -> int:
        """How many columns it looks at."""
        return len(self.schema.features)

    @property
    def target_name(self) -> str | None:
        """Of the column that is predicted, where it has a name."""
        return self.target.name

    # ---- use ----------------------------------------------------------------------------------------------------

    def predict(self, table: Any, *, batch_size: int = ROWS) -> Any:
        """For every row its label, or its quantity in the target's own unit: (rows,), or (rows, columns) of several.

        A loss of several quantiles gives a column for each.  `batch_size` bounds the rows that are computed at a time.
        """
        return _joined([self.target.decode(some, self.trainer.loss) for some in self._batches(table, batch_size)])

    def predict_proba(self, table: Any, *, batch_size: int = ROWS) -> Any:
        """(rows, classes) probabilities, the classes in the order of `classes_`; or (rows, labels).

        Raises OptionError where the loss gives none, as that of quantities or hinge.
        """
        loss, found = self.trainer.loss, self._batches(table, batch_size)
        return _joined([self.target.probabilities(loss, some) for some in found])

    def outputs(self, table: Any, *, batch_size: int = ROWS) -> Any:
        """What the network itself gives: (rows, units), or (rows, members, units)."""
        return _joined(list(self._batches(table, batch_size)))

    def predict_deviation(self, table: Any, *, batch_size: int = ROWS) -> Any:
        """For every quantity its standard deviation, of a model with the loss gaussian_nll: (rows,) or (rows, columns).

        Of members it is that of the mixture of what they say.
        """
        if not isinstance(plain_loss(self.trainer.loss), GaussianNLL):
            raise OptionError(f"{self.trainer.loss} gives no deviation: train with gaussian_nll")
        return _joined([self._deviation(some) for some in self._batches(table, batch_size)])

    def _deviation(self, outputs: Any) -> Any:
        backend = backend_of(outputs)
        xp = backend.xp
        with backend.session(device=backend.device(outputs)):
            _, outputs = pooled(backend, self.trainer.loss, outputs)
            found = xp.exp(0.5 * xp.reshape(outputs, (outputs.shape[0], -1, 2))[:, :, 1])
            return found if self.target.columns else xp.reshape(found, (-1,))

    def predict_quantiles(self, table: Any, quantiles: Sequence[float] | None = None) -> Any:
        """Quantiles of each row's quantity: (rows, quantiles), or (rows, columns, quantiles).

        With the loss "quantile" those that were learnt, with "gaussian_nll" any: see `distributions.quantiles`.
        """
        outputs = self.outputs(table)
        return self._shaped(distributions.quantiles(backend_of(outputs), self.trainer.loss, outputs, quantiles))

    def calibrate(self, table: Any, y: Any = None) -> "TableModel":
        """Find out by rows that it was not trained on how far off it is, for `predict_interval` and `predict_set`.

        y is as of `evaluate`.  What is found out is kept in `settings`, and so in files.
        """
        frame, loss = Frame.of(table), self.trainer.loss
        outputs = self.outputs(frame)
        target = self.target.encode(self.answers(frame, y), loss, like=outputs)
        xp = backend_of(outputs).xp
        if self.target.kind == "number":
            scores = calibration.interval_scores(loss, outputs, xp.reshape(target, (outputs.shape[0], -1)))
        elif self.target.kind == "class":
            p = self.target.probabilities(loss, outputs)
            codes = xp.astype(target, xp.int64)
            codes = codes if codes.ndim == 1 else codes[:, 0] if codes.shape[1] == 1 else xp.argmax(codes, axis=1)
            scores = calibration.set_scores(p, codes, self.trainer.seed)
        else:
            raise OptionError("calibrate is for one label a row, of which a set holds the true one; rows have several")
        self.settings = {**self.settings, "calibration": calibration.kept(scores)}
        return self

    def predict_interval(self, table: Any, coverage: float = 0.9) -> Any:
        """For every quantity the ends of an interval that holds it with that probability: (rows, 2) or (rows, columns,
        2).  It needs `calibrate`; see `calibration.intervals`."""
        if self.target.kind != "number":
            raise OptionError("predict_interval is for quantities; predict_set gives sets of classes")
        outputs = self.outputs(table)
        scores = calibration.restored(self.settings, outputs)
        return self._shaped(calibration.intervals(self.trainer.loss, outputs, scores, coverage))

    def predict_set(self, table: Any, coverage: float = 0.9, method: str = "lac") -> Any:
        """Which classes each row may be of, its true one with that probability: (rows, classes) of True and False.

        It needs `calibrate`; `method` is "lac" or "aps", see `conformal.label_scores`.
        """
        if self.target.kind != "class":
            raise OptionError("predict_set is for classes; predict_interval gives intervals of quantities")
        p = self.predict_proba(table)
        scores = calibration.restored(self.settings, p)
        return calibration.sets(p, scores, coverage, method, self.trainer.seed)

    def _shaped(self, values: Any) -> Any:
        """(rows, columns, ...), of a target that is one column without that axis."""
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
        """The loss over the rows, the accuracy of a loss of classes, and `metrics`, as `Trainer.evaluate` has them.

        y is a vector, or (rows, columns); None for the columns of the table that are called as the target.
        """
        frame = Frame.of(table)
        x = self.inputs(frame)
        y = self.target.encode(self.answers(frame, y), self.trainer.loss, like=self.trainer.theta)
        with self._named(frame, x, 0):
            return self.trainer.evaluate(x, y, sample_weight=sample_weight, batch_size=batch_size, metrics=metrics)

    def answers(self, table: Any, y: Any = None) -> Any:
        """y, or the name of a column of the table, or None for those that are called as the target."""
        if y is not None and not isinstance(y, str):
            return y
        names = (y,) if isinstance(y, str) else self.target.names
        if not names:
            raise DataError("y is missing: the target has no name by which it could be found in the table")
        frame = Frame.of(table)
        return frame.coded(names[0]) if len(names) == 1 else frame.select(names)

    def inputs(self, table: Any) -> Any:
        """What the network takes for the rows of a table, where its parameters lie."""
        frame = Frame.of(table)
        return self._placed(self.schema.encode(frame), frame)

    # ---- batches ------------------------------------------------------------------------------------------------

    def _batches(self, table: Any, batch_size: int) -> Iterator[Any]:
        """The network's outputs for some rows after others."""
        size, frame = whole("batch_size", batch_size, 1), Frame.of(table)
        if frame.rows == 0:
            raise DataError(f"{frame.what} has no rows")
        encoder, moves, own = self.schema.encoder(frame), self._moves(frame), self.trainer.backend
        for start in range(0, frame.rows, size):
            x = encoder(slice(start, start + size))
            on_host = backend_of(next(iter(x.values())) if isinstance(x, dict) else x).name == "numpy"
            x = self._placed(x, frame, start)
            with self._named(frame, x, start):
                found = self.trainer.predict(x)
            yield own.to_host(found) if moves and on_host else found

    def _moves(self, frame: Frame) -> bool:
        """Whether what is made of a table on the host goes to another library: not what was an array there itself."""
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
        """The rows x of a table, from `start` on, as the network takes them: in its shape and type, where it is."""
        if isinstance(x, dict):
            return {name: self._converted(array, frame, start) for name, array in x.items()}
        x, shape = self._converted(x, frame, start), self.trainer.layout.in_shape
        return x if len(shape) == 1 else backend_of(x).xp.reshape(x, (x.shape[0], *shape))

    def _converted(self, x: Any, frame: Frame, start: int) -> Any:
        """In the parameters' type, and where these are if it moves."""
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

        `metadata` is anything of yours that JSON can hold.  Raises as `Trainer.save` does.
        """
        from bpnet.files.model import write_checkpoint

        table = {"schema": self.schema.describe(), "target": self.target.describe(), "settings": dict(self.settings)}
        write_checkpoint(path, replace(self.trainer._checkpoint(metadata), table=table))

    def summary(self) -> str:
        """The columns and how they are read, what is learnt, and the network."""
        columns = [(feature.name, feature.kind, feature.details) for feature in self.schema.features]
        widths = [max(len(row[i]) for row in columns) for i in range(2)]
        lines = [repr(self)]
        if self.target.classes:
            lines.append(f"classes: {some(self.target.classes)}")
        lines += [f"  {name:{widths[0]}}  {kind:{widths[1]}}  {more}".rstrip() for name, kind, more in columns]
        return Text("\n".join([*lines, repr(self.trainer.network), f"loss: {self.trainer.loss}"]))


def restored(table: Any, trainer: Trainer) -> TableModel:
    """The model that a file's entry describes, around its trainer."""
    if not isinstance(table, dict) or not isinstance(table.get("settings"), dict):
        raise FileFormatError("the entry of the table is none")
    schema, target = Schema.restore(table["schema"]), Target.restore(table["target"])
    return TableModel(schema, target, trainer, table["settings"])


def _joined(parts: list[Any]) -> Any:
    if len(parts) == 1:
        return parts[0]
    return backend_of(parts[0]).xp.concat(parts) if not isinstance(parts[0], np.ndarray) else np.concatenate(parts)
