#if defined(__x86_64__)
#include <algorithm>
#include <cstdint>
#include <cstring>

#if defined(__clang__)
#pragma clang attribute push( \
    __attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif

#define REGISTER_BYTES 32
#define BLOCK_LOOPS block_loops_avx2
#include "block_sparse_linear_loops.h"

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
