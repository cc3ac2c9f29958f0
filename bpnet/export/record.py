"""The forward pass of a network as a list of operations, found by calling its layers with arrays that keep record.

A recording array carries a NumPy value as an example, so shapes and types need no rules of their own: each function of
the standard's namespace is called with the values, and what was called is noted.  That is done for several numbers of
rows; where the notes differ, in a shape or the end of a slice, they are of the form a rows + b.
"""

import itertools
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any

import numpy

from bpnet.backends.base import Backend
from bpnet.backends.interrupts import NoWarnings
from bpnet.errors import ExportError
from bpnet.export.recording import Note, Recorded, Recorder, function_of, leaves_of, mapped

ROWS = (1, 4, 9)
"""The numbers of rows for which a network is recorded: with three, what is not of the form a rows + b shows."""


@dataclass(frozen=True)
class Rows:
    """A number that depends on how many rows there are: factor rows + offset."""

    factor: int = 1
    offset: int = 0

    def at(self, rows: int) -> int:
        return self.factor * rows + self.offset

    def __repr__(self) -> str:
        factor = "" if self.factor == 1 else f"{self.factor} "
        offset = f" {'+' if self.offset > 0 else '-'} {abs(self.offset)}" if self.offset else ""
        return f"{factor}rows{offset}"


Size = int | Rows


@dataclass(frozen=True)
class Value:
    """An array of a program: an input, a parameter, or what an operation makes."""

    name: str
    shape: tuple[Size, ...]
    dtype: Any
    """Of NumPy."""

    def __repr__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Operation:
    """result = function(*args, **options), of the standard's namespace.

    Arguments are values, numbers, `Rows`, None, types of NumPy, slices, Ellipsis, and tuples and lists of these.
    """

    function: str
    """By its name in the standard, operators too; "getitem" is x[index], "erf" the error function."""
    args: tuple[Any, ...]
    options: Mapping[str, Any]
    result: Any
    """A value, or of some functions, as `unstack`, a tuple of them."""
    layer: str = ""
    """The path of the layer that it comes from, as in the names of parameters."""

    def __repr__(self) -> str:
        options = [f"{name}={value!r}" for name, value in self.options.items()]
        return f"{self.result} = {self.function}({', '.join([*map(repr, self.args), *options])})"


@dataclass
class Program:
    """What a network computes, in order."""

    inputs: tuple[Value, ...]
    parameters: dict[str, Any]
    """Arrays of NumPy by path, as "0.weight"; only those that are read."""
    buffers: dict[str, Any]
    """Likewise, of what is kept but not trained."""
    constants: dict[str, Any]
    """Arrays that are made of numbers, or with `fold` of parameters and buffers, which are then not read themselves."""
    operations: list[Operation]
    outputs: dict[str, Value]

    @property
    def arrays(self) -> dict[str, Any]:
        """Parameters, buffers and constants."""
        return self.parameters | self.buffers | self.constants

    def __call__(self, *inputs: Any) -> dict[str, Any]:
        """The outputs for arrays of NumPy, one for each input."""
        known: dict[str, Any] = dict(zip([v.name for v in self.inputs], inputs, strict=True)) | self.arrays
        rows = next(x.shape[0] for x in inputs)

        def real(leaf: Any) -> Any:
            return known[leaf.name] if isinstance(leaf, Value) else leaf.at(rows) if isinstance(leaf, Rows) else leaf

        with NoWarnings():
            for operation in self.operations:
                args, options = mapped(real, (operation.args, dict(operation.options)))
                made = leaves_of(function_of(operation.function)(*args, **options))
                known |= {v.name: numpy.asarray(a) for v, a in zip(leaves_of(operation.result), made, strict=True)}
        return {name: known[value.name] for name, value in self.outputs.items()}

    def __str__(self) -> str:
        """A line for each."""
        lines = [f"{v.name}: {v.dtype}{list(v.shape)}" for v in self.inputs]
        lines += [f"{name}: {a.dtype}{list(a.shape)}" for name, a in self.arrays.items()]
        lines += [str(operation) for operation in self.operations]
        return "\n".join([*lines, *(f"{name}: {v}" for name, v in self.outputs.items())])


