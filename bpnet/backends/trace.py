"""Rules as programs: an elementwise rule is called once with symbols, and what it does to them is written down.

From the program a backend generates code that does the same operations in the same order without the temporaries that
evaluating the rule on arrays would make, so the results are equal bit for bit.
"""

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from bpnet.compiler.graph import NotTraceableError

BINARY = {"+": "add", "-": "subtract", "*": "multiply", "/": "divide"}
FUNCTIONS = frozenset({"sqrt", "exp", "log", "log1p", "expm1", "tanh", "abs", "maximum", "minimum", "negative"})


class Symbol:
    """A value in a rule: an input array, a scalar, or the result of an operation on these."""

    __array_ufunc__ = None

    def __init__(self, program: "Program", op: str, args: tuple[Any, ...] = (), scalar: bool = False) -> None:
        self.program, self.op, self.args, self.scalar = program, op, args, scalar

    def __add__(self, other: Any) -> "Symbol":
        return self.program.apply("add", self, other)

    def __radd__(self, other: Any) -> "Symbol":
        return self.program.apply("add", other, self)

    def __sub__(self, other: Any) -> "Symbol":
        return self.program.apply("subtract", self, other)

    def __rsub__(self, other: Any) -> "Symbol":
        return self.program.apply("subtract", other, self)

    def __mul__(self, other: Any) -> "Symbol":
        return self.program.apply("multiply", self, other)

    def __rmul__(self, other: Any) -> "Symbol":
        return self.program.apply("multiply", other, self)

    def __truediv__(self, other: Any) -> "Symbol":
        return self.program.apply("divide", self, other)

    def __rtruediv__(self, other: Any) -> "Symbol":
        return self.program.apply("divide", other, self)

    def __neg__(self) -> "Symbol":
        return self.program.apply("negative", self)

    def __eq__(self, other: object) -> bool:
        raise NotTraceableError("a rule can't decide by a value")

    __hash__ = object.__hash__

    def __bool__(self) -> bool:
        raise NotTraceableError("a rule can't decide by a value")


class Program:
    """The operations of a rule on `arrays` arrays and `scalars` scalars, in order, and its results."""

    def __init__(self, rule: Callable[..., Any], arrays: int, scalars: int) -> None:
        self.steps: list[Symbol] = []
        self.known: dict[tuple[Any, ...], Symbol] = {}
        self.arrays = [Symbol(self, f"a{i}") for i in range(arrays)]
        self.scalars = [Symbol(self, f"s{i}", scalar=True) for i in range(scalars)]
        try:
            results = rule(_TracingBackend(self), *self.arrays, *self.scalars)
            results = results if isinstance(results, tuple) else (results,)
        except Exception as error:  # whatever a rule does that arrays can and symbols can't
            raise NotTraceableError(str(error)) from error
        self.results: list[Symbol] = list(results)
        if not all(isinstance(r, Symbol) and not r.scalar for r in self.results):
            raise NotTraceableError("a result is no array of numbers")
        if any(r is a for r in self.results for a in self.arrays):
            raise NotTraceableError("a result is an array as it came, which writing the results may change")

    def apply(self, op: str, *args: Any) -> Symbol:
        """The result of an operation; the same operation on the same values is done once."""
        for a in args:
            if not isinstance(a, Symbol) and (type(a) not in (int, float) or not math.isfinite(a)):
                raise NotTraceableError(f"{op} of {a!r}")
        key = (op, *(id(a) if isinstance(a, Symbol) else float(a) for a in args))
        if key not in self.known:
            scalar = all(a.scalar for a in args if isinstance(a, Symbol))
            self.known[key] = Symbol(self, op, args, scalar)
            self.steps.append(self.known[key])
        return self.known[key]


class _TracingBackend:
    def __init__(self, program: Program) -> None:
        self.xp = _TracingNamespace(program)

    def __getattr__(self, name: str) -> Any:
        raise NotTraceableError(name)


class _TracingNamespace:
    def __init__(self, program: Program) -> None:
        self.program = program

    def __getattr__(self, name: str) -> Callable[..., Symbol]:
        if name not in FUNCTIONS:
            raise NotTraceableError(name)
        return lambda *args: self.program.apply(name, *args)


