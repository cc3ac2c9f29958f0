// What kernels are compiled with on the host, CuPy's own among them, and the ways into a kernel that the driver takes.
#pragma once
#include "threads.hpp"

#include <algorithm>
#include <cassert>
#include <cstdint>
#include <cstring>
#include <initializer_list>

using std::isfinite; using std::isnan; using std::isinf; using std::signbit; using std::max; using std::min; using std::abs;
using std::floor; using std::ceil; using std::pow; using std::sin; using std::cos;

static int __popc(unsigned int x) { return __builtin_popcount(x); }
static int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
static int __clzll(unsigned long long x) { return x ? __builtin_clzll(x) : 64; }

template <typename... A, size_t... I> static void** keep(void (*)(A...), void** given, std::index_sequence<I...>) {
    return new void*[sizeof...(A) + 1]{new A(*(A*)given[I])..., nullptr};
}
template <typename... A> static void** keep(void (*kernel)(A...), void** given) {
    return keep(kernel, given, std::index_sequence_for<A...>());
}

static char stacks[(size_t)MOST * STACK];
#define KERNEL(name) \
    extern "C" bool launch_##name(Three grid, Three block, void** given) { return call(grid, block, name, given, stacks); } \
    extern "C" void** keep_##name(void** given) { return keep(name, given); }

#include <cupy/carray.cuh>
#include <cupy/math_constants.h>