def record(
    function: Callable[..., Mapping[str, Any]],
    parameters: Mapping[str, Any],
    buffers: Mapping[str, Any],
    inputs: Mapping[str, Callable[[int], Any]],
    *,
    fold: bool = False,
    erf: bool = True,
) -> Program:
    """The program of `function(backend, values, *inputs)`, which gives outputs by name.

    `values` are the parameters and buffers by name, and `inputs` make examples of so many rows.  With `fold`, what
    depends on parameters and buffers alone is computed beforehand; with `erf`, that is an operation of its own.  Raises
    ExportError where a function looks at values, changes them in place, or depends on the number of rows otherwise than
    a program can say.
    """
    recordings = [Recorder(erf).run(function, {**parameters, **buffers}, inputs, rows) for rows in ROWS]
    first = recordings[0]
    notes = [_merged_note(list(some)) for some in zip(*(r.notes for r in recordings), strict=False)]
    outputs = [{name: array.id for name, array in r.outputs.items()} for r in recordings]
    if any(len(r.notes) != len(notes) for r in recordings) or any(some != outputs[0] for some in outputs):
        raise ExportError("what is computed depends on the number of rows, which a file can't say")
    values = _named([_merged_value(list(some)) for some in zip(*(r.arrays for r in recordings), strict=True)], notes)
    operations, own = _operations(values, notes)
    operations, found = _simplified(operations, {name: values[i] for name, i in outputs[0].items()})
    operations, folded = _folded(operations, own.keys() | ({*parameters, *buffers} if fold else set()))
    operations, read = _live(operations, found)
    examples = {value.name: array.value for value, array in zip(values, first.arrays, strict=True)} | own
    return Program(
        tuple(values[: len(inputs)]),
        {name: examples[name] for name in parameters if name in read},
        {name: examples[name] for name in buffers if name in read},
        {name: array for name, array in examples.items() if name in read and name in folded | own.keys()},
        operations,
        found,
    )


def network_program(
    layout: Any,
    parameters: dict[str, Any],
    buffers: dict[str, Any],
    finish: Callable[[Backend, Any], Mapping[str, Any]] | None = None,
    *,
    fold: bool = False,
    erf: bool = True,
) -> Program:
    """The program of a network at inference, for `layout`, with these arrays of NumPy by path.

    Inputs are called "x", or as the arrays of `Inputs` are; numbers are of the parameters' type, codes int64.  What
    `finish` makes of its output are the outputs; without, there is one, called "output".
    """
    network, takes = layout.network, layout.network.takes
    several = isinstance(takes, tuple)
    x = next(name for name in ("x", "input") if name not in parameters | buffers)
    shapes = dict(layout.in_shape) if several else {x: layout.in_shape}
    kinds = dict(takes) if several else {x: takes}
    dtype = next(iter((parameters | buffers).values())).dtype

    def example(shape: tuple[int, ...], codes: int | None) -> Callable[[int], Any]:
        def of(rows: int) -> Any:
            rng = numpy.random.default_rng(rows)
            size = (rows, *shape)
            return rng.integers(0, codes, size) if codes is not None else rng.standard_normal(size).astype(dtype)

        return of

    def forward(backend: Backend, values: Mapping[str, Any], *x: Any) -> Mapping[str, Any]:
        from bpnet.layer import Run

        p = layout.nested([(slot, values[slot.name]) for slot in (*layout.parameters, *layout.buffers)])
        output, _ = backend.outline(network).forward(Run(backend), p, x if several else x[0])
        return {"output": output} if finish is None else finish(backend, output)

    inputs = {name: example(tuple(shape), kinds[name]) for name, shape in shapes.items()}
    return record(forward, parameters, buffers, inputs, fold=fold, erf=erf)


# ---- several recordings as one ---------------------------------------------------------------------------------------


def _size(numbers: Sequence[int], what: str) -> Size:
    """The number that is these for ROWS."""
    if len(set(numbers)) == 1:
        return numbers[0]
    factor = (numbers[1] - numbers[0]) // (ROWS[1] - ROWS[0])
    found = Rows(factor, numbers[0] - factor * ROWS[0])
    if [found.at(rows) for rows in ROWS] != list(numbers):
        raise ExportError(f"{what} depends on the number of rows otherwise than as a rows + b: {numbers} for {ROWS}")
    return found


def _merged(leaves: Sequence[Any], what: str) -> Any:
    """The argument of which these are what it was each time."""
    first = leaves[0]
    if any(type(leaf) is not type(first) for leaf in leaves):
        raise ExportError(f"an argument of {what} depends on the number of rows")
    if isinstance(first, tuple | list):
        if len({len(leaf) for leaf in leaves}) > 1:
            raise ExportError(f"how many arguments {what} has depends on the number of rows")
        parts = [_merged(some, what) for some in zip(*leaves, strict=True)]
        return type(first)(parts)
    if isinstance(first, dict):
        if any(leaf.keys() != first.keys() for leaf in leaves):
            raise ExportError(f"the options of {what} depend on the number of rows")
        return {name: _merged([leaf[name] for leaf in leaves], what) for name in first}
    if isinstance(first, slice):
        return slice(*(_merged([getattr(s, n) for s in leaves], what) for n in ("start", "stop", "step")))
    if isinstance(first, Recorded):
        same = all(leaf.id == first.id for leaf in leaves)
    elif isinstance(first, numpy.ndarray):
        same = all(a.dtype == first.dtype and numpy.array_equal(a, first, a.dtype.kind == "f") for a in leaves)
    elif isinstance(first, int) and not isinstance(first, bool):
        return _size(leaves, f"a number in {what}")
    elif isinstance(first, float) and math.isnan(first):
        same = all(math.isnan(leaf) for leaf in leaves)
    else:
        same = all(leaf == first for leaf in leaves)
    if not same:
        raise ExportError(f"an argument of {what} depends on the number of rows")
    return first


