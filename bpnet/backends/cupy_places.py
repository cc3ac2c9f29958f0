"""Where the arrays of a captured step lie: a graph reads them there, or first copies them to buffers of its own."""

from collections import deque
from collections.abc import Sequence
from typing import Any

from bpnet.backends.base import Array
from bpnet.backends.cupy_slots import Numbers

MOST_PLACES = 4
"""How many sets of places are remembered of arguments of one kind, and how many graphs are kept of it."""
SMALL = 2**20
"""Bytes of an argument that is rather copied each time than read by a graph of its own once it has moved."""

Place = tuple[int, tuple[int, ...]]
"""Address and strides of an array."""


def places(arrays: Sequence[Array]) -> list[Place]:
    return [(a.data.ptr, a.strides) for a in arrays]


class Recorded:
    """A graph, the arrays it reads where they were passed, and those that are first copied to buffers of its own."""

    def __init__(self, graph: Any, numbers: Numbers, arrays: Sequence[Array], staged: dict[int, Array]) -> None:
        self.graph, self.numbers = graph, numbers
        self.fixed = [(i, *place) for i, place in enumerate(places(arrays)) if i not in staged]
        self.staged = [(i, buffer, buffer.strides, buffer.nbytes) for i, buffer in staged.items()]
        self.copies = sum(buffer.nbytes for buffer in staged.values())
        """Bytes that each launch copies."""
        self.copies_much = any(buffer.nbytes > SMALL for buffer in staged.values())
        self.last: list[Place] | None = None
        """Where the arrays of the last call lay, if it copies much."""

    def serves(self, arrays: Sequence[Array]) -> bool:
        """Whether the arrays that the graph reads where they were still lie there.

        It serves none that it would copy again though they have not moved: another graph can do without.
        """
        for i, address, strides in self.fixed:
            array = arrays[i]
            if array.data.ptr != address or array.strides != strides:
                return False
        return not self.copies_much or places(arrays) != self.last

    def stage(self, arrays: Sequence[Array]) -> None:
        """Copy the others to their buffers."""
        for i, buffer, strides, size in self.staged:
            array = arrays[i]
            if array.strides == strides:
                buffer.data.copy_from_device_async(array.data, size)
            else:
                buffer[...] = array
        if self.copies_much:
            self.last = places(arrays)


class Known:
    """What is known of one kind of arguments: its graphs, and where its arrays lay before there were any."""

    def __init__(self, failed: bool = False) -> None:
        self.failed = failed
        """Whether it can't be captured."""
        self.graphs: list[Recorded] = []
        self.seen: deque[list[Place]] = deque(maxlen=MOST_PLACES)
        self.small: set[int] = set()
        """The small arrays that have moved once."""
        self.new = 0
        """Calls since arrays last came from where others had."""

    def serving(self, arrays: Sequence[Array]) -> Recorded | None:
        """The graph that can be launched for these arrays."""
        for graph in self.graphs:
            if graph.serves(arrays):
                return graph
        return None

    def to_stage(self, arrays: Sequence[Array]) -> set[int] | None:
        """Which arrays a new graph is to copy first; None where it is too early to capture one.

        Large arrays that come from where they came from before, as a data set does or two buffers by turns, are read
        there.  Where they never do, even the large ones are copied.
        """
        now = places(arrays)
        before = [*self.seen, *(graph.last for graph in self.graphs if graph.last)]
        moved = [{i for i, place in enumerate(now) if place != then[i]} for then in before]
        for some in moved:
            if all(arrays[i].nbytes <= SMALL for i in some):
                self.small |= some
                self.new = 0
                return self.small
        self.seen.append(now)
        self.new += 1
        return set().union(*moved, self.small) if self.new > MOST_PLACES else None

    def add(self, graph: Recorded) -> None:
        """A new graph; those that copy least come first, and of others the newest."""
        self.graphs.insert(0, graph)
        self.graphs.sort(key=lambda graph: graph.copies)
        del self.graphs[MOST_PLACES:]
