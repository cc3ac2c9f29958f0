"""A function of arrays, compiled for arguments of certain shapes and types: one call carries out all of it."""

import ctypes
import functools
import itertools
import logging
import math
import os
import threading
import traceback
import warnings
import weakref
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy

from bpnet.backends import get
from bpnet.backends.base import Rows
from bpnet.backends.numpy.lower import TiledCommand, lower
from bpnet.backends.threads import available_threads
from bpnet.backends.tracing import Tree, leaves_of, trace_trees
from bpnet.compiler import verify
from bpnet.compiler.build import build
from bpnet.compiler.commands import ARENA, FIRST, NUMBERS, Array, Call, Command
from bpnet.compiler.epilogues import with_epilogues
from bpnet.compiler.llvm.jit import compiled
from bpnet.compiler.llvm.products import EPILOGUES
from bpnet.compiler.llvm.thread_pool import POOL, CommandTable
from bpnet.compiler.symbols import NotTraceableError
from bpnet.errors import BpnetWarning

COMPILED_ROWS = 8192
"""Most rows in a block of a compiled function, where there are not MOST_BLOCKS larger ones."""
MOST_BLOCKS = 128
"""Blocks of a compiled function, each of which has commands of its own."""
MOST_EXECUTABLES = 32
"""Most that a function keeps; of the others, one is compiled again when it is needed."""

log = logging.getLogger("bpnet")


class Changed(Exception):
    """The arguments are not like those that it was compiled for."""


class _TooLarge(MemoryError):
    """There is no memory for what is computed in between."""

    def __str__(self) -> str:
        return str(self.__cause__)


class CompiledFunction:
    """`function(backend, *args)` of trees of arrays and numbers, by an executable for each kind of arguments.

    `plain(state, count, *args)` is for what can't be.  `state`, where it is not None, gets the carry of the result and
    `count` (see `Backend.advance`).
    """

    def __init__(self, function: Callable[..., Any], plain: Callable[..., Any], donate: bool) -> None:
        self.function, self.plain, self.donate = function, plain, donate
        self.changed = Changed
        self.reason = ""
        """Why something was not compiled, where something was not."""
        self.executables: OrderedDict[Any, Callable[..., Any]] = OrderedDict()
        self.last: tuple[int, Callable[..., Any]] = (0, plain)
        self.lock: Any = threading.Lock()
        _LOCKED.add(weakref.ref(self, _LOCKED.discard))

    def find(self, threads: int, args: Any) -> Callable[..., Any]:
        """What is to be called with arguments like these, on so many threads; it is then the `last`.

        With others it raises `changed`.
        """
        leaves = leaves_of(args)
        key = threads, *[(a.shape, a.dtype) if isinstance(a, numpy.ndarray) else a is None for a in leaves]
        with self.lock:
            if key not in self.executables:
                call = self._compile(args, threads)
                if len(self.executables) == MOST_EXECUTABLES:
                    self.executables.popitem(last=False)
                self.executables[key] = call
            self.executables.move_to_end(key)
            call = self.executables[key]
            self.last = (0 if call is self.plain else threads), call
            return call

    def explain(self, threads: int, args: Any) -> str:
        """What is done for arguments like these, command by command, and with how many tiles for the threads."""
        call: Any = self.find(threads, args)
        made = getattr(call, "executable", None)
        return f"every operation as it stands, since {self.reason}" if made is None else made.text(threads)

    def _compile(self, args: Any, threads: int) -> Callable[..., Any]:
        try:
            return Executable(self.function, args, self.donate, min(threads, available_threads())).caller(args)
        except NotTraceableError as error:
            if not self.reason:
                what = "a training step" if self.donate else "a prediction or gradient"
                text = f"{what} runs without the compiler, operation by operation: {error}"
                warnings.warn(text, BpnetWarning, stacklevel=2)
            self.reason = f"it can't be compiled: {error}"
        except _TooLarge:  # as without the compiler
            raise
        except MemoryError as error:
            traceback.clear_frames(error.__traceback__)  # which hold what had been made
            self.reason = "there is no memory to compile it"
            text = "there is no memory to compile a function, which runs operation by operation"
            warnings.warn(text, BpnetWarning, stacklevel=2)
        except Exception:  # a fault here is no reason for a user's training to end
            if verify.STRICT:
                raise
            log.warning("not compiled, which is a fault of bpnet", exc_info=True)
        return self.plain


