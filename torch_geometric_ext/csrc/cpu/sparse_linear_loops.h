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

template <typename element_t>
struct Tile {
  using scalar_t = Compute<element_t>;
  static constexpr int L = REGISTER_BYTES / sizeof(scalar_t);
  // A lane of a tile holds one row, or two rows of half precision.
  static constexpr int kFold = sizeof(scalar_t) / sizeof(element_t);
  typedef scalar_t Vec __attribute__((vector_size(REGISTER_BYTES)));
  typedef uint32_t Bits __attribute__((vector_size(REGISTER_BYTES)));
  typedef uint16_t Halves __attribute__((vector_size(REGISTER_BYTES / 2)));
  // The sizes are choices: accumulators need to fit into registers, pending
  // products into the first-level cache, and rows of outputs are written by
  // 256 bytes.
  static constexpr int kMaxWords = 4 / kFold;
  static constexpr int kMaxBackwardWords =
      REGISTER_BYTES < 64 ? kMaxWords : 2 * kMaxWords;  // AVX-512 has more.
  static constexpr int kScratch = 16 * L;
  static constexpr int kChunk = 4 * L * kFold;

  static inline Vec load(const void* src) {
    Vec out;
    std::memcpy(&out, src, sizeof(Vec));
    return out;
  }

  static inline void store(void* dst, Vec x) {
    std::memcpy(dst, &x, sizeof(Vec));
  }

  // Writes an aligned vector to memory without reading its cache line first.
  static inline void stream(void* dst, Vec x) {
#if defined(STREAM)
    STREAM(dst, x);
#else
    store(dst, x);
#endif
  }

  // Rounds to the nearest number of half precision, in the high half.
  static inline Bits round(Vec x) {
    const auto bits = reinterpret_cast<Bits>(x);
    const auto rounded = bits + 0x7fff + ((bits >> 16) & 1);
    const auto is_nan = reinterpret_cast<Bits>(x != x);
    return (is_nan & (bits | 0x400000)) | (~is_nan & rounded);
  }

  // Loads the rows of a feature from `W` words of a tile.
  template <int W>
  static inline void load_rows(const scalar_t* src, Vec (&rows)[W * kFold]) {
#pragma GCC unroll 8
    for (int w = 0; w < W; w++) {
      const auto word = load(src + w * L);
      if constexpr (kFold == 1) {
        rows[w] = word;
      } else {
        const auto bits = reinterpret_cast<Bits>(word);
        rows[2 * w] = reinterpret_cast<Vec>(bits << 16);
        rows[2 * w + 1] = reinterpret_cast<Vec>(bits & 0xffff0000);
      }
    }
  }

