#if defined(__x86_64__)
#include <cstdint>

#if defined(__clang__)
#pragma clang attribute push( \
    __attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif

#define ADD_SCALED add_scaled_avx2
#include "add_scaled_loop.h"

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
