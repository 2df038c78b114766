#if defined(__x86_64__)
#include <algorithm>
#include <cstdint>
#include <cstring>

#if defined(__clang__)
#pragma clang attribute push(                                               \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma"))), \
    apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")
#endif

#define REGISTER_BYTES 64
#define BLOCK_LOOPS block_loops_avx512
#include "block_sparse_linear_loops.h"

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
