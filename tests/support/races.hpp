// CUDA C++ as C++ of the host, to be compiled with -fsanitize=thread: an OS thread for every thread of every block, all
// at a time.
//
// ThreadSanitizer knows no fences, so it is told of what they do here, as PTX has it: a fence followed by an atomic
// operation of the same thread is a release, an atomic operation followed by a fence an acquire.  A fence before a barrier
// counts for nothing after it.  Variables of shared memory are made by `shared`, one for each block.
#pragma once
#include <pthread.h>
#include <sanitizer/tsan_interface.h>

#include <cmath>
#include <thread>
#include <vector>

struct Three { unsigned int x, y; };
static Three gridDim, blockDim;
static thread_local Three blockIdx, threadIdx;
static pthread_barrier_t barriers[64][2];
static thread_local int next;
static thread_local bool fenced;
static thread_local void* acted_on;

#define __global__ static
#define __device__ static
#define __forceinline__ inline
#define __launch_bounds__(...)

static unsigned int number_of_block() { return blockIdx.y * gridDim.x + blockIdx.x; }

template <typename X, int LINE> static X& shared() {
    static X of_block[64];
    return of_block[number_of_block()];
}

// Two by turns: who leaves one late is not to learn what others did on their way to the following.
static void __syncthreads() {
    fenced = false;
    pthread_barrier_wait(&barriers[number_of_block()][next ^= 1]);
}

static void __threadfence() {
    if (acted_on) __tsan_acquire(acted_on);
    fenced = true;
}

static unsigned int atomicAdd(unsigned int* at, unsigned int more) {
    acted_on = at;
    return fenced ? __atomic_fetch_add(at, more, __ATOMIC_RELEASE) : __atomic_fetch_add(at, more, __ATOMIC_RELAXED);
}

template <typename F> static void run(Three grid, Three block, F kernel) {
    gridDim = grid, blockDim = block;
    std::vector<std::thread> threads;
    for (unsigned int i = 0; i < grid.x * grid.y; ++i) {
        for (pthread_barrier_t& barrier : barriers[i]) pthread_barrier_init(&barrier, nullptr, block.x * block.y);
        for (unsigned int k = 0; k < block.x * block.y; ++k) {
            threads.emplace_back([=] {
                blockIdx = {i % grid.x, i / grid.x}, threadIdx = {k % block.x, k / block.x};
                kernel();
            });
        }
    }
    for (std::thread& thread : threads) thread.join();
}
