"""Functions compiled for CUDA: their commands launched one by one, or captured as a graph and launched as one.

What differs from step to step lies in device memory: the numbers (learning rate, bias correction, the step in the
random key) are written there before each launch, and the loss goes where one of them says.  So a captured step gives
the bits of the same step launched command by command.
"""

import contextlib
import logging
import operator
import threading
import warnings
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, groupby
from typing import Any

import cupy
import numpy
from cupy.cuda.compiler import CompileException

from bpnet.backends.base import Array, State
from bpnet.backends.cupy import cublaslt
from bpnet.backends.cupy.device_scalars import DeviceScalars, Losses
from bpnet.backends.cupy.program import ALIGNMENT, Calls, CaptureRefusedError, Program
from bpnet.backends.cupy.verdicts import CAPTURE, KERNELS, changes, checking, off, usable
from bpnet.backends.interrupts import advance, uninterrupted
from bpnet.backends.tracing import leaves_of, rebuilt, trace_trees
from bpnet.compiler import verify
from bpnet.compiler.bfloat16 import round_factors
from bpnet.compiler.build import build
from bpnet.compiler.columns import in_phases
from bpnet.compiler.commands import FIRST, Call, Command, Product
from bpnet.compiler.cuda.launch import MOST_ROWS_AGAIN
from bpnet.compiler.epilogues import with_epilogues
from bpnet.compiler.symbols import NotTraceableError, root_of
from bpnet.compiler.together import side_by_side
from bpnet.errors import BpnetWarning

log = logging.getLogger("bpnet")

MAX_PROGRAMS = 8
"""Kinds of arguments (shapes, types, and which are None) of which a function keeps programs."""
MAX_GRAPHS, MAX_CAPTURES, RECENT = 4, 16, 8
"""Graphs of a program that are kept, captures of it at most, and how many calls without a graph are remembered."""
SMALL = 2**25
"""Bytes of arguments up to which they are copied to where a graph reads them, if they come from elsewhere each time;
the graphs of a program share that memory.

A device copies so many in some tens of microseconds, less than the host takes to launch a step command by command.
"""


class Compiled:
    """`function(backend, *args)` of trees of arrays and numbers, by a program for every kind of arguments."""

    def __init__(self, function: Callable[..., Any], backend: Any, donates: bool = False) -> None:
        self.function, self.backend, self.plain = function, backend, partial(function, backend)
        self.donates = donates
        self.programs: OrderedDict[Any, Traced | None] = OrderedDict()
        self.changes = changes()
        self.lock = threading.RLock()

    def __call__(self, *args: Any) -> Any:
        leaves = leaves_of(args)
        found = self.find(args, leaves)
        if found is not None:
            try:
                return found.run(leaves)
            except CompileException as error:
                self.give_up(found, error)
        return self.plain(*args)

    def find(self, args: Sequence[Any], leaves: list[Any], known: Sequence[Any] = ()) -> "Traced | None":
        """The program for arguments like these, the first of `known` kinds; None where they have none.

        So it is where the function can't be traced for them, or kernels can't be used on the device.
        """
        if self.changes != changes():  # what has been switched off since may be part of programs and graphs
            self.programs.clear()
            self.changes = changes()
        if not usable(KERNELS):
            return None
        kind = (*known, *map(_kind, leaves[len(known) :]))
        with self.lock:
            if kind not in self.programs:
                self.programs[kind] = self._trace(args, leaves)
                if len(self.programs) > MAX_PROGRAMS:
                    self.programs.popitem(last=False)
            self.programs.move_to_end(kind)
            found = self.programs[kind]
            return None if found is None or found.broken else found

    def give_up(self, found: "Traced", error: Exception) -> None:
        """Use it no more: a kernel that does not compile is no reason for a user's training to end."""
        if verify.STRICT or checking():
            raise error
        found.broken = True
        log.warning("a kernel does not compile, which is a fault of bpnet: %s", error)

    def _trace(self, args: Sequence[Any], leaves: list[Any]) -> "Traced | None":
        try:
            found = Traced(self.function, self.backend, args, leaves, self.donates)
        except NotTraceableError as error:
            self.say(f"is computed operation by operation, since it can't be compiled: {error}")
            return None
        except MemoryError:
            raise
        except Exception:  # a fault here is no reason for a user's training to end
            if verify.STRICT or checking():
                raise
            log.warning("not compiled, which is a fault of bpnet", exc_info=True)
            return None
        if self.donates and found.calls:
            self.say(f"is launched command by command, since not all of it can be captured: {found.calls[0].text}")
        return found

    def explain(self, args: Sequence[Any]) -> str:
        """What is done for arguments like these, command by command."""
        found = self.find(args, leaves_of(args))
        if found is None:
            why = off().get(KERNELS)
            return f"every operation as it stands, since {f'{KERNELS} are {why}' if why else 'it can not be compiled'}"
        captured = "captured as a CUDA graph from the second call on" if self.donates else "launched one by one"
        if found.calls:
            captured = "launched one by one, since not all can be captured"
        return f"{len(found.commands.commands)} commands, {captured}\n\n{found.commands}"

    def say(self, what: str) -> None:
        """Tell the user once."""
        if not getattr(self, "said", False):
            self.said = True
            warnings.warn(
                f"{'a training step' if self.donates else 'a prediction or gradient'} {what}",
                BpnetWarning,
                stacklevel=2,
            )


