#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

// The choice between sparse and dense products, by a table of the machine.
namespace torch_geometric_ext {

// The products that a table covers: the forward pass, the gradient of the
// weights, and both gradients. The gradient of the input alone is the forward
// pass of the transposed weight.
enum Product : int { kForward, kValues, kBoth, kNumProducts };

// Returns the density above which a dense product is expected to be faster
// with the current number of threads. Without a calibration, returns a density
// at which sparse products are faster on all machines that were measured.
double get_crossover(
    Product product, at::ScalarType dtype, int64_t num_rows, int64_t in,
    int64_t out);

// Returns whether to compute a dense product. Its answer for a number of
// threads and a dtype changes only if a calibration is set after the first
// answer. A full weight is always dense.
bool prefers_dense(
    Product product, at::ScalarType dtype, int64_t num_rows, int64_t in,
    int64_t out, int64_t num_weights);

}  // namespace torch_geometric_ext
