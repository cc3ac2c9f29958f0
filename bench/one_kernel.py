"""A prototype: forward pass, loss and gradient of a small network in one launch, its weights in shared memory.

    python -m bench.one_kernel

prints what the kernel takes (registers, shared memory, memory traffic, operations) and how fast devices could be at
best; where there is one, also how fast it is.  The network is that of tiny-cuda-nn's figures: 5 hidden layers of 64
with relu and no biases, here with 64 inputs and 16 outputs; the loss is the mean squared error.

A block of threads keeps all weights and the gradient's sums, and takes one tile of rows after another through all
layers and back.  Activations lie in shared memory feature by feature, and derivatives are written over them.  Each
block leaves a gradient of its own: whoever updates the weights adds them up, in order.
"""

from __future__ import annotations

import re
from typing import Any

WIDTH, HIDDEN, OUTPUTS, THREADS = 64, 5, 16, 256
WEIGHTS = HIDDEN * WIDTH * WIDTH + WIDTH * OUTPUTS
OPTIONS = ("--std=c++17",)

DEVICES = {  # multiprocessors, GHz, GB/s, KB of shared memory a block may have: NVIDIA's data sheets and CUDA's guide
    "RTX 3090 (sm_86)": (82, 1.695, 936, 99),
    "A100 SXM (sm_80)": (108, 1.41, 2039, 163),
    "H100 SXM (sm_90)": (132, 1.83, 3350, 227),
}
LANES = {"RTX 3090 (sm_86)": 128, "A100 SXM (sm_80)": 64, "H100 SXM (sm_90)": 128}
"""Multiplications with addition in float32 that a multiprocessor begins in a cycle."""
SHARE = 0.7
"""The part of them that such loops reach: an assumption, from float32 products of NVIDIA's libraries."""


def shared_bytes(rows: int) -> int:
    """Shared memory of a block whose tiles have so many rows."""
    weights = HIDDEN * WIDTH * (WIDTH + 4) + WIDTH * (OUTPUTS + 4)
    return 4 * (weights + ((HIDDEN + 1) * WIDTH + OUTPUTS) * (rows + 4) + THREADS)


def operations() -> int:
    """Of a row: two for each weight forward, for its gradient, and but for the first layer for its input's."""
    return 6 * WEIGHTS - 2 * WIDTH * WIDTH


def traffic(rows: int, blocks: int) -> int:
    """Bytes from and to the device's memory: x and y once; and of each block its weights and its gradient."""
    return 4 * (rows * (WIDTH + OUTPUTS) + 2 * blocks * WEIGHTS)


def layered_traffic(rows: int) -> int:
    """The same of a kernel for every product, and of relu's derivative apart: the output of a hidden layer is written
    once and read three times, the derivative written, read, written again and read twice."""
    return 4 * rows * (HIDDEN * WIDTH * 9 + 2 * WIDTH + 4 * OUTPUTS)


def source(rows: int) -> str:
    """The text of train (rows, x, y, weights, gradients, losses, scale), whose blocks of THREADS threads take tiles of
    `rows`, 16 or a multiple of it.

    Block i leaves in row i of `gradients` and `losses` its share of the gradient and of the sum of squared errors;
    scale is what a derivative of that sum is multiplied by, 1 / (rows x outputs).
    """
    numbers = {"ROWS": rows, "WIDTH": WIDTH, "HIDDEN": HIDDEN, "OUTPUTS": OUTPUTS, "THREADS": THREADS}
    return "".join(f"#define {name} {value}\n" for name, value in numbers.items()) + _TEXT.replace(
        "<<threads>>", str(THREADS)
    )


