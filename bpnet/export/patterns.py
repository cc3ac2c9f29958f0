"""Operations that other libraries have as one: found among those of a program, whoever's layer they come from."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from bpnet.export.record import Operation, Program, Value
from bpnet.export.recording import leaves_of


def joined(program: Program, factors: bool = True) -> list[Operation]:
    """The operations of a program, with "gemm", "relu", "sigmoid" and "softmax" for the operations that they are.

    Without `factors` a sigmoid that something is multiplied by, as in SiLU and GLU, stays as it is.
    """
    makers = {value.name: op for op in program.operations for value in leaves_of(op.result)}
    uses = Counter(value.name for value in program.outputs.values())
    for op in program.operations:
        uses.update(leaf.name for leaf in leaves_of((op.args, dict(op.options))) if isinstance(leaf, Value))
    products = [] if factors else [op for op in program.operations if op.function == "multiply"]
    exact = {leaf.name for op in products for leaf in op.args if isinstance(leaf, Value)}
    found, made = _Program(makers, uses, exact), []
    for op in reversed(program.operations):
        if not any(uses[value.name] for value in leaves_of(op.result)):
            found.count(op, -1)
            continue
        new = next(filter(None, (pattern(found, op) for pattern in PATTERNS.get(op.function, ()))), None)
        if new is not None:
            function, args, options = new
            found.count(op, -1)
            op = replace(op, function=function, args=args, options=options)
            found.count(op, 1)
        made.append(op)
    return made[::-1]


class _Program:
    """Who makes a value, how often it is read, and which are no result of a "sigmoid"."""

    def __init__(self, makers: Mapping[str, Operation], uses: Counter[str], exact: set[str]) -> None:
        self.makers, self.uses, self.exact = makers, uses, exact

    def maker(self, value: Any, *functions: str) -> Operation | None:
        """The operation that makes a value, where it is one of these functions."""
        op = self.makers.get(value.name) if isinstance(value, Value) else None
        return op if op is not None and op.function in functions else None

    def count(self, op: Operation, by: int) -> None:
        """That what the operation reads is read so many times more."""
        for leaf in leaves_of((op.args, dict(op.options))):
            if isinstance(leaf, Value):
                self.uses[leaf.name] += by

    def sides(self, op: Operation) -> Iterator[tuple[Any, Any]]:
        """Both orders of two arguments."""
        yield op.args[0], op.args[1]
        yield op.args[1], op.args[0]


New = tuple[str, tuple[Any, ...], dict[str, Any]] | None


def _gemm(p: _Program, op: Operation) -> New:
    """a b + c of matrices, and c that is the same for all rows."""
    for product, bias in p.sides(op):
        made = p.maker(product, "matmul")
        if made is None or p.uses[product.name] > 1 or not isinstance(bias, Value):
            continue
        a, b = made.args
        matrices = isinstance(a, Value) and isinstance(b, Value) and len(a.shape) == len(b.shape) == 2
        if matrices and bias.shape == op.result.shape[1:] and a.dtype == b.dtype == bias.dtype == op.result.dtype:
            return "gemm", (a, b, bias), {}
    return None


def _relu(p: _Program, op: Operation) -> New:
    """max(z, 0)."""
    for z, zero in p.sides(op):
        if isinstance(z, Value) and _is(zero, 0.0) and z.dtype == op.result.dtype and z.dtype.kind == "f":
            return "relu", (z,), {}
    return None


def _sigmoid(p: _Program, op: Operation) -> New:
    """exp(min(z, 0)) / (1 + exp(-|z|))."""
    above, below = (p.maker(arg, function) for arg, function in zip(op.args, ("exp", "add"), strict=True))
    if above is None or below is None or op.result.name in p.exact:
        return None
    least = p.maker(above.args[0], "minimum")
    if least is None or not _is(least.args[1], 0.0):
        return None
    z = least.args[0]
    for one, power in p.sides(below):
        exp = p.maker(power, "exp")
        negative = exp and p.maker(exp.args[0], "negative")
        size = negative and p.maker(negative.args[0], "abs")
        if _is(one, 1.0) and size and size.args[0] == z:
            return "sigmoid", (z,), {}
    return None


def _softmax(p: _Program, op: Operation) -> New:
    """exp(z - max z) / sum exp(z - max z) along one axis."""
    power, total = op.args
    sums, exp = p.maker(total, "sum"), p.maker(power, "exp")
    if sums is None or exp is None or sums.args != (power,) or not _along(sums):
        return None
    shifted = p.maker(exp.args[0], "subtract")
    largest = shifted and p.maker(shifted.args[1], "max")
    if not shifted or not largest or largest.args != shifted.args[:1] or largest.options != sums.options:
        return None
    return "softmax", (shifted.args[0],), {"axis": sums.options["axis"]}


def _along(op: Operation) -> bool:
    """Whether it is along one axis, which is kept."""
    return dict(op.options) == {"axis": op.options.get("axis"), "keepdims": True} and type(op.options["axis"]) is int


def _is(value: Any, number: float) -> bool:
    return isinstance(value, int | float) and value == number


PATTERNS: Mapping[str, tuple[Callable[[_Program, Operation], New], ...]] = {
    "add": (_gemm,),
    "maximum": (_relu,),
    "divide": (_sigmoid, _softmax),
}
"""By the last operation of each."""
