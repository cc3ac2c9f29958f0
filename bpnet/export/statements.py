"""The operations of a program as statements of NumPy that a person reads: a value that is read once stands where it is
read, what is read again has a name, and so has what a layer gives."""

import keyword
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy

from bpnet.errors import ExportError
from bpnet.export.patterns import joined
from bpnet.export.record import Operation, Program, Rows, Value
from bpnet.export.recording import leaves_of
from bpnet.layer import Layer

WIDTH, LONG = 96, 84
"""Of lines, and of expressions before parts of them have names, roughly."""

# How tightly an expression holds together, as Python's grammar has it.
ATOM, POWER, UNARY, PRODUCT, SUM, SHIFT, AND, XOR, OR, COMPARISON = range(10)

BINARY = {
    "add": ("+", SUM), "subtract": ("-", SUM), "multiply": ("*", PRODUCT), "divide": ("/", PRODUCT),
    "matmul": ("@", PRODUCT), "floor_divide": ("//", PRODUCT), "remainder": ("%", PRODUCT), "pow": ("**", POWER),
    "bitwise_and": ("&", AND), "bitwise_xor": ("^", XOR), "bitwise_or": ("|", OR),
    "bitwise_left_shift": ("<<", SHIFT), "bitwise_right_shift": (">>", SHIFT),
    "equal": ("==", COMPARISON), "not_equal": ("!=", COMPARISON), "less": ("<", COMPARISON),
    "less_equal": ("<=", COMPARISON), "greater": (">", COMPARISON), "greater_equal": (">=", COMPARISON),
}  # fmt: skip
PREFIX = {"negative": "-", "bitwise_invert": "~"}
RENAMED = {  # by which NumPy 1 knows them too
    "concat": "concatenate", "permute_dims": "transpose", "acos": "arccos", "acosh": "arccosh", "asin": "arcsin",
    "asinh": "arcsinh", "atan": "arctan", "atan2": "arctan2", "atanh": "arctanh",
}  # fmt: skip
TEMPORARY = {
    "matmul": "z", "gemm": "z", "add": "total", "subtract": "difference", "multiply": "product", "divide": "ratio",
    "take": "rows_of", "getitem": "part", "mean": "mean", "max": "top", "exp": "e", "reshape": "shaped",
    "sum": "total", "min": "least", "abs": "size", "pow": "power", "round": "rounded", "all": "found", "any": "found",
    "where": "chosen", "equal": "same", "isnan": "missing",
}  # fmt: skip
"""What a value is called that is read several times, by the function that makes it; others by that function's name."""

HELPERS = {
    "numbers": '''\
def numbers(x, shape, dtype, missing=False):
    """Rows of this shape as an array of this type."""
    x = np.asarray(x).astype(dtype, copy=False)
    if x.ndim == 0 or x.shape[1:] != shape:
        raise ValueError(f"x has the shape {x.shape}; expected {('rows', *shape)}")
    if np.isinf(x).any() or not missing and np.isnan(x).any():
        raise ValueError("x holds values that are not finite")
    return x
''',
    "codes": '''\
def codes(x, shape, below=None):
    """Rows of this shape, of whole numbers; with `below` from 0 to below - 1."""
    x = np.asarray(x)
    if x.ndim == 0 or x.shape[1:] != shape:
        raise ValueError(f"x has the shape {x.shape}; expected {('rows', *shape)}")
    if x.dtype.kind not in "iu":
        raise ValueError(f"x holds {x.dtype} values; expected whole numbers")
    if below is not None and x.size and not (x.min() >= 0 and x.max() < below):
        raise ValueError(f"x holds numbers outside 0 ... {below - 1}")
    return x.astype(np.int64)
''',
    "sigmoid": '''\
def sigmoid(z):
    """1 / (1 + exp(-z)), which no z is too large for."""
    return np.exp(np.minimum(z, 0.0)) / (1.0 + np.exp(-np.abs(z)))
''',
    "softmax": '''\
def softmax(z, axis):
    """exp(z), divided by its sum along an axis."""
    e = np.exp(z - z.max(axis=axis, keepdims=True))
    return e / e.sum(axis=axis, keepdims=True)
''',
    "erf": '''\
def erf(x):
    """The error function, by the rational approximations of S. L. Moshier, Cephes (1989)."""
    s = x * x
    near = x * polynomial(s, {T}) / polynomial(s, {U})
    far = np.clip(np.abs(x), 0.5, 6.0)
    tail = np.exp(-far * far) * polynomial(far, {P}) / polynomial(far, {Q})
    return np.where(np.abs(x) < 1.0, near, np.sign(x) * (1.0 - tail))


def polynomial(x, coefficients):
    """Its value at x; the coefficient of the highest power comes first."""
    value = coefficients[0]
    for coefficient in coefficients[1:]:
        value = value * x + coefficient
    return value
''',
}
"""Functions that a file defines where it needs them."""