_TEXT = """
enum {
    EACH = ROWS / 16,  // rows of a tile that a thread has in a product
    APART = ROWS + 4,  // from feature to feature of an activation; so that lanes of a warp read from different banks
    HIDDEN_APART = WIDTH + 4, LAST_APART = OUTPUTS + 4,  // from row to row of a matrix of weights
    LAYER = WIDTH * HIDDEN_APART, SIZE = WIDTH * APART
};
#define FLOATS (HIDDEN * LAYER + WIDTH * LAST_APART + ((HIDDEN + 1) * WIDTH + OUTPUTS) * APART + THREADS)

#ifdef __CUDACC_RTC__
extern __shared__ float4 shared_words[];
#define UNROLLED _Pragma("unroll")
#else
alignas(16) static float shared_words[FLOATS];
#define UNROLLED
#endif

template <int N> struct alignas(4 * N) Words { float v[N]; };

template <int N> __device__ __forceinline__ Words<N> load(const float* from) {
    return *reinterpret_cast<const Words<N>*>(from);
}

// sum over k of w[k][f] in[k][r], for F / 16 features and EACH rows of a thread
template <int F> __device__ __forceinline__ void product(
    float (&sum)[F / 16][EACH], const float* w, int apart, const float* in
) {
    const int mine = threadIdx.x / 16 * (F / 16), row = threadIdx.x % 16 * EACH;
#pragma unroll 4
    for (int k = 0; k < WIDTH; ++k) {
        const Words<F / 16> a = load<F / 16>(w + k * apart + mine);
        const Words<EACH> b = load<EACH>(in + k * APART + row);
        UNROLLED for (int i = 0; i < F / 16; ++i)
            UNROLLED for (int j = 0; j < EACH; ++j) sum[i][j] += a.v[i] * b.v[j];
    }
}

// total[i][j] += sum over rows of in[k][r] d[f][r], for k = 4 mine + i and f = other + 16 j
template <int F> __device__ __forceinline__ void weights_gradient(
    float (&total)[4][F / 16], const float* in, const float* d
) {
    const int mine = threadIdx.x / 16, other = threadIdx.x % 16;
#pragma unroll 2
    for (int r = 0; r < ROWS; r += 4) {
        Words<4> a[4], b[F / 16];
        UNROLLED for (int i = 0; i < 4; ++i) a[i] = load<4>(in + (4 * mine + i) * APART + r);
        UNROLLED for (int j = 0; j < F / 16; ++j) b[j] = load<4>(d + (other + 16 * j) * APART + r);
        UNROLLED for (int i = 0; i < 4; ++i)
            UNROLLED for (int j = 0; j < F / 16; ++j)
                UNROLLED for (int n = 0; n < 4; ++n) total[i][j] += a[i].v[n] * b[j].v[n];
    }
}

// in[k][r] <- (in[k][r] > 0) sum over f of w[k][f] d[f][r]; k = mine + 16 i
template <int F> __device__ __forceinline__ void input_gradient(float* in, const float* w, int apart, const float* d) {
    const int mine = threadIdx.x / 16, row = threadIdx.x % 16 * EACH;
    float sum[4][EACH] = {};
#pragma unroll 2
    for (int f = 0; f < F; f += 4) {
        Words<4> a[4];
        Words<EACH> b[4];
        UNROLLED for (int i = 0; i < 4; ++i) a[i] = load<4>(w + (mine + 16 * i) * apart + f);
        UNROLLED for (int n = 0; n < 4; ++n) b[n] = load<EACH>(d + (f + n) * APART + row);
        UNROLLED for (int i = 0; i < 4; ++i)
            UNROLLED for (int j = 0; j < EACH; ++j)
                UNROLLED for (int n = 0; n < 4; ++n) sum[i][j] += a[i].v[n] * b[n].v[j];
    }
    __syncthreads();  // all have read `in`
    for (int i = 0; i < 4; ++i) {
        for (int j = 0; j < EACH; ++j) {
            float& value = in[(mine + 16 * i) * APART + row + j];
            value = value > 0.0f ? sum[i][j] : 0.0f;
        }
    }
    __syncthreads();
}

extern "C" __global__ void __launch_bounds__(<<threads>>, 1) train(
    const long long rows, const float* __restrict__ x, const float* __restrict__ y, const float* __restrict__ weights,
    float* __restrict__ gradients, float* __restrict__ losses, const float scale
) {
    float* const w = reinterpret_cast<float*>(shared_words);
    float* const last = w + HIDDEN * LAYER;
    float* const h = last + WIDTH * LAST_APART;  // inputs, and outputs of all hidden layers
    float* const dy = h + (HIDDEN + 1) * SIZE;
    float* const part = dy + OUTPUTS * APART;
    const int mine = threadIdx.x / 16, other = threadIdx.x % 16;
    const float* const given = weights + HIDDEN * WIDTH * WIDTH;
    for (int i = threadIdx.x; i < HIDDEN * WIDTH * WIDTH; i += THREADS) {
        w[i / WIDTH * HIDDEN_APART + i % WIDTH] = weights[i];
    }
    for (int i = threadIdx.x; i < WIDTH * OUTPUTS; i += THREADS) {
        last[i / OUTPUTS * LAST_APART + i % OUTPUTS] = given[i];
    }
    float total[HIDDEN][4][WIDTH / 16] = {}, total_last[4][OUTPUTS / 16] = {}, loss = 0.0f;

    for (long long first = (long long)blockIdx.x * ROWS; first < rows; first += (long long)gridDim.x * ROWS) {
        for (int i = threadIdx.x; i < ROWS * WIDTH; i += THREADS) {
            const int r = i % ROWS, k = i / ROWS;
            h[k * APART + r] = first + r < rows ? x[(first + r) * WIDTH + k] : 0.0f;
        }
        __syncthreads();
        for (int layer = 0; layer < HIDDEN; ++layer) {
            float sum[WIDTH / 16][EACH] = {};
            product<WIDTH>(sum, w + layer * LAYER, HIDDEN_APART, h + layer * SIZE);
            for (int i = 0; i < WIDTH / 16; ++i) {
                for (int j = 0; j < EACH; ++j) {
                    float* const out = h + (layer + 1) * SIZE + (WIDTH / 16 * mine + i) * APART + EACH * other + j;
                    *out = sum[i][j] > 0.0f ? sum[i][j] : 0.0f;
                }
            }
            __syncthreads();
        }
        float sum[OUTPUTS / 16][EACH] = {};
        product<OUTPUTS>(sum, last, LAST_APART, h + HIDDEN * SIZE);
        for (int i = 0; i < OUTPUTS / 16; ++i) {
            for (int j = 0; j < EACH; ++j) {
                const int f = OUTPUTS / 16 * mine + i, r = EACH * other + j;
                const float error = first + r < rows ? sum[i][j] - y[(first + r) * OUTPUTS + f] : 0.0f;
                loss += error * error;
                dy[f * APART + r] = 2.0f * scale * error;
            }
        }
        __syncthreads();
        weights_gradient<OUTPUTS>(total_last, h + HIDDEN * SIZE, dy);
        input_gradient<OUTPUTS>(h + HIDDEN * SIZE, last, LAST_APART, dy);
        UNROLLED for (int layer = HIDDEN - 1; layer >= 0; --layer) {  // or else the totals would not be in registers
            weights_gradient<WIDTH>(total[layer], h + layer * SIZE, h + (layer + 1) * SIZE);
            if (layer) input_gradient<WIDTH>(h + layer * SIZE, w + layer * LAYER, HIDDEN_APART, h + (layer + 1) * SIZE);
        }
        __syncthreads();
    }

    float* const out = gradients + (long long)blockIdx.x * (HIDDEN * WIDTH * WIDTH + WIDTH * OUTPUTS);
    UNROLLED for (int i = 0; i < 4; ++i) {
        UNROLLED for (int layer = 0; layer < HIDDEN; ++layer)
            UNROLLED for (int j = 0; j < WIDTH / 16; ++j)
                out[(layer * WIDTH + 4 * mine + i) * WIDTH + other + 16 * j] = total[layer][i][j];
        UNROLLED for (int j = 0; j < OUTPUTS / 16; ++j)
            out[HIDDEN * WIDTH * WIDTH + (4 * mine + i) * OUTPUTS + other + 16 * j] = total_last[i][j];
    }
    part[threadIdx.x] = loss;
    for (int half = THREADS / 2; half; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) part[threadIdx.x] += part[threadIdx.x + half];
    }
    if (threadIdx.x == 0) losses[blockIdx.x] = part[0];
}
"""


