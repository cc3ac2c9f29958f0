"""Sums of rows by their numbers as CUDA C++."""

from functools import lru_cache

from bpnet.compiler.commands import SUMMED, RowScatterAdd
from bpnet.compiler.cuda.launch import MAX_BLOCKS, STORED, THREADS, TYPES, Sizes


@lru_cache
def source(dtype: str, index_dtype: str) -> str:
    """The text of scatter_add (rows, out_rows, columns, by_rows, accumulate, source, index, out).

    Each number's sum has one owner, which goes through the numbers of all rows in their order, so that the sum is the
    same in each run: with `by_rows` the first row of a number, where there are more numbers than rows and those of no
    row are zero already, else the number itself.
    """
    types = {"<<T>>": TYPES[dtype], "<<index>>": STORED[index_dtype], "<<together>>": str(THREADS)}
    types |= {"<<summed>>": str(SUMMED)}
    text = _SCATTER_ADD
    for name, kind in types.items():
        text = text.replace(name, kind)
    return text


def sizes(command: RowScatterAdd) -> Sizes:
    """How many threads run it: those of a line go along a row."""
    across = min(32, 1 << max(command.columns - 1, 0).bit_length())
    down, x = THREADS // across, min(-(-command.columns // across), 64)
    owners = min(command.rows, command.out_rows)
    return (x, max(1, min(-(-owners // down), MAX_BLOCKS // x))), (across, down)


def zero_source(dtype: str) -> str:
    """The text of zero (count, out), which sets elements to zero."""
    return _ZERO.replace("<<T>>", TYPES[dtype])


def zero_sizes(count: int) -> Sizes:
    """How many threads set so many elements to zero."""
    return (max(1, min(-(-count // THREADS), MAX_BLOCKS)), 1), (THREADS, 1)


_ZERO = """
extern "C" __global__ void zero(const long long count, <<T>>* __restrict__ out) {
    for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < count;
         i += (long long)gridDim.x * blockDim.x) out[i] = <<T>>(0);
}
"""

_SCATTER_ADD = """
__device__ long long number_of(const <<index>> index, const long long out_rows) {
    const long long number = index < 0 ? (long long)index + out_rows : (long long)index;
    return number >= 0 && number < out_rows ? number : -1;
}

extern "C" __global__ void scatter_add(
    const long long rows, const long long out_rows, const long long columns, const long long by_rows,
    const long long accumulate,
    const <<T>>* __restrict__ source, const <<index>>* __restrict__ index, <<T>>* __restrict__ out
) {
    __shared__ long long numbers[<<together>>];
    const int me = threadIdx.y * blockDim.x + threadIdx.x;
    const long long owners = by_rows ? rows : out_rows;
    const long long down = (long long)gridDim.y * blockDim.y, across = (long long)gridDim.x * blockDim.x;
    for (long long above = (long long)blockIdx.y * blockDim.y; above < owners; above += down) {
        const long long owner = above + threadIdx.y;
        const long long mine = owner >= owners ? -2 : by_rows ? number_of(index[owner], out_rows) : owner;
        for (long long left = (long long)blockIdx.x * blockDim.x; left < columns; left += across) {
            const long long column = left + threadIdx.x;
            const bool inside = column < columns && mine >= 0;
            <<T>> part = 0, total = 0;
            long long first = -1;
            int added = 0;
            for (long long start = 0; start < rows; start += <<together>>) {
                const int some = rows - start < <<together>> ? (int)(rows - start) : <<together>>;
                __syncthreads();
                for (int k = me; k < some; k += <<together>>) numbers[k] = number_of(index[start + k], out_rows);
                __syncthreads();
                if (!inside) continue;
                for (int k = 0; k < some; ++k) {
                    if (numbers[k] != mine) continue;
                    first = first < 0 ? start + k : first;
                    part += source[(start + k) * columns + column];
                    if (++added == <<summed>>) {
                        total += part;
                        part = 0;
                        added = 0;
                    }
                }
            }
            if (inside && (!by_rows || first == owner)) {
                <<T>>* to = out + mine * columns + column;
                *to = accumulate ? *to + (total + part) : total + part;
            }
        }
    }
}
"""
