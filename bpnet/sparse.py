"""The training step of a network with sparse tables, which reads and writes only those rows of them that are used.

It is the ordinary step of a small network, whose tables have a row for each place of the batch.  With x' the first
place in x of each of the numbers x of a table E,

    E' = E[x],    a step of E', and of its part of the optimizer's state, on x',    E[x] <- E'[x']

The rows of E' at other places are copies without a gradient, which nobody looks at.  No shape depends on values, so
nobody waits for a device, and a step is compiled once for a size of the batch.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, NamedTuple

from bpnet.backends import Array, Backend, interrupts
from bpnet.backends.base import State
from bpnet.backends.interrupts import current
from bpnet.data.loader import take_rows
from bpnet.errors import OptionError
from bpnet.layer import Input, Layer, Path, Run, Shape
from bpnet.layers.composition import Parallel, Sequential, Shared
from bpnet.layers.embedding import Embedding, Put, first_places, put_rows, read
from bpnet.layers.inputs import Inputs
from bpnet.layout import Layout
from bpnet.optimizers.base import Optimizer
from bpnet.penalties import Penalty
from bpnet.registry import parts_of
from bpnet.step import Carry, Views, is_elementwise, training_step

SIZES = 32
"""Sizes of the batch of which compiled steps are kept."""


class Group(NamedTuple):
    """Tables that are given the same: the numbers of the arrays of x, the names of the tables, and their entries."""

    inputs: tuple[int, ...]
    tables: tuple[str, ...]
    entries: int


class Piece(NamedTuple):
    """A part of a vector, and of that of the small network; of a table its shape, and the number of its group."""

    part: Any
    small: Any
    shape: Shape | None = None
    group: int = -1


def groups_of(layout: Layout) -> tuple[Group, ...]:
    """The sparse tables of a network; raises OptionError where one is not the first to be given an array."""
    takes, names = layout.network.takes, {p: slot.name for slot in layout.parameters for p in (slot.path, *slot.also)}
    groups: list[Group] = []
    found: list[Embedding] = []
    first: dict[int, Layer] = {}
    for i, path, layer in _first(layout.network, (), range(len(takes) if isinstance(takes, tuple) else 1)):
        known = first.setdefault(i, layer)
        sizes = [one.entries if isinstance(one, Embedding) and one.sparse else None for one in (known, layer)]
        if sizes[0] != sizes[1]:
            raise OptionError(
                f"{known} and {layer} are given the same numbers: where one is a sparse Embedding, both must be, with "
                "as many entries"
            )
        if isinstance(layer, Embedding) and layer.sparse:
            found.append(layer)
            inputs, tables = {i}, {names[*path, "table"]}
            for group in [group for group in groups if i in group.inputs or tables & set(group.tables)]:
                groups.remove(group)
                inputs, tables = inputs | set(group.inputs), tables | set(group.tables)
            groups.append(Group(tuple(sorted(inputs)), tuple(sorted(tables)), layer.entries))
    sparse = [layer for layer in parts_of(layout.network, Embedding) if layer.sparse]
    if len(sparse) > len(found):
        raise OptionError(
            f"{sparse[-1]} can be sparse only where it is first in the network, in a branch, or in Shared"
        )
    return tuple(groups)


def _first(layer: Layer, path: Path, inputs: Sequence[int]) -> Iterator[tuple[int, Path, Layer]]:
    """The layers that are given the arrays of these numbers, with their paths."""
    if type(layer) in (Sequential, Shared, Parallel, Inputs):
        children = layer.children  # type: ignore[attr-defined]
        for k, (name, child) in enumerate(children if type(layer) in (Parallel, Inputs) else children[:1]):
            yield from _first(child, (*path, name), inputs[k : k + 1] if type(layer) is Inputs else inputs)
    else:
        for i in inputs:
            yield i, path, layer


def _pieces(layout: Layout | None, counts: Mapping[str, int], groups: Mapping[str, int]) -> list[Piece]:
    """Of a vector with that layout: its parts, where tables have other `counts` of rows in the small network."""
    if layout is None:
        return [Piece(..., ...)]
    found: list[Piece] = []
    small, first, own = layout.with_rows(counts), 0, 0
    for slot, other in zip(layout.parameters, small.parameters, strict=True):
        if slot.name in groups:
            found.append(Piece(slice(first, slot.offset), slice(own, other.offset)))
            found.append(Piece(slot.part, other.part, slot.shape, groups[slot.name]))
            first, own = slot.part.stop, other.part.stop
    found.append(Piece(slice(first, layout.size), slice(own, small.size)))
    return [piece for piece in found if piece.part.start < piece.part.stop]


@dataclass(frozen=True)
class Small:
    """The network for a size of the batch: its layout, how all vectors fall into pieces, its step, also compiled."""

    layout: Layout
    pieces: list[list[Piece]]
    step: Callable[..., tuple[Carry, Array]]
    compiled: Callable[..., tuple[Carry, Array]] | None


class SparseStep:
    """`step` as `training_step` gives it, where tables are sparse: see the top of this module.

    `gradient` is `loss_and_gradient` but for the layout.  Raises OptionError where the optimizer or a penalty would
    move rows that are not used.
    """

    def __init__(
        self, layout: Layout, groups: tuple[Group, ...], optimizer: Optimizer, gradient: Callable[..., Any],
        penalties: Sequence[Penalty], backend: Backend, choice: bool | str, state: tuple[Array, ...],
    ) -> None:  # fmt: skip
        self.layout, self.groups, self.optimizer, self.gradient = layout, groups, optimizer, gradient
        self.backend, self.choice = backend, choice
        self.tables = {name: k for k, group in enumerate(groups) for name in group.tables}
        by_rows = (type(optimizer) if optimizer.traceable else Optimizer).by_rows
        self.layouts = layout, None, *by_rows(optimizer, layout, state, tuple(self.tables))
        for penalty in penalties:
            for slot in penalty.slots(layout):
                if slot.name in self.tables:
                    raise OptionError(
                        f"{penalty} is of all rows of {slot.name}, which is sparse: give the penalty of=, a pattern of "
                        "other names, or leave sparse out"
                    )
        self.small = lru_cache(SIZES)(self._small)
        self.written: Array | None = None
        """The parameters that the last step has written, where that can be seen."""

    @property
    def dense(self) -> int:
        """How many parameters there are besides the tables."""
        return self.layout.size - sum(slot.size for slot in self.layout.parameters if slot.name in self.tables)

    def _small(self, sizes: tuple[int, ...]) -> Small:
        """For so many places of each group."""
        counts = {name: sizes[k] for name, k in self.tables.items()}
        layout = self.layout.with_rows(counts)
        buffers: Any = [] if is_elementwise(self.optimizer) else None
        gradient = partial(self.gradient, layout=layout, views=Views(layout), grad_buffers=buffers)
        step, backend = training_step(layout, self.optimizer, gradient), self.backend
        compiled = None if backend.traces else backend.compile(step, donate=True, choice=self.choice)
        return Small(layout, [_pieces(one, counts, self.tables) for one in self.layouts], step, compiled)

    def numbers(self, backend: Backend, x: Input) -> list[Array]:
        """Of each group, the numbers that its tables are given."""
        xp, arrays = backend.xp, x if isinstance(x, tuple) else (x,)
        several = [[xp.reshape(arrays[i], (-1,)) for i in group.inputs] for group in self.groups]
        return [own[0] if len(own) == 1 else xp.concat(own) for own in several]

    def gathered(
        self, backend: Backend, carry: Carry, x: Input, every: Sequence[tuple[Array, int]] | None = None
    ) -> tuple[Small, list[Any], Carry, Input]:
        """The small network; x and x' of each group; and what the step of the small network is given.

        Where x has some of the rows of a batch, `every` has of each group the numbers of all, and where those of x
        begin among them; x may then be None.
        """
        xp, arrays, used = backend.xp, list(x) if isinstance(x, tuple) else [x], []
        for group, (index, start) in zip(self.groups, every or [(n, 0) for n in self.numbers(backend, x)], strict=True):
            places = first_places(Run(backend), index, group.entries)
            used.append((index, places))
            for i in group.inputs if x is not None else ():
                count = math.prod(arrays[i].shape)
                arrays[i] = xp.reshape(places[start : start + count], arrays[i].shape)
                start += count
        small = self.small(tuple(int(places.shape[0]) for _, places in used))

        def gather(vector: Array, pieces: list[Piece]) -> Array:
            parts = [
                vector[part]
                if shape is None
                else xp.reshape(xp.take(xp.reshape(vector[part], shape), used[k][0], axis=0), (-1,))
                for part, _, shape, k in pieces
            ]
            return xp.concat(parts) if len(parts) > 1 else backend.copy(parts[0])

        vectors = tuple(map(gather, (carry[0], carry[1], *carry[2]), small.pieces))
        theta, buffers, *state = read(Run(backend), vectors)
        return small, used, (theta, buffers, tuple(state)), tuple(arrays) if isinstance(x, tuple) else arrays[0]

    def __call__(
        self, backend: Backend, carry: Carry, x: Input, y: Array | None, weight: Array | None, rows: Array | None,
        *args: Any,
    ) -> tuple[Carry, Array]:  # fmt: skip
        deferred = current.deferred
        if rows is not None:
            x, y, weight = take_rows(backend, (x, y, weight), (0, rows.shape[0]), rows)
        small, used, given, x = self.gathered(backend, carry, x)
        if backend is self.backend and small.compiled is not None:
            state = State(given, 0)
            value = backend.advance(small.compiled, state, (x, y, weight, None, *args), 1)
            moved, _ = state.now
            self.written = moved[0]
        else:
            moved, value = small.step(backend, given, x, y, weight, None, *args)
            self.written = None
        current.deferred = deferred  # of this step, which ends with:
        return self.put(backend, carry, moved, small, used), value

    def put(self, backend: Backend, carry: Carry, moved: Carry, small: Small, used: Sequence[Any]) -> Carry:
        """The carry with what a step of the small network has made of the rows that are used."""
        xp = backend.xp

        def puts(vector: Array, pieces: list[Piece]) -> list[Put]:
            return [
                (part, None, None, vector[own])
                if shape is None
                else (part, shape, used[k][0], xp.take(xp.reshape(vector[own], (-1, shape[1])), used[k][1], axis=0))
                for part, own, shape, k in pieces
            ]

        found = [*map(puts, (moved[0], moved[1], *moved[2]), small.pieces)]
        theta, buffers, *new = put_rows(Run(backend), (carry[0], carry[1], *carry[2]), found)
        return theta, buffers, tuple(new)

    def explain(self, explain: Callable[..., str], function: Callable[..., Any], args: tuple[Any, ...]) -> str:
        """What a step with these arguments does, by `explain(function, args)` of what is compiled."""
        carry, x, *rest = args
        small, used, carry, x = self.gathered(self.backend, carry, x)
        rows = [f"at most {used[k][0].shape[0]} of {name}" for name, k in self.tables.items()]
        text = f"of sparse tables the rows that occur, {' and '.join(rows)}, are gathered, and put back after a step:\n"
        return text + (
            explain(function, args) if small.compiled is None else explain(small.compiled, (carry, x, *rest))
        )

    def advance(self, step: Callable[..., Any], state: State, args: Sequence[Any], count: int) -> Any:
        """As `Backend.advance`, of which it is the whole where nothing but the small network's step is compiled."""
        return interrupts.advance(step, state, count, state.now[0], *args)


def sparse_step(layout: Layout, *args: Any) -> SparseStep | None:
    """The step of a network with that layout, where it has sparse tables; `args` are those of `SparseStep`."""
    groups = groups_of(layout)
    return SparseStep(layout, groups, *args) if groups else None
