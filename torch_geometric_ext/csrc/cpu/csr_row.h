#pragma once

#include <cstdint>

namespace torch_geometric_ext {

// The nonzero elements of a row of a sparse matrix.
template <typename scalar_t, typename index_t>
struct CsrRow {
  int64_t size;
  const index_t* index;
  const scalar_t* value;
};

// Products of a row and a dense matrix, compiled once for each instruction
// set.
template <typename scalar_t, typename index_t>
struct CsrRowLoops {
  // Adds `row * weight` to `out`. The weight has `width` columns.
  void (*multiply)(
      CsrRow<scalar_t, index_t> row, const scalar_t* weight, int64_t width,
      scalar_t* out);

  // Adds the outer product of `row` and the vector `grad` to `sums`.
  void (*add_outer)(
      CsrRow<scalar_t, index_t> row, const scalar_t* grad, int64_t width,
      scalar_t* sums);
};

template <typename scalar_t, typename index_t>
CsrRowLoops<scalar_t, index_t> csr_row_loops_default();
template <typename scalar_t, typename index_t>
CsrRowLoops<scalar_t, index_t> csr_row_loops_avx2();
template <typename scalar_t, typename index_t>
CsrRowLoops<scalar_t, index_t> csr_row_loops_avx512();

}  // namespace torch_geometric_ext
