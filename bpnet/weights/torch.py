"""Weights from and to PyTorch, whose layers have other names for them, and the units of a weight first."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from bpnet.backends import get
from bpnet.errors import ArgumentError, OptionError, ShapeError, kind_of
from bpnet.export.models import exported
from bpnet.export.torch_module import CONSTANTS
from bpnet.export.units import Entry, Unit, units_of
from bpnet.weights.matching import Theirs, paired, set_values, to_host

if TYPE_CHECKING:
    from bpnet.tabular.model import TableModel
    from bpnet.trainer import Trainer

FOLDED = ".parametrizations."
"""What stands between a layer's name and those of what its weight is made from."""
COUNTER = "num_batches_tracked"
"""Of a BatchNorm, of which momentum has no use."""


def from_torch(
    model: "Trainer | TableModel", state_dict: Mapping[str, Any], names: Mapping[str, str | None] | None = None
) -> Any:
    """Give a network the weights of a PyTorch module that computes the same; returns the trainer or table's model.

        module = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))     # trained
        net = bp.Sequential(bp.Dense(128, "relu"), bp.Dense(10))
        trainer = bp.Trainer(net, loss="cross_entropy").build(x)
        bp.files.from_torch(trainer, module.state_dict())

    Linear, Bilinear, BatchNorm1d with its running statistics, LayerNorm, GroupNorm, RMSNorm, Embedding, PReLU, and
    Linear with `weight_norm` or `spectral_norm` have the values of `Dense` (whose activation may be a PReLU),
    `Bilinear` and so on; any other layer, such as one of your own, those of the same names and shapes.

    Parameters
    ----------
    model : a trainer that has parameters (`build`), a table's model, a fitted estimator, or a path of a saved one
    state_dict : what `module.state_dict()` gives, or the module; a dict of any library's arrays will do
    names : {path of a layer here: name of the module's} for layers that are not in the same order in both, such as
        {"0": "encoder.fc1"}; None in the place of a name leaves a layer as it is, and all others are taken in order

    Numbers become those of the trainer's type.  The optimizer begins anew.  Options that are no weights, such as
    epsilon, are not in a state_dict: see that they are the same (a BatchNorm's momentum here is 1 - momentum there).

    Raises ShapeError where layers, their values or shapes differ, and names both sides, UnknownNameError where `names`
    has a name that is nobody's, DataError where values are NaN or too large for the trainer's type, and NotBuiltError
    without parameters.  Nothing has changed then.
    """
    own = exported(model)
    made: dict[str, Any] = {}
    for unit, theirs in paired(units_of(own.trainer.layout), _layers(state_dict), names, "the state_dict", _matched):
        for value, name in _matched(unit, theirs):
            array = value.of_torch(theirs.arrays[name])
            known = made.setdefault(value.slot.name, array)
            if known is not array and not (known == array).all():
                raise ShapeError(
                    f"layer {unit.path!r} is shared with {value.slot.name}, but {theirs.name!r} has other values"
                )
    return set_values(own, made)


def to_torch(
    model: "Trainer | TableModel",
    state_dict: Mapping[str, Any] | None = None,
    names: Mapping[str, str | None] | None = None,
) -> dict[str, Any]:
    """The weights of a network as tensors for a PyTorch module that computes the same: the way back of `from_torch`.

        module.load_state_dict(bp.files.to_torch(trainer, module.state_dict()))

    `state_dict`, that of the module, says the names, types and devices, and is matched as by `from_torch`, which says
    what it raises; entries that no layer here has, as of a BatchNorm's counter, are given back as they are.  Without
    it, names are made of this network's paths ("0.weight"), and tensors are on the processor.
    """
    torch, found = get("torch").xp, exported(model)
    values, units = found.parameters | found.buffers, units_of(found.trainer.layout)
    if state_dict is None:
        if names is not None:
            raise OptionError("names are given, but no state_dict with layers of those names: pass it too")
        return {
            ".".join(filter(None, (unit.path, value.torch[0]))): torch.asarray(
                value.to_torch(values[value.slot.name]).copy()
            )
            for unit in units
            for value in unit.values
        }
    state_dict = _checked(state_dict)
    own = dict(state_dict)
    for unit, theirs in paired(units, _layers(state_dict), names, "the state_dict", _matched):
        for value, name in _matched(unit, theirs):
            key = next(k for k in state_dict if _parted(k) == (theirs.name, name))
            like = state_dict[key]
            place = {"dtype": like.dtype, "device": like.device} if hasattr(like, "detach") else {}
            own[key] = torch.asarray(value.to_torch(values[value.slot.name]).copy(), **place)
    return own


def _checked(state_dict: Any) -> Mapping[str, Any]:
    given = state_dict.state_dict() if callable(getattr(state_dict, "state_dict", None)) else state_dict
    if not isinstance(given, Mapping) or not all(isinstance(key, str) for key in given):
        raise ArgumentError(f"state_dict is {kind_of(given)}; expected a module, or what its state_dict() gives")
    return given


def _parted(key: str) -> tuple[str, str]:
    """The name of a layer, and that of a value in it."""
    layer, folded, rest = f".{key}".partition(FOLDED)
    if folded:
        return layer[1:], folded[1:] + rest
    layer, _, name = key.rpartition(".")
    return layer, name


def _layers(state_dict: Any) -> list[Theirs]:
    """The layers that have values, in their order."""
    found: dict[str, dict[str, Any]] = {}
    for key, value in _checked(state_dict).items():
        layer, name = _parted(key)
        if name != COUNTER and layer != CONSTANTS:
            found.setdefault(layer, {})[name] = to_host(value, f"state_dict[{key!r}]")
    return [Theirs(name, arrays) for name, arrays in found.items()]


def _matched(unit: Unit, theirs: Theirs) -> list[tuple[Entry, str]]:
    """Each value of a unit with the name of the array that is its own; raises ShapeError."""
    pairs = [(value, name) for value in unit.values for name in value.torch if name in theirs.arrays]
    shapes = {name: tuple(array.shape) for name, array in theirs.arrays.items()}
    expected = {value.torch[0]: value.shape for value in unit.values}
    if len(pairs) == len(shapes) == len(unit.values) and all(shapes[name] == v.shape for v, name in pairs):
        return pairs
    wanted = ", ".join(f"{name} {shape}" for name, shape in expected.items())
    hint = ""
    if shapes.keys() == {"weight"} == expected.keys() and shapes["weight"] == (1,):
        hint = ": PReLU(shared=True) has one for all features"
    elif expected.keys() - shapes.keys() == {"bias"}:
        hint = ": Dense(..., bias=False) has no bias"
    raise ShapeError(
        f"{unit}, needs {wanted}; the state_dict has {theirs}{hint}. Layers are taken in order, but where "
        "names={'0': 'fc1', ...} says which belong together"
    )
