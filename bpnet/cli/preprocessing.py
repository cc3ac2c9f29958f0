"""What stands between the rows of a data set and a network: names of classes, scaling, and the type of the numbers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bpnet import CrossEntropy, Loss, MeanSquaredError, Standardize
from bpnet.backends import Array
from bpnet.cli.dataset import Dataset, check_finite
from bpnet.cli.terminal import names
from bpnet.errors import DataError, DTypeError, OptionError
from bpnet.registry import resolve

LOST = 1e-4
"""The part of a deviation that float32 may take off a value, before float64 is needed."""


@dataclass(frozen=True)
class Preprocessing:
    """How rows become arrays of `dtype` for a network, which has the scaling of both ends as layers of its own.

    `inputs` brings features to the scale of the weights, and `outputs` numbers back to the unit of the target.
    `needs_float64` says what float32 can't hold, if there is such a thing.
    """

    classes: list[Any] | None
    inputs: Standardize
    outputs: Standardize | None
    needs_float64: str | None
    dtype: Any


def choose_loss(name: str, dataset: Dataset) -> Loss:
    """The loss called `name`; "auto" is cross-entropy for classes and mean squared error for numbers."""
    kind = dataset.y.dtype.kind
    if name == "auto":
        return MeanSquaredError() if kind == "f" else CrossEntropy()
    loss = resolve(Loss, "loss", name)
    wants_classes = loss.labels or loss.boundary is not None
    if not wants_classes and not isinstance(loss, MeanSquaredError):
        raise OptionError(
            f"--loss is {name}, which is for programs in Python: here numbers are predicted by mse, classes by "
            "cross_entropy or focal, and two classes also by binary_cross_entropy, hinge and the like"
        )
    if wants_classes and kind == "f":
        raise DTypeError(f"the target of {dataset.name} holds numbers of type {dataset.y.dtype}: {name} needs classes")
    if not wants_classes and kind in "UO":
        raise DTypeError(f"the target of {dataset.name} is text: {name} needs numbers")
    return loss


def preprocess(dataset: Dataset, loss: Loss, rows: Array) -> Preprocessing:
    """The preprocessing for a data set of which `rows` are trained on."""
    classes = outputs = wide = None
    if loss.labels or loss.boundary is not None:
        classes = sorted(set(dataset.y.tolist()))
        if len(classes) < 2:
            raise DataError(f"the target of {dataset.name} has the single class {classes[0]!r}: expected at least two")
        if not loss.labels and len(classes) > 2:
            raise DataError(f"the target of {dataset.name} has {len(classes)} classes: {loss} distinguishes two")
    else:
        outputs, wide = scale_target(dataset, rows)
    inputs, too_wide = (dataset.scaling, None) if dataset.scaling else scale_features(dataset, rows)
    wide = wide or too_wide
    return Preprocessing(classes, inputs, outputs, wide, np.dtype(np.float64 if wide else np.float32))


def scale_target(dataset: Dataset, rows: Array) -> tuple[Standardize, str | None]:
    """What brings outputs to the unit of the target, one for all of them; and what float32 can't hold."""
    mean, deviation, lost = moments(dataset.y[rows])
    unit = math.hypot(*deviation) / math.sqrt(len(deviation)) or 1.0  # which squares nothing that overflows
    if not 1e-60 <= unit <= 1e60:
        raise DataError(
            f"the target of {dataset.name} has the deviation {unit:.3g}, of which float64 can't hold the powers that "
            "training takes: bring it between 1e-60 and 1e60, by a power of ten"
        )
    # under 1.9e-5, Adam's epsilon in this unit would be less than float32 gradients have squares for
    narrow = 2e-5 <= unit <= 1e7 and not np.any(lost > LOST * unit)
    outputs = Standardize(mean.tolist() if len(mean) > 1 else float(mean[0]), unit, invert=True)
    return outputs, None if narrow else f"the target of {dataset.name}"


def scale_features(dataset: Dataset, rows: Array) -> tuple[Standardize, str | None]:
    """What brings features to the mean 0 and the deviation 1, but for constant ones; and what float32 can't hold."""
    mean, deviation, lost = moments(dataset.x[rows])
    varies = deviation > 0.0
    for i in np.flatnonzero(varies & ((deviation < 1e-300) | (np.abs(mean) + deviation > 1e300))).tolist():
        raise DataError(
            f"{dataset.title(i)} has the mean {mean[i]:.3g} and the deviation {deviation[i]:.3g}, at the end of what "
            "float64 holds: multiply or divide it by a power of ten"
        )
    most = np.where(varies, LOST * deviation, np.finfo(np.float32).max)
    wide = next(map(dataset.title, np.flatnonzero(lost > most).tolist()), None)
    return Standardize(mean.tolist(), np.where(varies, deviation, 1.0).tolist()), wide


def moments(values: Array) -> tuple[Array, Array, Array]:
    """Mean and deviation of every column, 0 if it is constant, and the most that float32 takes off one of its values.

    The largest magnitude of a column is taken out before anything is squared, so that nothing overflows or vanishes.
    Columns are taken a few at a time, since each needs float64 copies.
    """
    values = values.reshape(len(values), -1)
    found = []
    for i in range(0, values.shape[1], step := max(1, (1 << 23) // len(values))):
        part = values[:, i : i + step].astype(np.float64)
        with np.errstate(all="ignore"):
            single = part.astype(np.float32)
            single[np.abs(single) < np.finfo(np.float32).smallest_normal] = 0.0  # as GPUs may do with subnormal numbers
            lost = np.abs(part - single).max(axis=0)
        exponent = np.frexp(np.abs(part).max(axis=0))[1]
        part = np.ldexp(part, -exponent)
        constant = part.min(axis=0) == part.max(axis=0)
        mean = np.ldexp(np.where(constant, part[0], part.mean(axis=0)), exponent)
        found.append((mean, np.ldexp(np.where(constant, 0.0, part.std(axis=0)), exponent), lost))
    mean, deviation, lost = map(np.concatenate, zip(*found, strict=True))
    return mean, deviation, lost


def convert(values: Array, dtype: Any, what: str) -> Array:
    """`values` of a type; raises DataError where it can't hold them."""
    with np.errstate(over="ignore"):
        array = np.ascontiguousarray(values, dtype=dtype)
    check_finite(array, f"{what} too large for {dtype}")
    return array


def targets_of(dataset: Dataset, loss: Loss, classes: Sequence[Any] | None, dtype: Any) -> Array:
    """The target as the loss takes it; `classes` are a classifier's."""
    y = dataset.y
    if classes is None:
        if y.dtype.kind in "UO":
            raise DTypeError(f"the target of {dataset.name} is text, but the model predicts numbers")
        if loss.labels and y.dtype.kind in "iub":
            return y
        return convert(y.reshape(len(y), -1), dtype, f"{dataset.name} has a target")
    number = {name: i for i, name in enumerate(classes)}
    for value in (values := y.tolist()):
        if isinstance(value, list) or value not in number:  # numbers of several outputs are no classes either
            known = names(map(repr, classes))
            raise DataError(f"the target of {dataset.name} has the class {value!r}; the model knows {known}")
    labels = np.asarray([number[value] for value in values], dtype=np.int32)
    return labels if loss.labels else labels[:, None].astype(dtype)
