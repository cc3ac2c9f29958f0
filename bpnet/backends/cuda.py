"""Traced rules as CUDA C++: one kernel, one pass over memory, 16 bytes at a time where the arrays lie so.

Here the text is made, and how many threads run it; CuPy compiles and launches it.  Every kernel works on a matrix
(rows, columns), in which a vector is one row.  With OPTIONS nothing is contracted, so an operation that IEEE 754 rounds
exactly gives the bits that it gives alone.
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
MOST_SUMS = 256
"""Sums that a column is first added up to, each over so many rows one after the other; then these are added up."""
LEAST_ROWS = 64
"""Rows of such a sum, where there are as many."""

TYPES = {"float32": "float", "float64": "double"}
"""The types of elements that kernels are made for, as C++ calls them."""
BFLOAT16 = "bfloat16"
"""The type of the upper halves of floats."""
WIDE = {"float32": 4, "float64": 2}
"""Elements of 16 bytes."""


@dataclass(frozen=True, eq=False)
class Held:
    """A number in device memory, where it may change between two launches of a graph: only kernels can read it."""

    place: Array
    """A 0-d array, of float64 for scalars of a rule, of int64 in the key of random numbers."""

    __array_ufunc__ = None


@dataclass(frozen=True)
class Form:
    """What a kernel is made for: a rule, its numbers of arrays, of vectors and of scalars, and the elements' type.

    The last `vectors` of the arrays have an entry for every column, the others for every element.  The scalars whose
    places are in `held` are read from device memory.  `narrow` says for each array, and last for the results, whether
    it is stored as bfloat16; computed is in float32 then.
    """

    rule: Rule
    arrays: int
    vectors: int
    scalars: int
    dtype: str
    held: tuple[int, ...] = ()
    narrow: tuple[bool, ...] = ()


@dataclass(frozen=True)
class Source:
    """The text of a module of four kernels, in which c are the numbers that `text.prepare` makes of the scalars.

    map_wide, map_plain (rows, columns, arrays, results, c): results <- rule; the i-th result may be the i-th array.
    sum_wide, sum_plain (rows, columns, step, arrays, result, sums, c): the same for one result, and the sums over each
    `step` rows of its columns.

    Where some scalars are held, all of them are passed instead of c, a float64 or the place of one, and the kernel does
    what `prepare` does, which gives the same bits: in float64 the processor and the device round alike.

    The wide ones take 16 bytes at a time: arrays must begin, and rows be apart, at multiples of that.
    """

    text: Text
    code: str


def source(form: Form) -> Source:
    """The kernels of a rule; raises NotTraceableError where it does what no symbol can."""
    text = text_of(Program(form.rule, form.arrays, form.scalars), _expression)
    arrays = [f"a{i}" for i in range(form.arrays)]
    results = [f"r{i}" for i in range(len(text.results))]
    numbers = "".join(f", T {c}" for c in text.constants)
    *given, made = [BFLOAT16 if n else "T" for n in form.narrow or (False,) * (form.arrays + 1)]
    places = ", ".join(
        [*(f"const {t}* {a}" for t, a in zip(given, arrays, strict=True)), *(f"{made}* {r}" for r in results)]
    )
    handed = ", ".join([*arrays, *results, *text.constants])
    vectors = arrays[form.arrays - form.vectors :]
    entries = [*(f"{a}w.v[k]" for a in arrays), *(f"{r}w.v[k]" for r in results), *text.constants]
    parts = [
        _HEAD.format(
            real=TYPES[form.dtype],
            parameters=", ".join([*(f"T v{i}" for i in range(form.arrays)), *(f"T& {r}" for r in results)]) + numbers,
            rule=_indented(
                [
                    *(f"const auto {name} = {value};" for name, value in text.lines),
                    *(f"{r} = {value};" for r, value in zip(results, text.results, strict=True)),
                ]
            ),
            places=places + numbers,
            words=_indented(
                [
                    *(f"const Words<N> {a}w = load<N>({a}, {'col' if a in vectors else 'at'});" for a in arrays),
                    f"Words<N> {', '.join(f'{r}w' for r in results)};",
                    f"for (int k = 0; k < N; ++k) rule({', '.join(entries)});",
                    *(f"store<N>({r}, at, {r}w);" for r in results),
                    "return r0w;",
                ]
            ),
        )
    ]
    kernels = {"map": (f"long long rows, long long columns, {places}{numbers}", _MAP.format(handed=handed))}
    if len(results) == 1:
        kernels["sum"] = (
            f"long long rows, long long columns, long long step, {places}, T* sums{numbers}",
            _SUM.format(handed=handed),
        )
    scalars, prepared = _held(form, text) if form.held else (numbers, "")
    for name, (parameters, body) in kernels.items():
        parts.append(f"template <int N> __device__ __forceinline__ void {name}({parameters}) {{\n{body}}}\n")
        names = ", ".join(parameter.split()[-1] for parameter in parameters.split(", "))
        taken = parameters.removesuffix(numbers) + scalars
        for kind, width in (("wide", WIDE[form.dtype]), ("plain", 1)):
            parts.append(
                f'extern "C" __global__ void {name}_{kind}({taken}) {{\n{prepared}    {name}<{width}>({names});\n}}\n'
            )
    return Source(text, "\n".join(parts))


def _held(form: Form, text: Text) -> tuple[str, str]:
    """The parameters of the scalars, and the lines that make the numbers c of them."""
    parameters = [f"const double* p{i}" if i in form.held else f"double s{i}" for i in range(form.scalars)]
    lines = [
        *(f"const double s{i} = *p{i};" for i in form.held),
        *(f"const double {name} = {value};" for name, value in text.once),
        *(f"const T {c} = (T)({value});" for c, value in zip(text.constants, text.values, strict=True)),
    ]
    return "".join(f", {parameter}" for parameter in parameters), _indented(lines)


def _indented(lines: Sequence[str]) -> str:
    return "".join(f"    {line}\n" for line in lines)


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


_HEAD = """\
typedef {real} T;
typedef unsigned short bfloat16;