  template <int W>
  static inline void store_rows(scalar_t* dst, const Vec (&rows)[W * kFold]) {
#pragma GCC unroll 8
    for (int w = 0; w < W; w++) {
      if constexpr (kFold == 1) {
        store(dst + w * L, rows[w]);
      } else {
        const auto low = round(rows[2 * w]) >> 16;
        const auto high = round(rows[2 * w + 1]) & 0xffff0000;
        store(dst + w * L, reinterpret_cast<Vec>(low | high));
      }
    }
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

  // Loads up to L features of a row, and pads them with zeros.
  template <bool full>
  static inline Vec load_row(const element_t* src, int64_t num_features) {
    element_t row[L] = {};
    if constexpr (!full) {
      std::memcpy(row, src, num_features * sizeof(element_t));
      src = row;
    }
    if constexpr (kFold == 1) {
      return load(src);
    } else {
      Halves halves;
      std::memcpy(&halves, src, sizeof(halves));
      return reinterpret_cast<Vec>(__builtin_convertvector(halves, Bits));
    }
  }

  template <bool full>
  static inline void store_row(element_t* dst, Vec x, int64_t num_features) {
    element_t row[L];
    auto* target = full ? dst : row;
    if constexpr (kFold == 1) {
      store(target, x);
    } else {
      const auto bits = reinterpret_cast<Bits>(x);
      const auto halves = __builtin_convertvector(bits, Halves);
      std::memcpy(target, &halves, sizeof(halves));
    }
    if constexpr (!full) {
      std::memcpy(dst, row, num_features * sizeof(element_t));
    }
  }

  // Reads rows into a square of words, and pads it with zeros.
  template <bool full>
  static inline void read(
      Vec (&square)[L], Matrix<const element_t> x, int64_t num_rows,
      int64_t num_features) {
#pragma GCC unroll 16
    for (int i = 0; i < L; i++) {
      square[i] = Vec{};
      if (full || i < num_rows) {
        square[i] = load_row<full>(x.data + i * x.stride, num_features);
      }
      if (kFold == 2 && (full || i + L < num_rows)) {
        const auto* src = x.data + (i + L) * x.stride;
        const auto high =
            reinterpret_cast<Bits>(load_row<full>(src, num_features));
        const auto low = reinterpret_cast<Bits>(square[i]);
        square[i] = reinterpret_cast<Vec>(low | high << 16);
      }
    }
  }

  template <bool full>
  static inline void write(
      const Vec (&square)[L], Matrix<element_t> out, int64_t num_rows,
      int64_t num_features) {
    if (full && out.streams) {
#pragma GCC unroll 16
      for (int i = 0; i < L; i++) stream(out.data + i * out.stride, square[i]);
      return;
    }
#pragma GCC unroll 16
    for (int i = 0; i < L; i++) {
      if (full || i < num_rows) {
        store_row<full>(out.data + i * out.stride, square[i], num_features);
      }
      if (kFold == 2 && (full || i + L < num_rows)) {
        const auto high = reinterpret_cast<Bits>(square[i]) >> 16;
        auto* dst = out.data + (i + L) * out.stride;
        store_row<full>(dst, reinterpret_cast<Vec>(high), num_features);
      }
    }
  }

  // Loads rows of the next tile into the second-level cache.
  template <int W>
  static inline void prefetch(Matrix<const element_t> x) {
    const auto address = reinterpret_cast<uintptr_t>(x.data);
    const auto stride = x.stride * int64_t(sizeof(element_t));
#pragma GCC unroll 16
    for (int i = 0; i < L * kFold; i++) {
      const auto next = address + (W * L * kFold + i) * stride;
      __builtin_prefetch(reinterpret_cast<const void*>(next), 0, 2);
    }
  }

  // Transposes the features [begin, end) of rows to W words for each feature.
  // Completes a few rows after another, since processors prefetch few streams.
  template <int W>
  static void pack(
      Matrix<const element_t> x, int64_t num_rows, int64_t begin, int64_t end,
      scalar_t* tile) {
    for (int w = 0; w < W; w++, num_rows -= L * kFold) {
      auto src = x.at(w * L * kFold, begin);
      for (int64_t i = begin; i < end; i += L, src = src.at(0, L)) {
        Vec square[L];
        const auto size = std::min<int64_t>(end - i, L);
        if (num_rows >= L * kFold && size == L) {
          read<true>(square, src, num_rows, size);
        } else {
          read<false>(square, src, num_rows, size);
        }
        prefetch<W>(src);
        transpose(square);
        auto* dst = tile + (i * W + w) * L;
        for (int j = 0; j < size; j++) store(dst + j * W * L, square[j]);
      }
    }
  }

  // Transposes a chunk of features back to rows.
  template <int W>
  static void unpack(
      const scalar_t* chunk, Matrix<element_t> out, int64_t num_rows,
      int64_t num_features) {
    for (int w = 0; w < W; w++, num_rows -= L * kFold) {
      auto dst = out.at(w * L * kFold, 0);
      for (int64_t i = 0; i < num_features; i += L, dst = dst.at(0, L)) {
        Vec square[L];
        const auto* src = chunk + (i * W + w) * L;
#pragma GCC unroll 16
        for (int j = 0; j < L; j++) square[j] = load(src + j * W * L);
        transpose(square);
        const auto size = std::min<int64_t>(num_features - i, L);
        if (num_rows >= L * kFold && size == L) {
          write<true>(square, dst, num_rows, size);
        } else {
          write<false>(square, dst, num_rows, size);
        }
      }
    }
  }

  template <int W>
  static void forward(
      const scalar_t* tile, int64_t num_rows, int64_t begin, int64_t end,
      Compressed<scalar_t> weight, const scalar_t* bias,
      Matrix<element_t> out) {
    constexpr int V = W * kFold;
    alignas(64) scalar_t chunk[kChunk * W * L];
    for (int64_t first = begin; first < end; first += kChunk) {
      const auto size = std::min<int64_t>(end - first, kChunk);
      for (int64_t i = 0; i < size; i++) {
        const auto row = first + i;
        const auto initial = bias == nullptr ? scalar_t(0) : bias[row];
        Vec sum[V], x[V];
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) sum[v] = initial - Vec{};
        for (int64_t k = weight.ptr[row]; k < weight.ptr[row + 1]; k++) {
          load_rows<W>(tile + int64_t(weight.index[k]) * (W * L), x);
#pragma GCC unroll 4
          for (int v = 0; v < V; v++) sum[v] += weight.values[k] * x[v];
        }
        store_rows<W>(chunk + i * W * L, sum);
      }
      unpack<W>(chunk, out.at(0, first), num_rows, size);
    }
  }

