"""Arrays that keep record: each carries a value of NumPy as an example, and functions of it are noted."""

from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import array_api_compat.numpy as library
import numpy

from bpnet.backends import get, register
from bpnet.backends.base import Backend
from bpnet.backends.interrupts import NoWarnings
from bpnet.compiler.trace import DEPENDENT, reason
from bpnet.compiler.trace import mapped as mapped_leaves
from bpnet.errors import BpnetError, ExportError, kind_of


@dataclass
class Note:
    function: str
    args: tuple[Any, ...]
    options: dict[str, Any]
    result: Any
    layer: str
    where: str
    """How an error about it begins."""


current: ContextVar["Recorder"] = ContextVar("recorder")


class Recorder:
    """One call of a function, for one number of rows."""

    def __init__(self, erf: bool) -> None:
        self.notes: list[Note] = []
        self.arrays: list[Recorded] = []
        self.outputs: dict[str, Recorded] = {}
        self.places: list[tuple[str, Any, int]] = []  # of layers that are at work: path, layer, children that were
        self.erf = erf

    def run(
        self, function: Callable[..., Any], values: Mapping[str, Any], inputs: Mapping[str, Any], rows: int
    ) -> "Recorder":
        token = current.set(self)
        try:
            x = [self.array(name, make(rows)) for name, make in inputs.items()]
            given = {name: self.array(name, numpy.asarray(value)) for name, value in values.items()}
            with NoWarnings():
                found = function(BACKEND, given, *x)
            self.outputs = {name: _wrapped(value) for name, value in found.items()}
        except ExportError as error:
            raise ExportError(f"{self.where}{error}") from error.__cause__
        except BpnetError:
            raise
        except Exception as error:  # whatever a layer does that arrays can and these can't
            raise ExportError(f"{self.where}{reason(error)}") from error
        finally:
            current.reset(token)
        return self

    @property
    def where(self) -> str:
        """The layer at work, for an error."""
        path, layer, _ = next(((p, la, n) for p, la, n in reversed(self.places) if p), ("", None, 0))
        return f"layer {path!r} ({type(layer).__name__}) can't be exported: " if path else ""

    def array(self, name: str, value: Any) -> "Recorded":
        made = Recorded(len(self.arrays), name, value)
        self.arrays.append(made)
        return made

    def note(self, function: str, args: tuple[Any, ...], options: dict[str, Any], result: Any) -> Any:
        layer = self.places[-1][0] if self.places else ""
        found = mapped(lambda leaf: self.array("", leaf) if isinstance(leaf, numpy.ndarray) else leaf, result)
        self.notes.append(Note(function, args, options, found, layer, self.where))
        return found

    def entered(self, layer: Any) -> tuple[str, Any, int]:
        """Where a layer stands that is called now: the next of the children of the one at work that it is."""
        if not self.places:
            return "", layer, 0
        path, parent, seen = self.places[-1]
        children = list(getattr(parent, "children", ()))
        for i in (*range(seen, len(children)), *range(seen)):
            if children[i][1] is layer:
                self.places[-1] = path, parent, i + 1
                return f"{path}.{children[i][0]}".lstrip("."), layer, 0
        return path, layer, 0


def recorder_at_work() -> Recorder:
    try:
        return current.get()
    except LookupError:
        raise ExportError("an array that was recorded is used after its recording") from None


class _Placed:
    """A layer, of which is noted where it stands while it is called."""

    def __init__(self, layer: Any) -> None:
        self.layer = layer

    def __getattr__(self, name: str) -> Any:
        return getattr(self.layer, name)

    def forward(self, run: Any, *args: Any) -> Any:
        recorder = recorder_at_work()
        recorder.places.append(recorder.entered(self.layer))
        result = self.layer.forward(run, *args)
        recorder.places.pop()  # after an error it stays, to say where
        return result


class Recorded:
    """An array of NumPy, and its number among those of a recording; functions of it are noted."""

    __slots__ = ("id", "name", "value")
    __array_ufunc__ = None  # so that NumPy's arrays leave operators to it

    def __init__(self, id: int, name: str, value: Any) -> None:
        self.id, self.name, self.value = id, name, value

    def __repr__(self) -> str:
        return f"<recorded {self.value.dtype}{list(self.value.shape)}>"

    shape = property(lambda self: self.value.shape)
    dtype = property(lambda self: self.value.dtype)
    ndim = property(lambda self: self.value.ndim)
    size = property(lambda self: self.value.size)
    device = property(lambda self: "cpu")
    T = property(lambda self: _called("permute_dims", self, (1, 0)))
    mT = property(lambda self: _called("matrix_transpose", self))

    def __array_namespace__(self, api_version: str | None = None) -> "Namespace":
        return NAMESPACE

    def __getattr__(self, name: str) -> Any:
        hint = f": write xp.{name}(x, ...)" if hasattr(library, name) else ""
        raise AttributeError(f"arrays of the standard have no {name!r}{hint}")

    def __len__(self) -> int:
        return len(self.value)

    def __getitem__(self, index: Any) -> Any:
        masks = [
            i for i in (index if isinstance(index, tuple) else (index,)) if getattr(i, "dtype", None) in (numpy.bool,)
        ]
        if masks:
            raise ExportError("a mask selects rows, so that shapes depend on values: use xp.where")
        return _called("getitem", self, index)

    def __setitem__(self, index: Any, value: Any) -> None:
        raise ExportError("an array is changed in place: use xp.where or xp.concat")

    def _looked_at(self, *args: Any, **options: Any) -> Any:
        raise ExportError("it looks at values, but what is recorded has to hold for all: use xp.where")

    __bool__ = __int__ = __float__ = __complex__ = __index__ = __array__ = _looked_at


