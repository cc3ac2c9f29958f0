"""Gathers of rows and strided copies as CUDA C++."""

from functools import lru_cache

from bpnet.compiler.cuda.launch import MAX_BLOCKS, STORED, THREADS, Sizes


def _word(width: int) -> str:
    """The type of so many bytes in which entries are copied."""
    part, count = ("unsigned int", width // 4) if width >= 4 else ("unsigned char", width)
    return f"struct alignas({width}) Word {{ {part} part[{count}]; }};\n"


@lru_cache
def source(index_dtype: str, widths: tuple[int, ...]) -> str:
    """The text of gather (rows, index, and of each array source_rows, words, source, out), of which so many bytes are
    moved at a time.

    Numbers of rows below 0 count from the end, and those of no row give one of ones in every bit.
    """
    parameters = [f"const long long rows, const {STORED[index_dtype]}* __restrict__ index"]
    body, types = [], []
    for i, width in enumerate(widths):
        types.append(_word(width).replace("Word", f"Word{i}"))
        parameters.append(f"const long long n{i}, const long long words{i}")
        parameters.append(f"const Word{i}* __restrict__ from{i}, Word{i}* __restrict__ out{i}")
        body.append(f"copy(from{i}, index[row], n{i}, words{i}, out{i} + row * words{i});")
    text = _GATHER.replace("<<parameters>>", ",\n    ".join(parameters))
    return "".join(types) + text.replace("<<body>>", "\n        ".join(body))


@lru_cache
def strided_source(width: int) -> str:
    """The text of strided (n0, ... n3, s0, ... s3, source, out): entries of `width` bytes, n along each of four axes,
    s of them apart."""
    return _word(width) + _STRIDED


def sizes(rows: int, words: int) -> Sizes:
    """How many threads run it: those of a line go along a row."""
    across = min(32, 1 << max(words - 1, 0).bit_length())
    down = THREADS // across
    return (1, max(1, min(-(-rows // down), MAX_BLOCKS))), (across, down)


_GATHER = """
template <typename W> __device__ __forceinline__ void copy(
    const W* from, long long row, long long rows, long long words, W* out
) {
    W ones;
    for (auto& part : ones.part) part = -1;
    row = row < 0 ? row + rows : row;
    const bool there = row >= 0 && row < rows;
    for (long long i = threadIdx.x; i < words; i += blockDim.x) out[i] = there ? from[row * words + i] : ones;
}

extern "C" __global__ void gather(
    <<parameters>>
) {
    for (long long row = (long long)blockIdx.y * blockDim.y + threadIdx.y; row < rows;
         row += (long long)gridDim.y * blockDim.y) {
        <<body>>
    }
}
"""

_STRIDED = """
extern "C" __global__ void strided(
    const long long n0, const long long n1, const long long n2, const long long n3,
    const long long s0, const long long s1, const long long s2, const long long s3,
    const Word* __restrict__ source, Word* __restrict__ out
) {
    for (long long row = (long long)blockIdx.y * blockDim.y + threadIdx.y; row < n0 * n1 * n2;
         row += (long long)gridDim.y * blockDim.y) {
        const Word* from = source + row % n2 * s2 + row / n2 % n1 * s1 + row / (n2 * n1) * s0;
        for (long long i = threadIdx.x; i < n3; i += blockDim.x) out[row * n3 + i] = from[i * s3];
    }
}
"""
