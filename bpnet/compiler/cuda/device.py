"""What fused kernels are made with, as CUDA C++: elements of memory, random bits, and sums over threads and blocks.

In these texts <<real>> is the type that a kernel computes in, and <<threads>> the threads of a block.
"""

COMMON = """\
#ifndef INFINITY
#define INFINITY __int_as_float(0x7f800000)
#endif
typedef <<real>> T;
struct bfloat16 { unsigned short bits; };

template <int N, typename E = T> struct alignas(N * sizeof(E) < 16 ? N * sizeof(E) : 16) Words { E v[N]; };

template <int N, typename E> __device__ __forceinline__ Words<N, E> load(const E* from, long long at) {
    return *reinterpret_cast<const Words<N, E>*>(from + at);
}

template <int N, typename E> __device__ __forceinline__ Words<N, E> each(const E* from, long long at) {
    Words<N, E> value;
    for (int k = 0; k < N; ++k) value.v[k] = from[at + k];
    return value;
}

template <typename E> __device__ __forceinline__ T get(E from) { return (T)from; }

__device__ __forceinline__ T get(bfloat16 from) {
    const unsigned int bits = (unsigned int)from.bits << 16;
    return reinterpret_cast<const float&>(bits);
}

template <typename E> __device__ __forceinline__ void put(E& to, T value) { to = value; }

__device__ __forceinline__ void put(bfloat16& to, T value) {
    const float single = value;
    const unsigned int bits = reinterpret_cast<const unsigned int&>(single);
    const unsigned int even = 0x7FFFu + ((bits >> 16) & 1u);  // to nearest, of two as near to the even one
    to.bits = value != value ? 0x7FC0u : (bits + even) >> 16;
}

template <int N, typename E> __device__ __forceinline__ void store(E* to, long long at, const Words<N>& value) {
    Words<N, E> out;
    for (int k = 0; k < N; ++k) put(out.v[k], value.v[k]);
    *reinterpret_cast<Words<N, E>*>(to + at) = out;
}

__device__ __forceinline__ unsigned int mixed(unsigned int x) {
    x = (x ^ (x >> 17)) * 0xED5AD4BBu;
    x = (x ^ (x >> 11)) * 0xAC4C1B51u;
    x = (x ^ (x >> 15)) * 0x31848BABu;
    return x ^ (x >> 14);
}

// total + value, and to rest what rounding leaves out of it (Knuth), which is not a number where total is not finite
__device__ __forceinline__ void add(T& total, T& rest, T value) {
    const T sum = total + value, arrived = sum - total;
    rest += (total - (sum - arrived)) + (value - arrived);
    total = sum;
}

__device__ __forceinline__ T rounded(T total, T rest) { return total + (rest == rest ? rest : 0); }
"""

REDUCTIONS = """
enum { SUM, MAX, MIN };

__device__ __forceinline__ T nothing(int op) { return op == SUM ? (T)0 : op == MAX ? (T)-INFINITY : (T)INFINITY; }

__device__ __forceinline__ T joined(T x, T y, int op) {
    if (op == SUM) return x + y;
    return (op == MAX ? x >= y : x <= y) || x != x ? x : y;
}

__device__ __forceinline__ void join(T& total, T& rest, T value, int op) {
    if (op == SUM) add(total, rest, value); else total = joined(total, value, op);
}

// over the threads of a row, which all get it; every thread of the block is to come here
__device__ __forceinline__ T along_row(T value, int op) {
    __shared__ T part[<<threads>>];
    if (blockDim.x == 1) return value;
    const int me = threadIdx.y * blockDim.x + threadIdx.x;
    part[me] = value;
    for (int half = blockDim.x / 2; half; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) part[me] = joined(part[me], part[me + half], op);
    }
    __syncthreads();
    const T whole = part[threadIdx.y * blockDim.x];
    __syncthreads();
    return whole;
}

// over the threads of a block whose numbers are so far apart, of which the first gets it
__device__ __forceinline__ T over_block(T value, int op, int apart) {
    __shared__ T part[<<threads>>];
    const int me = threadIdx.y * blockDim.x + threadIdx.x;
    __syncthreads();
    part[me] = value;
    for (int half = <<threads>> / 2; half >= apart; half /= 2) {
        __syncthreads();
        if (me < half) part[me] = joined(part[me], part[me + half], op);
    }
    return part[me];
}

// whether this block is the last of so many to come here; what the others wrote before is then there to be read.  The
// fences of one thread, between barriers and the ticket, speak for its block, as in NVIDIA's own barrier of a grid
__device__ __forceinline__ bool is_last(unsigned int* ticket, long long blocks) {
    __shared__ bool last;
    __syncthreads();
    if (threadIdx.x == 0 && threadIdx.y == 0) {
        __threadfence();
        last = atomicAdd(ticket, 1u) == blocks - 1;
        if (last) {
            __threadfence();
            *ticket = 0;
        }
    }
    __syncthreads();
    return last;
}

// what a block's threads have of N columns from col on, joined, to its row of scratch memory
template <int N> __device__ __forceinline__ void leave(
    const T (&total)[N], const T (&rest)[N], int op, T* to, int apart, long long col, long long columns
) {
    for (int k = 0; k < N; ++k) {
        const T all = over_block(rounded(total[k], rest[k]), op, apart);
        if (threadIdx.y * blockDim.x + threadIdx.x < apart && col < columns) to[col + k] = all;
    }
}

// and the rows that so many blocks have left, joined by the last of them, whose first threads get it
template <int N> __device__ __forceinline__ void collected(
    T (&whole)[N], int op, const volatile T* from, long long blocks, int apart, long long col, long long columns
) {
    const int me = threadIdx.y * blockDim.x + threadIdx.x;
    for (int k = 0; k < N; ++k) {
        T total = nothing(op), rest = 0;
        if (col < columns) {
#pragma unroll 4
            for (long long i = me / apart; i < blocks; i += <<threads>> / apart) {
                join(total, rest, from[i * columns + col + k], op);
            }
        }
        whole[k] = over_block(rounded(total, rest), op, apart);
    }
}

template <int N, typename E> __device__ __forceinline__ void collect(
    E* out, int op, const volatile T* from, long long blocks, int apart, long long col, long long columns
) {
    T whole[N];
    collected(whole, op, from, blocks, apart, col, columns);
    if (threadIdx.y * blockDim.x + threadIdx.x >= apart || col >= columns) return;
    for (int k = 0; k < N; ++k) put(out[col + k], whole[k]);
}

// sums over the threads of a block that have the same N columns, which all of them get
template <int N> __device__ __forceinline__ void down_columns(T (&whole)[N], const T (&total)[N], const T (&rest)[N]) {
    __shared__ T part[N][<<threads>>];
    const int me = threadIdx.y * blockDim.x + threadIdx.x;
    __syncthreads();
    for (int k = 0; k < N; ++k) part[k][me] = rounded(total[k], rest[k]);
    for (int half = <<threads>> / 2; half >= blockDim.x; half /= 2) {
        __syncthreads();
        if (me < half) for (int k = 0; k < N; ++k) part[k][me] += part[k][me + half];
    }
    __syncthreads();
    for (int k = 0; k < N; ++k) whole[k] = part[k][threadIdx.x];
}
"""
