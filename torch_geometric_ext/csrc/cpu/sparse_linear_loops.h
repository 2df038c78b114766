// One source file for each instruction set includes this header. The source
// file sets the compiler flags and defines the name of the loops and the size
// of registers. This header includes no PyTorch header, since the linker could
// select inline functions of an instruction set that the machine lacks.
#include <algorithm>
#include <cstdint>
#include <cstring>

#include "sparse_linear.h"

namespace torch_geometric_ext {
namespace {

template <typename scalar_t>
struct Tile {
  typedef scalar_t Vec __attribute__((vector_size(REGISTER_BYTES)));
  static constexpr int L = REGISTER_BYTES / sizeof(scalar_t);
  // Both sizes are choices: accumulators need to fit into registers, and
  // pending products into the first-level cache.
  static constexpr int kMaxVectors = 4;
  static constexpr int kMaxRows = kMaxVectors * L;
  static constexpr int kScratch = 16 * L;
  // Features that are written together: rows are written by 256 bytes.
  static constexpr int kChunk = 4 * L;

  static inline Vec load(const scalar_t* src) {
    Vec out;
    std::memcpy(&out, src, sizeof(Vec));
    return out;
  }

  static inline void store(scalar_t* dst, Vec x) {
    std::memcpy(dst, &x, sizeof(Vec));
  }

  // Writes an aligned vector to memory without reading its cache line first.
  static inline void stream(scalar_t* dst, Vec x) {
#if defined(STREAM)
    STREAM(dst, x);
#else
    store(dst, x);
#endif
  }

  // Interleaves the elements of `a` and `b`: first halves, then last halves.
  static inline void interleave(Vec a, Vec b, Vec& low, Vec& high) {
    if constexpr (L == 16) {
      low = __builtin_shufflevector(
          a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
      high = __builtin_shufflevector(
          a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
    } else if constexpr (L == 8) {
      low = __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
      high = __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
    } else if constexpr (L == 4) {
      low = __builtin_shufflevector(a, b, 0, 4, 1, 5);
      high = __builtin_shufflevector(a, b, 2, 6, 3, 7);
    } else {
      low = __builtin_shufflevector(a, b, 0, 2);
      high = __builtin_shufflevector(a, b, 1, 3);
    }
  }

  // Adds neighbors in `a`, then neighbors in `b`.
  static inline Vec add_neighbors(Vec a, Vec b) {
    if constexpr (L == 16) {
      return __builtin_shufflevector(
                 a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28,
                 30) +
             __builtin_shufflevector(
                 a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29,
                 31);
    } else if constexpr (L == 8) {
      return __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14) +
             __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15);
    } else if constexpr (L == 4) {
      return __builtin_shufflevector(a, b, 0, 2, 4, 6) +
             __builtin_shufflevector(a, b, 1, 3, 5, 7);
    } else {
      return __builtin_shufflevector(a, b, 0, 2) +
             __builtin_shufflevector(a, b, 1, 3);
    }
  }

  // Transposes a square by perfect shuffles.
  static inline void transpose(Vec (&x)[L]) {
    Vec y[L];
#pragma GCC unroll 4
    for (int step = 1; step < L; step *= 2) {
#pragma GCC unroll 8
      for (int i = 0; i < L / 2; i++) {
        interleave(x[i], x[i + L / 2], y[2 * i], y[2 * i + 1]);
      }
#pragma GCC unroll 16
      for (int i = 0; i < L; i++) x[i] = y[i];
    }
  }

  // Sums the elements of each of L vectors.
  static inline Vec sum_each(const scalar_t* src) {
    Vec x[L];
#pragma GCC unroll 16
    for (int i = 0; i < L; i++) x[i] = load(src + i * L);
#pragma GCC unroll 4
    for (int size = L / 2; size > 0; size /= 2) {
#pragma GCC unroll 8
      for (int i = 0; i < size; i++) {
        x[i] = add_neighbors(x[2 * i], x[2 * i + 1]);
      }
    }
    return x[0];
  }

  // Reads up to L rows and features into a square, and pads it with zeros.
  static inline void read(
      Vec (&square)[L], const scalar_t* src, int64_t stride, int64_t num_rows,
      int64_t num_features) {
    if (num_rows >= L && num_features >= L) {
#pragma GCC unroll 16
      for (int i = 0; i < L; i++) square[i] = load(src + i * stride);
      return;
    }
    const auto size = std::min<int64_t>(num_features, L) * sizeof(scalar_t);
    for (int i = 0; i < L; i++) {
      scalar_t row[L] = {};
      if (i < num_rows) std::memcpy(row, src + i * stride, size);
      square[i] = load(row);
    }
  }

