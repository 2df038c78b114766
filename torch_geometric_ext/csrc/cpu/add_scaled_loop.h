// No include guard: each instruction set includes this file once, and defines
// `ADD_SCALED` before.
#include "add_scaled.h"

namespace torch_geometric_ext {
namespace {

template <typename scalar_t>
void add_scaled(
    int64_t size, scalar_t scale, const scalar_t* __restrict src,
    scalar_t* __restrict dst) {
#pragma omp simd
  for (int64_t i = 0; i < size; i++) dst[i] += scale * src[i];
}

}  // namespace

template <>
AddScaled<float> ADD_SCALED() {
  return &add_scaled<float>;
}
template <>
AddScaled<double> ADD_SCALED() {
  return &add_scaled<double>;
}

}  // namespace torch_geometric_ext
