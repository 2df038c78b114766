#pragma once

#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <type_traits>

#include "memory.h"
#include "sparse_linear.h"

// The parallel schedule of sparse products.
namespace torch_geometric_ext {

// Returns the loops for the instruction set that PyTorch uses.
template <typename element_t>
const TileLoops<element_t>& tile_loops() {
  static const auto loops = [] {
#if defined(__x86_64__)
    const auto capability = at::get_cpu_capability();
    if (capability.rfind("AVX512", 0) == 0)
      return tile_loops_avx512<element_t>();
    if (capability == "AVX2") return tile_loops_avx2<element_t>();
#endif
    return tile_loops_default<element_t>();
  }();
  return loops;
}

// Returns the rows of `x` from `begin` on.
template <typename element_t>
Matrix<element_t> rows_of(const at::Tensor& x, int64_t begin = 0) {
  using data_t = std::remove_const_t<element_t>;
  auto* data = static_cast<data_t*>(x.data_ptr());
  return {data + begin * x.stride(0), x.stride(0)};
}

// Returns the rows of an output from `begin` on. Outputs that are too large to
// stay in a cache bypass it.
template <typename element_t>
Matrix<element_t> output_rows(const at::Tensor& out, int64_t begin) {
  constexpr int64_t kLine = 64, kCores = 8;  // Choices of common processors.
  auto rows = rows_of<element_t>(out, begin);
  const int64_t row_bytes = rows.stride * sizeof(element_t);
  // Rows of half precision are written by half lines.
  rows.streams = sizeof(element_t) == sizeof(Compute<element_t>) &&
                 int64_t(out.nbytes()) > kCores * core_cache_bytes() &&
                 reinterpret_cast<uintptr_t>(rows.data) % kLine == 0 &&
                 row_bytes % kLine == 0;
  return rows;
}

// Calls `func(chunk, begin, end)` for at most `num_chunks` ranges of `size` in
// parallel. Ranges begin at a multiple of `step`.
template <typename F>
void for_chunks(int64_t size, int64_t num_chunks, int64_t step, const F& func) {
  const auto num_steps = (size + step - 1) / step;
  num_chunks = std::min(num_chunks, num_steps);
  at::parallel_for(0, num_chunks, 1, [&](int64_t begin, int64_t end) {
    for (auto chunk = begin; chunk < end; chunk++) {
      const auto first = num_steps * chunk / num_chunks * step;
      const auto last = num_steps * (chunk + 1) / num_chunks * step;
      func(chunk, first, std::min(last, size));
    }
  });
}

// The number of weights that is worth a thread. A choice, no measurement.
constexpr int64_t kWeightGrain = 1 << 14;

template <typename F>
void for_weights(int64_t num_weights, const F& func) {
  at::parallel_for(
      0, num_weights, kWeightGrain, [&](int64_t begin, int64_t end) {
        for (auto i = begin; i < end; i++) func(i);
      });
}

// The parallel schedule. Threads work on different tiles if there are enough
// tiles and a gradient buffer for each thread is small enough. Otherwise, all
// threads work on the same tile and on different features.
struct Plan {
  int64_t tile_rows;
  int64_t num_threads;
  bool by_tiles;

  Plan(
      int64_t num_rows, int64_t num_weights, int64_t num_channels,
      int64_t tile_rows)
      : tile_rows(tile_rows) {
    // The multiply-adds that are worth a thread. A choice, no measurement.
    constexpr int64_t kGrain = 1 << 16;
    const auto num_grains = num_rows * num_weights / kGrain + 1;
    num_threads = std::min<int64_t>(at::get_num_threads(), num_grains);
    const bool affordable =
        num_threads * num_weights <= num_rows * num_channels;
    const bool enough = num_rows > (2 * num_threads - 1) * tile_rows;
    by_tiles = num_threads == 1 || (enough && affordable);
  }
};

// Returns the rows of a tile: as many as fit into half of the cache of a core,
// since weights and outputs pass through it, too.
template <typename element_t>
int64_t get_tile_rows(int64_t max_rows, int64_t num_features) {
  const auto row_bytes = num_features * int64_t(sizeof(element_t));
  auto rows = max_rows;
  while (rows > tile_loops<element_t>().min_rows &&
         rows * row_bytes > core_cache_bytes() / 2) {
    rows /= 2;
  }
  return rows;
}

// Packs the rows of `x` into tiles. Calls
// `on_packed(part, tile, num_rows, begin, end)` for all features of all tiles,
// and `func(part, tile, row, num_rows, begin, end)` for all outputs. Concurrent
// calls for the same features or outputs have different values of `part`.
template <typename element_t, typename P, typename F>
void for_tiles(
    const at::Tensor& x, int64_t num_outputs, const Plan& plan,
    const P& on_packed, const F& func) {
  using scalar_t = Compute<element_t>;
  const auto& loops = tile_loops<element_t>();
  const auto num_rows = x.size(0), num_features = x.size(1);
  const auto get_buffer = [&] {
    const auto width = loops.width(std::min(num_rows, plan.tile_rows));
    const auto dtype = c10::CppTypeToScalarType<scalar_t>::value;
    return at::empty({width * num_features}, x.options().dtype(dtype));
  };
  // The last rows may not fill a large tile.
  const auto get_size = [&](int64_t row) {
    auto size = plan.tile_rows;
    while (size > num_rows - row && size > loops.max_rows) size /= 2;
    return std::min(size, num_rows - row);
  };
  const auto pack = [&](int64_t part, scalar_t* tile, int64_t row, int64_t size,
                        int64_t begin, int64_t end) {
    loops.pack(rows_of<const element_t>(x, row), size, begin, end, tile);
    on_packed(part, tile, size, begin, end);
  };

  if (plan.by_tiles) {
    for_chunks(
        num_rows, plan.num_threads, plan.tile_rows,
        [&](int64_t part, int64_t row, int64_t last) {
          const auto buffer = get_buffer();
          auto* tile = buffer.template mutable_data_ptr<scalar_t>();
          while (row < last) {
            const auto size = get_size(row);
            pack(part, tile, row, size, 0, num_features);
            func(part, tile, row, size, 0, num_outputs);
            row += size;
          }
        });
    return;
  }
  const auto buffer = get_buffer();
  auto* tile = buffer.template mutable_data_ptr<scalar_t>();
  for (int64_t row = 0, size = 0; row < num_rows; row += size) {
    size = get_size(row);
    for_chunks(
        num_features, plan.num_threads, loops.lanes,
        [&](int64_t, int64_t begin, int64_t end) {
          pack(0, tile, row, size, begin, end);
        });
    for_chunks(
        num_outputs, plan.num_threads, loops.lanes,
        [&](int64_t, int64_t begin, int64_t end) {
          func(0, tile, row, size, begin, end);
        });
  }
}

}  // namespace torch_geometric_ext
