// One source file for each instruction set includes this header. The source
// file sets the compiler flags and defines the name of the loops and the size
// of registers. This header includes no PyTorch header, since the linker could
// select inline functions of an instruction set that the machine lacks.
#include <cstdint>
#include <cstring>

#include "csr_row.h"

namespace torch_geometric_ext {
namespace {

// The registers that hold a block of columns. A choice: half of those of AVX2.
constexpr int kVectors = 8;

template <typename scalar_t, typename index_t>
struct Loops {
  typedef scalar_t Vec __attribute__((vector_size(REGISTER_BYTES)));
  using Row = CsrRow<scalar_t, index_t>;
  static constexpr int L = REGISTER_BYTES / sizeof(scalar_t);

  static inline Vec load(const scalar_t* src) {
    Vec out;
    std::memcpy(&out, src, sizeof(Vec));
    return out;
  }

  static inline void store(scalar_t* dst, Vec x) {
    std::memcpy(dst, &x, sizeof(Vec));
  }

  template <int V>
  static inline void multiply_block(
      Row row, const scalar_t* weight, int64_t width, scalar_t* out) {
    Vec sum[V];
#pragma GCC unroll 8
    for (int i = 0; i < V; i++) sum[i] = load(out + i * L);
    for (int64_t j = 0; j < row.size; j++) {
      const auto* src = weight + int64_t(row.index[j]) * width;
      const auto value = row.value[j];
#pragma GCC unroll 8
      for (int i = 0; i < V; i++) sum[i] += value * load(src + i * L);
    }
#pragma GCC unroll 8
    for (int i = 0; i < V; i++) store(out + i * L, sum[i]);
  }

  static void multiply(
      Row row, const scalar_t* weight, int64_t width, scalar_t* out) {
    int64_t c = 0;
    for (; c + kVectors * L <= width; c += kVectors * L) {
      multiply_block<kVectors>(row, weight + c, width, out + c);
    }
    for (; c + L <= width; c += L) {
      multiply_block<1>(row, weight + c, width, out + c);
    }
    if (c == width) return;
    for (int64_t j = 0; j < row.size; j++) {
      const auto* src = weight + int64_t(row.index[j]) * width;
      for (auto i = c; i < width; i++) out[i] += row.value[j] * src[i];
    }
  }

  template <int V>
  static inline void add_block(
      Row row, const scalar_t* grad, int64_t width, scalar_t* sums) {
    Vec factor[V];
#pragma GCC unroll 8
    for (int i = 0; i < V; i++) factor[i] = load(grad + i * L);
    for (int64_t j = 0; j < row.size; j++) {
      auto* dst = sums + int64_t(row.index[j]) * width;
      const auto value = row.value[j];
#pragma GCC unroll 8
      for (int i = 0; i < V; i++) {
        store(dst + i * L, load(dst + i * L) + value * factor[i]);
      }
    }
  }

  static void add_outer(
      Row row, const scalar_t* grad, int64_t width, scalar_t* sums) {
    int64_t c = 0;
    for (; c + kVectors * L <= width; c += kVectors * L) {
      add_block<kVectors>(row, grad + c, width, sums + c);
    }
    for (; c + L <= width; c += L) {
      add_block<1>(row, grad + c, width, sums + c);
    }
    if (c == width) return;
    for (int64_t j = 0; j < row.size; j++) {
      auto* dst = sums + int64_t(row.index[j]) * width;
      for (auto i = c; i < width; i++) dst[i] += row.value[j] * grad[i];
    }
  }
};

}  // namespace

template <typename scalar_t, typename index_t>
CsrRowLoops<scalar_t, index_t> CSR_ROW_LOOPS() {
  using L = Loops<scalar_t, index_t>;
  return {L::multiply, L::add_outer};
}

template CsrRowLoops<float, int32_t> CSR_ROW_LOOPS<float, int32_t>();
template CsrRowLoops<float, int64_t> CSR_ROW_LOOPS<float, int64_t>();
template CsrRowLoops<double, int32_t> CSR_ROW_LOOPS<double, int32_t>();
template CsrRowLoops<double, int64_t> CSR_ROW_LOOPS<double, int64_t>();

}  // namespace torch_geometric_ext
