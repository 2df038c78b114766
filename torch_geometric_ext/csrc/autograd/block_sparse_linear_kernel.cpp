#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <optional>
#include <tuple>

#include "../dispatch.h"

namespace torch_geometric_ext::block_sparse_linear {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

using Forward = Tensor(
    const Tensor&, const Tensor&, const std::optional<Tensor>&, const Tensor&,
    const Tensor&, const Tensor&, const Tensor&, const Tensor&, int64_t,
    int64_t, bool);
using Backward = std::tuple<Tensor, Tensor, Tensor>(
    const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&,
    const Tensor&, const Tensor&, const Tensor&, int64_t, bool, bool, bool,
    bool);

class BlockSparseLinear : public torch::autograd::Function<BlockSparseLinear> {
 public:
  static Tensor forward(
      AutogradContext* ctx, const Tensor& x, const Tensor& values,
      const std::optional<Tensor>& bias, const Tensor& rowptr,
      const Tensor& col, const Tensor& colptr, const Tensor& row,
      const Tensor& perm, int64_t out_channels, int64_t block_size,
      bool check_invariants) {
    static const auto op =
        find_op<Forward>("torch_geometric_ext::block_sparse_linear");
    at::AutoDispatchBelowADInplaceOrView guard;
    ctx->save_for_backward({x, values, rowptr, col, colptr, row, perm});
    ctx->saved_data["block_size"] = block_size;
    return op.call(
        x, values, bias, rowptr, col, colptr, row, perm, out_channels,
        block_size, check_invariants);
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const bool needs_x = ctx->needs_input_grad(0);
    const bool needs_values = ctx->needs_input_grad(1);
    const bool needs_bias = ctx->needs_input_grad(2);
    variable_list out(11);
    if (!needs_x && !needs_values && !needs_bias) return out;
    static const auto op =
        find_op<Backward>("torch_geometric_ext::block_sparse_linear_backward");
    const auto [x, values, bias] = call_in_backward([&] {
      return op.call(
          grads[0], saved[0], saved[1], saved[2], saved[3], saved[4], saved[5],
          saved[6], ctx->saved_data["block_size"].toInt(), needs_x,
          needs_values, needs_bias,
          /*check_invariants=*/false);  // The forward pass checked them.
    });
    if (needs_x) out[0] = x;
    if (needs_values) out[1] = values;
    if (needs_bias) out[2] = bias;
    return out;
  }
};

Tensor block_sparse_linear_autograd(
    const Tensor& x, const Tensor& values, const std::optional<Tensor>& bias,
    const Tensor& rowptr, const Tensor& col, const Tensor& colptr,
    const Tensor& row, const Tensor& perm, int64_t out_channels,
    int64_t block_size, bool check_invariants) {
  return BlockSparseLinear::apply(
      x, values, bias, rowptr, col, colptr, row, perm, out_channels, block_size,
      check_invariants);
}

}  // namespace

TORCH_LIBRARY_IMPL(torch_geometric_ext, Autograd, m) {
  m.impl("block_sparse_linear", TORCH_FN(block_sparse_linear_autograd));
}

}  // namespace torch_geometric_ext::block_sparse_linear
