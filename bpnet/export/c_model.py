"""A network with its weights, compiled ahead of time: from its layers to the object file and its header."""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy

from bpnet import __version__
from bpnet.backends.base import Array, Backend
from bpnet.backends.numpy.lower import lower
from bpnet.backends.tracing import TracingBackend
from bpnet.compiler import verify
from bpnet.compiler.build import build
from bpnet.compiler.commands import CommandList
from bpnet.compiler.epilogues import with_epilogues
from bpnet.compiler.graph import Graph
from bpnet.compiler.interpret import interpret
from bpnet.compiler.llvm.ahead import Constant, Entry, Input, object_file
from bpnet.compiler.llvm.processor import Processor
from bpnet.compiler.llvm.products import EPILOGUES
from bpnet.compiler.symbols import NotTraceableError
from bpnet.compiler.trace import Argument, reason, trace
from bpnet.errors import ExportError, plural, shown
from bpnet.export.c_header import COUNTS, Columns, Interface, identifiers
from bpnet.export.models import Exported
from bpnet.export.results import results_of
from bpnet.layer import Run, Shape
from bpnet.layout import accepting
from bpnet.losses.classes import ClassLoss

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
        # parameters and buffers as the layout has them
        self.weights = [numpy.empty(size, self.dtype) for size in (layout.size, layout.buffer_size)]
        held = (layout.parameters, model.parameters), (layout.buffers, model.buffers)
        for vector, (slots, arrays) in zip(self.weights, held, strict=True):
            for slot in slots:
                vector[slot.part] = arrays[slot.name].reshape(-1)
        size = sum(vector.nbytes for vector in self.weights)
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
        found = results_of(model)
        self.classes = None if found.classes is None else list(map(str, found.classes))
        of = "" if self.classes is None else ", in the order of class_names"
        quantities = model.table is not None and model.table.target.kind == "number"
        says = "the predicted quantities" if quantities else "the network's outputs"
        self.results = [Result("predict", found.predict, says)]
        if found.probabilities is not None:
            self.results.append(Result("predict_proba", found.probabilities, f"probabilities{of}"))
        if found.places is not None:
            label = self.layout.out_shape[-1] == 1 or isinstance(model.trainer.loss.single, ClassLoss)
            says = f"the number of the class{of}" if self.classes or label else "for each label whether the row has it"
            self.results.append(Result("predict_class", found.places, says, True))

    def commands(self, result: Result, rows: int) -> CommandList:
        """What is done for so many rows; raises ExportError."""

        def on_symbols(graph: Graph, symbols: list[Any]) -> list[Any]:
            backend, (theta, buffers, *x) = _Compiling(graph, lambda n, _: [(0, n)]), symbols
            run, p = Run(backend), self.layout.views(backend, theta, buffers)
            given = tuple(x) if self.several else x[0]
            output = backend.outline(self.layout.network).forward(run, p, given)[0]
            made = result.function(backend, output)
            if made.dtype != graph.real:  # which tell of no output that is not a number
                xp, flat = backend.xp, backend.xp.reshape(output, (rows, -1))
                missing = xp.any(xp.isnan(flat), axis=1, keepdims=made.ndim > 1)
                made = xp.where(missing, -1.0, xp.astype(made, graph.real))
            return [made]

        arrays: list[Argument] = [(vector.shape, self.dtype) for vector in self.weights]
        arrays += [((rows, *shape), i.dtype) for shape, i in zip(self.shapes, self.inputs, strict=True)]
        try:
            return build(trace(on_symbols, arrays))
        except NotTraceableError as error:
            if isinstance(error.__cause__, ExportError):
                raise error.__cause__ from None
            raise ExportError(f"{result.name} of the model can't be compiled: {error}") from error

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
        entries = [self._entry(result, sizes) for result in network.results]
        constants: dict[str, Constant] = {"version": __version__, "hash": ""}
        for given, array in zip(network.names, network.inputs, strict=True):
            constants["inputs" + given.removeprefix("x")] = array.features
        constants |= {COUNTS[entry.name]: entry.outputs for entry in entries}
        if network.classes is not None:
            constants["class_names"] = network.classes
        table = model.table
        columns = None if table is None else Columns(table.schema)
        constants |= {} if columns is None else columns.values
        vectors = [vector.tobytes() for vector in network.weights]
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

    def _entry(self, result: Result, sizes: list[int]) -> Entry:
        runs = {}
        for rows in sizes:
            made = self.network.commands(result, rows)
            if rows == min(CHECKED, sizes[-1]):
                self.network.check_rows(made, rows)
            commands = with_epilogues(made.commands, EPILOGUES[1:])
            verify.verified(replace(made, commands=commands))
            runs[rows] = lower(commands, made.arena, 1)
        (array,) = made.results
        assert array is not None
        return Entry(result.name, math.prod(array.shape[1:]), result.whole, runs)


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
