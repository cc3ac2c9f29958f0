"""Traced rules as CUDA C++: one kernel, one pass over memory, 16 bytes at a time where the arrays lie so.

Here the text is made, and how many threads run it; CuPy compiles and launches it.  Every kernel works on a matrix
(rows, columns), in which a vector is one row.  With OPTIONS nothing is contracted, so an operation that IEEE 754 rounds
exactly gives the bits that it gives alone.  Sums are taken in an order that depends on the shape alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bpnet.backends.base import Array, Rule
from bpnet.backends.trace import BINARY, COMPARISONS, Program, Text, text_of

OPTIONS = ("--std=c++17", "--fmad=false")
"""For NVIDIA's compiler."""
THREADS = 256
"""Threads of a block."""
MOST_BLOCKS = 2048
"""Blocks of a launch, some 16 for each multiprocessor of a large device; each thread goes on to further elements."""
SUMMING = 1024
"""The same of a launch that sums: as many as such a device runs at a time."""
AT_A_TIME = 4
"""Rows that a thread which sums reads before it computes with any of them, so that memory is never waited for idly."""
LEAST_ROWS = 16
"""Rows that such a thread sums, where there are as many: fewer would leave more to the second kernel."""
FINISHING = 1024
"""Threads of a block that adds up what others have summed: there are few such blocks, so each must be quick."""

TYPES = {"float32": "float", "float64": "double"}
"""The types that kernels compute in, as C++ calls them."""
STORED = TYPES | {"uint16": "bfloat16"}
"""The types of elements in memory, of which bfloat16 are the upper halves of floats."""
BYTES = {"float": 4, "double": 8, "bfloat16": 2}


@dataclass(frozen=True, eq=False)
class Held:
    """A number in device memory, where it may change between two launches of a graph: only kernels can read it."""

    place: Array
    """A 0-d array, of float64 for scalars of a rule, of int64 in the key of random numbers."""

    __array_ufunc__ = None


@dataclass(frozen=True)
class Form:
    """What a kernel is made for: a rule, what its arrays are, its number of scalars, and the type it computes in.

    A letter of `along` says of an array what it has an entry for: e every element, c every column, r every row.  Where
    all are s, the rule is given the sums of their columns.

    The scalars whose places are in `held` are read from device memory.  `kinds` are the types in memory of each array,
    and last of the results, where one is another than `dtype`.  The last `summed` results are not stored: only the sums
    over their rows are wanted.
    """

    rule: Rule
    along: str
    scalars: int
    dtype: str
    held: tuple[int, ...] = ()
    kinds: tuple[str, ...] = ()
    summed: int = 0

    @property
    def width(self) -> int:
        """Elements that the wide kernels take at a time: 16 bytes of the smallest."""
        return 16 // min(BYTES[kind] for kind in self.kinds or (TYPES[self.dtype],))


@dataclass(frozen=True)
class Source:
    """The text of a module of kernels, in which c are the numbers that `text.prepare` makes of the scalars.

    map_wide, map_plain (rows, columns, arrays, results, c): results <- rule; the i-th result may be the i-th array.
    sum_wide, sum_plain (rows, columns, step, arrays, results, sums, c), where something is summed: the same, and for
    each column and each `step` rows the sum of every result that is not stored.  Nothing may be written and read.
    finish (count, columns, arrays, results, c), where arrays are sums: of a vector of every result.

    Where some scalars are held, all of them are passed instead of c, a float64 or the place of one, and the kernel does
    what `prepare` does, which gives the same bits: in float64 the processor and the device round alike.

    The wide ones take `width` elements at a time: arrays with an entry for every element must begin at multiples of 16
    bytes, and rows be apart by multiples of so many elements.
    """

    text: Text
    code: str


def source(form: Form) -> Source:
    """The kernels of a rule; raises NotTraceableError where it does what no symbol can."""
    finishes = "s" in form.along
    program = Program(form.rule, len(form.along), form.scalars, None if finishes else form.summed)
    text = text_of(program, _expression)
    parts = _Parts(form, text)
    head = parts.fill(_HEAD)
    if finishes:
        return Source(text, head + parts.kernel("finish", parts.fill(_FINISH), "long long count, long long columns"))
    name, sizes, body = ("map", "long long rows, long long columns", _MAP)
    if form.summed:
        name, sizes, body = ("sum", f"{sizes}, long long step", _SUM)
    code = [head, parts.fill(_ONE)]
    for kind, width in (("wide", form.width), ("plain", 1)):
        code.append(parts.kernel(f"{name}_{kind}", parts.fill(body, width), sizes))
    return Source(text, "\n".join(code))


