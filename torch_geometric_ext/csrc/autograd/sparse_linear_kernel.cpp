#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <optional>
#include <tuple>

#include "../dispatch.h"

namespace torch_geometric_ext::sparse_linear {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

using Forward = Tensor(
    const Tensor&, const Tensor&, const std::optional<Tensor>&, const Tensor&,
    const Tensor&, const Tensor&, const Tensor&, const Tensor&, bool);
using Backward = std::tuple<Tensor, Tensor, Tensor>(
    const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&,
    const Tensor&, const Tensor&, const Tensor&, bool, bool, bool, bool);

class SparseLinear : public torch::autograd::Function<SparseLinear> {
 public:
  static Tensor forward(
      AutogradContext* ctx, const Tensor& x, const Tensor& values,
      const std::optional<Tensor>& bias, const Tensor& rowptr,
      const Tensor& col, const Tensor& colptr, const Tensor& row,
      const Tensor& perm, bool check_invariants) {
    static const auto op =
        find_op<Forward>("torch_geometric_ext::sparse_linear");
    at::AutoDispatchBelowADInplaceOrView guard;
    ctx->save_for_backward({x, values, rowptr, col, colptr, row, perm});
    return op.call(
        x, values, bias, rowptr, col, colptr, row, perm, check_invariants);
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const bool needs_x = ctx->needs_input_grad(0);
    const bool needs_values = ctx->needs_input_grad(1);
    const bool needs_bias = ctx->needs_input_grad(2);
    static const auto op =
        find_op<Backward>("torch_geometric_ext::sparse_linear_backward");
    const auto [x, values, bias] = call_in_backward([&] {
      return op.call(
          grads[0], saved[0], saved[1], saved[2], saved[3], saved[4], saved[5],
          saved[6], needs_x, needs_values, needs_bias,
          /*check_invariants=*/false);  // The forward pass checked them.
    });
    variable_list out(9);
    if (needs_x) out[0] = x;
    if (needs_values) out[1] = values;
    if (needs_bias) out[2] = bias;
    return out;
  }
};

Tensor sparse_linear_autograd(
    const Tensor& x, const Tensor& values, const std::optional<Tensor>& bias,
    const Tensor& rowptr, const Tensor& col, const Tensor& colptr,
    const Tensor& row, const Tensor& perm, bool check_invariants) {
  return SparseLinear::apply(
      x, values, bias, rowptr, col, colptr, row, perm, check_invariants);
}

}  // namespace

TORCH_LIBRARY_IMPL(torch_geometric_ext, Autograd, m) {
  m.impl("sparse_linear", TORCH_FN(sparse_linear_autograd));
}

}  // namespace torch_geometric_ext::sparse_linear
