#pragma once

#include <cstdint>

namespace torch_geometric_ext {

// What a product costs, in multiply-adds of a dense product, as measured by
// `benchmark/nn/sparse_linear.py` (AMD Zen 5, AVX-512, MKL, one thread).
// Counts weights, not rows: everything is proportional to the rows of a large
// batch, and the constants tell what small batches pay for each weight.
struct SparseLinearCost {
  double num_weights, num_dense, num_rows;
  bool cached;  // Whether a packed tile fits into the first-level cache.

  // Weights are scattered to (or gradients gathered from) a dense matrix,
  // unless all of them exist.
  double detour() const {
    return num_weights == num_dense ? 0 : 17;
  }
  double dense() const {
    return num_dense * (num_rows + 5 + detour());
  }

  double forward() const {
    return num_weights * (35 + (cached ? 0.8 : 1.5) * num_rows);
  }
  double backward(bool needs_x, bool needs_values) const {
    if (!needs_values) return forward();
    const auto rows = needs_x ? (cached ? 1.8 : 2.25) : (cached ? 1.25 : 2.05);
    return num_weights * (80 + rows * num_rows);
  }

  bool dense_forward() const {
    return dense() < forward();
  }
  bool dense_backward(bool needs_x, bool needs_values) const {
    const auto products = int(needs_x) + int(needs_values);
    return products * dense() < backward(needs_x, needs_values);
  }
};

}  // namespace torch_geometric_ext