@dataclass(frozen=True)
class Text:
    """An expression, how tightly it holds together, and which variables it reads how often."""

    text: str
    level: int = ATOM
    reads: Mapping[str, int] = field(default_factory=Counter)

    def within(self, level: int) -> str:
        """With parentheses where it stands in one that holds together more tightly."""
        return self.text if self.level <= level else f"({self.text})"


class Statements:
    """The body of a function that computes a program; arrays are entries of a dict called W, by `prefix` and name."""

    def __init__(self, program: Program, network: Layer | None = None, prefix: str = "") -> None:
        self.program, self.network = program, network
        self.operations, self.outputs = joined(program), program.outputs
        self.lines: list[str] = []
        self.helpers: set[str] = set()
        self.reads_rows = False
        """Whether it reads how many rows there are."""
        self.taken = {"np", "W", "x", "rows", "table"}
        self.uses: Counter[str] = Counter(value.name for value in self.outputs.values())
        for op in self.operations:
            self.uses.update(leaf.name for leaf in _leaves(op) if isinstance(leaf, Value))
        self.consumer: dict[str, str] = {}
        for op in self.operations:
            self.consumer |= {leaf.name: op.layer for leaf in _leaves(op) if isinstance(leaf, Value)}
        self.known: dict[str, Text] = {name: Text(f"W[{quoted(prefix + name)}]") for name in program.arrays}
        self.left: Counter[str] = Counter()
        """How often each variable is still read."""
        self.makers: dict[str, Operation] = {}
        """By the name of a value that an operation has made."""
        self.place: str | None = None

    def written(self, inputs: Mapping[str, str]) -> dict[str, str]:
        """The expression of each output, `lines` being the statements before; `inputs` are variables, by input."""
        for value in self.program.inputs:
            self.known[value.name] = self._variable(inputs[value.name], self.uses[value.name])
            self.taken.add(inputs[value.name])
        for op in self.operations:
            self._operation(op)
        return {name: self.known[value.name].text for name, value in self.outputs.items()}

    def _variable(self, name: str, uses: int) -> Text:
        self.left[name] = uses
        return Text(name, ATOM, Counter({name: 1}))

    def _operation(self, op: Operation) -> None:
        made = leaves_of(op.result)
        text = self._expression(op)
        while len(text.text) > LONG and (part := self._longest(op)) is not None:
            self._assigned(part)
            text = self._expression(op)
        if len(made) > 1 or not isinstance(op.result, Value):
            names: list[str] = []
            for value in made:
                names.append(self._name(op, value.name, names))
            self._assign(op, ", ".join(names) + "," * (len(names) == 1), text)
            self.known |= {v.name: self._variable(n, self.uses[v.name]) for v, n in zip(made, names, strict=True)}
            return
        name, last = made[0].name, self.consumer.get(made[0].name) != op.layer
        self.known[name], self.makers[name] = text, op
        if self.uses[name] > 1 or (last and name in self.consumer):
            self._assigned(name)

    def _assigned(self, name: str) -> None:
        """Give a value a variable."""
        op = self.makers[name]
        variable = self._name(op, name)
        self._assign(op, variable, self.known[name])
        self.known[name] = self._variable(variable, self.uses[name])

    def _longest(self, op: Operation) -> str | None:
        """Of the values that the operation reads, the one whose expression is the longest, where it is long."""
        values = [leaf.name for leaf in _leaves(op) if isinstance(leaf, Value) and leaf.name in self.makers]
        texts = {name: self.known[name].text for name in values}
        lengths = {name: len(text) for name, text in texts.items() if not text.isidentifier()}
        return max(lengths, key=lengths.__getitem__) if lengths and max(lengths.values()) > 20 else None

    def _assign(self, op: Operation, target: str, text: Text) -> None:
        if op.layer != self.place:
            self.place = op.layer
            self.lines += ["", f"# {comment(self.network, op.layer)}"]
        for name, count in text.reads.items():
            self.left[name] -= count
        self.lines.append(f"{target} = {text.text}")

    def _name(self, op: Operation, value: str, others: Collection[str] = ()) -> str:
        """A variable for a value: of the layer that it is the output of, or a short one that nobody reads any more."""
        if self.consumer.get(value, "") != op.layer and op.layer:
            kind = snake_case(type(layer_at(self.network, op.layer)).__name__)
            stem = re.sub(r"\W", "_", f"{kind}_{op.layer}", flags=re.ASCII)
        else:
            stem = TEMPORARY.get(op.function, op.function.rpartition(".")[2])
        name, number = stem, 1
        while keyword.iskeyword(name) or name in {*HELPERS, *self.taken, *others} or self.left[name] > 0:
            number += 1
            name = f"{stem}_{number}"
        return name

    # ---- expressions --------------------------------------------------------------------------------------------

    def _argument(self, leaf: Any) -> Text:
        """An argument of a function: a value, a number, or a tuple or list of these."""
        if isinstance(leaf, Value):
            return self.known[leaf.name]
        if isinstance(leaf, Rows):
            self.reads_rows = True
            text = "rows" if leaf.factor == 1 else f"{leaf.factor} * rows"
            text += f" + {leaf.offset}" if leaf.offset > 0 else f" - {-leaf.offset}" if leaf.offset else ""
            return Text(text, SUM if leaf.offset else PRODUCT if leaf.factor != 1 else ATOM)
        if isinstance(leaf, tuple | list):
            parts = [self._argument(part) for part in leaf]
            inner = ", ".join(part.text for part in parts) + "," * (len(parts) == 1 and isinstance(leaf, tuple))
            return Text(f"({inner})" if isinstance(leaf, tuple) else f"[{inner}]", ATOM, _reads(parts))
        if isinstance(leaf, numpy.dtype):
            return Text("bool" if leaf == numpy.bool else f"np.{leaf.name}")
        if isinstance(leaf, float) and not numpy.isfinite(leaf):
            return Text("np.nan" if leaf != leaf else "np.inf" if leaf > 0.0 else "-np.inf", UNARY)
        if leaf is None or isinstance(leaf, bool | int | float | str):
            text = quoted(leaf) if isinstance(leaf, str) else repr(leaf)
            return Text(text, UNARY if text.startswith("-") else ATOM)
        raise ExportError(f"an argument is {leaf!r}, which can't be written as NumPy")

    def _expression(self, op: Operation) -> Text:
        function, args, options = op.function, op.args, dict(op.options)
        options.pop("device", None)
        if function in BINARY and not options:
            return self._binary(function, *args)
        if function in PREFIX:
            inner = self._argument(args[0])
            return Text(PREFIX[function] + inner.within(UNARY), UNARY, inner.reads)
        if function == "gemm":
            return self._binary("add", self._binary("matmul", *args[:2]), args[2])
        if function == "relu":
            function, args = "maximum", (*args, 0.0)
        if function == "getitem":
            return self._item(*args)
        if function == "reshape":
            return self._reshaped(args[0], op.result.shape)
        if function == "astype":
            return self._call("{0}.astype", args[:1], (args[1],), {})
        if function == "matrix_transpose":
            return self._call("np.swapaxes", (), (*args, -1, -2), {})
        if function in ("std", "var") and "correction" in options:
            options["ddof"] = options.pop("correction")
        if function in ("sort", "argsort"):
            if options.pop("descending", False):
                raise _unknown(op, "descending")
            options = {n: v for n, v in options.items() if n != "stable"} | {"kind": "stable"}
        if function in ("sum", "mean", "max", "min", "all", "any", "prod", "std", "var") and args[1:] == ():
            if options.get("keepdims") is False:
                del options["keepdims"]
            return self._call("{0}." + function, args, (), options)
        if function in HELPERS:
            self.helpers.add(function)
            return self._call(function, (), args, options)
        name = RENAMED.get(function, function)
        found: Any = numpy
        for part in name.split("."):
            found = getattr(found, part, None)
        if not callable(found):
            raise _unknown(op, function)
        return self._call(f"np.{name}", (), args, options)

    def _binary(self, function: str, a: Any, b: Any) -> Text:
        sign, level = BINARY[function]
        left, right = (arg if isinstance(arg, Text) else self._argument(arg) for arg in (a, b))
        closer = level - 1 if function != "pow" else ATOM
        first = left.within(closer if function == "pow" or level == COMPARISON else level)
        return Text(f"{first} {sign} {right.within(closer)}", level, _reads((left, right)))

    def _call(self, form: str, of: Iterable[Any], args: Iterable[Any], options: Mapping[str, Any]) -> Text:
        """form(args, options), where `form` may have a place for what a method is of."""
        owner, given = [self._argument(a) for a in of], [self._argument(a) for a in args]
        more = {name: self._argument(value) for name, value in options.items() if value is not None}
        inner = [*(a.text for a in given), *(f"{name}={a.text}" for name, a in more.items())]
        called = form.format(*(a.within(ATOM) for a in owner))
        return Text(f"{called}({', '.join(inner)})", ATOM, _reads([*owner, *given, *more.values()]))

    def _reshaped(self, x: Value, shape: tuple[Any, ...]) -> Text:
        sizes: list[Any] = list(shape)
        places = [i for i, size in enumerate(sizes) if isinstance(size, Rows)]
        if len(places) == 1 and 0 not in sizes:  # as a reader would write it
            sizes[places[0]] = -1
        return self._call("{0}.reshape", (x,), sizes or ((),), {})

    def _item(self, x: Value, index: Any) -> Text:
        parts = index if isinstance(index, tuple) else (index,)
        texts = [self._argument(part) for part in self._index_leaves(parts)]
        owner, known = self._argument(x), iter(texts)

        def shown(part: Any) -> str:
            if isinstance(part, slice):
                ends = ["" if end is None else next(known).text for end in (part.start, part.stop, part.step)]
                return ":".join(ends[:2]) + (f":{ends[2]}" if ends[2] not in ("", "1") else "")
            return "..." if part is Ellipsis else next(known).text

        inner = ", ".join(shown(part) for part in parts)
        return Text(f"{owner.within(ATOM)}[{inner}]", ATOM, _reads([owner, *texts]))

    def _index_leaves(self, parts: Iterable[Any]) -> Iterator[Any]:
        for part in parts:
            if isinstance(part, slice):
                yield from (end for end in (part.start, part.stop, part.step) if end is not None)
            elif part is not Ellipsis:
                yield part


