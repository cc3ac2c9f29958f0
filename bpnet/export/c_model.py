"""A network with its weights, compiled ahead of time: from its layers to the object file and its header."""

import hashlib
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy

from bpnet import __version__
from bpnet.backends.base import Array, Backend
from bpnet.backends.numpy.lower import TiledCommand, lower
from bpnet.backends.tracing import TracingBackend
from bpnet.compiler import verify
from bpnet.compiler.build import build
from bpnet.compiler.commands import FIRST, Command, CommandList, Product, reads
from bpnet.compiler.epilogues import with_epilogues
from bpnet.compiler.graph import Graph
from bpnet.compiler.interpret import interpret
from bpnet.compiler.llvm.ahead import Constant, Entry, Input, object_file
from bpnet.compiler.llvm.packing import packed
from bpnet.compiler.llvm.processor import Processor
from bpnet.compiler.llvm.products import EPILOGUES
from bpnet.compiler.symbols import NotTraceableError
from bpnet.compiler.trace import Argument, reason, trace
from bpnet.errors import ExportError, plural, shown
from bpnet.export.c_header import COUNTS, Columns, Interface, identifiers
from bpnet.export.models import Exported
from bpnet.layer import Run, Shape
from bpnet.layout import Slot, accepting

LARGEST = 2**31 - 2**24
"""Bytes of weights: code of this kind reaches no further."""
CODES = "int32"
"""The type of whole numbers that a network has a table for."""
CHECKED = 4
"""Rows of which it is checked that the first does not depend on the others."""


@dataclass(frozen=True)
class Result:
    """A function of the object: of the network's outputs; `whole`: its results are whole numbers."""

    name: str
    function: Callable[[Backend, Array], Array]
    says: str
    whole: bool = False


class Network:
    """A network with its weights on the host, and what it gives, as commands."""

    def __init__(self, model: Exported) -> None:
        self.layout = layout = model.trainer.layout
        self.dtype: str = model.dtype.name
        slots = [(slot, model.parameters) for slot in layout.parameters]
        slots += [(slot, model.buffers) for slot in layout.buffers]
        # parameters, then buffers
        self.weights = [arrays[slot.name].reshape(-1) for slot, arrays in slots]
        size = sum(array.nbytes for array in self.weights)
        if size > LARGEST:
            raise ExportError(f"the weights are {size:,} bytes; expected at most {LARGEST:,}")
        takes, shape, accepted = layout.network.takes, layout.in_shape, accepting(layout.network)
        self.several = isinstance(takes, tuple)
        self.shapes: list[Shape] = [one for _, one in shape] if self.several else [shape]
        kinds = [kind for _, kind in takes] if isinstance(takes, tuple) else [takes]
        self.inputs = [
            Input(self.dtype, math.prod(one), None, accepts)
            if codes is None
            else Input(CODES, math.prod(one), None if accepts else codes)
            for codes, one, accepts in zip(kinds, self.shapes, accepted, strict=True)
        ]
        self.names = [f"x_{name}" for name in identifiers([name for name, _ in shape])] if self.several else ["x"]
        loss, target = model.trainer.loss, model.target
        named = model.table is not None or model.trainer.classes is not None
        self.classes = list(map(str, target.classes)) if target and target.kind == "class" and named else None
        of = "" if self.classes is None else ", in the order of class_names"
        if target is not None and target.kind == "number":
            one = model.estimator  # which predicts one of several quantiles
            predict = loss.prediction if one else lambda backend, output: target.quantities_of(backend, loss, output)
            self.results = [Result("predict", predict, "the predicted quantities")]
            return
        self.results = [Result("predict", lambda backend, output: output, "the network's outputs")]
        if model.gives_probabilities:
            self.results.append(Result("predict_proba", model.probabilities, f"probabilities{of}"))
        if target is not None:
            says = f"the number of the class{of}" if target.kind == "class" else "for each label whether the row has it"
            places = lambda backend, output: target.places_of(backend, loss, output)  # noqa: E731
            self.results.append(Result("predict_class", places, says, True))

    def commands(self, result: Result, rows: int) -> CommandList:
        """What is done for so many rows; raises ExportError."""

        def on_symbols(graph: Graph, symbols: list[Any]) -> list[Any]:
            backend, count = _Compiling(graph, lambda n, _: [(0, n)]), len(self.layout.parameters)
            weights, x = symbols[: len(self.weights)], symbols[len(self.weights) :]
            theta = _Vector(self.layout.parameters, weights[:count])
            buffers = _Vector(self.layout.buffers, weights[count:])
            run, p = Run(backend), self.layout.views(backend, theta, buffers)
            given = tuple(x) if self.several else x[0]
            output = backend.outline(self.layout.network).forward(run, p, given)[0]
            made = result.function(backend, output)
            if made.dtype != graph.real:  # which tell of no output that is not a number
                xp, flat = backend.xp, backend.xp.reshape(output, (rows, -1))
                missing = xp.any(xp.isnan(flat), axis=1, keepdims=made.ndim > 1)
                made = xp.where(missing, -1.0, xp.astype(made, graph.real))
            return [made]

        arrays: list[Argument] = [(array.shape, self.dtype) for array in self.weights]
        arrays += [((rows, *shape), i.dtype) for shape, i in zip(self.shapes, self.inputs, strict=True)]
        try:
            return build(trace(on_symbols, arrays))
        except NotTraceableError as error:
            if isinstance(error.__cause__, ExportError):
                raise error.__cause__ from None
            raise ExportError(f"{result.name} of the model can't be compiled: {error}") from error

    def packed(self, commands: Sequence[Command]) -> dict[int, Any]:
        """Of weights that are right factors of products and nothing else, by their memory, the array as it is read."""
        found: dict[int, set[tuple[int, int, bool]]] = {}
        others: set[int] = set()
        for command in commands:
            arrays = reads(command)
            if isinstance(command, Product):
                b, sizes = command.b, (command.inner, command.columns)
                turned = (b.row_stride, b.column_stride) == (1, command.inner)
                (place,) = (arrays.pop(1).memory,)
                if command.stack == 1 and not b.address.offset and (turned or b.row_stride == command.columns):
                    found.setdefault(place, set()).add((*sizes, turned))
                else:
                    others.add(place)
            others |= {array.memory for array in arrays}
        made = {}
        for place, kinds in found.items():
            i = place - FIRST
            if place in others or len(kinds) > 1 or not 0 <= i < len(self.weights):
                continue
            ((inner, columns, turned),) = kinds
            if inner * columns == self.weights[i].size:
                b = self.weights[i].reshape((columns, inner) if turned else (inner, columns))
                made[place] = packed(b.T if turned else b)
        return made

    def check_rows(self, commands: CommandList, rows: int) -> None:
        """Raise ExportError where the first row's results depend on those behind it."""
        rng = numpy.random.default_rng(0)

        def drawn() -> list[Any]:
            return [
                rng.integers(0, i.codes or 2, (rows, *shape)).astype(i.dtype)
                if i.dtype == CODES
                else rng.standard_normal((rows, *shape)).astype(i.dtype)
                for shape, i in zip(self.shapes, self.inputs, strict=True)
            ]

        one, other = drawn(), drawn()
        for a, b in zip(one, other, strict=True):
            b[0] = a[0]
        with numpy.errstate(all="ignore"):
            first, again = (interpret(commands, [*self.weights, *x])[0][0] for x in (one, other))
        if not numpy.allclose(first, again, rtol=1e-3, atol=1e-5, equal_nan=True):
            raise ExportError(f"outputs of a row of {shown(self.layout.network)} depend on the rows beside it")


