#if defined(__x86_64__)
#include <cstdint>
#include <cstring>

#if defined(__clang__)
#pragma clang attribute push( \
    __attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif

#define REGISTER_BYTES 32
#define CSR_ROW_LOOPS csr_row_loops_avx2
#include "csr_row_loops.h"

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
