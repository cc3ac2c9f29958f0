"""The network for a table, and its training: from what the columns are and what the user wants."""

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bpnet.backends import Array, backend_of
from bpnet.backends.numpy import can_compile
from bpnet.errors import DataError, OptionError
from bpnet.layer import Layer
from bpnet.layers.activation import Activation
from bpnet.layers.categorical import CategoricalInput
from bpnet.layers.composition import Sequential
from bpnet.layers.numeric import NumericInput
from bpnet.layers.tabular import TabularInput
from bpnet.layout import layout_of
from bpnet.losses.base import Loss
from bpnet.losses.binary import BinaryCrossEntropy
from bpnet.losses.classes import CrossEntropy
from bpnet.losses.members import Members
from bpnet.losses.regression import MeanSquaredError
from bpnet.optimizers.base import Optimizer
from bpnet.registry import resolve
from bpnet.tabular.frames import Frame
from bpnet.tabular.networks import Recipe, strong, table_network
from bpnet.tabular.options import TrainingOptions
from bpnet.tabular.scaling import Output, needs_float64
from bpnet.tabular.schema import Schema
from bpnet.tabular.sizing import Size
from bpnet.tabular.target import Target
from bpnet.trainer import Trainer

BLOCK = 1 << 16
"""Rows that are encoded at a time."""
FEW = 8
"""Known values up to which a category is one-hot; of more each has so many trained numbers."""
CLIP = 3.0
"""Of the smooth clip of numbers, in which outliers lose their pull (Holzmueller et al. 2024)."""


@dataclass(frozen=True)
class Design:
    """A network and how it is trained."""

    network: Layer
    loss: Loss
    optimizer: Optimizer
    recipe: Recipe | None = None

    @property
    def monitor(self) -> str:
        """The quantity of whose best epoch the parameters are kept."""
        return "val_loss" if self.recipe is None else self.recipe.monitor

    def compiles(self, x: Any, options: TrainingOptions) -> bool | str:
        """What `Trainer` is told: a preset takes so many steps that compiling pays from the first one on."""
        on_host = (
            isinstance(next(iter(x.values())) if isinstance(x, dict) else x, np.ndarray) and options.device is None
        )
        at_once = self.recipe is not None and options.compile == "auto" and on_host and can_compile()
        return True if at_once else options.compile

    def start(self, trainer: Trainer, x: Any) -> None:
        """Give parameters the start values that depend on data."""
        if self.recipe is not None:
            self.recipe.start(trainer, x)


def design_of(
    schema: Schema,
    x: Any,
    goal: Target,
    output: Output,
    size: Size,
    options: TrainingOptions,
    gaps: Collection[str] | None = None,
) -> Design:
    """The design for rows x that are trained on; raises OptionError where the network is more than the memory.

    `gaps` are the columns that have some, where x are a sample of the rows.
    """
    numbers, categories = input_layers(schema, x, gaps)
    units = goal.outputs(output.loss)
    if options.preset is not None:
        plain = isinstance(output.loss, MeanSquaredError) or output.loss == CrossEntropy()
        recipe = strong(
            numbers,
            categories,
            units,
            task="regression" if goal.kind == "number" else "classification",
            loss=None if plain else output.loss,
            out_scale=output.layer,
            out_range=output.range if plain else None,
            members=options.ensemble,
            simple=options.preset == "simple",
            epochs=size.epochs,
            batch_size=size.batch_size,
        )
        return Design(_ending(recipe.network, output.loss), recipe.loss, recipe.optimizer, recipe)
    inputs = TabularInput(numbers, categories) if numbers and categories else numbers or categories
    network = table_network(
        inputs,
        units,
        hidden=size.hidden,
        activation=options.activation,
        dropout=size.dropout,
        members=options.ensemble,
        out_scale=output.layer,
    )
    network = _ending(network, output.loss)
    loss = output.loss if options.ensemble is None else Members(output.loss)
    check_memory(network, x)
    return Design(network, loss, options.rule(size.epochs, output.factor))


def _ending(network: Sequential, loss: Loss) -> Sequential:
    """The network, ending as the loss needs it: with probabilities where it is of these."""
    if not isinstance(loss, BinaryCrossEntropy):
        return network
    return Sequential(*network.layers, resolve(Activation, "activation", "sigmoid"))