@dataclass(frozen=True)
class InPlace:
    """A program as NumPy calls that write to given memory: `calls(xp, arrays, scalars, results, scratch)` lists them.

    The i-th result may be the memory of the i-th array.  `scratch` are `needs` arrays of the same shape.
    Each call is a tuple of the function and its arguments, for `uninterrupted`.
    """

    calls: Callable[..., list[tuple[Any, ...]]]
    needs: int
    source: str


def in_place(program: Program) -> InPlace:
    """Generate the calls.  Memory is given back to the scratch as soon as its value has been read for the last time."""
    last: dict[int, int] = {}
    for i, step in enumerate(program.steps):
        for a in step.args:
            if isinstance(a, Symbol):
                last[id(a)] = i
    results = {id(r): n for n, r in enumerate(program.results)}
    if len(results) < len(program.results):
        raise NotTraceableError("two results are one value")
    place = {id(a): f"a{i}" for i, a in enumerate(program.arrays)}
    place |= {id(s): f"s{i}" for i, s in enumerate(program.scalars)}
    free: list[str] = []
    needs = 0
    lines: list[str] = []
    calls: list[str] = []
    late: dict[int, str] = {}  # results whose own memory still held an array to be read when they were ready
    typed: dict[str, str] = {}  # numbers as arrays of the type, which NumPy takes in half the time

    def of(a: Any) -> str:
        text = place[id(a)] if isinstance(a, Symbol) else repr(a)
        return text if isinstance(a, Symbol) and not a.scalar else typed.setdefault(text, f"n{len(typed)}")

    for i, step in enumerate(program.steps):
        if step.scalar:
            place[id(step)] = f"x{i}"
            args = ", ".join(place[id(a)] if isinstance(a, Symbol) else repr(a) for a in step.args)
            lines.append(f"x{i} = {_scalar(step.op, args)}")
            continue
        args = ", ".join(map(of, step.args))
        number = results.get(id(step))
        for a in {id(a): a for a in step.args if isinstance(a, Symbol)}.values():
            if last[id(a)] == i and id(a) not in results and place[id(a)].startswith("t"):
                free.append(place[id(a)])
        if number is not None and last.get(id(program.arrays[number]), -1) <= i:
            target = f"r{number}"
        else:
            if not free:
                free.append(f"t{needs}")
                needs += 1
            target = free.pop()
            if number is not None:
                late[number] = target
        place[id(step)] = target
        named = step.op in ("maximum", "minimum")  # which NumPy no longer wants to be given the place by position
        calls.append(f"(partial({step.op}, out={target}), {args})," if named else f"({step.op}, {args}, {target}),")
    calls += [f"(setitem, r{number}, ..., {where})," for number, where in late.items()]
    source = "\n    ".join(
        [
            "def calls(xp, arrays, scalars, results, scratch):",
            *(f"{op} = xp.{op}" for op in sorted({"array", *(s.op for s in program.steps if not s.scalar)})),
            *_unpack("a", len(program.arrays), "arrays"),
            *_unpack("s", len(program.scalars), "scalars"),
            *_unpack("r", len(program.results), "results"),
            *_unpack("t", needs, "scratch"),
            *lines,
            "dtype = results[0].dtype",
            *(f"{name} = array({text}, dtype)" for text, name in typed.items()),
            f"return [{' '.join(calls)}]",
        ]
    )
    space: dict[str, Any] = {"setitem": operator.setitem, "partial": partial}
    exec(source, space)  # the text above, made of names chosen here
    return InPlace(space["calls"], needs, source)


def _unpack(prefix: str, count: int, of: str) -> Sequence[str]:
    return [f"{''.join(f'{prefix}{i}, ' for i in range(count))}= {of}"] if count else []


def _scalar(op: str, args: str) -> str:
    sign = {name: symbol for symbol, name in BINARY.items()}.get(op)
    if sign is None:
        raise NotTraceableError(f"{op} of scalars")
    return sign.join(f" {a} " for a in args.split(", "))
