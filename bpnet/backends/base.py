"""What bpnet needs beyond the Array API standard, written in it; a library's own file overrides what it does better."""

import math
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from itertools import starmap
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from bpnet.backends.interrupts import NoWarnings
from bpnet.backends.polynomials import ERF_T, ERF_U, ERFC_P, ERFC_Q, ERFINV_FAR, ERFINV_NEAR, ROOT_2, polynomial
from bpnet.compiler.random import GOLDEN, TRIPLE32, start_of, threshold
from bpnet.errors import DeviceError, OptionError

if TYPE_CHECKING:
    from bpnet.backends.techniques import Finding

T = TypeVar("T")

Array = Any
"""An array of any library that follows the standard; Python has no common type for these yet."""

Key = tuple[Any, ...]
"""Names one stream of random numbers: (seed, step, place, ...), whole numbers, or 0-d arrays under tracing."""

Rule = Callable[..., Any]
"""An elementwise function `rule(backend, *arrays, *scalars)`; a backend may fuse it into one pass over memory."""

Piece = tuple[int, int, tuple[Any, ...]]
"""Part of a vector with its own scalars for a rule: start, stop, scalars."""

Rows = tuple[int, int]
"""A block of rows, from the first to before the last."""

PRECISIONS = ("float32", "tf32", "bfloat16")
"""How products of float32 matrices can be computed; sums are float32 always.

float32: of the numbers as they are.  tf32: of numbers rounded to 11 significant bits.  bfloat16: to 8.
"""

Specs = Sequence[tuple[tuple[int, ...], Any]]
"""Of arrays on the host, each: the shape of a row, and the type of its elements."""

SUMMED = 128
"""Rows that are added up one after the other."""

SUMMED_PRODUCTS = 1024
"""Rows whose products are added up by one call of a library, where these are of NARROW matrices."""
NARROW = 8
"""Columns up to which libraries may add up products one after the other, instead of by blocks that stay in cache."""

LEVELS = 3
"""Partial sums that are held at a time where they are large."""
GROUPED = 2**22
"""Most elements of the tables to which groups of SUMMED rows are added by their numbers, before the tables are."""


def by_halves(parts: Iterable[T], add: Callable[[T, T], T], large: int = 0) -> T:
    """The sum of one part or more, neighbours first, so that no sum is of many: what is rounded grows as log(parts).

    So does the memory for the sums of halves.  Where the parts are so many `large` ones, each sum is therefore of as
    many as leave LEVELS of them, and what is rounded grows as the LEVELS-th root of the parts.
    """
    sums: list[T] = []
    most = 2
    while most**LEVELS < large:
        most += 1
    try:
        for number, part in enumerate(parts, 1):
            while number % most != 1:  # its sum has begun
                part = add(sums.pop(), part)
                if number % most:
                    break
                number //= most
            sums.append(part)
    finally:  # after an error too, which would keep blocks at work and alive
        if isinstance(parts, Generator):
            parts.close()
    total = sums.pop()
    while sums:
        total = add(sums.pop(), total)
    return total


class State:
    """What a trainer's steps move on: `now` is the carry and the number of steps that made it, replaced as one."""

    __slots__ = ("now", "stream")

    def __init__(self, carry: Any, count: int) -> None:
        self.now = carry, count
        self.stream: Any = None
        """Of a library with streams, that on which it was last used."""


class Context:
    """What the kernels of a backend share in one pass through a network; see `Backend.context`."""

    def __init__(self, backend: "Backend", precision: str, grad_buffers: dict[int, Array] | None) -> None:
        self.backend, self.precision, self.grad_buffers = backend, precision, grad_buffers

    def grad_buffer(self, parameter: Array) -> Array:
        """Memory for the gradient of a parameter: its part of the whole gradient, where that is still free."""
        buffer = None if self.grad_buffers is None else self.grad_buffers.pop(id(parameter), None)
        return self.backend.xp.empty_like(parameter) if buffer is None else buffer


