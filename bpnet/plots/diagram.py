"""A network as boxes and lines: where they lie, in columns and lines of text, which a figure takes as its units.

Every block has an axis, x = 0, by which data enter it at the top and leave it at the bottom.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, replace
from itertools import pairwise
from typing import Any, Literal

from bpnet.errors import plural
from bpnet.inspection import LayerSummary
from bpnet.layer import Composite, Layer
from bpnet.layers.activations.others import Identity
from bpnet.layers.composition import Parallel, Residual, Sequential, Shared
from bpnet.layers.inputs import Joined
from bpnet.layout import arranged
from bpnet.table import columns_of, fit

WIDEST = 44
"""Columns of the text in a box."""
GAP = 3
"""Columns between branches."""
PERIODS, REPEATED = 4, 3
"""Up to so many layers that come so many times or more, one after the other, are drawn once."""

Kind = Literal["input", "layer", "plain", "shared", "join", "frame"]
Point = tuple[int, int]


@dataclass(frozen=True)
class Box:
    """A rectangle from (x, y) on, and the text in it; of a frame its title, of a join what it does."""

    kind: Kind
    text: tuple[str, ...]
    x: int
    y: int
    width: int
    height: int


@dataclass(frozen=True)
class Block:
    """Boxes and lines with upright and level parts; how far they reach to both sides of the axis, and how deep.

    Lines end at the boxes that they join.  `begins`: data come from boxes of its own, not from above.
    """

    left: int
    right: int
    height: int
    boxes: tuple[Box, ...] = ()
    lines: tuple[tuple[Point, ...], ...] = ()
    begins: bool = False

    def moved(self, x: int, y: int) -> "Block":
        """The same, elsewhere."""
        boxes = tuple(replace(box, x=box.x + x, y=box.y + y) for box in self.boxes)
        lines = tuple(tuple((px + x, py + y) for px, py in line) for line in self.lines)
        return replace(self, left=self.left - x, right=self.right + x, boxes=boxes, lines=lines)


def box(kind: Kind, *text: str) -> Block:
    """A box by itself."""
    lines = tuple(fit(line, WIDEST) for line in text)
    half = (max(map(columns_of, lines)) + 4) // 2 if kind != "join" else columns_of(lines[0]) // 2
    height = len(lines) + 2 if kind != "join" else 1
    return Block(half, half, height, (Box(kind, lines, -half, 0, 2 * half + 1, height),))


def stacked(blocks: Sequence[Block]) -> Block:
    """One below the other, with a line from each to the next."""
    boxes: list[Box] = []
    lines: list[tuple[Point, ...]] = []
    y = 0
    for i, block in enumerate(blocks):
        if i:
            lines.append(((0, y - 1), (0, y + 1)))
            y += 1
        at = block.moved(0, y)
        boxes += at.boxes
        lines += at.lines
        y += block.height
    left, right = max(b.left for b in blocks), max(b.right for b in blocks)
    return Block(left, right, y, tuple(boxes), tuple(lines), blocks[0].begins)


def branched(branches: Sequence[Block], join: str) -> Block:
    """Side by side, from where they split to where they join."""
    width = sum(b.left + b.right + 1 for b in branches) + GAP * (len(branches) - 1)
    deepest = max(b.height for b in branches)
    left = width // 2
    boxes: list[Box] = []
    lines: list[tuple[Point, ...]] = []
    begin, top = -left, 0 if all(b.begins for b in branches) else 1
    axes = []
    for branch in branches:
        axis = begin + branch.left
        at = branch.moved(axis, top)
        boxes += at.boxes
        lines += at.lines
        axes.append(axis)
        if top and not branch.begins:
            lines.append(((0, 0), (axis, 0), (axis, 1)))
        lines.append(((axis, top + branch.height - 1), (axis, top + deepest), (0, top + deepest)))
        begin += branch.left + branch.right + 1 + GAP
    end = box("join", join).moved(0, top + deepest + 1)
    lines.append(((0, top + deepest), (0, top + deepest + 1)))
    right = max(width - 1 - left, end.right)
    return Block(max(left, end.left), right, top + deepest + 2, (*boxes, *end.boxes), tuple(lines), not top)


def skipped(inner: Block) -> Block:
    """A block, a line past it, and their sum."""
    at, end = inner.moved(0, 1), box("join", "(+)").moved(0, inner.height + 2)
    aside = inner.right + 2
    lines = (
        ((0, 0), (0, 1)),
        ((0, 0), (aside, 0), (aside, inner.height + 2), (end.right, inner.height + 2)),
        ((0, inner.height), (0, inner.height + 2)),
    )
    return Block(inner.left, aside, inner.height + 3, (*at.boxes, *end.boxes), (*at.lines, *lines))


def framed(inner: Block, title: str) -> Block:
    """A block in a frame that has a title."""
    title = fit(title, WIDEST)
    at = inner.moved(0, 2)
    left, right = max(inner.left + 2, columns_of(title) + 3), inner.right + 2
    frame = Box("frame", (title,), -left, 0, left + right + 1, inner.height + 4)
    lines = (((0, 0), (0, 2)), ((0, inner.height + 1), (0, inner.height + 3)))
    return Block(left, right, inner.height + 4, (frame, *at.boxes), (*at.lines, *lines[inner.begins :]), inner.begins)


# ---- of a network ---------------------------------------------------------------------------------------------------


@dataclass
class Diagram:
    """Makes the block of a network; `known` has what there is to say of a layer by its path, where data were shown."""

    known: Mapping[str, LayerSummary]
    shapes: Mapping[str, Any] = field(default_factory=dict)
    shared: set[str] = field(default_factory=set)

    def block(self, layer: Layer, path: str) -> Block:
        """A layer, and the layers in it."""
        if isinstance(layer, Sequential):
            return stacked(list(self.sequence(layer, path)))
        if isinstance(layer, Residual):
            return skipped(self.block(layer.inner, under(path, "inner")))
        if isinstance(layer, Parallel):
            return branched(list(self.branches(layer, path)), self.joined(layer.join, path))
        if isinstance(layer, Joined) and isinstance(layer.takes, tuple):
            return branched([*self.inputs(layer, path)], self.joined("concat", path))
        if isinstance(layer, Shared):
            again = layer.name in self.shared
            self.shared.add(layer.name)
            inner = under(path, "inner")
            title = f"shared: {layer.name}" + ", as above" * again
            if isinstance(layer.inner, Composite):
                return framed(self.block(layer.inner, inner), title)
            return box("shared", title, *self.words(layer.inner, inner))
        if isinstance(layer, Identity):
            return Block(1, 1, 1, (), (((0, 0), (0, 0)),))
        return box("layer" if self.trained(path) else "plain", *self.words(layer, path))

    def sequence(self, layer: Sequential, path: str) -> Iterator[Block]:
        """The blocks of layers one after the other; such as come again and again once."""
        children, i = layer.children, 0
        while i < len(children):
            period, count = self.repetition([(child, under(path, name)) for name, child in children[i:]])
            some = [self.block(child, under(path, name)) for name, child in children[i : i + period]]
            if count > 1:
                yield framed(stacked(some), f"{count} times")
            else:
                yield from some
            i += period * count

    def repetition(self, children: Sequence[tuple[Layer, str]]) -> tuple[int, int]:
        """(k, n): the first k layers come n times, the same with parameters of the same sizes."""

        def sort(k: int) -> Any:
            layer, path = children[k]
            one = self.known.get(path)
            return layer, None if one is None else (one.out_shape, one.parameters, one.buffers)

        for period in range(1, PERIODS + 1):
            same = period
            while same < len(children) and sort(same) == sort(same - period):
                same += 1
            if same // period >= REPEATED:
                return period, same // period
        return 1, 1

    def branches(self, layer: Parallel, path: str) -> Iterator[Block]:
        """Each branch of a Parallel."""
        for name, child in layer.children:
            yield self.block(child, under(path, name))

    def inputs(self, layer: Joined, path: str) -> Iterator[Block]:
        """Each branch of several arrays, below the box of its array."""
        for name, child in layer.children:
            first = box("input", name, *said(self.shapes.get(name)))
            branch = replace(stacked([first, self.block(child, under(path, name))]), begins=True)
            yield replace(first, begins=True) if isinstance(child, Identity) else branch

    def joined(self, join: str, path: str) -> str:
        """What joins branches, and the shape of what it gives."""
        symbol = {"add": "+", "multiply": "×"}.get(join, join)
        shape = self.known[path].out_shape if path in self.known and join == "concat" else None
        return f"({' '.join([symbol, *said(shape)])})"

    def trained(self, path: str) -> bool:
        """Whether a layer has parameters, as far as is known."""
        return path not in self.known or self.known[path].parameters > 0

    def words(self, layer: Layer, path: str) -> list[str]:
        """What stands in the box of a layer."""
        first, children = brief(layer), getattr(layer, "children", ())
        if columns_of(first) > WIDEST and children:  # of which nothing says what the layer does with them
            return [type(layer).__name__, *(f"{name}: {brief(child)}" for name, child in children), *self.size(path)]
        return [first, *self.size(path)]

    def size(self, path: str) -> list[str]:
        """The shape of a layer's output rows and how many values it has, as far as is known."""
        if path not in self.known:
            return []
        one = self.known[path]
        counts = [plural(one.parameters, "parameter")] if one.parameters else []
        counts += [plural(one.buffers, "buffer value")] if one.buffers else []
        return ["  ".join([f"→ {shape_words(one.out_shape)}", *counts])]

    def listed(self, layer: Layer, path: str = "", depth: int = 0) -> Iterator[str]:
        """Each layer in a line, further to the right than what it is in."""
        children = getattr(layer, "children", ())
        name, what = path.rpartition(".")[2], type(layer).__name__ if children else brief(layer)
        yield "  " * depth + "  ".join([f"{name} {what}".strip(), *self.size(path)])
        for name, child in children:
            yield from self.listed(child, under(path, name), depth + 1)