class Traced:
    """The program of a function for arguments of one kind."""

    def __init__(
        self, function: Callable[..., Any], backend: Any, args: Sequence[Any], leaves: list[Any], donates: bool
    ) -> None:
        function = partial(_loss_apart, function) if donates else function
        traced, self.form, precision = trace_trees(function, backend, cupy.ndarray, args)
        self.donated = len(leaves_of(args[0])) if donates else 0
        commands = build(traced, self.donated, ALIGNMENT)
        if traced.graph.real == "float32" and precision == "bfloat16":
            commands = round_factors(commands, ALIGNMENT)
        elif traced.graph.real == "float32" and precision == "tf32":
            commands = replace(commands, commands=tuple(map(_in_tf32, commands.commands)))
        together = side_by_side(in_phases(with_epilogues(commands.commands), MOST_ROWS_AGAIN))
        commands = verify.verified(replace(commands, commands=together))
        self.new = [r for r in commands.results if r is not None and r not in commands.arguments]
        if donates and [r.shape for r in self.new] != [()]:
            raise NotTraceableError("a step gives more than its carry and a loss")
        self.commands, self.program = commands, Program(commands, self.new[0].memory if donates else None)
        self.arrays = [i for i, a in enumerate(commands.arguments) if a is not None]
        calls = [c for c in commands.commands if isinstance(c, Call)]
        self.calls = [c for c in calls if c.captured is None]
        """What is not compiled, and so can't be captured either."""
        self.in_parts = any(c.captured is False for c in calls)
        """Whether the host does something in the midst of it, so that it is several graphs."""
        self.scalars = [i for i, a in enumerate(leaves) if type(a) in (int, float)]
        names = ", ".join(f"v{i}" for i in self.scalars)
        self.numbers: Callable[..., Sequence[float]] = eval(  # text made of the names above and signs
            f"lambda {names}: ({''.join(f'{text}, ' for text in commands.numbers)})"
        )
        self.rings: dict[int, DeviceScalars] = {}
        self.graphs: OrderedDict[Any, Graph] = OrderedDict()
        self.recent: deque[Any] = deque(maxlen=2 * RECENT)
        """Where arguments of calls without a graph lay."""
        self.last: dict[int, list[int | None]] = {}
        """Where those of the last call of so many steps lay."""
        self.captures_left = MAX_CAPTURES
        self.broken = False
        """Whether a kernel of it does not compile."""
        self.lock = threading.RLock()

    def ring(self, count: int) -> DeviceScalars:
        """Where the numbers of `count` steps are written, and after each step's the address of its loss."""
        if count not in self.rings:
            self.rings[count] = DeviceScalars(("d" * len(self.commands.numbers) + "q") * count)
        return self.rings[count]

    def graph(self, arrays: Sequence[Array], count: int, step: "CapturedStep") -> "Graph | None":
        """The graph of `count` steps on these arrays; None: none yet.

        One reads arrays where they lie, or all but small ones that don't lie where they did in the call before, or all
        but small ones: the others are copied to it.
        """
        if self.calls or self.program.by_cupy or (self.in_parts and count > 1):
            if self.program.by_cupy and cublaslt.available():
                step.say("is launched command by command, since cuBLASLt lacks one of its products")
            return None
        lie = [a.data.ptr if a.flags.c_contiguous else None for a in arrays]
        loose = [p if a.nbytes > SMALL else None for p, a in zip(lie, arrays, strict=True)]
        last, self.last[count] = self.last.get(count), lie
        steady = [large or (p if p == q else None) for large, p, q in zip(loose, lie, last or loose, strict=True)]
        keys = [(count, *key) for key in (lie, steady, loose)]
        key = next((key for key in keys if key in self.graphs), None)
        if key is None:
            seen, more = keys[2] in self.recent, self.captures_left > MAX_GRAPHS  # the last captures serve all places
            if not (seen and self.captures_left):
                self.recent.extend((keys[0], keys[2]))
                return None
            key = keys[0] if more and keys[0] in self.recent else keys[1] if more else keys[2]
            static = {i: self._static_input(i, a) for i, a in enumerate(arrays) if key[1 + i] is None}
            self.captures_left -= 1
            made = step.capture(self, [static.get(i, a) for i, a in enumerate(arrays)], count)
            if made is None:
                return None
            self.graphs[key] = Graph(made, static)
            if len(self.graphs) > MAX_GRAPHS:
                self.graphs.popitem(last=False)
        self.graphs.move_to_end(key)
        return self.graphs[key]

    def _static_input(self, number: int, like: Array) -> Array:
        """Memory for that argument, the same in all graphs, which run one after the other."""
        of_graphs = (graph.static_inputs.get(number) for graph in self.graphs.values())
        fitting = (a for a in of_graphs if a is not None and (a.shape, a.dtype) == (like.shape, like.dtype))
        found = next(fitting, None)
        return cupy.empty(like.shape, like.dtype) if found is None else found

    def values(self, leaves: Sequence[Any]) -> list[float]:
        """The numbers that the commands read."""
        self.program.values = values = [*map(float, self.numbers(*[leaves[i] for i in self.scalars]))]
        return values

    def run(self, leaves: Sequence[Any]) -> Any:
        """Launch the commands one by one; results are new arrays."""
        arrays = [cupy.ascontiguousarray(leaves[i]) for i in self.arrays]
        results = [cupy.empty(r.shape, r.dtype) for r in self.new]
        with self.lock:  # the workspace is one, whatever thread calls
            values = self.values(leaves)
            numbers = cupy.asarray(numpy.array(values)) if values else self.program.tickets  # which nobody reads
            self.program.follow(cupy.cuda.get_current_stream().ptr, threading.get_ident())
            arena = self.program.new_arena()  # not free until all is launched
            for calls in self.program.calls(numbers.data, arena, [*arrays, *results]):
                uninterrupted(calls)
            self.program.workspaces.clear()  # whose memory is used again once all is done
        given = [*(leaves[i] for i in self.arrays), *results]
        found = iter([None if r is None else given[r.memory - FIRST] for r in self.commands.results])
        return rebuilt(self.form, found) if isinstance(self.form, tuple) else next(found)


