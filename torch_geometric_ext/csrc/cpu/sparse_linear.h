#pragma once

#include <cstdint>
#include <type_traits>

namespace torch_geometric_ext {

// The bits of half precision with the exponent of a float, its high half.
struct bfloat16 {
  uint16_t bits;
};

// The type in which products of a type are computed.
template <typename element_t>
using Compute =
    std::conditional_t<std::is_same_v<element_t, bfloat16>, float, element_t>;

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

  Matrix at(int64_t row, int64_t column) const {
    return {data + row * stride + column, stride, streams};
  }
};

// Loops over a tile, compiled once for each instruction set. A tile is a few
// dozen rows of a batch in feature-major layout, so that each weight multiplies
// vectors of rows. Two rows of half precision share a word of a tile. Ranges of
// features begin at a multiple of `lanes`.
template <typename element_t>
struct TileLoops {
  using scalar_t = Compute<element_t>;
  int64_t lanes;
  // The rows of a tile, each a power of two times the one before.
  int64_t min_rows;
  int64_t max_rows;
  int64_t max_backward_rows;

  // Returns the number of words of a tile for each feature.
  int64_t (*width)(int64_t num_rows);

  // Transposes the features [begin, end) of `x` into a tile.
  void (*pack)(
      Matrix<const element_t> x, int64_t num_rows, int64_t begin, int64_t end,
      scalar_t* tile);

  // Adds up the rows of the features [begin, end) of a tile.
  void (*sum)(
      const scalar_t* tile, int64_t num_rows, int64_t begin, int64_t end,
      scalar_t* sums);

  // Computes the outputs [begin, end) for all rows of a packed input.
  void (*forward)(
      const scalar_t* tile, int64_t num_rows, int64_t begin, int64_t end,
      Compressed<scalar_t> weight, const scalar_t* bias, Matrix<element_t> out);

  // Computes gradients from the packed gradient of the output: writes the
  // gradient of the input features [begin, end) to `grad_x`, and adds the
  // gradient of their weights, column by column, to `grad_values`. Either
  // output may be null.
  void (*backward)(
      const scalar_t* tile, int64_t num_rows, int64_t begin, int64_t end,
      Compressed<scalar_t> weight, Matrix<const element_t> x,
      Matrix<element_t> grad_x, scalar_t* grad_values);
};

template <typename element_t>
TileLoops<element_t> tile_loops_default();
template <typename element_t>
TileLoops<element_t> tile_loops_avx2();
template <typename element_t>
TileLoops<element_t> tile_loops_avx512();

}  // namespace torch_geometric_ext