  // Products of weights that are not yet summed over the rows of the tile, or
  // other vectors whose elements are added to a target.
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

  template <int W>
  static void sum(
      const scalar_t* tile, int64_t begin, int64_t end, scalar_t* sums) {
    Pending pending;
    pending.target = sums + begin;
    for (int64_t i = begin; i < end; i++) {
      Vec rows[W * kFold], total = {};
      load_rows<W>(tile + i * W * L, rows);
#pragma GCC unroll 8
      for (int v = 0; v < W * kFold; v++) total += rows[v];
      store(pending.products + pending.size++ * L, total);
      if (pending.size == kScratch) pending.flush();
    }
    pending.flush();
  }

  template <int W, bool needs_x, bool needs_values>
  static void backward(
      const scalar_t* tile, int64_t num_rows, int64_t begin, int64_t end,
      Compressed<scalar_t> weight, Matrix<const element_t> x,
      Matrix<element_t> grad_x, scalar_t* grad_values) {
    constexpr int V = W * kFold;
    alignas(64) scalar_t x_chunk[kChunk * W * L];
    alignas(64) scalar_t grad_chunk[kChunk * W * L];
    Pending pending;
    if (needs_values) pending.target = grad_values + weight.ptr[begin];
    for (int64_t first = begin; first < end; first += kChunk) {
      const auto size = std::min<int64_t>(end - first, kChunk);
      if (needs_values) pack<W>(x.at(0, first), num_rows, 0, size, x_chunk);
      for (int64_t i = 0; i < size; i++) {
        Vec own[V] = {}, sum[V] = {}, grad[V];
        if (needs_values) load_rows<W>(x_chunk + i * W * L, own);
        int64_t k = weight.ptr[first + i];
        const int64_t last = weight.ptr[first + i + 1];
        while (k < last) {
          const auto stop =
              std::min<int64_t>(last, k + kScratch - pending.size);
          auto* dst = pending.products + pending.size * L;
          if (needs_values) pending.size += stop - k;
          for (; k < stop; k++, dst += L) {
            load_rows<W>(tile + int64_t(weight.index[k]) * (W * L), grad);
            Vec product = {};
#pragma GCC unroll 8
            for (int v = 0; v < V; v++) {
              if (needs_x) sum[v] += weight.values[k] * grad[v];
              if (needs_values) product += own[v] * grad[v];
            }
            if (needs_values) store(dst, product);
          }
          if (pending.size == kScratch) pending.flush();
        }
        if (needs_x) store_rows<W>(grad_chunk + i * W * L, sum);
      }
      if (needs_x) unpack<W>(grad_chunk, grad_x.at(0, first), num_rows, size);
    }
    if (needs_values) pending.flush();
  }