class CapturedStep(Compiled):
    """step(carry, *arguments) -> carry, loss, as a graph; the carry that is passed in is given up.

    Of every kind of arguments the first call is launched command by command.  Arguments that come from where others
    came from before are read there, by a graph of their own; small ones that don't are copied to where a graph reads
    them; and where large ones never come from the same place, every command is launched by itself.  Numbers may differ
    from call to call, and change nothing but values.

    The carry stays in the memory in which it first came, and one from elsewhere is copied there.  All is launched on
    CuPy's current stream.
    """

    def __init__(self, function: Callable[..., Any], backend: Any) -> None:
        super().__init__(function, backend, donates=True)
        self.captures = True
        """Whether steps are captured, as far as is known."""
        self.carry: Any = None
        self.leaves: list[Array] = []
        """The arrays of the carry."""
        self.kind: list[Any] = []
        """And of what kind they are."""
        self.losses: Losses

    def __call__(self, carry: Any, *args: Any) -> tuple[Any, Array]:
        state = State(carry, 0)
        value = self.advance(state, args, 0)
        return state.now[0], value

    def advance(self, state: State, args: Sequence[Any], count: int) -> Array:
        """See `Backend.advance`."""
        try:
            values = self._steps(state, args, [()], count)
        except MemoryError:
            self.programs.clear()  # so that others may fit
            raise
        return advance(self.plain, state, count, state.now[0], *args) if values is None else values[0]

    def run_steps(self, state: State, shared: Sequence[Any], each: Sequence[tuple[Any, ...]]) -> list[Array] | None:
        """The steps step(carry, *shared, *own) by one launch, each on its equal part of the last of `shared`.

        None, and nothing done, where they have no graph, as at the first call of a kind, or where memory runs out: the
        caller then does them one by one, and learns which of them fails.
        """
        try:
            return self._steps(state, shared, each, state.now[1] + len(each))
        except MemoryError:
            return None

    def _steps(
        self, state: State, shared: Sequence[Any], each: Sequence[tuple[Any, ...]], count: int
    ) -> list[Array] | None:
        """One step or several, after which there have been `count`; None where they can't be done like this."""
        carry, _ = state.now
        self._keep(carry)
        parts = [(*part, *own) for part, own in zip(_parted(shared, len(each)), each, strict=True)]
        leaves = [[*self.leaves, *leaves_of(args)] for args in parts]
        found = self.find((carry, *parts[0]), leaves[0], self.kind)
        if found is None:
            return None
        arrays = [leaves[0][i] for i in found.arrays[len(self.leaves) :]]
        if len(each) > 1:
            arrays[-1] = shared[-1]
        graph = found.graph(arrays, len(each), self) if self.captures and usable(CAPTURE) else None
        if graph is None and len(each) > 1:
            return None
        values, ring = [self.losses.next() for _ in each], found.ring(len(each))
        ring.write([n for own, loss in zip(leaves, values, strict=True) for n in (*found.values(own), loss.data.ptr)])
        if graph is None:
            given = [*self.leaves, *map(cupy.ascontiguousarray, arrays)]
            try:
                computing, writing = found.program.calls(ring.memory.data, found.program.arena, given)
            except CompileException as error:
                self.give_up(found, error)
                return None
            uninterrupted(computing)
        else:
            graph.stage(arrays)
            writing = graph.launches
        uninterrupted([*writing, (setattr, state, "now", (self.carry, count))])
        return values

    def capture(self, found: "Traced", arrays: Sequence[Array], count: int) -> Calls | None:
        """What launches so many steps on these arrays, captured, none of which runs yet; None where that can't be.

        It is a graph, or graphs with what the host does between them.
        """
        ring, size = found.ring(count), len(found.commands.numbers) + 1
        made: Calls = []  # whose kernels are compiled and loaded before anything is captured
        for i, part in enumerate(_parted(arrays, count)):
            numbers = ring.memory.data + 8 * size * i
            made += chain(*found.program.calls(numbers, found.program.arena, [*self.leaves, *part]))
        with cupy.cuda.Stream(non_blocking=True) as stream:
            try:
                launches: Calls = []
                for by_host, calls in groupby(made, found.program.by_host):
                    if by_host:
                        launches += calls
                    else:
                        stream.begin_capture()
                        uninterrupted(calls)
                        launches.append((stream.end_capture().launch,))
                return launches
            except BaseException as error:
                with contextlib.suppress(Exception):  # what ends a capture that has failed says so once more
                    stream.end_capture()
                if not isinstance(error, Exception) or isinstance(error, MemoryError):
                    raise
                if isinstance(error, CaptureRefusedError):
                    return None
                self.captures = False
                self.say(f"is launched command by command, since it can't be captured: {error}")
                return None

    def _keep(self, carry: Any) -> None:
        """Keep the carry, or where there is one copy it there."""
        if carry is self.carry:
            return
        leaves = leaves_of(carry)
        if [(a.shape, a.dtype) for a in leaves] != [(a.shape, a.dtype) for a in self.leaves]:
            self.carry, self.leaves, self.losses = carry, leaves, Losses(leaves[0].dtype)
            self.kind = [*map(_kind, leaves)]
            self.programs.clear()
        else:
            pairs = zip(self.leaves, leaves, strict=True)
            uninterrupted((operator.setitem, mine, ..., given) for mine, given in pairs if given is not mine)