template <int N, typename E = T> struct alignas(N * sizeof(E)) Words {{ E v[N]; }};

__device__ __forceinline__ T get(T from) {{ return from; }}

__device__ __forceinline__ T get(bfloat16 from) {{
    const unsigned int bits = (unsigned int)from << 16;
    return reinterpret_cast<const float&>(bits);
}}

__device__ __forceinline__ void put(T& to, T value) {{ to = value; }}

__device__ __forceinline__ void put(bfloat16& to, T value) {{
    const float single = value;
    const unsigned int bits = reinterpret_cast<const unsigned int&>(single);
    const unsigned int even = 0x7FFFu + ((bits >> 16) & 1u);  // to nearest, of two as near to the even one
    to = value != value ? 0x7FC0u : (bits + even) >> 16;
}}

template <int N, typename E> __device__ __forceinline__ Words<N> load(const E* from, long long at) {{
    const Words<N, E> in = *reinterpret_cast<const Words<N, E>*>(from + at);
    Words<N> value;
    for (int k = 0; k < N; ++k) value.v[k] = get(in.v[k]);
    return value;
}}

template <int N, typename E> __device__ __forceinline__ void store(E* to, long long at, const Words<N>& value) {{
    Words<N, E> out;
    for (int k = 0; k < N; ++k) put(out.v[k], value.v[k]);
    *reinterpret_cast<Words<N, E>*>(to + at) = out;
}}

__device__ __forceinline__ void rule({parameters}) {{
{rule}}}

