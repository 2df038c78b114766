#pragma once

#include <cstdint>

#include "sparse_linear.h"

namespace torch_geometric_ext {

// Loops over blocks of B x B weights, compiled once for each instruction set.
// A tile holds a few dozen rows of a batch, block by block of B features: row
// `r` of block `j` begins at `(j * num_rows + r) * B`. Its last block is padded
// with zeros. Blocks of weights at the edges are padded, too.
template <typename scalar_t>
struct BlockLoops {
  // Copies rows into a tile.
  void (*pack)(
      Matrix<const scalar_t> x, int64_t num_rows, int64_t num_features,
      scalar_t* tile);

  // Writes the outputs of the rows of blocks [begin, end), without those that
  // are padded. A block of weights is indexed by its input first. `bias` is
  // padded, too.
  void (*multiply)(
      const scalar_t* tile, int64_t num_rows, int64_t begin, int64_t end,
      Compressed<scalar_t> weight, const scalar_t* bias, int64_t num_outputs,
      Matrix<scalar_t> out);

  // Adds the product of the transpose of a block of one tile with a block of
  // another tile to a block of gradients.
  void (*add_outer)(
      const scalar_t* grad, const scalar_t* x, int64_t num_rows,
      scalar_t* grad_weight);

  // Adds the sum over the rows of a tile of `num_blocks` blocks to `sum`.
  void (*add_rows)(
      const scalar_t* tile, int64_t num_rows, int64_t num_blocks,
      scalar_t* sum);
};

// Return the loops for blocks of 8, 16 or 32 weights.
template <typename scalar_t>
BlockLoops<scalar_t> block_loops_default(int64_t block_size);
template <typename scalar_t>
BlockLoops<scalar_t> block_loops_avx2(int64_t block_size);
template <typename scalar_t>
BlockLoops<scalar_t> block_loops_avx512(int64_t block_size);

}  // namespace torch_geometric_ext
