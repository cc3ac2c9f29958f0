"""Elementwise rules without temporaries: a rule is traced once, and NumPy does its operations in given memory.

They are done in the same order as the rule does them on arrays, so the results are equal bit for bit (but of powers,
which are products).
"""

import operator
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

from bpnet.compiler.graph import Graph
from bpnet.compiler.ops import COMPARISONS, POINTWISE
from bpnet.compiler.symbols import NotTraceableError, Symbol
from bpnet.compiler.trace import NUMBER, Namespace, trace

FUNCTIONS = POINTWISE - COMPARISONS - {"where", "astype", "erf"}
"""What NumPy computes into memory of the rule's type, out of such."""


@dataclass(frozen=True)
class InPlace:
    """A rule as NumPy calls that write to given memory: `calls(xp, arrays, scalars, results, scratch)` lists them.

    The i-th result may be the memory of the i-th array.  `scratch` are `needs` arrays of the same shape.
    Each call is a tuple of the function and its arguments, for `uninterrupted`.
    """

    calls: Callable[..., list[tuple[Any, ...]]]
    needs: int


def in_place(rule: Callable[..., Any], arrays: int, scalars: int, dtype: str, row: tuple[int, ...] = ()) -> InPlace:
    """Generate the calls of `rule(backend, *arrays, *scalars)` for arrays of that type, of rows of that shape.

    Memory is given back to the scratch as soon as its value has been read for the last time.  Raises NotTraceableError.
    """

    def on_symbols(graph: Graph, symbols: list[Any]) -> tuple[Any, ...]:
        made = rule(SimpleNamespace(xp=Namespace(graph)), *symbols)
        return made if isinstance(made, tuple) else (made,)

    traced = trace(on_symbols, [((2, *row), dtype)] * arrays + [NUMBER] * scalars)
    steps = [s for s in traced.graph.symbols if s.op not in ("memory", "number")]
    if any(s.op not in FUNCTIONS for s in steps):
        raise NotTraceableError("not elementwise, or of truth values")
    results = {r: n for n, r in enumerate(traced.results)}
    if not results.keys() <= set(steps) or len(results) < len(traced.results):
        raise NotTraceableError("a result that is none of an operation, or two that are one")
    last = {a: i for i, step in enumerate(steps) for a in step.inputs}
    memories = [s for s in traced.graph.symbols if s.op == "memory"]
    place = {s: f"v{i}" for i, s in enumerate(memories)}
    free: list[str] = []
    needs = 0
    calls: list[str] = []
    late: dict[int, str] = {}  # results whose own memory still held an array to be read when they were ready
    typed: dict[str, str] = {}  # numbers as arrays of the type, which NumPy takes in half the time

    def text(a: Any) -> str:
        if isinstance(a, Symbol) and a.op != "number":
            return place[a]
        number = traced.graph.numbers[a.args[0]] if isinstance(a, Symbol) else repr(a)
        return typed.setdefault(number, f"n{len(typed)}")

    for i, step in enumerate(steps):
        args = ", ".join(map(text, step.args))
        number = results.get(step)
        for a in set(step.inputs):
            if last[a] == i and a not in results and place.get(a, "").startswith("t"):
                free.append(place[a])
        if number is not None and last.get(memories[number], -1) <= i:
            target = f"r{number}"
        else:
            if not free:
                free.append(f"t{needs}")
                needs += 1
            target = free.pop()
            if number is not None:
                late[number] = target
        place[step] = target
        named = step.op in ("maximum", "minimum")  # which NumPy no longer wants to be given the place by position
        calls.append(f"(partial({step.op}, out={target}), {args})," if named else f"({step.op}, {args}, {target}),")
    calls += [f"(setitem, r{number}, ..., {where})," for number, where in late.items()]

    def unpack(prefix: str, count: int, source: str) -> str:
        return f"[{', '.join(f'{prefix}{i}' for i in range(count))}] = {source}"

    lines = [
        "def calls(xp, arrays, scalars, results, scratch):",
        *(f"{op} = xp.{op}" for op in sorted({"array", *(s.op for s in steps)})),
        unpack("v", arrays + scalars, "*arrays, *scalars"),
        unpack("r", len(results), "results"),
        unpack("t", needs, "scratch") if needs else "",
        "dtype = results[0].dtype",
        *(f"{name} = array({number}, dtype)" for number, name in typed.items()),
        f"return [{' '.join(calls)}]",
    ]
    space: dict[str, Any] = {"setitem": operator.setitem, "partial": partial}
    exec("\n    ".join(lines), space)  # the text above, made of names chosen here
    return InPlace(space["calls"], needs)