class Executable:
    """The commands of a function for arguments like `args`, and the memory that they work in."""

    def __init__(self, function: Callable[..., Any], args: Tree, donate: bool, threads: int) -> None:
        self.donate = donate
        traced, result, _ = trace_trees(function, get("numpy"), numpy.ndarray, args, _cut)
        self.single = not isinstance(result, tuple)
        self.result = (result,) if self.single else result
        donated = len(leaves_of((args[0],))) if donate else 0
        commands = build(traced, donated)
        commands = replace(commands, commands=with_epilogues(commands.commands, EPILOGUES[1:]))
        self.commands = commands = verify.verified(commands)
        # which leaves are arrays: the first lies in the memory FIRST, the others in those after it
        self.arrays = [i for i, a in enumerate(commands.arguments) if a is not None]
        self.kinds = [(a.shape, numpy.dtype(a.dtype)) for a in commands.arguments if a is not None]
        # weak references to the arrays whose places are known
        self.known: list[Any] = [_nothing] * len(self.arrays)
        # how many arrays are donated: the first ones
        self.writable = sum(i < donated for i in self.arrays)
        self.new = [a for a in commands.results if a is not None and a not in commands.arguments]
        self._prepare(threads)
        self.lock: Any = threading.Lock()
        _LOCKED.add(weakref.ref(self, _LOCKED.discard))

    def text(self, threads: int) -> str:
        """All that is done, in words."""
        made, calls = len(self.commands.commands), len(self.calls)
        apart = f", {calls} of them not compiled" if calls else ""
        lines = [f"{made} commands by machine code on at most {threads} threads{apart}", ""]
        lines.append(str(self.commands))
        if len(self.tiled) > len(self.commands.commands) or any(t.tiles > 1 for t in self.tiled):
            lines += ["", "as threads share them:"]
            lines += [f"{t.tiles:>5} {'tile ' if t.tiles == 1 else 'tiles'}  {t.does}" for t in self.tiled]
        lines += [f"not compiled: {c.text}" for c in self.calls]
        return "\n".join(lines)

    def _prepare(self, threads: int) -> None:
        """Machine code, memory, and the tables that the thread pool reads: one up to each call, and one after them."""
        parts: list[list[Command]] = [[]]
        self.calls: list[Call] = []
        for command in self.commands.commands:
            if isinstance(command, Call):
                self.calls.append(command)
                parts.append([])
            else:
                parts[-1].append(command)
        lowered = [lower(part, self.commands.arena, threads) for part in parts]
        self.tiled = [command for tiled, _ in lowered for command in tiled]
        try:
            self.arena = numpy.empty(max(arena for _, arena in lowered) + 64, numpy.uint8)
        except MemoryError as error:
            raise _TooLarge(*error.args) from error
        self.memories = (ctypes.c_void_p * (FIRST + len(self.arrays) + len(self.new)))()
        self.values = (ctypes.c_double * max(1, len(self.commands.numbers)))()
        self.memories[NUMBERS] = ctypes.addressof(self.values)
        self.memories[ARENA] = -(-self.arena.ctypes.data // 64) * 64
        self.arguments: list[Any] = []
        self.tables = [self._table(tiled, threads) for tiled, _ in lowered]

    def _table(self, tiled: list[TiledCommand], threads: int) -> CommandTable:
        arguments = numpy.array([n for c in tiled for n in c.arguments], numpy.int64)
        starts = arguments.ctypes.data + 8 * numpy.cumsum([0, *(len(c.arguments) for c in tiled)])
        rows = [(_address(c), start, c.tiles, 0) for c, start in zip(tiled, starts, strict=False)]
        commands = numpy.array(rows, numpy.int64).reshape(-1, 4)
        together = threads if any(c.tiles > 1 for c in tiled) else 1
        self.arguments.append(arguments)  # which the table only points to
        return CommandTable(commands, ctypes.addressof(self.memories), together)

    def _call(self, number: int) -> None:
        """Call what is not compiled, and put what it gives where others read it."""
        with get("numpy").session():
            self.calls[number].carry_out(self._array, self.values.__getitem__)

    def _array(self, of: Array) -> Any:
        size = math.prod(of.shape) * numpy.dtype(of.dtype).itemsize
        if not size:
            return numpy.empty(of.shape, of.dtype)
        memory: Any = (ctypes.c_char * size).from_address((self.memories[of.memory] or 0) + of.offset)
        return numpy.frombuffer(memory, of.dtype).reshape(of.shape)

    def caller(self, args: Tree) -> Callable[..., Any]:
        """call(state, count, *args), written for these arguments: nothing else takes longer between two small steps.

        The executable does not hold it, so that one that is no longer needed goes away at once, and its memory with it.
        """
        leaves = leaves_of(args)
        names = [f"v{i}" for i in range(len(leaves))]
        lines = [f"values[{slot}] = {text}" for slot, text in enumerate(self.commands.numbers)]
        lines += [f"if v{i} is not None: raise Changed" for i, a in enumerate(leaves) if a is None]
        for k, i in enumerate(self.arrays):
            name, shape = f"v{i}", self.kinds[k][0]
            place = f"known[{k}] = nothing; memories[{FIRST + k}] = addressof(view({name})); known[{k}] = ref({name})"
            same = f"type({name}) is ndarray and {name}.dtype is kinds[{k}][1] and {name}.shape == {shape}"
            common = f"{same} and {name}.flags.carray" if 0 not in shape else "False"  # in order, aligned, writeable
            lines.append(f"if {name} is None or {name} is not known[{k}]():")  # what has died is None too
            lines.append(f"    if {common}: {place}")
            lines.append(f"    else: {name} = locate({k}, {name})")
        scalars = {}
        for k, array in enumerate(self.new):
            if array.shape:
                new = f"new{k} = empty({array.shape!r}, {array.dtype})"
                lines.append(f"{new}; memories[{array.memory}] = addressof(view(new{k}))")
            else:  # read from a place that stays, which is quicker
                scalars[k] = numpy.empty((), array.dtype)
                self.memories[array.memory] = scalars[k].ctypes.data
        for i in range(len(self.calls)):
            lines.append(f"run(tables[{i}]); call_{i}()")
        results = ["None" if a is None else f"v{i}" for i, a in enumerate(self.commands.results)]
        for k, array in enumerate(self.new):
            results[self.commands.results.index(array)] = f"new{k}"
        if self.donate:
            carry = _text((self.result[0],), iter(results))[1:-3]
            if any(f"new{k}," in carry + "," for k in scalars):
                raise NotTraceableError("a number in place of what is donated")
            lines.append(f"run(table, state, ({carry}, count))")
        else:
            lines.append("run(table)")
        lines += [f"new{k} = scalar{k}[()]" for k in scalars]
        following = iter(names)
        source = [
            f"def call(state, count, {', '.join(f'a{i}' for i in range(len(args)))}):",
            *(f"{_text(a, following)} = a{i}" for i, a in enumerate(args)),
            "with executable.lock:  # the memory is one, whatever thread calls",
            *(f"    {line}" for line in lines),
            f"return {results[0] if self.single else _text(self.result, iter(results))}",
        ]
        space: dict[str, Any] = {
            "executable": self, "known": self.known, "nothing": _nothing, "locate": self._locate, "kinds": self.kinds,
            "values": self.values, "memories": self.memories, "table": self.tables[-1], "tables": self.tables,
            "run": POOL.run, "Changed": Changed,
            "ref": weakref.ref, "addressof": ctypes.addressof, "view": ctypes.c_char.from_buffer,
            "ndarray": numpy.ndarray, "empty": numpy.empty, "float32": numpy.float32, "float64": numpy.float64,
            **{f"scalar{k}": place for k, place in scalars.items()},
            **{f"call_{i}": functools.partial(self._call, i) for i in range(len(self.calls))},
        }  # fmt: skip
        exec("\n    ".join(source), space)  # text made above of names chosen there
        call: Any = space.pop("call")
        call.executable = self  # for whoever wants to know what is done
        return call  # type: ignore[no-any-return]

    def _locate(self, k: int, a: Any) -> Any:
        """Note where the k-th array lies, which must be like the one that it was compiled for."""
        if not isinstance(a, numpy.ndarray) or a.shape != self.kinds[k][0] or a.dtype != self.kinds[k][1]:
            raise Changed
        fit = a.flags.c_contiguous and a.flags.aligned and (a.flags.writeable or k >= self.writable)
        mine = numpy.asarray(a) if fit else numpy.array(a, order="C")
        self.known[k] = _nothing
        self.memories[FIRST + k] = mine.ctypes.data
        self.known[k] = weakref.ref(a) if mine is a else _nothing
        return mine


def _nothing() -> None:
    """In the place of a weak reference."""


_LOCKED: set[Any] = set()
"""References to what has a lock, which in a forked child another thread may seem to hold for ever."""


def _in_child() -> None:
    for known in list(_LOCKED):
        if (owner := known()) is not None:
            owner.lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)


def _text(tree: Tree, names: Any) -> str:
    """A tree of names as Python text."""
    return f"({''.join(f'{_text(part, names)}, ' for part in tree)})" if isinstance(tree, tuple) else next(names)


def _cut(rows: int, work: float) -> list[Rows]:
    """The blocks of a compiled function: as few as memory allows, since it cuts everything else by itself."""
    count = min(-(-rows // COMPILED_ROWS), MOST_BLOCKS)
    return list(itertools.pairwise(rows * i // count for i in range(count + 1)))


def _address(command: TiledCommand) -> int:
    return compiled(command.kind, command.write, f"{command.kind} {command.made_from!r}")