class CompiledModel:
    """The `code` of a model for a processor, and the `header` that declares its functions."""

    def __init__(self, model: Exported, name: str, processor: Processor, block: int) -> None:
        self.network = network = Network(model)
        sizes = [*(2**i for i in range((block - 1).bit_length())), block]
        lists = [{rows: network.commands(result, rows) for rows in sizes} for result in network.results]
        packed = network.packed([c for runs in lists for made in runs.values() for c in made.commands])
        pairs = zip(network.results, lists, strict=True)
        entries = [self._entry(result, runs, packed.keys()) for result, runs in pairs]
        constants: dict[str, Constant] = {"version": __version__, "hash": ""}
        for given, array in zip(network.names, network.inputs, strict=True):
            constants["inputs" + given.removeprefix("x")] = array.features
        constants |= {COUNTS[entry.name]: entry.outputs for entry in entries}
        if network.classes is not None:
            constants["class_names"] = network.classes
        table = model.table
        columns = None if table is None else Columns(table.schema)
        constants |= {} if columns is None else columns.values
        vectors = [packed.get(FIRST + i, array).tobytes() for i, array in enumerate(network.weights)]
        machine = processor.triple, processor.name, processor.flags
        digest = hashlib.sha256(repr((machine, network.inputs, entries, constants)).encode())
        for vector in vectors:
            digest.update(vector)
        constants["hash"] = digest.hexdigest()
        self.code = object_file(name, processor, network.dtype, network.inputs, vectors, entries, constants)
        title = f"a {repr(table).strip('<>')}" if table else f"a network of {plural(network.layout.size, 'parameter')}"
        arrays = list(zip(network.names, network.inputs, strict=True))
        says = {result.name: result.says for result in network.results}
        told = title, processor, block, network.dtype, arrays, entries, says, constants, columns
        self.header = Interface(name, *told).text

    def _entry(self, result: Result, lists: Mapping[int, CommandList], packed: Collection[int]) -> Entry:
        runs = {}
        for rows, made in lists.items():
            if rows == min(CHECKED, max(lists)):
                self.network.check_rows(made, rows)
            commands = with_epilogues(made.commands, EPILOGUES[1:])
            verify.verified(replace(made, commands=commands))
            tiled, arena = lower(commands, made.arena, 1)
            runs[rows] = [_reads_packed(t, packed) for t in tiled], arena
        (array,) = made.results
        assert array is not None
        return Entry(result.name, math.prod(array.shape[1:]), result.whole, runs)


def _reads_packed(tiled: TiledCommand, packed: Collection[int]) -> TiledCommand:
    """The same, or a product that knows that its b is packed."""
    if not isinstance(tiled.does, Product) or tiled.does.b.address.memory not in packed:
        return tiled
    return replace(tiled, made_from=(tiled.does.dtype, False, True))


class _Vector:
    """What stands for a vector of parameters whose parts are arrays of their own."""

    def __init__(self, slots: Sequence[Slot], parts: Sequence[Any]) -> None:
        self.parts = {slot.offset: part for slot, part in zip(slots, parts, strict=True)}

    def __getitem__(self, part: slice) -> Any:
        return self.parts[part.start]


class _Compiling(TracingBackend):
    """Whose errors say of which layer they are."""

    def outline(self, part: Any) -> Any:
        return _Named(part)


class _Named:
    def __init__(self, part: Any) -> None:
        self.part = part

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self.part, name)

        def call(*args: Any) -> Any:
            try:
                return method(*args)
            except ExportError:
                raise
            except Exception as error:  # whatever a layer does that arrays can and symbols can't
                raise ExportError(f"{name} of {shown(self.part)} can't be compiled: {reason(error)}") from error

        return call
