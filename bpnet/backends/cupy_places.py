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
        self.copies_much = any(buffer.nbytes > SMALL for buffer in staged.values())
        self.last: list[Place] | None = None
        """Where the arrays of the last call lay, if it copies much."""

    def serves(self, arrays: Sequence[Array]) -> bool:
        """Whether the arrays that the graph reads where they were still lie there."""
        for i, address, strides in self.fixed:
            array = arrays[i]
            if array.data.ptr != address or array.strides != strides:
                return False
        return True

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
        self.in_place: list[Recorded] = []
        """Graphs that read large arrays where they lie: those that copy fewest others first, then the newest."""
        self.copying: Recorded | None = None
        """The one that copies them."""
        self.latest: Recorded | None = None
        """The graph of the last call."""
        self.seen: deque[list[Place]] = deque(maxlen=MOST_PLACES)
        self.small: set[int] = set()
        """The small arrays that have moved once."""
        self.new = 0
        """Calls since large arrays last came from where others had, as far as there was room for their graphs."""

    def serving(self, arrays: Sequence[Array]) -> Recorded | None:
        """The graph that can be launched for these arrays.

        What is copied twice in a row from the same place is better read there, by a graph that is yet to be made.
        """
        for graph in self.in_place:
            if graph.serves(arrays):
                self.latest = graph
                return graph
        copying = self.copying
        if copying is None or not copying.serves(arrays):
            return None
        if self.latest is copying and places(arrays) == copying.last:
            return None
        self.latest = copying
        return copying

    def to_stage(self, arrays: Sequence[Array]) -> set[int] | None:
        """Which arrays a new graph is to copy first; None where it is too early to capture one.

        Large arrays that come from where they came from before, as a data set does or two buffers by turns, are read
        there.  Where they never do, even the large ones are copied.
        """
        now = places(arrays)
        before = [*self.seen, *([] if self.copying is None or self.copying.last is None else [self.copying.last])]
        moved = [{i for i, place in enumerate(now) if place != then[i]} for then in before]
        for some in moved:
            if all(arrays[i].nbytes <= SMALL for i in some):
                self.small |= some
                if len(self.in_place) < MOST_PLACES:
                    self.new = 0
                return self.small
        self.seen.append(now)
        self.new += 1
        return set().union(*moved, self.small) if self.new > MOST_PLACES else None

    def add(self, graph: Recorded) -> None:
        """A new graph, before those that copy more; where there are too many in place, the oldest of these goes."""
        self.latest = graph
        if graph.copies_much:
            self.copying = graph
            return
        del self.in_place[MOST_PLACES - 1 :]
        first = next((i for i, other in enumerate(self.in_place) if len(other.staged) >= len(graph.staged)), None)
        self.in_place.insert(len(self.in_place) if first is None else first, graph)