def input_layers(
    schema: Schema, x: Any, gaps: Collection[str] | None = None
) -> tuple[NumericInput | None, CategoricalInput | None]:
    """The layers for the columns of numbers and of categories."""
    numbers = categories = None
    if schema.n_numbers:
        x = x["numbers"] if isinstance(x, dict) else x
        missing = None
        if gaps is not None:
            missing = [i for i, owner in enumerate(schema.owners) if schema.features[owner].name in gaps]
        numbers = NumericInput.fit(x, "robust", clip=CLIP, missing=missing)
    if schema.entries:
        widths = [0 if entries - 2 <= FEW else FEW for entries in schema.entries]
        categories = CategoricalInput(schema.entries, widths)
    return numbers, categories


def check_memory(network: Layer, x: Any) -> None:
    """Raise OptionError where the network, and what it takes to train it, is more than the memory."""
    shape = {name: tuple(a.shape[1:]) for name, a in x.items()} if isinstance(x, dict) else tuple(x.shape[1:])
    size = layout_of(network, shape).size
    try:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # the system does not say
        return
    holds = memory // 32  # start values, parameters, gradient, the optimizer's state, and something to work with
    if size > holds:
        raise OptionError(f"hidden makes a network of {size:,} parameters; this machine has memory for {holds:,}")


# ---- rows as arrays -------------------------------------------------------------------------------------------------


def check_finite(frame: Frame) -> None:
    """Raise DataError where a number of an array, which is taken as it is, is infinite."""
    matrix = frame.matrix
    if matrix is None:
        return
    backend = backend_of(matrix)
    xp = backend.xp
    if not xp.isdtype(matrix.dtype, "real floating"):
        return
    for start in range(0, frame.rows, BLOCK):
        wrong = xp.isinf(matrix[start : min(start + BLOCK, frame.rows), ...])
        if bool(xp.any(wrong)):
            wrong = backend.to_host(wrong)
            row, column = np.argwhere(wrong)[0].tolist()
            where = f"column {frame.names[column]!r} of {frame.what} is infinite in row {start + row}"
            raise DataError(f"{where}: a missing value is NaN, others are finite numbers")


def wide_column(frame: Frame, schema: Schema, rows: Array) -> str | None:
    """The name of a column of an array of numbers, which are taken as they come, that float32 can't hold."""
    matrix = frame.matrix
    if matrix is None or not schema.plain or not isinstance(matrix, np.ndarray) or matrix.dtype.itemsize <= 2:
        return None
    if matrix.dtype == np.float32:
        return None
    return needs_float64(matrix[rows], [f"column {name!r} of {frame.what}" for name in frame.names])


def encoded(schema: Schema, frame: Frame, parts: Sequence[Array]) -> list[Any]:
    """What the network takes for some rows of a table, for each of several lots; encoded block by block."""
    encoder = schema.encoder(frame)
    x = encoder(slice(0, 1))
    if not all(isinstance(array, np.ndarray) for array in (x.values() if isinstance(x, dict) else (x,))):
        x = encoder(slice(None))  # on its device
        return [take(x, rows) for rows in parts]
    lot, place = np.full(frame.rows, -1, dtype=np.int8), np.empty(frame.rows, dtype=np.int64)
    for i, rows in enumerate(parts):
        lot[rows], place[rows] = i, np.arange(len(rows))
    found: list[Any] = []
    for start in range(0, frame.rows, BLOCK):
        some = slice(start, start + BLOCK)
        x = encoder(some)
        arrays = x if isinstance(x, dict) else {"": x}
        if not found:
            found = [
                {n: np.empty((len(rows), a.shape[1]), _dtype(a, schema)) for n, a in arrays.items()} for rows in parts
            ]
        for i in range(len(parts)):
            of_lot = lot[some] == i
            for name, array in arrays.items():
                found[i][name][place[some][of_lot]] = array[of_lot]
    return [made.get("", made) for made in found]


def _dtype(array: Array, schema: Schema) -> Any:
    return schema.dtype if array.dtype.kind == "f" else array.dtype


def take(x: Any, rows: Array) -> Any:
    """Some rows of an array, or of several."""
    if isinstance(x, dict):
        return {name: take(array, rows) for name, array in x.items()}
    if isinstance(x, np.ndarray):
        return x[rows]
    backend = backend_of(x)
    index = backend.from_host(np.asarray(rows, dtype=np.int64), None, backend.device(x))
    return backend.xp.take(x, index, axis=0)


def first_rows(x: Any) -> Any:
    """A row or a few, of which a trainer learns shapes and types."""
    return {name: array[:1, ...] for name, array in x.items()} if isinstance(x, dict) else x[:1, ...]
