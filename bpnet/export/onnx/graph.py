"""An ONNX graph while it is written: nodes, constants, names."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from bpnet.export.record import Rows, Size, Value

Type = np.dtype[Any]


@dataclass(frozen=True)
class Tensor:
    """An array of the graph; the sizes of one that is made within an operation need not be known, but for their number.

    `value` is that of a constant.
    """

    name: str
    dtype: Type
    shape: tuple[Any, ...]
    value: Any = None

    @property
    def ndim(self) -> int:
        return len(self.shape)


class Graph:
    """What operations of a program are added to, as nodes."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[tuple[Any, ...], Tensor] = {}
        self.initializers: list[onnx.TensorProto] = []
        self.taken: Counter[str] = Counter()
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []
        self.made: dict[str, int] = {}
        """By the name of what is made: the number of its node."""
        self.named: set[str] = set()
        """Those of them that are called as in the program."""
        self.given: dict[str, str] = {}
        """What outputs are called, by the names that they had."""
        self.of_rows: dict[Rows, Tensor] = {}
        self.place = ""
        """Where the operations come from that are being added: names begin with it."""
        self.result: Any = None
        """The value, or tuple of values, that is wanted of the operation that is being added."""

    # ---- names and arrays ---------------------------------------------------------------------------------------

    def name(self, wanted: str) -> str:
        """`wanted`, with a number after it where that is taken."""
        wanted = wanted or "unnamed"
        self.taken[wanted] += 1
        if self.taken[wanted] == 1:
            return wanted
        return self.name(f"{wanted}_{self.taken[wanted]}")

    def input(self, name: str, dtype: Any, shape: Sequence[Any], about: str = "") -> Tensor:
        """An input; `dtype` is one of NumPy, that of objects stands for text."""
        info = helper.make_tensor_value_info(self.name(name), element_type(dtype), sizes(shape), about)
        self.inputs.append(info)
        return Tensor(info.name, np.dtype(dtype), tuple(shape))

    def output(self, name: str, tensor: Tensor, shape: Sequence[Any]) -> str:
        """Makes `tensor` an output, called `name` where that is free."""
        name, given = self.name(name), self.given.get(tensor.name, tensor.name)
        if given in self.made and given not in self.given.values():
            self.rename(given, name)
        else:
            self.nodes.append(helper.make_node("Identity", [given], [name], name=f"{name}/Identity"))
        self.given.setdefault(tensor.name, name)
        self.outputs.append(helper.make_tensor_value_info(name, element_type(tensor.dtype), sizes(shape)))
        return name

    def rename(self, old: str, new: str) -> None:
        """An array that a node makes."""
        at = self.made.pop(old)
        for node in self.nodes[at:]:
            for names in (node.input, node.output):
                for i, name in enumerate(names):
                    if name == old:
                        names[i] = new
        self.made[new] = at

    def array(self, value: Any, name: str = "", dtype: Any = None) -> Tensor:
        """A constant; equal ones without a name are one."""
        value = np.asarray(value, dtype=dtype)
        content = tuple(value.tolist()) if value.dtype.kind == "O" else value.tobytes() if not name else None
        key = name, value.dtype.str, value.shape, content
        if key not in self.constants:
            if value.dtype.kind == "O":
                tensor = helper.make_tensor("", onnx.TensorProto.STRING, value.shape, [s.encode() for s in value.flat])
            else:
                tensor = numpy_helper.from_array(np.ascontiguousarray(value).reshape(value.shape))
            tensor.name = self.name(name or "constant")
            self.initializers.append(tensor)
            self.constants[key] = Tensor(tensor.name, value.dtype, value.shape, value)
        return self.constants[key]

    def integers(self, *numbers: int) -> Tensor:
        """A vector of int64, as axes and shapes are."""
        return self.array(np.array(numbers, np.int64))

    # ---- nodes --------------------------------------------------------------------------------------------------

    def node(self, operator: str, *inputs: Tensor | None, **options: Any) -> Tensor:
        """What the operator makes of the inputs: see `nodes_of`."""
        (made,) = self.nodes_of(operator, inputs, 1, **options)
        return made

    def nodes_of(
        self,
        operator: str,
        inputs: Sequence[Tensor | None],
        count: int,
        *,
        dtype: Any = None,
        ndim: int | None = None,
        domain: str = "",
        **attributes: Any,
    ) -> tuple[Tensor, ...]:
        """So many tensors, of the first input's type and number of axes where nothing else is said."""
        first = next(x for x in inputs if x is not None)
        made = [self.name(f"{self.place}{operator}") for _ in range(count)]
        names = ["" if x is None else x.name for x in inputs]
        node = helper.make_node(operator, names, made, name=made[0], domain=domain, **attributes)
        self.made |= dict.fromkeys(made, len(self.nodes))
        self.nodes.append(node)
        shape = (None,) * (first.ndim if ndim is None else ndim)
        return tuple([Tensor(name, first.dtype if dtype is None else np.dtype(dtype), shape) for name in made])

    def cast(self, x: Tensor, dtype: Any) -> Tensor:
        """`x` as another type."""
        dtype = np.dtype(dtype)
        if x.dtype == dtype:
            return x
        if x.value is not None:
            return self.array(x.value.astype(dtype))
        return self.node("Cast", x, dtype=dtype, to=element_type(dtype))

    def tensor(self, x: Any, dtype: Any = None) -> Tensor:
        """A number, an array or a tensor as a tensor of that type."""
        if not isinstance(x, Tensor):
            return self.array(x, dtype=dtype)
        return x if dtype is None else self.cast(x, dtype)

    # ---- shapes -------------------------------------------------------------------------------------------------

    def rows(self, size: Rows) -> Tensor:
        """How many there are, a vector of one number."""
        if size not in self.of_rows:
            if size == Rows():
                info = self.inputs[0]
                x = Tensor(info.name, np.dtype("float32"), ())
                found = self.node("Shape", x, dtype="int64", ndim=1, start=0, end=1)
            else:
                found = self.rows(Rows())
                if size.factor != 1:
                    found = self.node("Mul", found, self.integers(size.factor))
                if size.offset:
                    found = self.node("Add", found, self.integers(size.offset))
            self.of_rows[size] = found
        return self.of_rows[size]

    def shape(self, wanted: Sequence[Size]) -> Tensor:
        """Sizes as a vector."""
        if not any(isinstance(size, Rows) for size in wanted):
            return self.integers(*wanted)  # type: ignore[arg-type]
        parts = [self.rows(size) if isinstance(size, Rows) else self.integers(size) for size in wanted]
        return parts[0] if len(parts) == 1 else self.node("Concat", *parts, axis=0, ndim=1)

    def reshape(self, x: Tensor, shape: Sequence[Size]) -> Tensor:
        """Where a size depends on the number of rows, it is copied from the input or left to be found."""
        same = [isinstance(n, Rows) and i < x.ndim and x.shape[i] == n for i, n in enumerate(shape)]
        wanted = [0 if kept else n for kept, n in zip(same, shape, strict=True)]
        open_sizes = [i for i, n in enumerate(wanted) if isinstance(n, Rows)]
        if len(open_sizes) == 1:
            wanted[open_sizes[0]] = -1
            open_sizes = []
        if 0 in shape:  # else 0 is to copy
            return self.node("Reshape", x, self.shape(shape), ndim=len(shape), allowzero=1)
        target = self.shape(shape) if open_sizes else self.shape(wanted)
        return self.node("Reshape", x, target, ndim=len(shape))

    def value(self, wanted: Value, made: Tensor) -> Tensor:
        """What was made, known to be `wanted`, and called as that is where it has no name of its own."""
        made = self.cast(made, wanted.dtype)
        name = made.name
        if made.name in self.made and made.name not in self.named:
            name = self.name(wanted.name)
            self.rename(made.name, name)
            self.named.add(name)
        return Tensor(name, made.dtype, wanted.shape, made.value)


def element_type(dtype: Any) -> int:
    """ONNX's number of a type; objects are text."""
    dtype = np.dtype(dtype)
    return int(onnx.TensorProto.STRING if dtype.kind == "O" else helper.np_dtype_to_tensor_dtype(dtype))


def sizes(shape: Sequence[Any]) -> list[Any]:
    """As ONNX has them: the number of rows is called "rows", and what depends on it otherwise has no name."""
    return ["rows" if size == Rows() else None if isinstance(size, Rows) else size for size in shape]
