#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>

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

// The costs of products with sparse features, in multiply-adds of the loop
// over a dense weight: of a scattered multiply-add, of the start of the loop
// over the weights of a feature, and of an element of a dense weight.
struct CsrCosts {
  float scattered, feature, dense_element;
};

// Returns the costs for the current number of threads. They change as the
// answers of `prefers_dense` do.
CsrCosts get_csr_costs(at::ScalarType dtype);

// Returns the choice of a measurement on this thread, if there is one.
std::optional<bool> get_forced_dense();

}  // namespace torch_geometric_ext
