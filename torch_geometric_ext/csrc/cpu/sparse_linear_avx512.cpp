#if defined(__x86_64__)
#include <immintrin.h>

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
#define TILE_LOOPS tile_loops_avx512
#define STREAM(dst, x) \
  _mm512_stream_si512(reinterpret_cast<__m512i*>(dst), (__m512i)(x))
#include "sparse_linear_loops.h"

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