  // Returns the number of words that hold the rows of a feature.
  static int64_t words(int64_t num_rows) {
    const int64_t rows = L * kFold;
    const auto words = (num_rows + rows - 1) / rows;
    return words <= kMaxWords ? words : kMaxBackwardWords;
  }

  static int64_t width(int64_t num_rows) {
    return words(num_rows) * L;
  }
};

template <int N>
struct Int {
  static constexpr int value = N;
};

// Calls `func` with the number of words as a constant.
template <typename element_t, bool is_backward, typename F>
inline void with_words(int64_t num_rows, const F& func) {
  using T = Tile<element_t>;
  const auto words = T::words(num_rows);
  if (words <= 1) return func(Int<1>{});
  if (words == 2) return func(Int<2>{});
  if constexpr (T::kMaxWords > 2) {
    if (words == 3) return func(Int<3>{});
    if (words == 4) return func(Int<4>{});
  }
  if constexpr (is_backward && T::kMaxBackwardWords > T::kMaxWords) {
    return func(Int<T::kMaxBackwardWords>{});
  }
}

// Makes streamed writes visible to other threads.
inline void finish_streams([[maybe_unused]] bool streams) {
#if defined(STREAM)
  if (streams) _mm_sfence();
#endif
}

template <typename element_t>
void pack(
    Matrix<const element_t> x, int64_t num_rows, int64_t begin, int64_t end,
    Compute<element_t>* tile) {
  with_words<element_t, true>(num_rows, [&](auto words) {
    Tile<element_t>::template pack<decltype(words)::value>(
        x, num_rows, begin, end, tile);
  });
}

template <typename element_t>
void sum(
    const Compute<element_t>* tile, int64_t num_rows, int64_t begin,
    int64_t end, Compute<element_t>* sums) {
  with_words<element_t, true>(num_rows, [&](auto words) {
    Tile<element_t>::template sum<decltype(words)::value>(
        tile, begin, end, sums);
  });
}

template <typename element_t>
void forward(
    const Compute<element_t>* tile, int64_t num_rows, int64_t begin,
    int64_t end, Compressed<Compute<element_t>> weight,
    const Compute<element_t>* bias, Matrix<element_t> out) {
  with_words<element_t, false>(num_rows, [&](auto words) {
    Tile<element_t>::template forward<decltype(words)::value>(
        tile, num_rows, begin, end, weight, bias, out);
  });
  finish_streams(out.streams);
}

template <typename element_t>
void backward(
    const Compute<element_t>* tile, int64_t num_rows, int64_t begin,
    int64_t end, Compressed<Compute<element_t>> weight,
    Matrix<const element_t> x, Matrix<element_t> grad_x,
    Compute<element_t>* grad_values) {
  with_words<element_t, true>(num_rows, [&](auto words) {
    using T = Tile<element_t>;
    constexpr int W = decltype(words)::value;
    const auto loop =
        grad_values == nullptr   ? T::template backward<W, true, false>
        : grad_x.data == nullptr ? T::template backward<W, false, true>
                                 : T::template backward<W, true, true>;
    loop(tile, num_rows, begin, end, weight, x, grad_x, grad_values);
  });
  finish_streams(grad_x.streams);
}

}  // namespace

template <typename element_t>
TileLoops<element_t> TILE_LOOPS() {
  using T = Tile<element_t>;
  constexpr auto kRows = T::L * T::kFold;
  return {
      T::L,
      2 * kRows,
      T::kMaxWords * kRows,
      T::kMaxBackwardWords * kRows,
      T::width,
      pack<element_t>,
      sum<element_t>,
      forward<element_t>,
      backward<element_t>};
}

template TileLoops<float> TILE_LOOPS<float>();
template TileLoops<double> TILE_LOOPS<double>();
template TileLoops<bfloat16> TILE_LOOPS<bfloat16>();

}  // namespace torch_geometric_ext