@dataclass(frozen=True)
class Graph:
    """What launches a captured step, and its static inputs: to which some of its arguments are copied, by number."""

    launches: Calls
    static_inputs: dict[int, Array]

    def stage(self, arrays: Sequence[Array]) -> None:
        """Copy what is not read where it lies."""
        for i, static in self.static_inputs.items():
            if arrays[i].flags.c_contiguous:
                static.data.copy_from_device_async(arrays[i].data, static.nbytes)
            else:
                static[...] = arrays[i]


def _kind(a: Any) -> Any:
    return (a.shape, a.dtype, a.data.device_id) if isinstance(a, cupy.ndarray) else type(a)


def _loss_apart(function: Callable[..., Any], backend: Any, *args: Any) -> tuple[Any, Any]:
    """The step, with a copy of the loss where the carry depends on it: a loss lies where nothing else can read it."""
    carry, loss = function(backend, *args)
    whole, seen, left = root_of(loss)[0], set[Any](), leaves_of(carry)
    while left:
        symbol = left.pop()
        if symbol is whole:
            return carry, backend.graph.copy(loss)
        if symbol not in seen:
            seen.add(symbol)
            left += symbol.inputs
    return carry, loss


def _in_tf32(command: Command) -> Command:
    return replace(command, precision="tf32") if isinstance(command, Product) else command


def _parted(arguments: Sequence[Any], count: int) -> list[Sequence[Any]]:
    """The arguments of each of `count` steps: all share them, but for its equal part of the last."""
    if count == 1:
        return [arguments]
    *shared, rows = arguments
    size = rows.shape[0] // count
    return [(*shared, rows[i * size : (i + 1) * size]) for i in range(count)]