class Backend:
    """One array library: its standard namespace `xp`, and what the standard lacks.

    Everything here is written with standard operations, so an unknown library works; subclasses override.
    """

    name = "array_api"
    traces = False
    """Whether `compile` traces the step: then values must not be looked at inside it."""
    has_streams = False
    """Whether work of several streams may overlap: see `follow`."""
    writable = False
    """Whether arrays can be written to, so that kernels may be given memory for what they compute."""
    drops_nan = False
    """Whether products followed by an activation may make a number of what is none."""
    fused = repeated = "operations"
    """What computes a function that `compile` made, and a step that is done again, in the words of a check."""
    max_steps_per_launch = 1
    """Most training steps that `run_steps` does."""
    oom_errors: ClassVar[tuple[type[Exception], ...]] = (MemoryError,)
    """What the library raises where there is not enough memory."""
    kernels: ClassVar[Mapping[str, Callable[..., Any]]] = {}
    """Replacements for definitions marked with `bpnet.layer.kernel`, by the definition's name."""

    def __init__(self, xp: Any) -> None:
        self.xp = xp
        if self.name == "array_api":
            self.name = xp.__name__.removeprefix("array_api_compat.")

    def __reduce__(self) -> tuple[Any, ...]:
        """A backend is pickled as its name."""
        from bpnet.backends import named

        return named, (self.xp.__name__,) if type(self) is Backend else (self.name,)

    def __repr__(self) -> str:
        return f"<bpnet backend {self.name}>"

    # ---- arrays -------------------------------------------------------------------------------------------------

    def device(self, x: Array) -> Any:
        """The device on which `x` lies."""
        import array_api_compat

        return array_api_compat.device(x)

    def get_device(self, number: int) -> Any:
        """The device of that number, from 0 on; raises DeviceError where there is none."""
        raise DeviceError(f"devices of {self.name} have no numbers: leave out :{number}")

    def from_host(self, value: Any, dtype: Any = None, device: Any = None) -> Array:
        """A NumPy array (or number) as an array of this library, copied."""
        return self.xp.asarray(value, dtype=dtype, device=device, copy=True)

    def to_host(self, x: Array) -> Any:
        """`x` as a NumPy array."""
        import numpy

        try:
            return numpy.asarray(x)
        except (TypeError, ValueError, RuntimeError):  # as where it lies on another device than the processor
            return numpy.from_dlpack(x)

    def unfit(self, x: Array) -> str | None:
        """What `x` is where it is of this library, but no plain array of values, and how to make it one."""
        return None

    def detach(self, x: Array) -> Array:
        """`x` as the user passed it, made safe to compute with: a library that records gradients detaches it."""
        return x

    def copy(self, x: Array) -> Array:
        """A copy of `x`."""
        return self.xp.asarray(x, copy=True)

    def constants(self, values: Sequence[float], like: Array) -> Array:
        """A vector of numbers that are known beforehand, such as options, of the type and device of `like`."""
        return self.xp.asarray(values, dtype=like.dtype, device=self.device(like))

    def empty_vector(self, size: int, like: Array) -> Array | None:
        """A vector of the type of `like` for kernels to write to, of a library whose arrays can be written to."""
        return None

    def store(self, out: Array, value: Array) -> None:
        """Write `value` to a part of what `empty_vector` gave."""
        raise NotImplementedError

    def concat(self, vectors: Sequence[Array]) -> Array:
        """One vector of several."""
        return self.xp.concat(list(vectors))

    def synchronise(self, x: Array) -> None:
        """Wait until `x` has been computed."""

    def memory(self, x: Array) -> tuple[int, int] | None:
        """(free, total) bytes of the device of `x`, where the library can say."""
        return None

    def context(self, precision: str = "float32", grad_buffers: dict[int, Array] | None = None) -> "Context | None":
        """What this backend's kernels share in one pass, in which products have that precision.

        `grad_buffers` are by the `id` of a parameter: where a kernel may write its gradient, once.  None where kernels
        have no use for any of it.
        """
        return None

    def outline(self, part: Any) -> Any:
        """A layer, loss or optimizer as it is to be called where `traces`: what can't be traced of it is cut out."""
        return part

    def precisions(self, device: Any) -> tuple[str, ...]:
        """Those of PRECISIONS that this library's products can have on `device`, float32 first."""
        return PRECISIONS[:1]

    def bytes_requested(self, error: Exception) -> int | None:
        """How many bytes could not be had, where an error of `oom_errors` says so."""
        return None

    def prefetcher(self, specs: Specs, rows: int, batches: int, device: Any = None) -> "Prefetcher":
        """A way for so many batches of at most `rows` rows from the host to the device."""
        return Prefetcher(self, specs, device)

    # ---- checks: see `bpnet.checking` ----------------------------------------------------------------------------

    def techniques(self) -> Iterable["Finding"]:
        """What this library has in the place of definitions on the current device, each tried."""
        return ()

    def instead_of(self, technique: str) -> str:
        """What is used where a technique is switched off; empty where it can't be."""
        return ""

    def everything_on(self) -> AbstractContextManager[None]:
        """While techniques are checked, none of them is switched off."""
        return NoWarnings()

    def switch_off(self, findings: Sequence["Finding"]) -> None:
        """Use from now on what has been found right, and nothing else."""

    def describe(self, device: Any) -> str:
        """A device in words, with the versions on which what it computes depends."""
        return str(device)

    # ---- random numbers -----------------------------------------------------------------------------------------

    def keep_mask(
        self, key: Key, shape: tuple[int, ...], keep: float, dtype: Any, device: Any, first: Any = 0
    ) -> Array:
        """An array that is 1/keep with probability `keep`, else 0: the mask of inverted dropout.

        Its rows are those from the number `first` on: entry j of row r, of n entries, has the bits
        `triple32((r n + j) * 0x9E3779B9 + key)`, the same in whatever array the row is, and on every library.  `keep`
        is rounded to a multiple of 2**-32, and 1/keep is of the rounded value.
        """
        xp, limit = self.xp, threshold(keep)
        kept = self._bits(key, shape, device, first) < self._uint32(limit, device)
        return xp.astype(kept, dtype) * (2**32 / limit)

    def uniform(self, key: Key, shape: tuple[int, ...], dtype: Any, device: Any, first: Any = 0) -> Array:
        """Numbers evenly drawn from 0 ... 1: (k + 1/2) / 2**23 for the upper 23 bits k of `keep_mask`'s bits.

        They are the same on every library, exact in float32, and neither 0 nor 1.
        """
        upper = self._bits(key, shape, device, first) >> self._uint32(9, device)
        return (self.xp.astype(upper, dtype) + 0.5) * 2.0**-23

    def normal(self, key: Key, shape: tuple[int, ...], dtype: Any, device: Any, first: Any = 0) -> Array:
        """Numbers drawn from the normal distribution: sqrt(2) times the inverse of erf at 2 u - 1, u of `uniform`.

        By the polynomials of M. Giles, Approximating the erfinv function (2010), with an error of 1e-6 of a deviation
        at most; none lies further out than 5.4 deviations.
        """
        xp, u = self.xp, self.uniform(key, shape, dtype, device, first)
        x = 2.0 * u - 1.0
        w = -xp.log((2.0 - 2.0 * u) * (2.0 * u))  # of 1 - x**2
        near, far = polynomial(w - 2.5, ERFINV_NEAR), polynomial(xp.sqrt(w) - 3.0, ERFINV_FAR)
        return xp.where(w < 5.0, near, far) * x * ROOT_2

    def _bits(self, key: Key, shape: tuple[int, ...], device: Any, first: Any) -> Array:
        """32 random bits for each entry of `shape`, as a uint32."""
        xp = self.xp
        count = xp.arange(math.prod(shape), dtype=xp.uint32, device=device)
        start = self._start(key, first, math.prod(shape[1:]), device)
        return xp.reshape(self._hashed(count * self._uint32(GOLDEN, device) + start, device), shape)

    def _uint32(self, value: Any, device: Any) -> Array:
        return self.xp.asarray(value, dtype=self.xp.uint32, device=device)

    def _start(self, key: Key, first: Any, width: int, device: Any) -> Array:
        return self._uint32(start_of(key, first * width), device)

    def _hashed(self, x: Array, device: Any) -> Array:
        for shift, factor in TRIPLE32:
            x = (x ^ (x >> self._uint32(shift, device))) * self._uint32(factor, device)
        return x ^ (x >> self._uint32(14, device))

    # ---- operations the standard lacks --------------------------------------------------------------------------

    def erf(self, x: Array) -> Array:
        """The error function, 2 / sqrt(pi) times the integral of exp(-t**2) over t from 0 to x.

        Rational approximations of S. L. Moshier, Cephes (1989): one near zero, and one of erfc beyond.
        """
        xp = self.xp
        s = x * x
        near = x * polynomial(s, ERF_T) / polynomial(s, ERF_U)
        far = xp.minimum(xp.maximum(xp.abs(x), 0.5), 6.0)  # erf(6) is 1 in float64, and keeps exp from underflow
        tail = xp.exp(-far * far) * polynomial(far, ERFC_P) / polynomial(far, ERFC_Q)
        return xp.where(xp.abs(x) < 1.0, near, xp.sign(x) * (1.0 - tail))

    # ---- how work is carried out --------------------------------------------------------------------------------

    def session(
        self, threads: int | None = None, device: Any = None, work: float = 0.0, choice: bool | str = "auto"
    ) -> AbstractContextManager[None]:
        """What must hold while bpnet computes on `device`, for the time of one public call using so many `threads`.

        `work`: about how many floating-point operations a trainer has had done by its end, by which a backend may
        decide whether to compile where the trainer's `choice` is "auto".

        By default NumPy's warnings are off, since a library without a file of its own may compute with NumPy.
        """
        return NoWarnings()

    def blocks(self, rows: int, work: float) -> list[Rows]:
        """The row blocks of a batch of `rows` rows, each row costing about `work` floating-point operations.

        They depend on the batch only, never on the number of threads, so results don't either.
        """
        return [(0, rows)]

    def map_blocks(self, function: Callable[[int, Rows], T], blocks: Sequence[Rows]) -> Generator[T, None, None]:
        """`function(number, rows)` of every block, in the order of the blocks; a backend may run several at once."""
        return (function(number, rows) for number, rows in enumerate(blocks))

    def add_to(self, total: Array, part: Array) -> Array:
        """total + part, where `total` may be given up."""
        return total + part

    def total(self, parts: Iterable[T], add: Callable[[T, T], T], large: int = 0) -> T:
        """The sum of what blocks gave, one part or more, where `add` gives that of two and may give up the first.

        See `by_halves`.
        """
        return by_halves(parts, add, large)

    def compile(
        self, function: Callable[..., Any], donate: bool = False, choice: bool | str = "auto"
    ) -> Callable[..., Any]:
        """`function(backend, *args)` of arrays and numbers as a function of `args`, faster where the library compiles.

        `donate` gives the first of `args` up to it.  `choice` is whether to compile: "auto" where that pays.  Raises
        OptionError or MissingExtraError where it is True, and can't be done.
        """
        if choice is True:
            raise OptionError(f"compile is True, but steps on {self.name} arrays can't be compiled: leave it out")
        return partial(function, self)

    def outside(
        self, function: Callable[["Backend", Array], Array], array: Array, text: str, captured: bool = False
    ) -> Array:
        """function(backend, array), an array like it, called as it stands amidst what is compiled: a collective.

        `text` says what it is; `captured` that it only launches work on a device, so that it can be captured.
        """
        return function(self, array)

    def follow(self, state: State) -> None:
        """Have what is launched next come after all that has been launched for the state, by whomever."""

    def advance(self, step: Callable[..., Any], state: State, args: Sequence[Any], count: int) -> Any:
        """state.now, result <- (carry, count), result by step(carry, *args), which is compiled; gives the result.

        Whatever interrupt comes, the carry is then that of `state.now`: nothing of it is written to, or all that is to
        be and `state` says so.
        """
        # a function in C gives what it makes by way of `starmap` to the names here before an interrupt may come
        ((carry, result),) = starmap(step, ((state.now[0], *args),))
        state.now = carry, count
        return result

    def run_steps(
        self, step: Callable[..., Any], state: State, shared: Sequence[Any], each: Sequence[tuple[Any, ...]]
    ) -> Sequence[Array] | None:
        """carry, result <- step(carry, *shared, *own) for each `own`, as one call; gives all results, as `advance`.

        `step` is compiled, and the last of `shared` is a vector, of which every step is given its equal part.  None
        where it can't be done as one, or not yet: then nothing was done.
        """
        return None

    def explain(self, function: Callable[..., Any], args: Sequence[Any]) -> str:
        """What a call of `function`, which `compile` made, does for arguments like these, in order."""
        return f"{self.name}: every operation as it stands, one after the other; nothing is compiled"

    def fetch(self, scalars: Sequence[Array]) -> list[float]:
        """The values of 0-d arrays, with one wait for the device."""
        return [float(s) for s in scalars]

    def fuse(self, rule: Rule) -> Rule:
        """A faster equal of an elementwise rule of arrays of one shape, and then of numbers."""
        return rule

    def map_vector(
        self,
        rule: Rule,
        outputs: int,
        arrays: Sequence[Array],
        pieces: Sequence[Piece],
        donate: bool,
    ) -> tuple[Array, ...]:
        """Apply an elementwise `rule` to 1-d arrays piece by piece, each (start, stop, scalars) with its own scalars.

        The rule's results become the new values of the first `outputs` arrays.  `donate` gives those arrays up:
        a backend may write the results into them.
        """
        parts = [rule(self, *(a[start:stop] for a in arrays), *scalars) for start, stop, scalars in pieces]
        if len(parts) == 1:
            return tuple(parts[0])
        return tuple(self.xp.concat([part[i] for part in parts]) for i in range(outputs))


class Prefetcher:
    """Brings batches from the host to the device; a backend may copy one while it computes with the one before."""

    def __init__(self, backend: Backend, specs: Specs, device: Any = None) -> None:
        self.backend, self.specs, self.device = backend, specs, device

    def send(self, rows: int, write: Callable[[Sequence[Any]], None]) -> tuple[Array, ...]:
        """Arrays of `rows` rows on the device, with what `write` puts into the NumPy arrays that it is given.

        They may be overwritten by the second call after this one: work with them is to be under way by the next.
        """
        import numpy

        buffers = [numpy.empty((rows, *shape), dtype) for shape, dtype in self.specs]
        write(buffers)
        xp = self.backend.xp
        return tuple(self.backend.from_host(buffer, getattr(xp, buffer.dtype.name), self.device) for buffer in buffers)

    def close(self) -> None:
        """Wait until all that was sent has left the host."""