def _merged_note(notes: list[Note]) -> Note:
    first = notes[0]
    try:
        if any(note.function != first.function for note in notes):
            raise ExportError("what is computed depends on the number of rows, which a file can't say")
        args, options, result = (
            _merged([getattr(note, name) for note in notes], first.function) for name in ("args", "options", "result")
        )
    except ExportError as error:
        raise ExportError(f"{first.where}{error}") from None
    return replace(first, args=args, options=options, result=result)


def _merged_value(arrays: list[Recorded]) -> Value:
    first = arrays[0]
    if len({a.ndim for a in arrays}) > 1:
        raise ExportError("how many axes an array has depends on the number of rows")
    shape = tuple(_size(sizes, "a shape") for sizes in zip(*(a.shape for a in arrays), strict=True))
    return Value(first.name, shape, first.dtype)


def _named(values: Sequence[Value], notes: Sequence[Note]) -> list[Value]:
    """Every array with a name: its own, or that of the layer and the function that it comes from."""
    found, counts = list(values), Counter(value.name for value in values)
    for note in notes:
        stem = f"{note.layer}.{note.function}".lstrip(".")
        for array in leaves_of(note.result):
            name = stem
            while counts[name]:
                counts[stem] += 1
                name = f"{stem}_{counts[stem]}"
            counts[name] += 1
            found[array.id] = replace(values[array.id], name=name)
    return found


def _operations(values: Sequence[Value], notes: Sequence[Note]) -> tuple[list[Operation], dict[str, Any]]:
    """What was noted with the values for the arrays, and by name the arrays that layers have by themselves."""
    own: dict[str, Any] = {}
    taken = {value.name for value in values}

    def value(leaf: Any) -> Any:
        if isinstance(leaf, Recorded):
            return values[leaf.id]
        if not isinstance(leaf, numpy.ndarray):
            return leaf
        name = next(name for k in itertools.count(1) if (name := f"array_{k}") not in taken)
        taken.add(name)
        own[name] = leaf
        return Value(name, leaf.shape, leaf.dtype)

    operations = []
    for note in notes:
        args, options, result = (mapped(value, part) for part in (note.args, note.options, note.result))
        operations.append(Operation(note.function, args, options, result, note.layer))
    return operations, own


def _read(op: Operation) -> list[Any]:
    """All that it is given."""
    return leaves_of((op.args, dict(op.options)))


def _folded(operations: Sequence[Operation], fixed: Set[str]) -> tuple[list[Operation], set[str]]:
    """The operations without those that depend on `fixed` arrays and numbers alone, and what these make."""
    kept: list[Operation] = []
    made: set[str] = set()
    for op in operations:
        given, results = _read(op), {value.name for value in leaves_of(op.result)}
        arrays = {leaf.name for leaf in given if isinstance(leaf, Value)}
        if arrays <= fixed | made and not any(isinstance(leaf, Rows) for leaf in given):
            made |= results
        else:
            kept.append(op)
    return kept, made


def _live(operations: Sequence[Operation], outputs: Mapping[str, Value]) -> tuple[list[Operation], set[str]]:
    """The operations on which outputs depend, and all arrays that are read or given out."""
    read, kept = {value.name for value in outputs.values()}, []
    for op in reversed(operations):
        if any(value.name in read for value in leaves_of(op.result)):
            kept.append(op)
            read |= {leaf.name for leaf in _read(op) if isinstance(leaf, Value)}
    return kept[::-1], read


def _simplified(
    operations: Sequence[Operation], outputs: Mapping[str, Value]
) -> tuple[list[Operation], dict[str, Value]]:
    """The same without what gives what it is given, and with what is computed twice computed once."""
    instead: dict[str, Value] = {}
    known: dict[str, Operation] = {}

    def value(leaf: Any) -> Any:
        return instead.get(leaf.name, leaf) if isinstance(leaf, Value) else leaf

    def key(leaf: Any) -> Any:
        return type(leaf).__name__, leaf.name if isinstance(leaf, Value) else repr(leaf)

    for op in operations:
        args, options = mapped(value, (op.args, dict(op.options)))
        given: Any = args[0] if args else None
        result: Any = op.result
        idle = op.function in IDLE and isinstance(given, Value)
        if idle and (given.shape, given.dtype) == (result.shape, result.dtype):
            instead[result.name] = given
            continue
        made = Operation(op.function, args, options, result, op.layer)
        same = known.setdefault(f"{op.function}{mapped(key, (args, options))}", made)
        if same is not made:
            pairs = zip(leaves_of(op.result), leaves_of(same.result), strict=True)
            instead |= {old.name: new for old, new in pairs}
    return list(known.values()), {name: value(v) for name, v in outputs.items()}


IDLE = ("reshape", "broadcast_to", "astype", "asarray", "positive")
"""Functions that change nothing where shape and type of what they give are those of what they are given."""