class _Parts:
    """What the texts below are filled with."""

    def __init__(self, form: Form, text: Text) -> None:
        self.form, self.text = form, text
        arrays = [(f"a{i}", letter) for i, letter in enumerate(form.along)]
        results = [f"r{i}" for i in range(len(text.results))]
        *given, made = form.kinds or ("T",) * (len(arrays) + 1)
        kinds = dict(zip((a for a, _ in arrays), given, strict=True))
        stored = results[: len(results) - form.summed]
        load = {"s": "", "e": "load<N>({0}, at)", "c": "each<N>({0}, col)", "r": "{0}[row]"}
        self.numbers = [f"T {c}" for c in text.constants]
        self.places = [
            *(f"const {kinds[a]}* {a}" for a, _ in arrays),
            *(f"{made}* {r}" for r in stored),
        ]
        sums = [f"q{i}" for i in range(form.summed)]
        self.fields = {
            "real": TYPES[form.dtype],
            "parameters": ", ".join([*(f"T v{i}" for i in range(len(arrays))), *(f"T& {r}" for r in results)])
            + "".join(f", {number}" for number in self.numbers),
            "rule": _indented(
                [
                    *(f"const auto {name} = {value};" for name, value in text.lines),
                    *(f"{r} = {value};" for r, value in zip(results, text.results, strict=True)),
                ]
            ),
            "arrays": ", ".join(a for a, _ in arrays),
            "stored": "".join(f", {r}" for r in stored),
            "places": "".join(f", {place}" for place in self.places[: len(arrays)]),
            "targets": "".join(f", {place}" for place in self.places[len(arrays) :]),
            "in": _indented([f"T {a};" if letter == "r" else f"Words<N, {kinds[a]}> {a};" for a, letter in arrays]),
            "out": f"Words<N> {', '.join(results)};",
            "read": _indented([f"in.{a} = {load[letter].format(a)};" for a, letter in arrays]),
            "entries": ", ".join(
                [
                    *(f"in.{a}" if letter == "r" else f"get(in.{a}.v[k])" for a, letter in arrays),
                    *(f"out.{r}.v[k]" for r in results),
                    *text.constants,
                ]
            ),
            "constants": "".join(f", {c}" for c in text.constants),
            "declared": "".join(f", {number}" for number in self.numbers),
            "write": _indented([f"store<N>({r}, at, out.{r});" for r in stored]),
            "at_a_time": str(AT_A_TIME),
        }
        if form.summed:
            self.places += [f"T* {s}" for s in sums]
            self.fields |= {
                "count": str(form.summed),
                "threads": str(THREADS),
                "add": _indented(
                    [f"add(total[{i}][k], rest[{i}][k], out.{r}.v[k]);" for i, r in enumerate(results[len(stored) :])],
                    depth=5,
                ),
                "sums": _indented([f"{s}[at + k] = part[{i}][k][me];" for i, s in enumerate(sums)], depth=3),
            }
        elif "s" in form.along:
            partial = [a for a, _ in arrays]
            entries = [f"part[{i}][me]" for i in range(len(partial))]
            self.fields |= {
                "count": str(len(partial)),
                "threads": str(FINISHING),
                "add": _indented([f"total[{i}] += {a}[i * columns + col];" for i, a in enumerate(partial)], depth=2),
                "entries": ", ".join([*entries, *(f"{r}[col]" for r in results), *text.constants]),
            }

    def fill(self, text: str, width: int = 0) -> str:
        """The text with its names in angle brackets replaced."""
        for name, value in (self.fields | {"width": str(width)}).items():
            text = text.replace(f"<<{name}>>", value)
        return text

    def kernel(self, name: str, body: str, sizes: str) -> str:
        """A kernel, which makes the numbers c of the scalars where some of these are held."""
        form, numbers, lines = self.form, self.numbers, ""
        if form.held:
            numbers = [f"const double* p{i}" if i in form.held else f"double s{i}" for i in range(form.scalars)]
            lines = _indented(
                [
                    *(f"const double s{i} = *p{i};" for i in form.held),
                    *(f"const double {name} = {value};" for name, value in self.text.once),
                    *(f"const T {c} = (T)({v});" for c, v in zip(self.text.constants, self.text.values, strict=True)),
                ]
            )
        bounds = f"__launch_bounds__({FINISHING}) " if name == "finish" else ""
        places = [place.replace("*", "* __restrict__") for place in self.places] if form.summed else self.places
        parameters = ", ".join([sizes, *places, *numbers])
        return f'extern "C" __global__ void {bounds}{name}({parameters}) {{\n{lines}{body}}}\n'