def under(path: str, name: str) -> str:
    """The path of a child."""
    return f"{path}.{name}" if path else name


def shape_words(shape: Any) -> str:
    """A shape as people write it."""
    return " × ".join(map(str, shape)) or "1"


def said(shape: Any) -> tuple[str, ...]:
    """The words for a shape, none where it is not known."""
    return () if shape is None else (shape_words(shape),)


def brief(layer: Any) -> str:
    """A layer, or an option's value, as one would write it: with the options that are not as they are by default."""
    if not isinstance(layer, Layer) or not is_dataclass(layer) or layer.star:
        return repr(layer)
    parts, positional = [], True
    for option in fields(layer):
        value = getattr(layer, option.name)
        if option.default is not MISSING and value == option.default:
            positional = False
            continue
        positional = positional and not option.kw_only
        parts.append(f"{'' if positional else f'{option.name}='}{brief(value)}")
    return f"{type(layer).__name__}({', '.join(parts)})"


@dataclass(frozen=True)
class Described:
    """A whole network: its block, a title, and where the block is too wide for a terminal, its layers in a list."""

    block: Block
    title: str
    listed: list[str]

    def lines(self, width: int, plain: bool) -> list[list[tuple[str, str]]]:
        """The title and the picture for a terminal, or the list."""
        rows = drawn(self.block, plain)
        if max(map(columns_of, rows)) > width:
            rows = [fit(row, width) if len(row) > width else row for row in self.listed]
        return [[(fit(self.title, width), "1")], *([(row, "")] for row in rows)]


