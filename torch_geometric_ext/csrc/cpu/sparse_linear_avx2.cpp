#if defined(__x86_64__)
#include <immintrin.h>

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
#define TILE_LOOPS tile_loops_avx2
#define STREAM(dst, x) \
  _mm256_stream_si256(reinterpret_cast<__m256i*>(dst), (__m256i)(x))
#include "sparse_linear_loops.h"

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
