#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>

#include <atomic>

#include "../check.h"

// The sparsity pattern of a weight, and its checks in linear time: indices
// address memory. `ops/check.py` checks the same conditions.
namespace torch_geometric_ext {

// Rows in CSR format, columns in CSC format, and the position in CSR format of
// each element in CSC format.
struct Pattern {
  const at::Tensor &rowptr, &col, &colptr, &row, &perm;
};

// A pattern as raw pointers.
struct PatternData {
  const int32_t *rowptr, *col, *colptr, *row, *perm;

  explicit PatternData(const Pattern& x)
      : rowptr(x.rowptr.const_data_ptr<int32_t>()),
        col(x.col.const_data_ptr<int32_t>()),
        colptr(x.colptr.const_data_ptr<int32_t>()),
        row(x.row.const_data_ptr<int32_t>()),
        perm(x.perm.const_data_ptr<int32_t>()) {}
};

// Returns whether `valid(row, position)` holds for all elements between the
// pointers of all rows.
template <typename F>
bool all_elements(const at::Tensor& ptr, int64_t num_elements, const F& valid) {
  // The number of elements that are worth a thread. A choice, no measurement.
  constexpr int64_t kGrain = 1 << 15;
  const auto num_rows = ptr.numel() - 1;
  const auto grain = num_rows * kGrain / std::max<int64_t>(num_elements, 1) + 1;
  const auto* start = ptr.const_data_ptr<int32_t>();
  std::atomic<bool> out{true};
  at::parallel_for(0, num_rows, grain, [&](int64_t begin, int64_t end) {
    bool ok = true;
    for (auto i = begin; i < end; i++) {
      for (auto k = start[i]; k < start[i + 1]; k++) ok &= valid(i, k);
    }
    if (!ok) out = false;
  });
  return out;
}

// Checks that `ptr` ascends from 0 and that the elements of `index` between two
// pointers ascend within [0, size).
inline void check_compressed(
    const char* op, const char* ptr_name, const at::Tensor& ptr,
    const char* index_name, const at::Tensor& index, int64_t size) {
  const auto num_elements = index.numel();
  check_ptr<int32_t>(op, ptr_name, ptr, num_elements);
  const auto* start = ptr.const_data_ptr<int32_t>();
  const auto* x = index.const_data_ptr<int32_t>();
  const auto in_range = all_elements(
      ptr, num_elements,
      [&](int64_t, int64_t k) { return x[k] >= 0 && x[k] < size; });
  TORCH_CHECK_INDEX(
      in_range, op, ": '", index_name, "' needs to be in [0, ", size, ")");
  const auto ascends = all_elements(
      ptr, num_elements,
      [&](int64_t i, int64_t k) { return k == start[i] || x[k - 1] < x[k]; });
  TORCH_CHECK_VALUE(
      ascends, op, ": '", index_name, "' needs to ascend between two '",
      ptr_name, "', without duplicates");
}

// Checks all that takes constant time: dtypes, shapes, devices, and the ends of
// pointers.
inline void check_tensors(
    const char* op, const Pattern& pattern, int64_t num_weights,
    int64_t num_columns) {
  const auto check = [&](const char* name, const at::Tensor& x,
                         std::optional<int64_t> size = std::nullopt) {
    check_integers(op, name, x, at::kInt, size);
    TORCH_CHECK_VALUE(
        x.is_contiguous() && x.is_cpu(), op, ": '", name,
        "' needs to be contiguous and on cpu (got a tensor on ", x.device(),
        ")");
  };
  check("rowptr", pattern.rowptr);
  check("col", pattern.col, num_weights);
  check("colptr", pattern.colptr, num_columns + 1);
  check("row", pattern.row, num_weights);
  check("perm", pattern.perm, num_weights);
  check_ptr_ends<int32_t>(op, "rowptr", pattern.rowptr, num_weights);
  check_ptr_ends<int32_t>(op, "colptr", pattern.colptr, num_weights);
}

// Checks that rows are valid, and that columns and `perm` hold their elements.
inline void check_invariants(const char* op, const Pattern& pattern) {
  const auto& [rowptr, col, colptr, row, perm] = pattern;
  const auto num_weights = col.numel();
  check_compressed(op, "rowptr", rowptr, "col", col, colptr.numel() - 1);
  check_compressed(op, "colptr", colptr, "row", row, rowptr.numel() - 1);
  const PatternData data(pattern);
  const auto in_range =
      all_elements(colptr, num_weights, [&](int64_t, int64_t k) {
        return data.perm[k] >= 0 && data.perm[k] < num_weights;
      });
  TORCH_CHECK_INDEX(
      in_range, op, ": 'perm' needs to be in [0, ", num_weights, ")");
  // Columns ascend, hence no two elements of `perm` are equal.
  const auto same =
      all_elements(colptr, num_weights, [&](int64_t column, int64_t k) {
        const auto position = data.perm[k], i = data.row[k];
        return position >= data.rowptr[i] && position < data.rowptr[i + 1] &&
               data.col[position] == column;
      });
  TORCH_CHECK_VALUE(
      same, op, ": 'colptr', 'row' and 'perm' need to hold the ", num_weights,
      " elements of 'rowptr' and 'col'");
}

}  // namespace torch_geometric_ext
