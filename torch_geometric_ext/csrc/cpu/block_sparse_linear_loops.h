// One source file for each instruction set includes this header, as described
// in `sparse_linear_loops.h`.
#include <algorithm>
#include <cstdint>
#include <cstring>

#include "block_sparse_linear.h"

namespace torch_geometric_ext {
namespace {

template <typename scalar_t, int B>
struct Block {
  static constexpr int kBytes =
      std::min<int>(REGISTER_BYTES, B * sizeof(scalar_t));
  static constexpr int kRegisters = REGISTER_BYTES == 64 ? 32 : 16;
  typedef scalar_t Vec __attribute__((vector_size(kBytes)));
  static constexpr int L = kBytes / sizeof(scalar_t);
  // Accumulators of some rows and of `V` vectors fit into the registers,
  // together with the operands of a product.
  static constexpr int V = std::min(B / L, 2);
  static constexpr int kMaxRows = kRegisters * 3 / 4 / V;
  static constexpr int kOuterRows = std::min(B, kRegisters / 2 / V);
  static constexpr int kCacheLine = 64 / sizeof(scalar_t);

  static inline Vec load(const scalar_t* src) {
    Vec out;
    std::memcpy(&out, src, sizeof(Vec));
    return out;
  }

  static inline void store(scalar_t* dst, Vec x) {
    std::memcpy(dst, &x, sizeof(Vec));
  }

  static void pack(
      Matrix<const scalar_t> x, int64_t num_rows, int64_t num_features,
      scalar_t* tile) {
    constexpr int64_t kRows = 8;  // A choice: pages that are read at a time.
    const auto rest = num_features % B;
    for (int64_t first = 0; first < num_rows; first += kRows) {
      const auto last = std::min(first + kRows, num_rows);
      auto* dst = tile;
      int64_t i = 0;
      for (; i + B <= num_features; i += B, dst += num_rows * B) {
        for (auto row = first; row < last; row++) {
          const auto* src = x.data + row * x.stride + i;
          // The next tile arrives while this one is used:
          __builtin_prefetch(src + num_rows * x.stride, 0, 2);
          std::memcpy(dst + row * B, src, B * sizeof(scalar_t));
        }
      }
      for (auto row = first; rest > 0 && row < last; row++) {
        const auto* src = x.data + row * x.stride + i;
        std::copy(src, src + rest, dst + row * B);
        std::fill(dst + row * B + rest, dst + row * B + B, scalar_t(0));
      }
    }
  }

  // Computes B outputs of `M` rows.
  template <int M>
  static inline void multiply_rows(
      const scalar_t* tile, int64_t num_rows, int64_t block, int64_t end,
      Compressed<scalar_t> weight, const scalar_t* bias, int64_t size,
      Matrix<scalar_t> out) {
    for (int first = 0; first < B; first += V * L) {
      Vec sum[M][V];
#pragma GCC unroll 24
      for (int m = 0; m < M; m++) {
#pragma GCC unroll 2
        for (int v = 0; v < V; v++) sum[m][v] = load(bias + first + v * L);
      }
#pragma GCC unroll 24
      for (int m = 0; m < M; m++) {  // The outputs of the next block.
        const auto* next = out.data + m * out.stride + first + B;
#pragma GCC unroll 2
        for (int i = 0; i < V * L; i += kCacheLine) {
          __builtin_prefetch(next + i, 1);
        }
      }
      const auto* w = weight.values + block * B * B + first;
      for (auto k = block; k < end; k++) {
        const auto* x = tile + int64_t(weight.index[k]) * num_rows * B;
        for (int i = 0; i < B; i++, w += B) {
#pragma GCC unroll 24
          for (int m = 0; m < M; m++) {
#pragma GCC unroll 2
            for (int v = 0; v < V; v++) {
              sum[m][v] += x[m * B + i] * load(w + v * L);
            }
          }
        }
      }
      const auto width = std::min<int64_t>(size - first, V * L);
#pragma GCC unroll 24
      for (int m = 0; m < M; m++) {
        auto* dst = out.data + m * out.stride + first;
        if (width == V * L) {
#pragma GCC unroll 2
          for (int v = 0; v < V; v++) store(dst + v * L, sum[m][v]);
        } else if (width > 0) {
          std::memcpy(dst, sum[m], width * sizeof(scalar_t));
        }
      }
    }
  }

