#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <limits>
#include <tuple>
#include <vector>

#include "../check.h"

namespace torch_geometric_ext::sparse_pattern {
namespace {

using Tensors =
    std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

// `ops/sparse_pattern.py` holds the same bound.
constexpr int64_t kMaxIndex = std::numeric_limits<int32_t>::max();

void check_sizes(int64_t num_weights, int64_t num_rows, int64_t num_cols) {
  TORCH_CHECK_VALUE(
      num_rows >= 0 && num_cols >= 0 && num_rows < kMaxIndex &&
          num_cols < kMaxIndex && num_weights < kMaxIndex,
      "sparse_pattern: 'num_rows', 'num_cols' and the size of 'index' need to "
      "be in [0, ",
      kMaxIndex, ") (got ", num_rows, ", ", num_cols, " and ", num_weights,
      ")");
}

// Fills rows in CSR format and counts the elements of each column. Returns
// whether the positions ascend within the matrix.
bool fill_rows(
    const at::Tensor& index, int64_t num_rows, int64_t num_cols,
    int32_t* rowptr, int32_t* col, int32_t* count) {
  const auto* position = index.const_data_ptr<int64_t>();
  const auto num_weights = index.numel(), numel = num_rows * num_cols;
  int64_t row = 0, row_end = num_cols, last = -1;
  rowptr[0] = 0;
  for (int64_t k = 0; k < num_weights; k++) {
    const auto x = position[k];
    if (x <= last || x >= numel) return false;
    for (; x >= row_end; row_end += num_cols) rowptr[++row] = k;
    col[k] = x - (row_end - num_cols);
    count[col[k]]++;
    last = x;
  }
  while (row < num_rows) rowptr[++row] = num_weights;
  return true;
}

// Orders the elements by columns: a stable counting sort.
Tensors sparse_pattern_cpu(
    const at::Tensor& index, int64_t num_rows, int64_t num_cols) {
  check_integers("sparse_pattern", "index", index, at::kLong);
  const auto num_weights = index.numel();
  check_sizes(num_weights, num_rows, num_cols);
  const auto options = index.options().dtype(at::kInt);
  auto rowptr = at::empty({num_rows + 1}, options);
  auto colptr = at::zeros({num_cols + 1}, options);
  auto col = at::empty({num_weights}, options);
  auto row = at::empty({num_weights}, options);
  auto perm = at::empty({num_weights}, options);
  const auto* start = rowptr.mutable_data_ptr<int32_t>();
  auto* col_start = colptr.mutable_data_ptr<int32_t>();
  auto* col_data = col.mutable_data_ptr<int32_t>();
  const auto ascends = fill_rows(
      index.contiguous(), num_rows, num_cols,
      rowptr.mutable_data_ptr<int32_t>(), col_data, col_start + 1);
  TORCH_CHECK_VALUE(
      ascends, "sparse_pattern: 'index' needs to be ascending in [0, ",
      num_rows * num_cols, "), without duplicates");
  for (int64_t i = 0; i < num_cols; i++) col_start[i + 1] += col_start[i];

  std::vector<int32_t> cursor(col_start, col_start + num_cols);
  auto* row_data = row.mutable_data_ptr<int32_t>();
  auto* perm_data = perm.mutable_data_ptr<int32_t>();
  for (int64_t i = 0; i < num_rows; i++) {
    for (auto k = start[i]; k < start[i + 1]; k++) {
      const auto target = cursor[col_data[k]]++;
      row_data[target] = i;
      perm_data[target] = k;
    }
  }
  return {rowptr, col, colptr, row, perm};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(torch_geometric_ext, m) {
  m.def(
      "sparse_pattern(Tensor index, int num_rows, int num_cols) -> (Tensor, "
      "Tensor, Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(torch_geometric_ext, CPU, m) {
  m.impl("sparse_pattern", TORCH_FN(sparse_pattern_cpu));
}

}  // namespace torch_geometric_ext::sparse_pattern
