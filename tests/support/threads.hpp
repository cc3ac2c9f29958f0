// CUDA C++ as C++ of the host: the threads of a block take turns between barriers, one block after the other.
#pragma once
#include <cmath>
#include <csetjmp>
#include <cstddef>
#include <ucontext.h>
#include <utility>
using std::erf; using std::exp; using std::expm1; using std::fabs; using std::log; using std::log1p; using std::sqrt;
using std::tanh;
struct Three { unsigned int x, y; };
static Three gridDim, blockDim, blockIdx, threadIdx;
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __shared__ static
#define __launch_bounds__(...)

// The threads of a block take turns, each until it waits for the others or is done, on a stack of its own.
enum { MOST = 1024, STACK = 1 << 15 };
struct Thread { ucontext_t start; jmp_buf at; bool begun, waits; };
static Thread threads[MOST];
static jmp_buf back;
static size_t now;
static ucontext_t nowhere;

static void turn_over(bool waits) {
    threads[now].waits = waits;
    if (!_setjmp(threads[now].at)) _longjmp(back, 1);
}

static void __syncthreads() { turn_over(true); }

static void __threadfence() {}

static unsigned int atomicAdd(unsigned int* at, unsigned int more) {
    const unsigned int before = *at;
    *at += more;
    return before;
}

template <typename F> static F* running;
template <typename F> static void enter() {
    for (;;) {
        (*running<F>)();
        turn_over(false);
    }
}

// whether the threads of every block came to the same barriers
template <typename F> static bool run(Three grid, Three block, F body, char* stacks) {
    gridDim = grid, blockDim = block, running<F> = &body;
    const size_t count = block.x * block.y;
    for (size_t i = 0; i < count && stacks; ++i) {
        threads[i].begun = false;
        getcontext(&threads[i].start);
        threads[i].start.uc_stack.ss_sp = stacks + i * STACK, threads[i].start.uc_stack.ss_size = STACK;
        makecontext(&threads[i].start, enter<F>, 0);
    }
    for (blockIdx.y = 0; blockIdx.y < grid.y; ++blockIdx.y) for (blockIdx.x = 0; blockIdx.x < grid.x; ++blockIdx.x) {
        for (volatile size_t turn = 0, waiting = count; waiting; turn = turn + 1) {
            for (volatile size_t k = 0; k < count; k = k + 1) {
                now = turn % 2 ? count - 1 - k : k;  // in no order on which a kernel might rely
                threadIdx = {(unsigned int)(now % block.x), (unsigned int)(now / block.x)};
                if (!stacks) {
                    body();
                } else if (!_setjmp(back)) {
                    if (threads[now].begun) _longjmp(threads[now].at, 1);
                    threads[now].begun = true;
                    swapcontext(&nowhere, &threads[now].start);
                }
            }
            waiting = 0;
            for (size_t i = 0; i < count && stacks; ++i) waiting = waiting + threads[i].waits;
            if (waiting && waiting != count) return false;
        }
    }
    return true;
}

template <typename... A, size_t... I>
static bool call(
    Three grid, Three block, void (*kernel)(A...), void** given, char* stacks, std::index_sequence<I...>
) {
    return run(grid, block, [=] { kernel(*(A*)given[I]...); }, stacks);
}

template <typename... A> static bool call(Three grid, Three block, void (*kernel)(A...), void** given, char* stacks) {
    return call(grid, block, kernel, given, stacks, std::index_sequence_for<A...>());
}
