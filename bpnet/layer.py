"""The layer protocol: four methods on a frozen dataclass of hyper-parameters that holds no arrays.

out_shape(in_shape) -> shape                                shapes without the batch axis
init(rng, in_shape) -> params                               a nested dict of host-drawn values
forward(run, p, x) -> y, cache                              cache: whatever backward needs and no more
backward(run, p, cache, dy, need_dx=True) -> dx, grads      grads: the keys of the trainable part of p
"""

import importlib
import itertools
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, wraps
from typing import Any, ClassVar, TypeVar

from bpnet.backends.base import NARROW, SUMMED, SUMMED_PRODUCTS, Array, Backend, Key
from bpnet.registry import Registered, instance
from bpnet.rng import Rng as Rng
from bpnet.rng import Shape as Shape
from bpnet.rng import ShapeRng as ShapeRng
from bpnet.schedules import Schedule, in_epochs

Shapes = tuple[tuple[str, Shape], ...]
"""Of the rows of several arrays, each with its name, in their order."""
InShape = Any
"""A Shape, or where a network takes several arrays, Shapes."""
Input = Any
"""The rows of an array, or a tuple of such, of several arrays in their order."""
Takes = int | tuple[tuple[str, int | None], ...] | None
"""What a layer's input is to be: None, numbers; n, whole numbers from 0 to n - 1, as they come; or several arrays, each
with its name and what it is to be."""
Path = tuple[str, ...]
Params = Mapping[str, Any]
"""A layer's parameters and buffers by name; of a composite, its children's by theirs."""
Derivatives = tuple[Array | None, dict[str, Any]]
"""dL/dx, None where nobody needs it, and dL/dp by name."""

F = TypeVar("F", bound=Callable[..., Any])


def each_array(function: Callable[[Array], Any], x: Input) -> Any:
    """function(x), or where x is several arrays, the tuple of what it gives for each."""
    return tuple([function(a) for a in x]) if isinstance(x, tuple) else function(x)


def row_count(x: Input) -> int:
    """How many rows x has."""
    return (x[0] if isinstance(x, tuple) else x).shape[0]  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Leaf:
    """A start value with more to say than "train me": a buffer, or a parameter that weight decay treats unlike others.

    By default weight decay applies to parameters of two axes or more: weights, not biases or scales.
    """

    value: Any
    trainable: bool = True
    decay: bool | None = None


class SharedParams(dict[str, Any]):
    """Start values of a layer that has the same ones wherever it stands in a network under the same name."""

    def __init__(self, name: str, layer: "Layer", values: Mapping[str, Any]) -> None:
        super().__init__(values)
        self.name, self.layer = name, layer


KERNELS: dict[str, Callable[..., Any]] = {}
"""The definitions of all kernels, by name."""


def kernel(definition: F) -> F:
    """Mark a function of (run, ...) whose body is a definition that a backend may replace by a faster equal.

    The backend names its replacements in `Backend.kernels`; a test runs each against its definition.  A replacement may
    return NotImplemented for arguments that it leaves to the definition.
    """
    name = definition.__name__
    KERNELS[name] = definition

    @wraps(definition)
    def call(run: "Run", *args: Any, **options: Any) -> Any:
        result = run.backend.kernels.get(name, definition)(run, *args, **options)
        return definition(run, *args, **options) if result is NotImplemented else result

    return call  # type: ignore[return-value]


def value_of(option: Any, values: Mapping[Schedule, Any], number: Any) -> Any:
    """An option that may be a schedule: its number in the step of that number, which `values` has in a training.

    Elsewhere nobody says how long an epoch is: then it is one step.
    """
    if not isinstance(option, Schedule) or option in values:
        return values[option] if isinstance(option, Schedule) else option
    return in_epochs(option, 1)(max(int(number) - 1, 0))