def compiler_log(rows: int, architecture: str) -> str:
    """What NVIDIA's compiler says of registers and spills."""
    from cupy.cuda import nvrtc

    program = nvrtc.createProgram(source(rows), "train.cu", [], [])
    nvrtc.compileProgram(program, [f"-arch={architecture}", "--ptxas-options=-v", *OPTIONS])
    log = nvrtc.getProgramLog(program)
    return ", ".join(re.findall(r"Used \d+ registers|\d+ bytes spill \w+", log))


def compiled(rows: int) -> Any:
    """The kernel on the current device."""
    import cupy

    kernel = cupy.RawModule(code=source(rows), options=OPTIONS).get_function("train")
    kernel.max_dynamic_shared_size_bytes = shared_bytes(rows)
    return kernel


def rows_a_second(rows: int) -> float:
    """On the device at hand."""
    import cupy

    tile = 64
    kernel = compiled(tile)
    blocks = cupy.cuda.Device().attributes["MultiProcessorCount"]
    x, y, w = (cupy.random.random(size, dtype="f") for size in ((rows, WIDTH), (rows, OUTPUTS), WEIGHTS))
    out, losses, scale = cupy.empty((blocks, WEIGHTS), "f"), cupy.empty(blocks, "f"), cupy.float32(1 / rows / OUTPUTS)
    start, end = cupy.cuda.Event(), cupy.cuda.Event()
    for count in (3, 20):
        start.record()
        for _ in range(count):
            kernel((blocks,), (THREADS,), (rows, x, y, w, out, losses, scale), shared_mem=shared_bytes(tile))
        end.record()
        end.synchronize()
    return count * rows / (1e-3 * float(cupy.cuda.get_elapsed_time(start, end)))


def main() -> None:
    rows = 2**21
    for tile, architecture in ((32, "sm_80"), (64, "sm_90")):
        log = compiler_log(tile, architecture)
        print(f"tiles of {tile} rows, {architecture}: {log}, {shared_bytes(tile)} bytes of shared memory")
    print(f"a row: {operations()} operations, {traffic(rows, 132) / rows:.0f} bytes, and layer by layer ", end="")
    print(f"{layered_traffic(rows) / rows:.0f} bytes")
    for name, (count, clock, bandwidth, most) in DEVICES.items():
        peak = 2e9 * count * LANES[name] * clock
        arithmetic, memory = peak / operations(), 1e9 * bandwidth * rows / traffic(rows, count)
        layered = 1 / (operations() / peak / SHARE + layered_traffic(rows) / rows / (0.9e9 * bandwidth))
        tiles = [tile for tile in (64, 32, 16) if shared_bytes(tile) <= 1024 * most]
        fits = f"tiles of {tiles[0]} rows" if tiles else "does not fit"
        print(f"{name}: {fits}; rows a second at most {arithmetic:.2g} by arithmetic, {memory:.2g} by memory; ", end="")
        print(f"estimated {SHARE * arithmetic:.2g}, layer by layer {layered:.2g}")
    import cupy

    if cupy.cuda.is_available():
        print(f"here {rows_a_second(rows):.3g} rows a second")


if __name__ == "__main__":
    main()