  // Multiplies groups of `M` rows, as long as there are so many.
  template <int M>
  static void multiply_groups(
      const scalar_t* tile, int64_t num_rows, int64_t begin, int64_t end,
      Compressed<scalar_t> weight, const scalar_t* bias, int64_t num_outputs,
      Matrix<scalar_t> out, int64_t& row) {
    for (; row + M <= num_rows; row += M) {
      for (auto i = begin; i < end; i++) {
        auto* dst = out.data + row * out.stride + i * B;
        multiply_rows<M>(
            tile + row * B, num_rows, weight.ptr[i], weight.ptr[i + 1], weight,
            bias + i * B, num_outputs - i * B, {dst, out.stride});
      }
    }
  }

  static void multiply(
      const scalar_t* tile, int64_t num_rows, int64_t begin, int64_t end,
      Compressed<scalar_t> weight, const scalar_t* bias, int64_t num_outputs,
      Matrix<scalar_t> out) {
    int64_t row = 0;
    multiply_groups<kMaxRows>(
        tile, num_rows, begin, end, weight, bias, num_outputs, out, row);
    multiply_groups<4>(
        tile, num_rows, begin, end, weight, bias, num_outputs, out, row);
    multiply_groups<1>(
        tile, num_rows, begin, end, weight, bias, num_outputs, out, row);
  }

  static void add_outer(
      const scalar_t* grad, const scalar_t* x, int64_t num_rows,
      scalar_t* grad_weight) {
    constexpr int M = kOuterRows;
    for (int o = 0; o < B; o += M) {
      for (int first = 0; first < B; first += V * L) {
        auto* dst = grad_weight + o * B + first;
        Vec sum[M][V];
#pragma GCC unroll 16
        for (int m = 0; m < M; m++) {
#pragma GCC unroll 2
          for (int v = 0; v < V; v++) sum[m][v] = load(dst + m * B + v * L);
        }
        for (int64_t row = 0; row < num_rows; row++) {
          const auto *a = grad + row * B + o, *b = x + row * B + first;
#pragma GCC unroll 16
          for (int m = 0; m < M; m++) {
#pragma GCC unroll 2
            for (int v = 0; v < V; v++) sum[m][v] += a[m] * load(b + v * L);
          }
        }
#pragma GCC unroll 16
        for (int m = 0; m < M; m++) {
#pragma GCC unroll 2
          for (int v = 0; v < V; v++) store(dst + m * B + v * L, sum[m][v]);
        }
      }
    }
  }

  static void add_rows(
      const scalar_t* tile, int64_t num_rows, int64_t num_blocks,
      scalar_t* sum) {
    for (int64_t i = 0; i < num_blocks; i++, sum += B) {
      Vec total[B / L] = {};
      for (int64_t row = 0; row < num_rows; row++, tile += B) {
#pragma GCC unroll 8
        for (int v = 0; v < B / L; v++) total[v] += load(tile + v * L);
      }
#pragma GCC unroll 8
      for (int v = 0; v < B / L; v++) {
        store(sum + v * L, load(sum + v * L) + total[v]);
      }
    }
  }

  static BlockLoops<scalar_t> loops() {
    return {pack, multiply, add_outer, add_rows};
  }
};

}  // namespace

template <typename scalar_t>
BlockLoops<scalar_t> BLOCK_LOOPS(int64_t block_size) {
  if (block_size == 8) return Block<scalar_t, 8>::loops();
  if (block_size == 16) return Block<scalar_t, 16>::loops();
  return Block<scalar_t, 32>::loops();
}

template BlockLoops<float> BLOCK_LOOPS<float>(int64_t);
template BlockLoops<double> BLOCK_LOOPS<double>(int64_t);

}  // namespace torch_geometric_ext