def _indented(lines: Sequence[str], depth: int = 1) -> str:
    return "".join(f"{'    ' * depth}{line}\n" for line in lines)


def _expression(op: str, args: Sequence[str], constant: Callable[[float], str]) -> str:
    signs = {name: sign for sign, name in (BINARY | COMPARISONS).items()}
    if op in signs:
        return f" {signs[op]} ".join(args)
    if op in ("maximum", "minimum"):  # which hand on what is not a number, as the library's functions do not
        sign = ">=" if op == "maximum" else "<="
        return f"{args[0]} {sign} {args[1]} || {args[0]} != {args[0]} ? {args[0]} : {args[1]}"
    if op == "where":
        return f"{args[0]} ? {args[1]} : {args[2]}"
    if op == "astype":
        return f"{args[0]} ? {constant(1.0)} : {constant(0.0)}"
    if op == "negative":
        return f"-{args[0]}"
    return f"{'fabs' if op == 'abs' else op}({args[0]})"


WORDS = """\
typedef <<real>> T;
typedef unsigned short bfloat16;

template <int N, typename E = T> struct alignas(N * sizeof(E) < 16 ? N * sizeof(E) : 16) Words { E v[N]; };

template <int N, typename E> __device__ __forceinline__ Words<N, E> load(const E* from, long long at) {
    return *reinterpret_cast<const Words<N, E>*>(from + at);
}

template <int N, typename E> __device__ __forceinline__ Words<N, E> each(const E* from, long long at) {
    Words<N, E> value;
    for (int k = 0; k < N; ++k) value.v[k] = from[at + k];
    return value;
}

__device__ __forceinline__ T get(float from) { return from; }

__device__ __forceinline__ T get(double from) { return from; }

__device__ __forceinline__ T get(bfloat16 from) {
    const unsigned int bits = (unsigned int)from << 16;
    return reinterpret_cast<const float&>(bits);
}

__device__ __forceinline__ void put(float& to, T value) { to = value; }

__device__ __forceinline__ void put(double& to, T value) { to = value; }

__device__ __forceinline__ void put(bfloat16& to, T value) {
    const float single = value;
    const unsigned int bits = reinterpret_cast<const unsigned int&>(single);
    const unsigned int even = 0x7FFFu + ((bits >> 16) & 1u);  // to nearest, of two as near to the even one
    to = value != value ? 0x7FC0u : (bits + even) >> 16;
}

template <int N, typename E> __device__ __forceinline__ void store(E* to, long long at, const Words<N>& value) {
    Words<N, E> out;
    for (int k = 0; k < N; ++k) put(out.v[k], value.v[k]);
    *reinterpret_cast<Words<N, E>*>(to + at) = out;
}
"""
"""Elements of memory, several at a time."""

ADD = """
// total + value, and to rest what rounding leaves out of it (Knuth), which is not a number where total is not finite
__device__ __forceinline__ void add(T& total, T& rest, T value) {
    const T sum = total + value, arrived = sum - total;
    rest += (total - (sum - arrived)) + (value - arrived);
    total = sum;
}
"""
"""For sums of many, by one thread."""

_HEAD = (
    WORDS
    + ADD
    + """
__device__ __forceinline__ void rule(<<parameters>>) {
<<rule>>}
"""
)

_ONE = """\
template <int N> struct In {
<<in>>};

template <int N> struct Out {
    <<out>>
};

template <int N> __device__ __forceinline__ In<N> read(long long row, long long col, long long at<<places>>) {
    In<N> in;
<<read>>    return in;
}

template <int N> __device__ __forceinline__ Out<N> compute(const In<N>& in<<declared>>) {
    Out<N> out;
    for (int k = 0; k < N; ++k) rule(<<entries>>);
    return out;
}

template <int N> __device__ __forceinline__ void write(const Out<N>& out, long long at<<targets>>) {
<<write>>}
"""
"""A rule on N elements of a row: all that it reads is read before anything is written."""

