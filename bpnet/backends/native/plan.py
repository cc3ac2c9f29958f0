"""A function of arrays, compiled for arguments of certain shapes and types: one call carries out all of it."""

import ctypes
import logging
import math
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy

from bpnet.backends.base import Rows
from bpnet.backends.native.code import compiled
from bpnet.backends.native.graph import Symbol, TracingBackend
from bpnet.backends.native.loops import write_pass, write_take
from bpnet.backends.native.products import Shape, write_product
from bpnet.backends.native.schedule import ARENA, FIRST, NUMBERS, Command, Schedule
from bpnet.backends.native.team import TEAM
from bpnet.backends.trace import NotTraceableError

MOST_PLANS = 32
"""Plans of a function that are kept; of the others, the one used last is made again when it is wanted."""

log = logging.getLogger("bpnet")
Tree = Any
"""Tuples of tuples ... of arrays, numbers and None."""


def leaves_of(tree: Tree) -> list[Any]:
    """What a tree holds, in order."""
    found: list[Any] = []
    for part in tree:
        if isinstance(part, tuple):
            found += leaves_of(part)
        else:
            found.append(part)
    return found


def rebuilt(tree: Tree, leaves: Any) -> Tree:
    """A tree of the same form with the next of `leaves` in the place of each."""
    return tuple(rebuilt(part, leaves) if isinstance(part, tuple) else next(leaves) for part in tree)


class Compiled:
    """`function`, of trees of arrays and numbers, by plans; what can't be traced runs as it stands."""

    def __init__(
        self, function: Callable[..., Any], backend: Any, donate: bool, cut: Callable[[int, float], list[Rows]]
    ) -> None:
        self.function, self.backend, self.donate, self.cut = function, backend, donate, cut
        self.plans: OrderedDict[Any, Plan | None] = OrderedDict()
        self.last: tuple[Any, Plan | None] = (None, None)

    def __call__(self, threads: int, *args: Any) -> Any:
        """function(*args), on so many threads."""
        leaves = leaves_of(args)
        key = threads, *[
            (a.shape, a.dtype) if isinstance(a, numpy.ndarray) else type(a) if a is None or type(a) is not float else float
            for a in leaves
        ]
        known, plan = self.last
        if known != key:
            plan = self._plan(key, args, leaves, threads)
            self.last = key, plan
        return self.function(self.backend, *args) if plan is None else plan(leaves)

    def _plan(self, key: Any, args: Any, leaves: list[Any], threads: int) -> "Plan | None":
        if key in self.plans:
            self.plans.move_to_end(key)
            return self.plans[key]
        try:
            plan: Plan | None = Plan(self.function, args, leaves, self.donate, self.cut, threads)
        except NotTraceableError as reason:
            log.debug("not compiled: %s", reason, exc_info=True)
            plan = None
        self.plans[key] = plan
        if len(self.plans) > MOST_PLANS:
            self.plans.popitem(last=False)
        return plan


