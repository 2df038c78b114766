#pragma once

#include <cstdint>

namespace torch_geometric_ext {

// Adds `scale * src` to `dst`. Compiled once for each instruction set.
template <typename scalar_t>
using AddScaled =
    void (*)(int64_t size, scalar_t scale, const scalar_t* src, scalar_t* dst);

template <typename scalar_t>
AddScaled<scalar_t> add_scaled_default();
template <typename scalar_t>
AddScaled<scalar_t> add_scaled_avx2();
template <typename scalar_t>
AddScaled<scalar_t> add_scaled_avx512();

}  // namespace torch_geometric_ext
