"""A trained network as a module of PyTorch, which knows nothing of bpnet any more."""

import builtins
import keyword
import operator
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy

from bpnet.backends import get
from bpnet.errors import ExportError
from bpnet.export.models import exported
from bpnet.export.patterns import joined
from bpnet.export.record import Operation, Program, Rows, Value
from bpnet.export.recording import leaves_of, mapped
from bpnet.export.units import Unit, units_of


def to_torch_module(model: Any) -> Any:
    """A `torch.nn.Module` that computes what a trained network does when it predicts.

        module = bp.files.to_torch_module(trainer)
        module(torch.asarray(x))                       # what trainer.predict(x) gives
        torch.save(module, "network.pt")               # loaded where there is no bpnet

    It is a `torch.fx.GraphModule` of PyTorch's own functions, of any number of rows: `print(module.code)` shows them.
    Its parameters can be trained.  They have the paths of their layers here, and the names and shapes that PyTorch's
    layers of that kind give them ("0.weight", "1.running_mean"), as `to_torch` does; so `from_torch` brings back what
    was trained there.  A `Dense` layer is an `nn.Linear`.  Values that are kept but not trained are parameters that
    ask for no gradient.  A network that takes several arrays is given each as an argument, in their order.

    It always predicts: there is no dropout, and a BatchNorm has its running mean and variance, which nothing changes;
    so `train()` and `eval()` make no difference.  Training it further trains the parameters of that.

    It lies on the processor, in the parameters' type; `module.to(...)` moves it.  Of a table's model it is the network,
    for rows as `model.inputs(table)` gives them.  Raises ExportError where a layer does what PyTorch can't, and
    ArgumentError or NotBuiltError as `Trainer.predict` does.
    """
    get("torch")
    found = exported(model)
    program = found.program()
    module = _Graph(program, units_of(found.trainer.layout)).module()
    _check(module, program, found.examples(program, 5))
    return module


def _check(module: Any, program: Program, inputs: list[Any]) -> None:
    """Raise ExportError where the module does not give what the program does, for some rows."""
    torch = get("torch").xp
    try:
        with torch.no_grad():  # not as a call of the module, which would print its source after an error
            found = module.forward(*map(torch.asarray, inputs)).cpu()
    except Exception as error:  # whatever PyTorch's functions don't take that the standard's do
        raise ExportError(f"PyTorch can't compute what a layer does: {error}") from error
    (expected,) = program(*inputs).values()
    if str(found.dtype) != f"torch.{expected.dtype}" or found.shape != expected.shape:
        raise ExportError(f"PyTorch makes {found.dtype} of {tuple(found.shape)} of what is {expected.dtype} here")
    if not numpy.allclose(found, expected, rtol=1e-4, atol=1e-5, equal_nan=True):
        raise ExportError("PyTorch does not give what the network does, which is a fault of bpnet: please report it")