class Plan:
    """The commands of a function for arguments like `leaves`, and the memory that they work in."""

    def __init__(
        self,
        function: Callable[..., Any],
        args: Tree,
        leaves: list[Any],
        donate: bool,
        cut: Callable[[int, float], list[Rows]],
        threads: int,
    ) -> None:
        self.threads = threads
        reals = {a.dtype for a in leaves if isinstance(a, numpy.ndarray) and a.dtype.kind == "f"}
        if len(reals) != 1 or reals.pop().name not in ("float32", "float64"):
            raise NotTraceableError("no array of float32 or float64, or several types")
        real = next(a.dtype for a in leaves if isinstance(a, numpy.ndarray) and a.dtype.kind == "f")
        tracing = TracingBackend(real, cut)
        graph = tracing.graph
        self.arrays: list[int] = []
        """Which leaves are arrays: the first lies in the memory FIRST, the others in those after it."""
        self.numbers: list[int] = []
        symbols: list[Any] = []
        for i, a in enumerate(leaves):
            if isinstance(a, numpy.ndarray):
                if a.dtype != real and a.dtype.name not in ("int32", "int64", "bool"):
                    raise NotTraceableError(f"{a.dtype} values")
                symbols.append(graph.memory(FIRST + len(self.arrays), a.shape, a.dtype))
                self.arrays.append(i)
            elif a is None:
                symbols.append(None)
            elif type(a) in (int, float):
                symbols.append(graph.scalar(len(self.numbers)))
                self.numbers.append(i)
            else:
                raise NotTraceableError(f"{a!r} is passed in")
        given_up = len(leaves_of((args[0],))) if donate else 0
        try:
            result = function(tracing, *rebuilt(args, iter(symbols)))
        except NotTraceableError:
            raise
        except Exception as error:  # whatever a function does that arrays can and symbols can't
            raise NotTraceableError(f"{type(error).__name__}: {error}") from error
        self._lay_out(result, leaves, real, given_up, graph)
        self._compile()

    def _lay_out(self, result: Tree, leaves: list[Any], real: Any, given_up: int, graph: Any) -> None:
        self.result = result if isinstance(result, tuple) else (result,)
        self.single = not isinstance(result, tuple)
        bases = {leaf: FIRST + k for k, leaf in enumerate(self.arrays)}
        outputs, self.made, self.returned = [], [], []
        """made: shape and type of new arrays; returned: for every leaf of the result, a new array or one passed in."""
        for i, symbol in enumerate(leaves_of(self.result)):
            if symbol is None:
                self.returned.append(("none", 0))
                continue
            if not isinstance(symbol, Symbol) or symbol.dtype != real:
                raise NotTraceableError(f"a result that is {symbol!r}")
            if i < given_up and isinstance(leaves[i], numpy.ndarray):
                if symbol.shape != leaves[i].shape:
                    raise NotTraceableError("a result of another shape than what is given up for it")
                self.returned.append(("given", i))
                outputs.append((symbol, bases[i]))
            else:
                self.returned.append(("made", len(self.made)))
                outputs.append((symbol, FIRST + len(self.arrays) + len(self.made)))
                self.made.append((symbol.shape, real))
        over = frozenset(bases[i] for i in range(given_up) if i in bases)
        schedule = Schedule(graph, outputs, over, self.threads)
        self.commands = schedule.commands
        self.arena = numpy.empty(schedule.arena + 64, numpy.uint8)
        self.scratch = Shape(real.name).scratch if any(c.kind == "product" for c in self.commands) else 0

    def _compile(self) -> None:
        told = numpy.array([n for c in self.commands for n in c.told], numpy.int64)
        self.told = told
        rows, start = [], told.ctypes.data
        for c in self.commands:
            rows.append((_address(c), start, c.tiles, 0))
            start += 8 * len(c.told)
        self.list = numpy.array(rows, numpy.int64).reshape(-1, 4)
        self.together = self.threads if any(c.tiles > 1 for c in self.commands) else 1
        self.where = (ctypes.c_void_p * (FIRST + len(self.arrays) + len(self.made)))()
        self.values = (ctypes.c_double * max(1, len(self.numbers)))()
        self.where[NUMBERS] = ctypes.addressof(self.values)
        self.where[ARENA] = -(-self.arena.ctypes.data // 64) * 64
        self.call = self.list.ctypes.data, len(self.commands), ctypes.addressof(self.where), self.together, self.scratch
        self.seen: list[Any] = [None] * len(self.arrays)

    def __call__(self, leaves: list[Any]) -> Tree:
        where, seen = self.where, self.seen
        for k, i in enumerate(self.arrays):
            a = leaves[i]
            if a is not seen[k]:
                if not a.flags.c_contiguous:
                    a = numpy.ascontiguousarray(a)
                where[FIRST + k] = a.ctypes.data
                seen[k] = a
        for k, i in enumerate(self.numbers):
            self.values[k] = leaves[i]
        made = [numpy.empty(shape, dtype) for shape, dtype in self.made]
        for k, a in enumerate(made, FIRST + len(self.arrays)):
            where[k] = a.ctypes.data
        TEAM.carry_out(*self.call)
        found = [None if kind == "none" else made[i] if kind == "made" else leaves[i] for kind, i in self.returned]
        return found[0] if self.single else rebuilt(self.result, iter(found))


_WRITERS: dict[str, Callable[..., None]] = {"product": write_product, "pass": write_pass, "take": write_take}


def _address(command: Command) -> int:
    writer, form = _WRITERS[command.kind], command.form
    return compiled(command.kind, lambda module, name: writer(module, name, form), f"{command.kind} {form!r}")