def _reads(parts: Iterable[Text]) -> Counter[str]:
    total: Counter[str] = Counter()
    for part in parts:
        total.update(part.reads)
    return total


def _leaves(op: Operation) -> list[Any]:
    return leaves_of((op.args, dict(op.options)))


def _unknown(op: Operation, what: str) -> ExportError:
    where = f"layer {op.layer!r}: " if op.layer else ""
    return ExportError(f"{where}{what} is no function that a file for NumPy can have")


# ---- layers ---------------------------------------------------------------------------------------------------------


def layer_at(network: Layer | None, path: str) -> Any:
    """The layer there, or the one that it is a part of."""
    found: Any = network
    for name in path.split("."):
        found = dict(getattr(found, "children", ())).get(name, found)
    return found


def comment(network: Layer | None, path: str) -> str:
    """A line about a layer: its path, and itself, or of one that has others in it the class."""
    layer = layer_at(network, path)
    text = type(layer).__name__ if getattr(layer, "children", ()) else repr(layer)
    return one_line(f"{path}: {text}" if path else text)


def one_line(text: str, width: int = WIDTH) -> str:
    """What a comment can hold of a text."""
    text = "".join(c if c.isprintable() else " " for c in text)
    return text if len(text) <= width else f"{text[: width - 3]}..."


def quoted(text: str) -> str:
    """A text as Python reads it, in double quotes where that is simple."""
    plain = text.isprintable() and not set(text) & {'"', "\\"}
    return f'"{text}"' if plain else repr(text)


def snake_case(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


def helper(name: str) -> str:
    """The definition of a function."""
    from bpnet.backends.polynomials import ERF_T, ERF_U, ERFC_P, ERFC_Q

    text = HELPERS[name]
    if name != "erf":
        return text
    constants = {"ERF_T": ERF_T, "ERF_U": ERF_U, "ERFC_P": ERFC_P, "ERFC_Q": ERFC_Q}
    made = "".join(f"{name} = [\n{wrapped(map(repr, values))}\n]\n" for name, values in constants.items())
    return f"{made}\n\n" + text.format(T="ERF_T", U="ERF_U", P="ERFC_P", Q="ERFC_Q")


def wrapped(words: Iterable[str], indent: str = "    ", width: int = WIDTH - 8, end: str = ",") -> str:
    """Words in lines, a comma after each."""
    lines, line = [], indent
    for word in words:
        if len(line) + len(word) + 2 > width and line.strip():
            lines.append(line.rstrip())
            line = indent
        line += f"{word}{end} "
    return "\n".join([*lines, line.rstrip()])
