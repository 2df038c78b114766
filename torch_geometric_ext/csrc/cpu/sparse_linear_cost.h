#pragma once

#include <cstdint>

namespace torch_geometric_ext {

// The cost of sparse and dense products, in multiply-adds of a dense product.
// Each sparse product costs a rate for each weight and row, and a constant for
// each weight. `benchmark/nn/sparse_linear.py` measured rates and constants on
// one machine (AMD Zen 5, one thread, MKL), once for each instruction set. On
// other machines, the choice between sparse and dense may not be the faster
// one, but results are the same up to rounding.
struct SparseLinearCost {
  double num_weights, num_dense, num_rows;
  double forward_rate, values_rate, both_rate;

  // Sparse products read a packed tile of `tile_bytes` at random positions.
  SparseLinearCost(
      int64_t num_weights, int64_t in, int64_t out, int64_t num_rows,
      int64_t register_bytes, int64_t tile_bytes)
      : num_weights(double(num_weights)),
        num_dense(double(in) * double(out)),
        num_rows(double(num_rows)) {
    constexpr int64_t kFirstLevelCache = 1 << 15;  // Bytes, a lower bound.
    if (register_bytes < 32) {
      set_rates(2.7, 3.8, 5.4);
    } else if (register_bytes < 64) {  // AVX2
      set_rates(1.75, 2.3, 3.4);
    } else if (tile_bytes > kFirstLevelCache) {  // AVX-512
      set_rates(1.5, 2.05, 2.25);
    } else {
      set_rates(0.8, 1.25, 1.8);
    }
  }

  bool dense_forward() const {
    return dense() < forward();
  }
  bool dense_backward(bool needs_x, bool needs_values) const {
    const auto products = int(needs_x) + int(needs_values);
    return products * dense() < backward(needs_x, needs_values);
  }

  double dense() const {
    // A sparse weight is scattered to a dense matrix, or its gradient is
    // gathered from a dense matrix.
    const double conversion = num_weights == num_dense ? 0 : 17;
    return num_dense * (num_rows + 5 + conversion);
  }
  double forward() const {
    return num_weights * (35 + forward_rate * num_rows);
  }
  double backward(bool needs_x, bool needs_values) const {
    if (!needs_values) return forward();
    const auto rate = needs_x ? both_rate : values_rate;
    return num_weights * (80 + rate * num_rows);
  }

 private:
  void set_rates(double forward, double values, double both) {
    forward_rate = forward;
    values_rate = values;
    both_rate = both;
  }
};

}  // namespace torch_geometric_ext
