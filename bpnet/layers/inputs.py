"""Several inputs: each array goes through a branch of its own, and what they give is joined."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any

from bpnet.backends.base import Array
from bpnet.errors import OptionError, ShapeError, shown
from bpnet.layer import Composite, Derivatives, Input, InShape, Layer, Params, Rng, Run, Shape, Takes
from bpnet.layers.composition import named_layer
from bpnet.layers.dense import Dense

Branch = Layer | str


class Joined(Composite):
    """Base of layers that give each of several arrays to a child of its own, and join what these give."""

    @cached_property
    def takes(self) -> Takes:
        return tuple((name, layer.takes) for name, layer in self.children)  # type: ignore[misc]

    @cached_property
    def accepts_nan(self) -> tuple[bool, ...]:  # type: ignore[override]
        return tuple(layer.accepts_nan is True for _, layer in self.children)

    @cached_property
    def updates_buffers(self) -> bool:
        return any(layer.updates_buffers for _, layer in self.children)

    def child_shapes(self, in_shape: InShape) -> Iterator[InShape]:
        """Of each branch, the shape of its input rows."""
        return (shape for _, shape in in_shape)

    def out_shape(self, in_shape: InShape) -> Shape:
        shapes = {
            name: tuple(layer.out_shape(shape))
            for (name, layer), shape in zip(self.children, self.child_shapes(in_shape), strict=True)
        }
        first, *others = shapes.values()
        if not first or any(len(s) != len(first) or s[:-1] != first[:-1] for s in others):
            given = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
            raise ShapeError(
                f"the branches of {type(self).__name__} give rows of other shapes: {given}; expected the same but for "
                "the last axis, along which they are joined: Sequential(..., Flatten()) makes one axis of several"
            )
        return (*first[:-1], sum(shape[-1] for shape in shapes.values()))

    def init(self, rng: Rng, in_shape: InShape) -> dict[str, Any]:
        pairs = zip(self.children, self.child_shapes(in_shape), strict=True)
        return {name: layer.init(rng, shape) for (name, layer), shape in pairs}

    def _called(self, run: Run, p: Params) -> Iterator[tuple[str, Layer, Run, Any]]:
        """Every branch: its name, the layer itself, or what stands for it under tracing, its run and parameters."""
        for name, layer in self.children:
            at = run.at(name) if layer.stochastic else run
            yield name, run.backend.outline(layer) if run.backend.traces else layer, at, p[name]

    def forward(self, run: Run, p: Params, x: Input) -> tuple[Array, Any]:
        made = [layer.forward(at, own, part) for (_, layer, at, own), part in zip(self._called(run, p), x, strict=True)]
        ys = [y for y, _ in made]
        joined = ys[0] if len(ys) == 1 else run.xp.concat(ys, axis=-1)
        return joined, ([cache for _, cache in made], [y.shape[-1] for y in ys])

    def backward(self, run: Run, p: Params, cache: Any, dy: Array, need_dx: bool = True) -> Derivatives:
        caches, widths = cache
        dx: list[Array | None] = []
        grads: dict[str, Any] = {}
        for (name, layer, at, own), mine, width, stop in zip(
            self._called(run, p), caches, widths, accumulate(widths), strict=True
        ):
            if need_dx or (own and layer.trainable):
                part, grads[name] = layer.backward(at, own, mine, dy[..., stop - width : stop], need_dx)
                dx.append(part)
            else:
                grads[name] = {}
        return (tuple(dx) if need_dx else None), grads

    def update_buffers(self, run: Run, p: Params, cache: Any) -> dict[str, Any]:
        return super().update_buffers(run, p, cache[0])


@dataclass(frozen=True, init=False, repr=False)
class Inputs(Joined):
    r"""y = [f_a(x_a), f_b(x_b), ...]: each of several arrays by a branch of its own, joined along the last axis.

        branches = bp.Inputs(numbers="identity", city=bp.Embedding(500, 8))
        trainer = bp.Trainer(bp.Sequential(branches, bp.Dense(64, "relu"), bp.Dense(1)), "mse")
        trainer.fit({"numbers": numbers, "city": city}, y)

    Branches with names take a dict of arrays with these names.  Branches without, `Inputs(f, g)`, take a tuple of as
    many arrays, and are called "0", "1", ...  A name that is no Python name comes in a pair: `Inputs(("Land area", f),
    ...)`.  All arrays have the same number of rows; the order is that of the branches.

    With y_k = f_k(x_k), dL/dy_k is the part of dL/dy that belongs to it, and dL/dx_k = J_k^T dL/dy_k.  The name of an
    activation stands for its layer; "identity" hands an array on.

    Raises OptionError where there is no branch, or where two have the same name, and ShapeError where what branches
    give does not fit together: it must have the same shape but for the last axis.
    """

    branches: tuple[tuple[str, Layer], ...]
    star = "branches"
    example = ("identity", Dense(5))

    def __init__(self, *branches: Branch | tuple[str, Branch], **named: Branch) -> None:
        pairs = [b if isinstance(b, tuple) and len(b) == 2 else (str(i), b) for i, b in enumerate(branches)]
        pairs += named.items()
        names = [name for name, _ in pairs]
        if (
            not pairs
            or len(set(names)) < len(names)
            or not all(isinstance(n, str) and n and "." not in n for n in names)
        ):
            expected = "one branch or more, each with a name of its own, which is text without a point"
            raise OptionError(f"the branches of Inputs are called {shown(names)}; expected {expected}")
        several = [n for n, layer in pairs if isinstance(layer, Layer) and isinstance(layer.takes, tuple)]
        if several:
            raise OptionError(
                f"the branch {several[0]!r} of Inputs takes several arrays itself; expected all in one Inputs"
            )
        self._set(branches=tuple((n, named_layer(f"the branch {n!r} of Inputs", layer)) for n, layer in pairs))

    def __repr__(self) -> str:
        names = [name for name, _ in self.branches]
        plain, keywords = names == [str(i) for i in range(len(names))], all(map(str.isidentifier, names))
        parts = [
            repr(layer) if plain else f"{name}={layer!r}" if keywords else f"({name!r}, {layer!r})"
            for name, layer in self.branches
        ]
        return f"{type(self).__name__}({', '.join(parts)})"

    @cached_property
    def children(self) -> tuple[tuple[str, Layer], ...]:
        return self.branches