  static inline void write(
      const Vec (&square)[L], scalar_t* dst, int64_t stride, int64_t num_rows,
      int64_t num_features, bool streams) {
    if (num_rows >= L && num_features >= L) {
      if (streams) {
#pragma GCC unroll 16
        for (int i = 0; i < L; i++) stream(dst + i * stride, square[i]);
      } else {
#pragma GCC unroll 16
        for (int i = 0; i < L; i++) store(dst + i * stride, square[i]);
      }
      return;
    }
    const auto size = std::min<int64_t>(num_features, L) * sizeof(scalar_t);
    for (int i = 0; i < std::min<int64_t>(num_rows, L); i++) {
      scalar_t row[L];
      store(row, square[i]);
      std::memcpy(dst + i * stride, row, size);
    }
  }

  // Loads rows of the next tile into the second-level cache.
  static inline void prefetch(const scalar_t* src, int64_t stride) {
    const auto address = reinterpret_cast<uintptr_t>(src);
#pragma GCC unroll 16
    for (int i = 0; i < L; i++) {
      const auto offset = (kMaxRows + i) * stride * int64_t(sizeof(scalar_t));
      __builtin_prefetch(reinterpret_cast<const void*>(address + offset), 0, 2);
    }
  }

  // Transposes the features [begin, end) of rows to features of V vectors of
  // rows. Completes L rows after another, since a processor prefetches few
  // rows at once.
  template <int V>
  static void pack(
      Matrix<const scalar_t> x, int64_t num_rows, int64_t begin, int64_t end,
      scalar_t* tile) {
    for (int v = 0; v < V; v++) {
      const auto* src = x.data + v * L * x.stride;
      for (int64_t i = begin; i < end; i += L) {
        Vec square[L];
        read(square, src + i, x.stride, num_rows - v * L, end - i);
        prefetch(src + i, x.stride);
        transpose(square);
        auto* dst = tile + (i * V + v) * L;
        const auto size = std::min<int64_t>(end - i, L);
        if (size == L) {
#pragma GCC unroll 16
          for (int j = 0; j < L; j++) store(dst + j * V * L, square[j]);
        } else {
          for (int j = 0; j < size; j++) store(dst + j * V * L, square[j]);
        }
      }
    }
  }

  // Transposes a chunk of features back to rows.
  template <int V>
  static void unpack(
      const scalar_t* chunk, Matrix<scalar_t> out, int64_t num_rows,
      int64_t num_features) {
    for (int v = 0; v < V; v++) {
      for (int64_t i = 0; i < num_features; i += L) {
        Vec square[L];
        const auto* src = chunk + (i * V + v) * L;
#pragma GCC unroll 16
        for (int j = 0; j < L; j++) square[j] = load(src + j * V * L);
        transpose(square);
        auto* dst = out.data + v * L * out.stride + i;
        write(
            square, dst, out.stride, num_rows - v * L, num_features - i,
            out.streams);
      }
    }
  }

  template <int V>
  static void forward(
      const scalar_t* tile, int64_t num_rows, int64_t begin, int64_t end,
      Compressed<scalar_t> weight, const scalar_t* bias, Matrix<scalar_t> out) {
    alignas(64) scalar_t chunk[kChunk * V * L];
    for (int64_t first = begin; first < end; first += kChunk) {
      const auto size = std::min<int64_t>(end - first, kChunk);
      for (int64_t i = 0; i < size; i++) {
        const auto row = first + i;
        const auto initial = bias == nullptr ? scalar_t(0) : bias[row];
        Vec sum[V];
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) sum[v] = initial - Vec{};
        for (int64_t k = weight.ptr[row]; k < weight.ptr[row + 1]; k++) {
          const auto* src = tile + int64_t(weight.index[k]) * (V * L);
#pragma GCC unroll 4
          for (int v = 0; v < V; v++) {
            sum[v] += weight.values[k] * load(src + v * L);
          }
        }
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) store(chunk + (i * V + v) * L, sum[v]);
      }
      unpack<V>(chunk, out.from(first), num_rows, size);
    }
  }

  // Products of weights that are not yet summed over the rows of the tile.
  struct Pending {
    alignas(64) scalar_t products[kScratch * L];
    scalar_t* target;
    int size = 0;

    void flush() {
      const auto padded = (size + L - 1) / L * L;
      std::fill(products + size * L, products + padded * L, scalar_t(0));
      for (int i = 0; i < size; i += L) {
        const auto sum = sum_each(products + i * L);
        if (size - i >= L) {
          store(target + i, load(target + i) + sum);
        } else {
          scalar_t rest[L];
          store(rest, sum);
          for (int j = 0; j < size - i; j++) target[i + j] += rest[j];
        }
      }
      target += size;
      size = 0;
    }
  };