_MAP = """\
    for (long long row = (long long)blockIdx.y * blockDim.y + threadIdx.y; row < rows;
         row += (long long)gridDim.y * blockDim.y) {
        for (long long col = ((long long)blockIdx.x * blockDim.x + threadIdx.x) * <<width>>; col < columns;
             col += (long long)gridDim.x * blockDim.x * <<width>>) {
            const long long at = row * columns + col;
            if (col + <<width>> <= columns) {
                write(compute(read<<<width>>>(row, col, at, <<arrays>>)<<constants>>), at<<stored>>);
            } else {
                for (int k = 0; k < columns - col; ++k) {
                    write(compute(read<1>(row, col + k, at + k, <<arrays>>)<<constants>>), at + k<<stored>>);
                }
            }
        }
    }
"""

_SUM = """\
    const int N = <<width>>;
    __shared__ T part[<<count>>][N][<<threads>>];
    T total[<<count>>][N] = {}, rest[<<count>>][N] = {};
    const long long first = blockIdx.y * step, last = first + step < rows ? first + step : rows;
    const long long col = ((long long)blockIdx.x * blockDim.x + threadIdx.x) * N;
    for (long long row = first + threadIdx.y; col < columns && row < last; row += <<at_a_time>> * blockDim.y) {
        In<N> in[<<at_a_time>>];
#pragma unroll
        for (int i = 0; i < <<at_a_time>>; ++i) {
            const long long it = row + i * blockDim.y;
            if (it < last) in[i] = read<N>(it, col, it * columns + col, <<arrays>>);
        }
#pragma unroll
        for (int i = 0; i < <<at_a_time>>; ++i) {
            const long long it = row + i * blockDim.y;
            if (it < last) {
                const Out<N> out = compute(in[i]<<constants>>);
                write(out, it * columns + col<<stored>>);
                for (int k = 0; k < N; ++k) {
<<add>>                }
            }
        }
    }
    const int me = threadIdx.y * blockDim.x + threadIdx.x;
    for (int i = 0; i < <<count>>; ++i) {
        for (int k = 0; k < N; ++k) part[i][k][me] = total[i][k] + (rest[i][k] == rest[i][k] ? rest[i][k] : 0);
    }
    for (int half = blockDim.y / 2; half; half /= 2) {
        __syncthreads();
        if (threadIdx.y < half) {
            for (int i = 0; i < <<count>>; ++i) {
                for (int k = 0; k < N; ++k) part[i][k][me] += part[i][k][me + half * blockDim.x];
            }
        }
    }
    if (threadIdx.y == 0 && col < columns) {
        const long long at = blockIdx.y * columns + col;
        for (int k = 0; k < N; ++k) {
<<sums>>        }
    }
"""

_FINISH = """\
    __shared__ T part[<<count>>][<<threads>>];
    T total[<<count>>] = {};
    const int me = threadIdx.y * blockDim.x + threadIdx.x;
    const long long col = (long long)blockIdx.x * blockDim.x + threadIdx.x;
#pragma unroll 4
    for (long long i = threadIdx.y; col < columns && i < count; i += blockDim.y) {
<<add>>    }
    for (int i = 0; i < <<count>>; ++i) part[i][me] = total[i];
    for (int half = blockDim.y / 2; half; half /= 2) {
        __syncthreads();
        if (threadIdx.y < half) {
            for (int i = 0; i < <<count>>; ++i) part[i][me] += part[i][me + half * blockDim.x];
        }
    }
    if (threadIdx.y == 0 && col < columns) rule(<<entries>>);
"""

Launch = tuple[tuple[int, int], tuple[int, int]]
"""(blocks along columns, along rows), (threads along columns, along rows)."""


def map_launch(rows: int, columns: int, width: int) -> Launch:
    """How the map kernels are launched; `width` is the number of elements that a thread takes at a time."""
    across = -(-columns // width)
    threads = min(THREADS, _power(across))
    down = THREADS // threads
    blocks = min(-(-across // threads), MOST_BLOCKS)
    return (blocks, min(-(-rows // down), max(MOST_BLOCKS // blocks, 1))), (threads, down)


def sum_launch(rows: int, columns: int, width: int) -> tuple[Launch, int]:
    """How the sum kernels are launched, and the rows of a sum."""
    across = -(-columns // width)
    threads = min(32, _power(across))
    down, blocks = THREADS // threads, -(-across // threads)
    step = max(LEAST_ROWS * down, -(-rows // max(SUMMING // blocks, 1)))
    return ((blocks, -(-rows // step)), (threads, down)), step


def finish_launch(columns: int) -> Launch:
    """How what is left of sums is added up."""
    threads = min(32, _power(columns))
    return (-(-columns // threads), 1), (threads, FINISHING // threads)


def _power(count: int) -> int:
    """The next power of two."""
    return 1 << (count - 1).bit_length()
