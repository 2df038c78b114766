#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <tuple>

#include "../dispatch.h"

namespace torch_geometric_ext::prototype_loss {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

using Outputs = std::tuple<Tensor, Tensor, Tensor, Tensor>;
using Forward = Outputs(
    const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&,
    double, double, double, bool);
using Backward = Outputs(
    const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&,
    const Tensor&, const Tensor&, const Tensor&, double, double, double);

class PrototypeLoss : public torch::autograd::Function<PrototypeLoss> {
 public:
  static variable_list forward(
      AutogradContext* ctx, const Tensor& h, const Tensor& y,
      const Tensor& weight1, const Tensor& weight2, const Tensor& prototypes,
      double temperature, double compactness_weight, double separation_weight,
      bool nearest_only) {
    static const auto op =
        find_op<Forward>("torch_geometric_ext::prototype_loss");
    at::AutoDispatchBelowADInplaceOrView guard;
    const auto [loss, scores, hidden, embedding] = op.call(
        h, y, weight1, weight2, prototypes, temperature, compactness_weight,
        separation_weight, nearest_only);
    ctx->save_for_backward(
        {h, y, weight1, weight2, prototypes, hidden, embedding});
    ctx->saved_data["temperature"] = temperature;
    ctx->saved_data["compactness_weight"] = compactness_weight;
    ctx->saved_data["separation_weight"] = separation_weight;
    ctx->mark_non_differentiable({scores, hidden, embedding});
    return {loss, scores, hidden, embedding};
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    if (!grads[0].defined()) return variable_list(9);
    const auto saved = ctx->get_saved_variables();
    static const auto op =
        find_op<Backward>("torch_geometric_ext::prototype_loss_backward");
    const auto [h, weight1, weight2, prototypes] = call_in_backward([&] {
      return op.call(
          grads[0], saved[0], saved[1], saved[2], saved[3], saved[4], saved[5],
          saved[6], ctx->saved_data["temperature"].toDouble(),
          ctx->saved_data["compactness_weight"].toDouble(),
          ctx->saved_data["separation_weight"].toDouble());
    });
    return {h,        Tensor(), weight1,  weight2, prototypes,
            Tensor(), Tensor(), Tensor(), Tensor()};
  }
};

Outputs prototype_loss_autograd(
    const Tensor& h, const Tensor& y, const Tensor& weight1,
    const Tensor& weight2, const Tensor& prototypes, double temperature,
    double compactness_weight, double separation_weight, bool nearest_only) {
  const auto out = PrototypeLoss::apply(
      h, y, weight1, weight2, prototypes, temperature, compactness_weight,
      separation_weight, nearest_only);
  return {out[0], out[1], out[2], out[3]};
}

}  // namespace

TORCH_LIBRARY_IMPL(torch_geometric_ext, Autograd, m) {
  m.impl("prototype_loss", TORCH_FN(prototype_loss_autograd));
}

}  // namespace torch_geometric_ext::prototype_loss