class Run:
    """One pass through a network: its backend, whether it trains, and the key of its random numbers.

    `context` is the backend's own (see `Backend.context`): its kernels read it, and no layer, loss or optimizer does.
    """

    __slots__ = ("backend", "context", "first_row", "key", "ranks", "share", "terms", "training", "values", "xp")

    def __init__(
        self,
        backend: Backend,
        training: bool = False,
        key: Key = (0, 0),
        context: Any = None,
        values: Mapping[Schedule, Any] | None = None,
    ) -> None:
        self.backend = backend
        self.xp = backend.xp
        self.training = training
        self.key = key
        self.context = backend.context() if context is None else context
        self.values = values or {}
        self.first_row: Any = 0
        """Of these rows the first is that of this number in the batch."""
        self.terms: list[Array] | None = None
        """What layers add to the loss of these rows, where there is one; each is a number."""
        self.share: tuple[Array | None, Any] = (None, 1.0)
        """The weights of these rows (None: all 1), and that of the whole batch."""
        self.ranks: Any = None
        """The communicator of a training by several ranks, each of which has a part of the batch."""

    def at(self, child: str) -> "Run":
        """The same pass, seen from the child of that name: it draws other random numbers than its siblings."""
        run = Run(self.backend, self.training, (*self.key, zlib.crc32(child.encode())), self.context, self.values)
        run.first_row, run.terms, run.share, run.ranks = self.first_row, self.terms, self.share, self.ranks
        return run

    def shared(self, x: Array) -> Array:
        """x times the share that its row has in the batch, 0 for a row of no weight, whatever it has."""
        weight, total = self.share
        if weight is None:
            return x * (1.0 / total)
        factor = self.xp.reshape(weight, (weight.shape[0],) + (1,) * (x.ndim - 1)) * (1.0 / total)
        return self.xp.where(factor > 0.0, x * factor, 0.0)

    def all_reduce(self, vector: Array) -> Array:
        """The sum of `vector`, of this rank's rows, over the ranks of a training, the same bits on all of them.

        All are to call it alike: a layer that does says so (`communicates`).  `vector` is given up; where one process
        trains, it is the sum.
        """
        ranks = self.ranks
        if ranks is None:
            return vector

        def summed(backend: Backend, vector: Array) -> Array:
            return ranks.all_reduce(backend, vector, tail=vector.shape[0])  # in its own type

        return self.backend.outside(summed, vector, "a sum over ranks", getattr(ranks, "captured", False))

    def value(self, option: Any) -> Any:
        """An option that may be a schedule: its number in this training step, which a compiled step is given anew.

        Outside of a training it is that of the first step.
        """
        return value_of(option, self.values, self.key[1])

    @kernel
    def matmul(self, a: Array, b: Array, transpose_a: bool = False, transpose_b: bool = False) -> Array:
        """The product of two matrices, or of stacks of them, each as it stands or with its last two axes swapped.

        Every layer's products go through here, and so have what the backend has: threads, precision, a better library.
        A sum over very many rows, as that of x^T dy is, keeps its digits: a library may add up the products of narrow
        matrices one after the other, so they are given to it in parts.
        """
        xp = self.xp
        if transpose_a and not transpose_b and a.ndim == b.ndim == 2:
            (rows, k), m = a.shape, b.shape[1]
            if min(k, m) <= NARROW and rows >= 4 * SUMMED_PRODUCTS:
                parts = rows // SUMMED_PRODUCTS
                last = parts * SUMMED_PRODUCTS
                left = xp.matrix_transpose(xp.reshape(a[:last, :], (parts, SUMMED_PRODUCTS, k)))
                each = xp.matmul(left, xp.reshape(b[:last, :], (parts, SUMMED_PRODUCTS, m)))
                total = xp.reshape(self.sum_rows(xp.reshape(each, (parts, k * m))), (k, m))
                return total if last == rows else total + self.matmul(a[last:, :], b[last:, :], True)
        a, b = xp.matrix_transpose(a) if transpose_a else a, xp.matrix_transpose(b) if transpose_b else b
        return xp.matmul(a, b)

    @kernel
    def sum_rows(self, x: Array) -> Array:
        """The sum of `x` over its first axis, the rows, as good on every library, its error that of pairwise sums.

        NumPy's own `xp.sum` and `xp.mean` over that axis add up row by row, and lose digits where there are many.  So
        here at most SUMMED rows are, each of which is many that follow each other, side by side; then their sums are.
        """
        xp, shape = self.xp, x.shape[1:]
        if x.shape[0] > SUMMED:
            x = xp.reshape(x, (x.shape[0], -1))
        while x.shape[0] > SUMMED:
            rows, columns = x.shape
            side = -(-rows // SUMMED)
            last = rows // side * side
            sums = xp.sum(xp.reshape(x[:last, :], (rows // side, side * columns)), axis=0)
            sums = sums if last == rows else self.backend.concat([sums, xp.reshape(x[last:, :], (-1,))])
            x = xp.reshape(sums, (side + rows - last, columns))
        return xp.reshape(xp.sum(x, axis=0), shape)

    @kernel
    def scatter_add(self, table: Array, index: Array, rows: Array) -> Array:
        r"""For each row of `table` the sum of those of `rows` that have its number in the vector `index`.

        It is the derivative of the gather y = take(table, index, axis=0): dL/dtable_j is the sum of dL/dy_i over all i
        with index_i = j.  Of `table` only the shape and the type count.

        The rows of each number are added up in an order that depends on `index` alone, in parts, so that a sum of many
        keeps its digits.  Here they are put next to each other, in their order, and after k rounds each row is the sum
        of the up to 2^k ones of its number that end with it (Hillis and Steele 1986); the last has them all.
        """
        xp, count, device = self.xp, table.shape[0], self.backend.device(rows)
        order = xp.argsort(index, stable=True)
        index, rows = xp.take(index, order), xp.take(rows, order, axis=0)
        step = 1
        while step < index.shape[0]:
            same = (index[step:] == index[:-step])[:, None]
            rows = xp.concat([rows[:step, :], rows[step:, :] + xp.where(same, rows[:-step, :], 0.0)])
            step *= 2
        numbers = xp.arange(count, dtype=index.dtype, device=device)
        last = xp.searchsorted(index, numbers, side="right") - 1
        last = xp.maximum(last, xp.zeros_like(last))
        found = (xp.take(index, last) == numbers)[:, None]
        return xp.where(found, xp.take(rows, last, axis=0), 0.0)

    def keep_mask(self, shape: Shape, keep: float, like: Array, by_row: bool = True) -> Array:
        """1/keep with probability `keep`, else 0, of the type and device of `like`; the same whenever it is asked.

        The first axis of `shape` is that of the rows, each of which has its own numbers, the same in whatever parts the
        batch is computed; with by_row=False they are the same in all parts, as is right for a mask of weights.
        """
        return self.backend.keep_mask(self.key, tuple(shape), keep, *self._drawn_like(like, by_row))

    def uniform(self, shape: Shape, like: Array, by_row: bool = True) -> Array:
        """Evenly drawn from 0 ... 1, without the ends, otherwise as `keep_mask`."""
        return self.backend.uniform(self.key, tuple(shape), *self._drawn_like(like, by_row))

    def normal(self, shape: Shape, like: Array, by_row: bool = True) -> Array:
        """Drawn from the normal distribution, otherwise as `keep_mask`."""
        return self.backend.normal(self.key, tuple(shape), *self._drawn_like(like, by_row))

    def _drawn_like(self, like: Array, by_row: bool) -> tuple[Any, Any, Any]:
        return like.dtype, self.backend.device(like), self.first_row if by_row else 0


class Layer(Registered, kind="layer"):
    """Base of all layers.  Subclasses are frozen dataclasses; writing one takes the four methods below."""

    couples_rows: ClassVar[bool] = False
    """Whether a row of the output depends on other rows; the batch is then never cut into blocks, but each of several
    ranks has its own part of it, and sums over all of them are `run.all_reduce`'s."""
    stochastic: ClassVar[bool] = False
    """Whether the layer draws random numbers."""
    schedulable: ClassVar[Mapping[str, Callable[[str, Any], float]]] = {}
    """Options that may be schedules, and what their values must be: a layer asks `run.value` for them."""
    trainable: ClassVar[bool] = True
    """False where the layer has values, all of them buffers: then nothing asks it for gradients of them."""
    accepts_nan: ClassVar[bool | tuple[bool, ...]] = False
    """Whether the layer knows what to do with what is missing, so that data may have it: NaN among numbers, and among
    whole numbers those that are not below n.  Of a layer that takes several arrays, this of each in their order."""

    @property
    def updates_buffers(self) -> bool:
        """Whether training gives the buffers new values, for which the layer must see all rows of a batch."""
        return type(self).update_buffers is not Layer.update_buffers

    @property
    def communicates(self) -> bool:
        """Whether it calls `run.all_reduce`, for which every rank of a training must have rows of every batch."""
        return False

    needs: ClassVar[tuple[str, ...]] = ("forward", "backward")

    @property
    def takes(self) -> Takes:
        """What the input is to be: None, numbers; n, whole numbers from 0 to n - 1, which are given to the layer as
        they come; ((name, either of these), ...), several arrays, which are given to it as a tuple in this order."""
        return None

    def out_shape(self, in_shape: Shape) -> Shape:
        """Shape of the output of one row for an input row of `in_shape`; raises ShapeError on a misfit."""
        return in_shape

    def init(self, rng: Rng, in_shape: Shape) -> dict[str, Any]:
        """Start values by name; a `Leaf` says more about one; nested dicts where there are children."""
        return {}

    def forward(self, run: Run, p: Params, x: Array) -> tuple[Array, Any]:
        """The output for the rows `x`, and the cache that backward needs."""
        raise NotImplementedError

    def backward(self, run: Run, p: Params, cache: Any, dy: Array, need_dx: bool = True) -> Derivatives:
        """From dL/dy: dL/dx, and dL/dp by name."""
        raise NotImplementedError

    def update_buffers(self, run: Run, p: Params, cache: Any) -> dict[str, Any]:
        """New values of the buffers after a training step, from what forward saw.

        Of several ranks each has seen its own rows, and the mean of what they give is kept, by rows.
        """
        return {}

    def summary(self, x: Any) -> Any:
        """A table of the layers in this one, for rows like those of `x`: see `bpnet.Summary`."""
        return importlib.import_module("bpnet.inspection").summarized(self, x)

    def plot(self, x: Any = None, path: Any = None, *, terminal: bool = False, figure: Any = None) -> Any:
        """A diagram of the layers in this one, with shapes for rows like those of `x`: see `bpnet.plots.network`."""
        draw = importlib.import_module("bpnet.plots").network
        return draw(self, x, path, terminal=terminal, figure=figure)

    def _repr_html_(self) -> str:
        """A notebook's view: the layers in this one, of which `summary` tells more."""
        html: str = importlib.import_module("bpnet.inspection").Outline(self)._repr_html_()
        return html


def _of_a_child(name: str) -> Any:
    """Whether a child of a composite says so of itself."""
    return cached_property(lambda composite: any(getattr(layer, name) for _, layer in composite.children))


class Composite(Layer):
    """A layer made of layers, each with a name; parameters, gradients and buffers nest under these names."""

    needs = ("children",)

    @cached_property
    def children(self) -> tuple[tuple[str, Layer], ...]:
        """(name, layer) in the order of the forward pass."""
        raise NotImplementedError

    @cached_property
    def takes(self) -> Takes:
        """What the first child takes."""
        return self.children[0][1].takes if self.children else None

    def child_shapes(self, in_shape: InShape) -> Iterator[InShape]:
        """Of each child, the shape of its input rows, where those of the composite have `in_shape`."""
        return itertools.repeat(in_shape, len(self.children))

    @cached_property
    def accepts_nan(self) -> bool | tuple[bool, ...]:  # type: ignore[override]
        """What the first child says."""
        return self.children[0][1].accepts_nan if self.children else False

    couples_rows = _of_a_child("couples_rows")
    stochastic = _of_a_child("stochastic")
    trainable = _of_a_child("trainable")

    @cached_property
    def updates_buffers(self) -> bool:
        own = type(self).update_buffers is not Composite.update_buffers
        return own or any(layer.updates_buffers for _, layer in self.children)

    @cached_property
    def communicates(self) -> bool:
        return any(layer.communicates for _, layer in self.children)

    def update_buffers(self, run: Run, p: Params, cache: Any) -> dict[str, Any]:
        """Each child's new buffers; `cache` holds the children's caches in their order."""
        taken = {
            name: layer.update_buffers(run, p[name], mine)
            for (name, layer), mine in zip(self.children, cache, strict=True)
            if p[name]
        }
        return {name: values for name, values in taken.items() if values}


def walk(tree: Params, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Every value of a nested dict with its path; what is a dict itself comes before what is in it."""
    for name, value in tree.items():
        yield (*path, name), value
        if isinstance(value, Mapping):
            yield from walk(value, (*path, name))


def leaves(tree: Params) -> Iterator[tuple[str, Any]]:
    """Every value that is no dict, with its name, which has a point between the names of each level."""
    return ((".".join(map(str, path)), value) for path, value in walk(tree) if not isinstance(value, Mapping))


def check_layer(what: str, layer: Any) -> Layer:
    """`layer` where it is one; raises ArgumentError."""
    hint = "; pass layers one by one: Sequential(*layers)" if isinstance(layer, list | tuple) else ""
    return instance(Layer, what, layer, "a bpnet layer, such as Dense(10) or Sequential(...)" + hint)
