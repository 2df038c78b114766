#pragma once

#include <cstdint>

namespace torch_geometric_ext {

// The weight in CSR format or, for the gradients, in CSC format.
template <typename scalar_t>
struct Compressed {
  const int32_t* ptr;
  const int32_t* index;
  const scalar_t* values;
};

// A row-major matrix with a stride between rows. If it `streams`, writes bypass
// the caches, and all vectors of its rows are aligned.
template <typename scalar_t>
struct Matrix {
  scalar_t* data;
  int64_t stride;
  bool streams = false;

  Matrix from(int64_t feature) const {
    return {data + feature, stride, streams};
  }
};

// Loops over a tile, compiled once for each instruction set. A tile is a few
// dozen rows of a batch in feature-major layout, so that each weight multiplies
// vectors of rows. Ranges of features begin at a multiple of `lanes`.
template <typename scalar_t>
struct TileLoops {
  int64_t lanes;
  int64_t max_rows;

  // Returns the number of elements of a tile for each feature, at most
  // `max_rows`.
  int64_t (*width)(int64_t num_rows);

  // Transposes the features [begin, end) of `x` into a tile.
  void (*pack)(
      Matrix<const scalar_t> x, int64_t num_rows, int64_t begin, int64_t end,
      scalar_t* tile);

  // Computes the outputs [begin, end) for all rows of a packed input.
  void (*forward)(
      const scalar_t* tile, int64_t num_rows, int64_t begin, int64_t end,
      Compressed<scalar_t> weight, const scalar_t* bias, Matrix<scalar_t> out);

  // Computes gradients from the packed gradient of the output: writes the
  // gradient of the input features [begin, end) to `grad_x`, and adds the
  // gradient of their weights, column by column, to `grad_values`. Either
  // output may be null.
  void (*backward)(
      const scalar_t* tile, int64_t num_rows, int64_t begin, int64_t end,
      Compressed<scalar_t> weight, Matrix<const scalar_t> x,
      Matrix<scalar_t> grad_x, scalar_t* grad_values);
};

template <typename scalar_t>
TileLoops<scalar_t> tile_loops_default();
template <typename scalar_t>
TileLoops<scalar_t> tile_loops_avx2();
template <typename scalar_t>
TileLoops<scalar_t> tile_loops_avx512();

}  // namespace torch_geometric_ext