class _Graph:
    """The graph of a program, node by node."""

    def __init__(self, program: Program, units: Sequence[Unit]) -> None:
        import torch
        from torch import fx

        self.torch, self.fx = torch, fx
        self.program = program
        self.operations = joined(program)
        self.root, self.graph = torch.nn.Module(), fx.Graph()
        self.entries = {entry.slot.name: entry for unit in units for entry in unit.values if unit.first}
        names = {e.slot.name: f"{u.path}.{e.torch[0]}".lstrip(".") for u in units for e in u.values if u.first}
        names = {name: path for name, path in names.items() if name in program.arrays}
        others = (name for name in program.arrays if name not in names)
        self.paths = _paths(names | {name: f"{CONSTANTS}.{name.replace('.', '_')}" for name in others})
        self.nodes: dict[str, Any] = {}
        self.first: Any = None
        self.rows: Any = None
        self.linear = dict(self._linear())
        """The product or "gemm" of each result that an `nn.Linear` computes: the paths of weight and bias."""

    def module(self) -> Any:
        """The module."""
        pairs = dict(self.linear.values())
        for name in self.paths:  # in the order of the network
            if name in pairs:
                self._make_linear(name, pairs[name])
            elif name not in pairs.values():
                self._register(name)
        names: set[str] = set()
        for value in self.program.inputs:
            name = re.sub(r"\W", "_", value.name, flags=re.ASCII)
            name += "_" * (keyword.iskeyword(name) or hasattr(builtins, name) or name in IN_SOURCE)
            name = name if name.isidentifier() and name not in names else f"x_{len(names)}"
            names.add(name)
            self.nodes[value.name] = self.graph.placeholder(name)
            self.first = self.first or self.nodes[value.name]
        for op in self.operations:
            try:
                node = self._operation(op)
            except TypeError as error:
                raise ExportError(f"layer {op.layer!r}: PyTorch has no {op.function} with these arguments") from error
            made = leaves_of(op.result)
            if isinstance(op.result, Value):
                self.nodes[op.result.name] = node
            else:
                self.nodes |= {v.name: self._call(operator.getitem, node, i) for i, v in enumerate(made)}
        (output,) = self.program.outputs.values()
        self.graph.output(self.nodes[output.name] if output.name in self.nodes else self._array(output.name))
        self.graph.lint()
        return self.fx.GraphModule(self.root, self.graph, "Network")

    # ---- arrays -------------------------------------------------------------------------------------------------

    def _linear(self) -> Iterator[tuple[str, tuple[str, str | None]]]:
        """Products with a weight, and a bias of the same layer, which no other operation reads."""
        arrays = self.program.parameters
        pairs: dict[str, tuple[str, str | None]] = {}
        readers: dict[str | None, list[str]] = {}
        for op in self.operations:
            result = getattr(op.result, "name", "")
            for leaf in leaves_of((op.args, dict(op.options))):
                if isinstance(leaf, Value):
                    readers.setdefault(leaf.name, []).append(result)
            if op.function in ("gemm", "matmul") and all(isinstance(arg, Value) for arg in op.args):
                weight, bias = op.args[1].name, op.args[2].name if op.function == "gemm" else None
                entry, path = self.entries.get(weight), weight.removesuffix("weight")
                dense = entry is not None and entry.units_first and entry.factor == 1.0 and len(entry.shape) == 2
                if dense and path not in ("", weight) and bias == (f"{path}bias" if f"{path}bias" in arrays else None):
                    pairs[result] = weight, bias
        for result, (weight, bias) in pairs.items():
            alike = [pairs.get(other) == (weight, bias) for name in (weight, bias) for other in readers.get(name, ())]
            if all(alike):
                yield result, (weight, bias)

    def _register(self, name: str) -> None:
        """Give the module a parameter, buffer or constant, in PyTorch's shape."""
        array, entry = self.program.arrays[name], self.entries.get(name)
        tensor = self.torch.tensor(array if entry is None else entry.to_torch(array).copy())
        owner, last = self._place(self.paths[name])
        if entry is None:
            owner.register_buffer(last, tensor)
        else:  # of buffers torch.load makes constants without a name where nothing but they are computed with
            trained = name in self.program.parameters
            owner.register_parameter(last, self.torch.nn.Parameter(tensor, requires_grad=trained))

    def _array(self, name: str) -> Any:
        """The node of what is registered, as the network has it."""
        if name not in self.nodes:
            node, entry = self.graph.get_attr(self.paths[name]), self.entries.get(name)
            if entry is not None and entry.units_first:
                node = self._call(self.torch.movedim, node, 0, -1)
            elif entry is not None and entry.shape != entry.slot.shape:
                node = self._call(self.torch.reshape, node, list(entry.slot.shape))
            if entry is not None and entry.factor != 1.0:
                node = self._call(operator.mul, node, entry.factor)
            self.nodes[name] = node
        return self.nodes[name]

    def _place(self, path: str) -> tuple[Any, str]:
        """The module that is to have what lies at a path, and the last name."""
        *parents, last = path.split(".")
        owner = self.root
        for name in parents:
            if name not in owner._modules:
                owner.add_module(name, self.torch.nn.Module())
            owner = getattr(owner, name)
        return owner, last

    def _make_linear(self, weight: str, bias: str | None) -> None:
        """Put an `nn.Linear` in the place of a weight and its bias."""
        path = self.paths[weight].rpartition(".")[0]
        owner, last = self._place(path)
        matrix = self.torch.tensor(self.program.arrays[weight].T.copy())
        units, n = matrix.shape
        made = self.torch.nn.Linear(n, units, bias=bias is not None, device="meta")
        made.weight = self.torch.nn.Parameter(matrix)
        if bias is not None:
            made.bias = self.torch.nn.Parameter(self.torch.tensor(self.program.arrays[bias]))
        owner.add_module(last, made)

    # ---- operations ---------------------------------------------------------------------------------------------

    def _argument(self, leaf: Any) -> Any:
        if isinstance(leaf, Value):
            return self.nodes[leaf.name] if leaf.name in self.nodes else self._array(leaf.name)
        if isinstance(leaf, Rows):
            if self.rows is None:
                self.rows = self.graph.call_method("size", (self.first, 0))
            some = self.rows if leaf.factor == 1 else self._call(operator.mul, self.rows, leaf.factor)
            return self._call(operator.add, some, leaf.offset) if leaf.offset else some
        if isinstance(leaf, numpy.dtype):
            return getattr(self.torch, leaf.name)
        return leaf

    def _call(self, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        return self.graph.call_function(function, args, options)

    def _operation(self, op: Operation) -> Any:
        if getattr(op.result, "name", None) in self.linear:
            path = self.paths[self.linear[op.result.name][0]].rpartition(".")[0]
            return self.graph.call_module(path, (self._argument(op.args[0]),))
        args, options = op.args, {n: v for n, v in op.options.items() if n not in ("device", "copy") and v is not None}
        if op.function == "reshape":
            sizes = list(op.result.shape)
            places = [i for i, size in enumerate(sizes) if isinstance(size, Rows)]
            if len(places) == 1 and 0 not in sizes:
                sizes[places[0]] = -1
            return self._call(self.torch.reshape, self._argument(args[0]), [self._argument(size) for size in sizes])
        special = getattr(self, f"_{op.function}", None) if op.function in SPECIAL else None
        args, options = mapped(self._argument, (args, options))
        if special is not None:
            return special(*args, **options)
        if op.function in OPERATORS:
            return self._call(OPERATORS[op.function], *args)
        names = RENAMED | NAMES.get(op.function, {})
        options = {names.get(name, name): value for name, value in options.items()}
        if op.function in AS_METHODS:
            return self.graph.call_method(AS_METHODS[op.function], args, options)
        found: Any = self.torch
        for part in FUNCTIONS.get(op.function, op.function).split("."):
            found = getattr(found, part, None)
        if not callable(found):
            raise ExportError(f"layer {op.layer!r}: {op.function} is no function that PyTorch has")
        return self._call(found, *args, **options)

    def _number_first(self, function: str, limit: str, a: Any, b: Any) -> Any:
        """The larger or smaller of two, of which one may be a number."""
        if isinstance(a, int | float):
            a, b = b, a
        if isinstance(b, int | float):
            return self._call(self.torch.clamp, a, **{limit: b})
        return self._call(getattr(self.torch, function), a, b)

    def _maximum(self, a: Any, b: Any) -> Any:
        return self._number_first("maximum", "min", a, b)

    def _minimum(self, a: Any, b: Any) -> Any:
        return self._number_first("minimum", "max", a, b)

    def _gemm(self, a: Any, b: Any, c: Any) -> Any:
        return self._call(self.torch.addmm, c, a, b)

    def _matrix_transpose(self, x: Any) -> Any:
        return self._call(self.torch.transpose, x, -1, -2)

    def _where(self, condition: Any, a: Any, b: Any) -> Any:
        if isinstance(a, int | float) and isinstance(b, int | float):  # which PyTorch makes of its default type
            a = self.graph.call_method("new_tensor", (self.first, a))
        return self._call(self.torch.where, condition, a, b)

    def _take(self, x: Any, index: Any, axis: int = 0) -> Any:
        return self._call(self.torch.index_select, x, axis, index)

    def _flip(self, x: Any, axis: Any) -> Any:
        return self._call(self.torch.flip, x, axis if isinstance(axis, tuple | list) else (axis,))

    def _vecdot(self, a: Any, b: Any, axis: int = -1) -> Any:
        return self._call(self.torch.sum, self._call(operator.mul, a, b), dim=axis)

    def _sort(self, x: Any, axis: int = -1, descending: bool = False, stable: bool = True) -> Any:
        pair = self._call(self.torch.sort, x, dim=axis, descending=descending, stable=stable)
        return self._call(operator.getitem, pair, 0)

    def _searchsorted(self, sorted: Any, x: Any, side: str = "left") -> Any:
        return self._call(self.torch.searchsorted, sorted, x, right=side == "right")

    def _deviation(
        self, function: str, x: Any, axis: Any = None, correction: float = 0.0, keepdims: bool = False
    ) -> Any:
        found = getattr(self.torch, function)
        return self._call(found, x, dim=axis, correction=correction, keepdim=keepdims)

    def _std(self, x: Any, **options: Any) -> Any:
        return self._deviation("std", x, **options)

    def _var(self, x: Any, **options: Any) -> Any:
        return self._deviation("var", x, **options)

    def _made(self, name: str, shape: Any, *value: Any, **options: Any) -> Any:
        sizes = list(shape) if isinstance(shape, tuple | list) else [shape]
        return self.graph.call_method(name, (self.first, sizes, *value), options)

    def _zeros(self, shape: Any, **options: Any) -> Any:
        return self._made("new_zeros", shape, **options)

    def _ones(self, shape: Any, **options: Any) -> Any:
        return self._made("new_ones", shape, **options)

    def _full(self, shape: Any, fill_value: Any, **options: Any) -> Any:
        return self._made("new_full", shape, fill_value, **options)


def _paths(names: Mapping[str, str]) -> dict[str, str]:
    """Where each lies in the module: its name, without what its source, or a module, could not have in one."""
    from torch import fx, nn

    taken = {*dir(fx.GraphModule(nn.Module(), fx.Graph())), *keyword.kwlist}
    found: dict[str, str] = {}
    for key, name in names.items():
        parts = [re.sub(r"[^\w -]", "_", part, flags=re.ASCII) or "_" for part in name.split(".")]
        path = stem = ".".join(f"{part}_" if part in taken else part for part in parts)
        number = 1
        while path in found.values():
            number += 1
            path = f"{stem}_{number}"
        found[key] = path
    return found


CONSTANTS = "_constants"
"""Where a module has arrays that are no layer's."""
IN_SOURCE = {"self", "torch", "inf", "nan", "device", "NoneType", "fx_pytree", "pytree"}
"""Names that mean something in a module's source, beside Python's own."""
SPECIAL = {
    "maximum", "minimum", "gemm", "matrix_transpose", "where", "take", "vecdot", "sort", "searchsorted", "zeros",
    "ones", "full", "std", "var", "flip",
}  # fmt: skip
"""Functions that have a method above."""
OPERATORS: Mapping[str, Callable[..., Any]] = {
    "add": operator.add, "subtract": operator.sub, "multiply": operator.mul, "divide": operator.truediv,
    "matmul": operator.matmul, "floor_divide": operator.floordiv, "remainder": operator.mod, "pow": operator.pow,
    "bitwise_and": operator.and_, "bitwise_or": operator.or_, "bitwise_xor": operator.xor,
    "bitwise_left_shift": operator.lshift, "bitwise_right_shift": operator.rshift, "equal": operator.eq,
    "not_equal": operator.ne, "less": operator.lt, "less_equal": operator.le, "greater": operator.gt,
    "greater_equal": operator.ge, "negative": operator.neg, "bitwise_invert": operator.invert,
    "getitem": operator.getitem,
}  # fmt: skip
AS_METHODS = {"astype": "to"}
FUNCTIONS = {
    "concat": "cat", "expand_dims": "unsqueeze", "permute_dims": "permute", "max": "amax", "min": "amin",
    "clip": "clamp", "moveaxis": "movedim", "take_along_axis": "take_along_dim", "cumulative_sum": "cumsum",
    "cumulative_prod": "cumprod", "repeat": "repeat_interleave", "unstack": "unbind",
    "broadcast_arrays": "broadcast_tensors", "linalg.outer": "outer",
}  # fmt: skip
"""What PyTorch calls them; all others as the standard does."""
RENAMED = {"axis": "dim", "keepdims": "keepdim"}
NAMES = {
    "roll": {"shift": "shifts", "axis": "dims"}, "permute_dims": {"axes": "dims"}, "tensordot": {"axes": "dims"},
    "tril": {"k": "diagonal"}, "triu": {"k": "diagonal"},
}  # fmt: skip
"""What PyTorch calls options: of all functions, and of some."""
