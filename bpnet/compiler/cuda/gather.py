"""Gathers of rows and strided copies as CUDA C++."""

from functools import lru_cache

from bpnet.compiler.cuda.launch import MAX_BLOCKS, STORED, THREADS, Sizes


def _word(width: int) -> str:
    """The type of so many bytes in which entries are copied."""
    part, count = ("unsigned int", width // 4) if width >= 4 else ("unsigned char", width)
    return f"struct alignas({width}) Word {{ {part} part[{count}]; }};\n"


@lru_cache
def source(index_dtype: str, width: int) -> str:
    """The text of gather (rows, source_rows, words, source, index, out), which moves `width` bytes at a time.

    Numbers of rows below 0 count from the end, and those of no row give one of ones in every bit.
    """
    return _word(width) + _GATHER.replace("<<index>>", STORED[index_dtype])


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
extern "C" __global__ void gather(
    const long long rows, const long long source_rows, const long long words,
    const Word* __restrict__ source, const <<index>>* __restrict__ index, Word* __restrict__ out
) {
    Word ones;
    for (auto& part : ones.part) part = -1;
    for (long long row = (long long)blockIdx.y * blockDim.y + threadIdx.y; row < rows;
         row += (long long)gridDim.y * blockDim.y) {
        long long from = index[row];
        from = from < 0 ? from + source_rows : from;
        const bool there = from >= 0 && from < source_rows;
        for (long long i = threadIdx.x; i < words; i += blockDim.x) {
            out[row * words + i] = there ? source[from * words + i] : ones;
        }
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