def described(network: Layer, x: Any = None) -> Described:
    """A network below the box of its input; how large everything is, where x is given."""
    known: Sequence[LayerSummary] = ()
    shapes: dict[str, Any] = {}
    title = type(network).__name__
    if x is not None:
        known = network.summary(x).layers
        shapes = {name: tuple(array.shape[1:]) for name, _, array, _ in arranged(network.takes, x, "x")}
        title = f"{title}: {plural(known[0].parameters, 'parameter')}"
    diagram = Diagram({one.path: one for one in known}, shapes)
    made = diagram.block(network, "")
    if not made.begins:
        made = stacked([box("input", "input", *said(shapes.get(""))), made])
    return Described(made, title, list(diagram.listed(network)))


# ---- as text --------------------------------------------------------------------------------------------------------

UP, DOWN, LEFT, RIGHT = 1, 2, 4, 8
STROKES = " ╵╷│╴┘┐┤╶└┌├─┴┬┼"
PLAIN_STROKES = " ||" + "|-+++-+++-+++"


def drawn(block: Block, plain: bool = False) -> list[str]:
    """The lines of a block's picture in characters."""
    width = block.left + block.right + 1
    strokes = [[0] * width for _ in range(block.height)]
    texts: dict[tuple[int, int], str] = {}

    def stroke(points: Sequence[Point]) -> None:
        for (x0, y0), (x1, y1) in pairwise(points):
            across, down = (x1 > x0) - (x1 < x0), (y1 > y0) - (y1 < y0)
            x, y = x0, y0
            while (x, y) != (x1, y1):
                strokes[y][x + block.left] |= {(1, 0): RIGHT, (-1, 0): LEFT, (0, 1): DOWN, (0, -1): UP}[across, down]
                x, y = x + across, y + down
                strokes[y][x + block.left] |= {(1, 0): LEFT, (-1, 0): RIGHT, (0, 1): UP, (0, -1): DOWN}[across, down]

    for one in block.boxes:
        right, bottom = one.x + one.width - 1, one.y + one.height - 1
        if one.kind != "join":
            stroke([(one.x, one.y), (right, one.y), (right, bottom), (one.x, bottom), (one.x, one.y)])
        border = int(one.kind != "join")
        for i, text in enumerate(one.text):
            room = one.width - 2 * border
            begin = 2 if one.kind == "frame" else border + (room - columns_of(text)) // 2
            texts[one.y + i + border, one.x + begin + block.left] = text
    for line in block.lines:
        stroke(line)
    rows = []
    for y, strokes_of_row in enumerate(strokes):
        row, x = "", 0
        while x < width:
            words = texts.get((y, x))
            row += (PLAIN_STROKES if plain else STROKES)[strokes_of_row[x]] if words is None else words
            x += 1 if words is None else columns_of(words)
        rows.append(row.rstrip())
    return rows
