"""CUDA C++ that no rule gives: random numbers, the cross-entropy of rows, and a number put where an address says."""

from bpnet.backends.cuda import THREADS, TYPES, WORDS, Launch, map_launch

DROPPED = {"float32": 4, "float64": 2}
"""Elements of 16 bytes, which `drop_wide` takes at a time."""
CLASSES_A_THREAD = 4
"""How many entries of a row a thread of `cross_entropy` takes, where no more threads are needed than a block has."""
LABELS = {"int32": "int", "int64": "long long"}
"""The types that labels come in, as C++ calls them."""


def mask_source(dtype: str, rest: int | None = None) -> str:
    """The text of keep_mask (size, key, threshold, scale, mask), bits and mask of dropout as `Backend.keep_mask`, and
    of drop_wide and drop_plain (size, key, threshold, scale, x, y), y <- x mask.

    With `rest`, `key` is what the first parts of the key are folded to; then come the place of a held part and `rest`
    more parts, which the kernels fold in as `fold` does.
    """
    more = "" if rest is None else "const long long* number, "
    more += "".join(f"unsigned int k{i}, " for i in range(rest or 0))
    parts = [] if rest is None else ["(unsigned int)*number", *(f"k{i}" for i in range(rest))]
    folded = "".join(f"    key = mixed((key ^ {part}) + 0x9E3779B9u);\n" for part in parts)
    head = f"long long size, unsigned int key, {more}unsigned int threshold, T scale"
    code = [WORDS.replace("<<real>>", TYPES[dtype]), _MASK]
    for name, places, body in (
        ("keep_mask", "T* mask", _KEEP_MASK),
        ("drop_wide", "const T* x, T* y", f"    drop<{DROPPED[dtype]}>(size, key, threshold, scale, x, y);\n"),
        ("drop_plain", "const T* x, T* y", "    drop<1>(size, key, threshold, scale, x, y);\n"),
    ):
        code.append(f'extern "C" __global__ void {name}({head}, {places}) {{\n{folded}{body}}}\n')
    return "\n".join(code)


_KEEP_MASK = """\
    for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < size;
         i += (long long)gridDim.x * blockDim.x) {
        mask[i] = kept(i, key, threshold, scale);
    }
"""

_MASK = """\
__device__ __forceinline__ unsigned int mixed(unsigned int x) {
    x = (x ^ (x >> 17)) * 0xED5AD4BBu;
    x = (x ^ (x >> 11)) * 0xAC4C1B51u;
    x = (x ^ (x >> 15)) * 0x31848BABu;
    return x ^ (x >> 14);
}

__device__ __forceinline__ T kept(long long i, unsigned int key, unsigned int threshold, T scale) {
    return mixed((unsigned int)i * 0x9E3779B9u + key) < threshold ? scale : 0;
}

template <int N> __device__ __forceinline__ void drop(
    long long size, unsigned int key, unsigned int threshold, T scale, const T* x, T* y
) {
    for (long long at = ((long long)blockIdx.x * blockDim.x + threadIdx.x) * N; at < size;
         at += (long long)gridDim.x * blockDim.x * N) {
        if (at + N <= size) {
            Words<N> some = load<N>(x, at);
            for (int k = 0; k < N; ++k) some.v[k] = some.v[k] * kept(at + k, key, threshold, scale);
            store<N>(y, at, some);
        } else {
            for (long long i = at; i < size; ++i) y[i] = x[i] * kept(i, key, threshold, scale);
        }
    }
}
"""


def cross_entropy_source(dtype: str, labels: str | None) -> str:
    """The text of cross_entropy (rows, classes, z, target, weights, factor, slope, sums).

    `target` has labels of that type, or the probabilities of every class.  Rows count `factor`, or where there are
    `weights`, as they say.  slope <- what the loss's derivative is, sums <- what each block's rows add to the loss.
    """
    text = _CROSS_ENTROPY.replace("<<threads>>", str(THREADS)).replace("<<real>>", TYPES[dtype])
    if labels is None:
        return text.replace("<<target>>", "T").replace("<<probability>>", "target[row * classes + col]")
    return text.replace("<<target>>", LABELS[labels]).replace("<<probability>>", "(T)(target[row] == col ? 1 : 0)")


_CROSS_ENTROPY = """\
typedef <<real>> T;

// over the threads of a row, which all get it; every thread of the block is to come here
__device__ __forceinline__ T over_row(T value, bool largest, T* part) {
    const int me = threadIdx.y * blockDim.x + threadIdx.x;
    part[me] = value;
    for (int half = blockDim.x / 2; half; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) {
            const T other = part[me + half];
            part[me] = largest ? (other > part[me] ? other : part[me]) : part[me] + other;
        }
    }
    __syncthreads();
    const T whole = part[threadIdx.y * blockDim.x];
    __syncthreads();
    return whole;
}

extern "C" __global__ void cross_entropy(
    long long rows, long long classes, const T* __restrict__ z, const <<target>>* __restrict__ target,
    const T* __restrict__ weights, T factor, T* __restrict__ slope, T* __restrict__ sums
) {
    __shared__ T part[<<threads>>];
    T total = 0;
    const long long apart = (long long)gridDim.x * blockDim.y;
    for (long long first = (long long)blockIdx.x * blockDim.y; first < rows; first += apart) {
        const long long row = first + threadIdx.y;
        const long long stop = row < rows ? classes : 0;  // a row that is not there has no entries
        T top = row < rows ? z[row * classes] : 0;
        for (long long col = threadIdx.x; col < stop; col += blockDim.x) {
            const T value = z[row * classes + col];
            top = value > top ? value : top;
        }
        top = over_row(top, true, part);
        T norm = 0, mass = 0, along = 0;
        for (long long col = threadIdx.x; col < stop; col += blockDim.x) {
            const T shifted = z[row * classes + col] - top, t = <<probability>>;
            norm += exp(shifted);
            mass += t;
            if (t > 0) along += t * shifted;  // where 0 times -inf is 0
        }
        norm = over_row(norm, false, part);
        mass = over_row(mass, false, part);
        along = over_row(along, false, part);
        if (row < rows) {
            const T counts = weights == nullptr ? factor : weights[row], share = mass / norm;
            for (long long col = threadIdx.x; col < classes; col += blockDim.x) {
                const T t = <<probability>>;
                const T off = exp(z[row * classes + col] - top) * share - t;
                slope[row * classes + col] = counts > 0 ? off * counts : 0;  // off may be no number
            }
            if (threadIdx.x == 0 && counts > 0) total += (mass * log(norm) - along) * counts;
        }
    }
    const int me = threadIdx.y * blockDim.x + threadIdx.x;
    part[me] = total;
    for (int half = blockDim.x * blockDim.y / 2; half; half /= 2) {
        __syncthreads();
        if (me < half) part[me] += part[me + half];
    }
    if (me == 0) sums[blockIdx.x] = part[0];
}
"""


def cross_entropy_launch(rows: int, classes: int) -> Launch:
    """How `cross_entropy` is launched: a row has as many threads as it has use for."""
    across = min(THREADS, 1 << (-(-classes // CLASSES_A_THREAD) - 1).bit_length())
    (_, blocks), _ = map_launch(rows, across, 1)
    return (blocks, 1), (across, THREADS // across)


def put_source(dtype: str) -> str:
    """The text of put (address, value): `value`, one element, is written to the place whose address is held."""
    return _PUT.replace("<<real>>", TYPES[dtype])


_PUT = """\
extern "C" __global__ void put(const long long* address, const <<real>>* value) {
    *reinterpret_cast<<<real>>*>(*address) = *value;
}
"""