def _operator(function: str, reflected: bool) -> Callable[[Recorded, Any], Any]:
    def apply(self: Recorded, other: Any) -> Any:
        if not isinstance(other, Recorded | numpy.ndarray | numpy.generic | bool | int | float):
            return NotImplemented
        return _called(function, other, self) if reflected else _called(function, self, other)

    return apply


_OPERATORS = {
    "add": "add", "sub": "subtract", "mul": "multiply", "truediv": "divide", "floordiv": "floor_divide",
    "mod": "remainder", "pow": "pow", "matmul": "matmul", "and": "bitwise_and", "or": "bitwise_or",
    "xor": "bitwise_xor", "lshift": "bitwise_left_shift", "rshift": "bitwise_right_shift",
}  # fmt: skip
_COMPARISONS = {
    "eq": "equal", "ne": "not_equal", "lt": "less", "le": "less_equal", "gt": "greater", "ge": "greater_equal",
}  # fmt: skip

for _name, _standard in _OPERATORS.items():
    setattr(Recorded, f"__{_name}__", _operator(_standard, False))
    setattr(Recorded, f"__r{_name}__", _operator(_standard, True))
for _name, _standard in _COMPARISONS.items():
    setattr(Recorded, f"__{_name}__", _operator(_standard, False))
for _name, _standard in {"neg": "negative", "pos": "positive", "abs": "abs", "invert": "bitwise_invert"}.items():
    setattr(Recorded, f"__{_name}__", lambda self, function=_standard: _called(function, self))
Recorded.__hash__ = object.__hash__  # type: ignore[method-assign]


class Namespace:
    """The standard's namespace as NumPy has it, whose functions note that they were called."""

    __name__ = "bpnet.export.record"

    def __init__(self, module: Any, prefix: str = "") -> None:
        self._module, self._prefix = module, prefix

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._module, name)
        if isinstance(found, ModuleType):
            return Namespace(found, f"{self._prefix}{name}.")
        if not callable(found) or isinstance(found, type) or name.startswith("__"):
            return found
        if name in ("finfo", "iinfo", "isdtype", "result_type", "can_cast", "broadcast_shapes"):
            return lambda *args, **options: found(*mapped(_plain, args), **options)
        if name.startswith(DEPENDENT):
            raise ExportError(f"{name} gives other shapes for other values")
        return lambda *args, **options: _called(f"{self._prefix}{name}", *args, **options)


NAMESPACE = Namespace(library)


def _called(name: str, *args: Any, **options: Any) -> Any:
    """The function's result for the example values, noted."""
    args, options = mapped(_argument, (args, options))
    values, more = mapped(_plain, (args, options))
    result = mapped(
        lambda leaf: numpy.asarray(leaf) if isinstance(leaf, numpy.generic) else leaf,
        function_of(name)(*values, **more),
    )
    if not any(isinstance(leaf, numpy.ndarray) for leaf in leaves_of(result)):
        return result
    return recorder_at_work().note(name, args, options, result)


def function_of(name: str) -> Callable[..., Any]:
    if name == "getitem":
        return lambda x, index: x[index]
    if name == "erf":
        return get("numpy").erf
    found: Any = library
    for part in name.split("."):
        found = getattr(found, part)
    return found  # type: ignore[no-any-return]


def _argument(leaf: Any) -> Any:
    """An argument as it is noted."""
    if isinstance(leaf, numpy.ndarray | numpy.generic) or (isinstance(leaf, type) and issubclass(leaf, numpy.generic)):
        return numpy.dtype(leaf) if isinstance(leaf, type) else numpy.asarray(leaf)
    if leaf is None or isinstance(leaf, Recorded | numpy.dtype | bool | int | float | str | type(Ellipsis)):
        return leaf
    raise ExportError(f"a function is given an argument {kind_of(leaf)}")


def _plain(leaf: Any) -> Any:
    return leaf.value if isinstance(leaf, Recorded) else leaf


def _wrapped(value: Any) -> Recorded:
    if not isinstance(value, Recorded):
        raise ExportError(f"an output is {kind_of(value)}; expected an array of the recording")
    return value


def mapped(function: Callable[[Any], Any], tree: Any) -> Any:
    """The tree of tuples, lists and dicts with every leaf replaced, in order; parts of slices are leaves."""

    def leaf(value: Any) -> Any:
        if isinstance(value, slice):
            return slice(*(function(part) for part in (value.start, value.stop, value.step)))
        return function(value)

    return mapped_leaves(leaf, tree)


def leaves_of(tree: Any) -> list[Any]:
    found: list[Any] = []
    mapped(found.append, tree)
    return found


class RecordingBackend(Backend):
    """The seam as layers see it while they are recorded: every definition as it stands."""

    name = "recording"
    traces = True

    def __reduce__(self) -> tuple[Any, ...]:
        return _backend, ()

    def device(self, x: Any) -> Any:
        return "cpu"

    def outline(self, part: Any) -> Any:
        return _Placed(part)

    def erf(self, x: Any) -> Any:
        return _called("erf", x) if recorder_at_work().erf else super().erf(x)

    def _random(self, *args: Any, **options: Any) -> Any:
        raise ExportError("it draws random numbers while predicting")

    keep_mask = uniform = normal = _random


BACKEND = RecordingBackend(NAMESPACE)
register(Recorded, BACKEND)


def _backend() -> RecordingBackend:
    return BACKEND