template <int N> __device__ __forceinline__ Words<N> words(long long at, long long col, {places}) {{
{words}}}
"""

_MAP = """\
    for (long long row = (long long)blockIdx.y * blockDim.y + threadIdx.y; row < rows;
         row += (long long)gridDim.y * blockDim.y) {{
        for (long long col = ((long long)blockIdx.x * blockDim.x + threadIdx.x) * N; col < columns;
             col += (long long)gridDim.x * blockDim.x * N) {{
            const long long at = row * columns + col;
            if (col + N <= columns) {{
                words<N>(at, col, {handed});
            }} else {{
                for (int k = 0; k < columns - col; ++k) words<1>(at + k, col + k, {handed});
            }}
        }}
    }}
"""

_SUM = """\
    const long long first = blockIdx.y * step, last = first + step < rows ? first + step : rows;
    for (long long col = ((long long)blockIdx.x * blockDim.x + threadIdx.x) * N; col < columns;
         col += (long long)gridDim.x * blockDim.x * N) {{
        Words<N> total;
        for (int k = 0; k < N; ++k) total.v[k] = 0;
        for (long long row = first; row < last; ++row) {{
            const Words<N> more = words<N>(row * columns + col, col, {handed});
            for (int k = 0; k < N; ++k) total.v[k] += more.v[k];
        }}
        store<N>(sums, blockIdx.y * columns + col, total);
    }}
"""


def keep_mask_source(dtype: str, rest: int | None = None) -> str:
    """The text of keep_mask(size, key, threshold, scale, mask): bits and mask of dropout, as `Backend.keep_mask`.

    With `rest`, `key` is what the first parts of the key are folded to; then come the place of a held part and `rest`
    more parts, which the kernel folds in as `fold` does.
    """
    more = "" if rest is None else "const long long* number, "
    more += "".join(f"unsigned int k{i}, " for i in range(rest or 0))
    parts = [] if rest is None else ["(unsigned int)*number", *(f"k{i}" for i in range(rest))]
    folded = _indented([f"key = mixed((key ^ {part}) + 0x9E3779B9u);" for part in parts])
    return _KEEP_MASK.format(real=TYPES[dtype], more=more, folded=folded)


_KEEP_MASK = """\
__device__ __forceinline__ unsigned int mixed(unsigned int x) {{
    x = (x ^ (x >> 17)) * 0xED5AD4BBu;
    x = (x ^ (x >> 11)) * 0xAC4C1B51u;
    x = (x ^ (x >> 15)) * 0x31848BABu;
    return x ^ (x >> 14);
}}

extern "C" __global__ void keep_mask(
    long long size, unsigned int key, {more}unsigned int threshold, {real} scale, {real}* mask
) {{
{folded}    for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < size;
         i += (long long)gridDim.x * blockDim.x) {{
        mask[i] = mixed((unsigned int)i * 0x9E3779B9u + key) < threshold ? scale : 0;
    }}
}}
"""


def put_source(dtype: str) -> str:
    """The text of put(address, value): `value`, one element, is written to the place whose address is held."""
    return _PUT.format(real=TYPES[dtype])


_PUT = """\
extern "C" __global__ void put(const long long* address, const {real}* value) {{
    *reinterpret_cast<{real}*>(*address) = *value;
}}
"""

Launch = tuple[tuple[int, int], tuple[int, int]]
"""(blocks along columns, along rows), (threads along columns, along rows)."""


def map_launch(rows: int, columns: int, width: int) -> Launch:
    """How the map kernels are launched; `width` is the number of elements that a thread takes at a time."""
    across = -(-columns // width)
    threads = min(THREADS, 1 << (across - 1).bit_length())
    down = THREADS // threads
    blocks = min(-(-across // threads), MOST_BLOCKS)
    return (blocks, min(-(-rows // down), max(MOST_BLOCKS // blocks, 1))), (threads, down)


def sum_launch(rows: int, columns: int, width: int) -> tuple[Launch, int]:
    """How the sum kernels are launched, and the rows of a sum."""
    step = max(LEAST_ROWS, -(-rows // MOST_SUMS))
    across = -(-columns // width)
    threads = min(THREADS // 2, 32 * -(-across // 32))
    return ((min(-(-across // threads), MOST_BLOCKS), -(-rows // step)), (threads, 1)), step