  template <int V, bool needs_x, bool needs_values>
  static void backward(
      const scalar_t* tile, int64_t num_rows, int64_t begin, int64_t end,
      Compressed<scalar_t> weight, Matrix<const scalar_t> x,
      Matrix<scalar_t> grad_x, scalar_t* grad_values) {
    alignas(64) scalar_t x_chunk[kChunk * V * L];
    alignas(64) scalar_t grad_chunk[kChunk * V * L];
    Pending pending;
    if (needs_values) pending.target = grad_values + weight.ptr[begin];
    for (int64_t first = begin; first < end; first += kChunk) {
      const auto size = std::min<int64_t>(end - first, kChunk);
      if (needs_values) {
        pack<V>(x.from(first), num_rows, 0, size, x_chunk);
      }
      for (int64_t i = 0; i < size; i++) {
        Vec own[V] = {}, sum[V] = {};
#pragma GCC unroll 4
        for (int v = 0; needs_values && v < V; v++) {
          own[v] = load(x_chunk + (i * V + v) * L);
        }
        int64_t k = weight.ptr[first + i];
        const int64_t last = weight.ptr[first + i + 1];
        while (k < last) {
          const auto stop =
              std::min<int64_t>(last, k + kScratch - pending.size);
          auto* dst = pending.products + pending.size * L;
          if (needs_values) pending.size += stop - k;
          for (; k < stop; k++, dst += L) {
            const auto* src = tile + int64_t(weight.index[k]) * (V * L);
            Vec product = {};
#pragma GCC unroll 4
            for (int v = 0; v < V; v++) {
              const auto grad = load(src + v * L);
              if (needs_x) sum[v] += weight.values[k] * grad;
              if (needs_values) product += own[v] * grad;
            }
            if (needs_values) store(dst, product);
          }
          if (pending.size == kScratch) pending.flush();
        }
#pragma GCC unroll 4
        for (int v = 0; needs_x && v < V; v++) {
          store(grad_chunk + (i * V + v) * L, sum[v]);
        }
      }
      if (needs_x) {
        unpack<V>(grad_chunk, grad_x.from(first), num_rows, size);
      }
    }
    if (needs_values) pending.flush();
  }

  static int64_t width(int64_t num_rows) {
    return std::min<int64_t>((num_rows + L - 1) / L, kMaxVectors) * L;
  }
};

// Makes streamed writes visible to other threads.
inline void finish_streams([[maybe_unused]] bool streams) {
#if defined(STREAM)
  if (streams) _mm_sfence();
#endif
}

template <typename scalar_t>
void pack(
    Matrix<const scalar_t> x, int64_t num_rows, int64_t begin, int64_t end,
    scalar_t* tile) {
  using T = Tile<scalar_t>;
  static constexpr decltype(&pack<scalar_t>) loops[] = {
      T::template pack<1>, T::template pack<2>, T::template pack<3>,
      T::template pack<4>};
  loops[T::width(num_rows) / T::L - 1](x, num_rows, begin, end, tile);
}

template <typename scalar_t>
void forward(
    const scalar_t* tile, int64_t num_rows, int64_t begin, int64_t end,
    Compressed<scalar_t> weight, const scalar_t* bias, Matrix<scalar_t> out) {
  using T = Tile<scalar_t>;
  static constexpr decltype(&forward<scalar_t>) loops[] = {
      T::template forward<1>, T::template forward<2>, T::template forward<3>,
      T::template forward<4>};
  const auto loop = loops[T::width(num_rows) / T::L - 1];
  loop(tile, num_rows, begin, end, weight, bias, out);
  finish_streams(out.streams);
}

template <typename scalar_t, bool needs_x, bool needs_values>
void backward(
    const scalar_t* tile, int64_t num_rows, int64_t begin, int64_t end,
    Compressed<scalar_t> weight, Matrix<const scalar_t> x,
    Matrix<scalar_t> grad_x, scalar_t* grad_values) {
  using T = Tile<scalar_t>;
  static constexpr decltype(&backward<scalar_t, true, true>) loops[] = {
      T::template backward<1, needs_x, needs_values>,
      T::template backward<2, needs_x, needs_values>,
      T::template backward<3, needs_x, needs_values>,
      T::template backward<4, needs_x, needs_values>};
  const auto loop = loops[T::width(num_rows) / T::L - 1];
  loop(tile, num_rows, begin, end, weight, x, grad_x, grad_values);
}

template <typename scalar_t>
void backward(
    const scalar_t* tile, int64_t num_rows, int64_t begin, int64_t end,
    Compressed<scalar_t> weight, Matrix<const scalar_t> x,
    Matrix<scalar_t> grad_x, scalar_t* grad_values) {
  const auto loop = grad_values == nullptr   ? backward<scalar_t, true, false>
                    : grad_x.data == nullptr ? backward<scalar_t, false, true>
                                             : backward<scalar_t, true, true>;
  loop(tile, num_rows, begin, end, weight, x, grad_x, grad_values);
  finish_streams(grad_x.streams);
}

}  // namespace

template <typename scalar_t>
TileLoops<scalar_t> TILE_LOOPS() {
  using T = Tile<scalar_t>;
  return {T::L,           T::kMaxRows,       T::width,
          pack<scalar_t>, forward<scalar_t>, backward<scalar_t>};
}

template TileLoops<float> TILE_LOOPS<float>();
template TileLoops<double> TILE_LOOPS<double>();

}  // namespace torch_geometric_ext
