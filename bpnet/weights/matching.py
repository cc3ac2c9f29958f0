"""Which arrays of another library belong to which layers of a network: by names, or in their order."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bpnet.backends import backend_of
from bpnet.errors import (
    ArgumentError,
    ArrayMismatchError,
    DataError,
    DTypeError,
    ShapeError,
    UnknownNameError,
    kind_of,
    plural,
    shown,
)
from bpnet.export.models import Exported
from bpnet.export.units import Unit


@dataclass(frozen=True)
class Theirs:
    """A layer of the other library: its name, and its arrays by theirs."""

    name: str
    arrays: Mapping[str, Any]

    def __str__(self) -> str:
        return f"{self.name!r} with {', '.join(f'{n} {tuple(a.shape)}' for n, a in self.arrays.items())}"


def paired(
    units: Sequence[Unit],
    theirs: Sequence[Theirs],
    names: Mapping[str, str | None] | None,
    what: str,
    check: Callable[[Unit, Theirs], Any],
) -> list[tuple[Unit, Theirs]]:
    """Each unit with the layer whose arrays are its own: by `names`, and the others in their order.

    `check` raises ShapeError where two don't fit.  Raises UnknownNameError where a name is no unit's or layer's, and
    ShapeError where two don't fit, or the numbers of both differ.
    """
    names = {} if names is None else names
    if not isinstance(names, Mapping):
        raise ArgumentError(f"names is {kind_of(names)}; expected a dict of layers' paths, and what {what} calls each")
    for path, name in names.items():
        if not isinstance(path, str) or not isinstance(name, str | None):
            raise ArgumentError(f"names has {shown(path)}: {shown(name)}; expected text, or None for the second")
    own, other = {unit.path: unit for unit in units}, {layer.name: layer for layer in theirs}
    for path, name in names.items():
        if path not in own:
            raise UnknownNameError("layer of the network", path, own)
        if name is not None and name not in other:
            raise UnknownNameError(f"layer of {what}", name, other)
    pairs = {path: other[name] for path, name in names.items() if name is not None}
    taken = {layer.name for layer in pairs.values()}
    left, rest = [u for u in units if u.path not in names], [layer for layer in theirs if layer.name not in taken]
    if len(left) != len(rest):
        left = [unit for unit in left if unit.first]
    for unit, layer in zip(left, rest, strict=False):
        check(unit, layer)
    if len(left) != len(rest):
        ours, other_ones = left[len(rest) :], rest[len(left) :]
        over = str(ours[0]) if ours else f"{other_ones[0]} in {what}"
        raise ShapeError(
            f"the network has {plural(len(left), 'layer')} with values, {what} has {len(rest)}: nothing belongs to "
            f"{over}. Write the same layers in both, or say by names={{'0': 'fc1', ...}} which belong together; None "
            "leaves a layer as it is"
        )
    pairs |= {unit.path: layer for unit, layer in zip(left, rest, strict=True)}
    return [(unit, pairs[unit.path]) for unit in units if unit.path in pairs]


def set_values(model: Exported, arrays: Mapping[str, Any]) -> Any:
    """Set the parameters and buffers of these names; the others stay, and the optimizer's state begins anew.

    It gives the trainer, or the model of tables that it is in.
    """
    trainer = model.trainer
    layout, backend = trainer.layout, trainer.backend
    for name, array in arrays.items():
        if np.isnan(array).any():
            raise DataError(f"what is given for {name} has NaN among its values")
    like, place = trainer.theta, backend.device(trainer.theta)
    dtype = np.float32 if like.dtype == backend.xp.float32 else np.float64
    for name, array in arrays.items():
        with np.errstate(over="ignore"):
            if (np.isinf(array.astype(dtype)) & ~np.isinf(array)).any():
                raise DataError(f"what is given for {name} has values that are too large for the trainer's float32")
    vectors = []
    for slots, known in ((layout.parameters, model.parameters), (layout.buffers, model.buffers)):
        values = [np.reshape(arrays.get(slot.name, known[slot.name]), slot.size) for slot in slots]
        vectors.append(backend.from_host(np.concatenate([np.empty(0, np.float32), *values]), like.dtype, place))
    theta, buffers = vectors
    trainer.parameters = layout.views(backend, theta)
    (new, _, state), count = trainer.snapshot()
    trainer.restore(((new, buffers, state), count))
    return model.table or trainer


def to_host(value: Any, what: str) -> Any:
    """A NumPy array of float32 or float64 from anybody's array.

    Raises ArgumentError or ArrayMismatchError where it is none, and DTypeError where it does not hold numbers.
    """
    if isinstance(value, list | tuple | float | int):
        raise ArgumentError(f"{what} is {kind_of(value)}; expected an array")
    backend = backend_of(value, what)
    unfit = backend.unfit(value)
    if unfit is not None:
        raise ArrayMismatchError(f"{what} is {unfit}")
    if not backend.xp.isdtype(value.dtype, ("real floating", "integral", "bool")):
        raise DTypeError(f"{what} holds {value.dtype} values; expected numbers")
    value = backend.detach(value)
    if value.dtype not in (backend.xp.float32, backend.xp.float64):  # of which some are none of NumPy's
        value = backend.xp.astype(value, backend.xp.float32)
    return np.asarray(backend.to_host(value))
