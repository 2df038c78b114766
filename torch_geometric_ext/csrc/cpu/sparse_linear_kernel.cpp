#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/zeros.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/library.h>

#include <algorithm>
#include <optional>
#include <tuple>
#include <type_traits>
#include <utility>

#include "crossovers.h"
#include "memory.h"
#include "pattern.h"
#include "sparse_linear.h"
#include "sparse_linear_schedule.h"

namespace torch_geometric_ext {
namespace {

using at::Tensor;

void check(
    const char* op, const Tensor& x, const Tensor& values,
    const Pattern& pattern, bool with_invariants) {
  TORCH_CHECK_VALUE(
      x.dim() == 2, op, ": 'x' needs to be a matrix (got ", x.dim(),
      " dimensions)");
  TORCH_CHECK_VALUE(
      values.dim() == 1 && (values.scalar_type() == at::kFloat ||
                            values.scalar_type() == at::kDouble),
      op, ": 'values' needs to be a vector of float or double (got ",
      values.scalar_type(), " of shape ", values.sizes(), ")");
  TORCH_CHECK_VALUE(
      x.scalar_type() == values.scalar_type() ||
          (at::isReducedFloatingType(x.scalar_type()) &&
           values.scalar_type() == at::kFloat),
      op, ": 'x' needs to be of the type of 'values', ", values.scalar_type(),
      " (got ", x.scalar_type(), ")");
  check_tensors(op, pattern, values.numel(), x.size(1));
  if (with_invariants) check_invariants(op, pattern);
}

// Casts `x` to a dtype that has loops, and makes its rows contiguous.
Tensor as_rows(const Tensor& x, const Tensor& values) {
  const bool has_loops = x.scalar_type() == at::kBFloat16;
  const auto out = has_loops ? x : x.to(values.scalar_type());
  return x.size(1) <= 1 || out.stride(1) == 1 ? out : out.contiguous();
}

template <typename element_t>
void forward(
    const Tensor& x, const Tensor& values, const Compute<element_t>* bias,
    const Pattern& pattern, Tensor& out) {
  using scalar_t = Compute<element_t>;
  const auto& loops = tile_loops<element_t>();
  const auto channels = out.size(1);
  const Compressed<scalar_t> weight{
      pattern.rowptr.const_data_ptr<int32_t>(),
      pattern.col.const_data_ptr<int32_t>(), values.const_data_ptr<scalar_t>()};
  const Plan plan(
      x.size(0), values.numel(), x.size(1) + channels, loops.max_rows);
  for_tiles<element_t>(
      x, channels, plan,
      [&](int64_t, const scalar_t* tile, int64_t row, int64_t num_rows,
          int64_t begin, int64_t end) {
        loops.forward(
            tile, num_rows, begin, end, weight, bias,
            output_rows<element_t>(out, row));
      });
}

template <typename element_t>
void backward(
    const Tensor& grad, const Tensor& x, const Tensor& values,
    const Pattern& pattern, Tensor& grad_x, Tensor& grad_values, bool needs_x,
    bool needs_values) {
  using scalar_t = Compute<element_t>;
  const auto& loops = tile_loops<element_t>();
  const auto in = x.size(1), num_weights = values.numel();
  if (num_weights == 0) {
    grad_x.zero_();
    return;
  }
  const auto* perm = pattern.perm.const_data_ptr<int32_t>();
  auto by_column = at::empty({num_weights}, values.options());
  const auto* src = values.const_data_ptr<scalar_t>();
  auto* dst = by_column.mutable_data_ptr<scalar_t>();
  for_weights(num_weights, [&](int64_t i) { dst[i] = src[perm[i]]; });
  const Compressed<scalar_t> weight{
      pattern.colptr.const_data_ptr<int32_t>(),
      pattern.row.const_data_ptr<int32_t>(), dst};

  const Plan plan(x.size(0), num_weights, in + grad.size(1), loops.max_rows);
  const auto num_parts = plan.by_tiles ? plan.num_threads : 1;
  auto parts =
      at::zeros({needs_values ? num_parts : 0, num_weights}, values.options());
  auto* sums = needs_values ? parts.mutable_data_ptr<scalar_t>() : nullptr;
  for_tiles<element_t>(
      grad, in, plan,
      [&](int64_t part, const scalar_t* tile, int64_t row, int64_t num_rows,
          int64_t begin, int64_t end) {
        loops.backward(
            tile, num_rows, begin, end, weight,
            rows_of<const element_t>(x, row),
            needs_x ? output_rows<element_t>(grad_x, row) : Matrix<element_t>{},
            needs_values ? sums + part * num_weights : nullptr);
      });
  if (!needs_values) return;
  auto* out = grad_values.mutable_data_ptr<scalar_t>();
  for_weights(num_weights, [&](int64_t i) {
    scalar_t sum = 0;
    for (int64_t j = 0; j < num_parts; j++) sum += sums[j * num_weights + i];
    out[perm[i]] = sum;
  });
}

// Calls `func(positions, dense row)` for the weights of each row, where
// `positions` are the weights [begin, end).
template <typename F>
void for_rows(const Pattern& pattern, int64_t in, const F& func) {
  const auto* ptr = pattern.rowptr.const_data_ptr<int32_t>();
  const auto num_rows = pattern.rowptr.numel() - 1;
  const auto grain = (1 << 15) / std::max<int64_t>(in, 1) + 1;
  at::parallel_for(0, num_rows, grain, [&](int64_t begin, int64_t end) {
    for (auto row = begin; row < end; row++) func(row, ptr[row], ptr[row + 1]);
  });
}

template <typename scalar_t>
Tensor to_dense(const Tensor& values, const Pattern& pattern, int64_t in) {
  const auto num_rows = pattern.rowptr.numel() - 1;
  if (values.numel() == num_rows * in) return values.view({num_rows, in});
  auto out = at::empty({num_rows, in}, values.options());
  const auto* src = values.const_data_ptr<scalar_t>();
  const auto* col = pattern.col.const_data_ptr<int32_t>();
  auto* dst = out.mutable_data_ptr<scalar_t>();
  for_rows(pattern, in, [&](int64_t row, int64_t begin, int64_t end) {
    auto* weight = dst + row * in;
    std::fill(weight, weight + in, scalar_t(0));
    for (auto k = begin; k < end; k++) weight[col[k]] = src[k];
  });
  return out;
}

// Selects the elements of a dense matrix at the positions of the weights.
template <typename scalar_t>
Tensor to_sparse(
    const Tensor& dense, const Tensor& values, const Pattern& pattern) {
  const auto in = dense.size(1);
  if (values.numel() == dense.numel()) return dense.view(-1);
  auto out = at::empty({values.numel()}, values.options());
  const auto* src = dense.const_data_ptr<scalar_t>();
  const auto* col = pattern.col.const_data_ptr<int32_t>();
  auto* dst = out.mutable_data_ptr<scalar_t>();
  for_rows(pattern, in, [&](int64_t row, int64_t begin, int64_t end) {
    for (auto k = begin; k < end; k++) dst[k] = src[row * in + col[k]];
  });
  return out;
}

// The type that loops know a type of PyTorch by.
template <typename scalar_t>
using Element = std::conditional_t<
    std::is_same_v<scalar_t, c10::BFloat16>, bfloat16, scalar_t>;

template <typename scalar_t>
Tensor run_forward(
    const Tensor& x, const Tensor& values, const Tensor& bias,
    const Pattern& pattern) {
  const auto dtype = x.scalar_type();
  const auto in = x.size(1), channels = pattern.rowptr.numel() - 1;
  if (prefers_dense(kForward, dtype, x.size(0), in, channels, values.numel())) {
    const auto weight = to_dense<scalar_t>(values.to(dtype), pattern, in);
    return at::linear(x, weight, bias.defined() ? bias.to(dtype) : bias);
  }
  using element_t = Element<scalar_t>;
  const auto added = bias.defined() ? bias.contiguous() : bias;
  auto out = empty_matrix(x.size(0), channels, x.options());
  forward<element_t>(
      x, values,
      added.defined() ? added.const_data_ptr<Compute<element_t>>() : nullptr,
      pattern, out);
  return out;
}

bool prefers_dense_backward(
    const Tensor& grad, int64_t in, int64_t num_weights, bool needs_x,
    bool needs_values) {
  auto out = grad.size(1);
  if (!needs_values) std::swap(in, out);  // The weight is transposed.
  const auto product = !needs_values ? kForward : needs_x ? kBoth : kValues;
  return prefers_dense(
      product, grad.scalar_type(), grad.size(0), in, out, num_weights);
}

template <typename scalar_t>
std::tuple<Tensor, Tensor> run_backward(
    const Tensor& grad, const Tensor& x, const Tensor& values,
    const Pattern& pattern, bool needs_x, bool needs_values) {
  const auto dtype = x.scalar_type();
  const auto num_rows = x.size(0), in = x.size(1), num_weights = values.numel();
  auto grad_x = at::empty({0, 0}, x.options());
  auto grad_values = at::empty({0}, values.options());
  if (prefers_dense_backward(grad, in, num_weights, needs_x, needs_values)) {
    const auto weight = values.to(dtype);
    if (needs_x) {
      grad_x = at::mm(grad, to_dense<scalar_t>(weight, pattern, in));
    }
    if (needs_values) {
      const auto dense = at::mm(grad.t(), x);
      grad_values = to_sparse<scalar_t>(dense, weight, pattern);
    }
    return {grad_x, grad_values.to(values.scalar_type())};
  }
  if (needs_x) grad_x = empty_matrix(num_rows, in, x.options());
  if (needs_values) grad_values = at::empty({num_weights}, values.options());
  backward<Element<scalar_t>>(
      grad, x, values, pattern, grad_x, grad_values, needs_x, needs_values);
  return {grad_x, grad_values};
}

Tensor sparse_linear_cpu(
    const Tensor& x, const Tensor& values, const std::optional<Tensor>& bias,
    const Tensor& rowptr, const Tensor& col, const Tensor& colptr,
    const Tensor& row, const Tensor& perm, bool check_invariants) {
  c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::DispatchKey::AutocastCPU);
  const Pattern pattern{rowptr, col, colptr, row, perm};
  check("sparse_linear", x, values, pattern, check_invariants);
  const auto channels = rowptr.numel() - 1;
  const bool with_bias = bias.has_value() && bias->defined();
  TORCH_CHECK_VALUE(
      !with_bias || (bias->dim() == 1 && bias->numel() == channels &&
                     bias->scalar_type() == values.scalar_type()),
      "sparse_linear: 'bias' needs to be a vector of ", channels, " ",
      values.scalar_type());
  const auto rows = as_rows(x, values), weight = values.contiguous();
  auto out = AT_DISPATCH_FLOATING_TYPES_AND(
      at::kBFloat16, rows.scalar_type(), "sparse_linear", [&] {
        const auto added = with_bias ? *bias : Tensor();
        return run_forward<scalar_t>(rows, weight, added, pattern);
      });
  return out.to(x.scalar_type());
}

std::tuple<Tensor, Tensor> sparse_linear_backward_cpu(
    const Tensor& grad, const Tensor& x, const Tensor& values,
    const Tensor& rowptr, const Tensor& col, const Tensor& colptr,
    const Tensor& row, const Tensor& perm, bool needs_x, bool needs_values,
    bool check_invariants) {
  c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::DispatchKey::AutocastCPU);
  const Pattern pattern{rowptr, col, colptr, row, perm};
  check("sparse_linear_backward", x, values, pattern, check_invariants);
  TORCH_CHECK_VALUE(
      grad.dim() == 2 && grad.size(0) == x.size(0) &&
          grad.size(1) == rowptr.numel() - 1,
      "sparse_linear_backward: 'grad' needs to be of shape [", x.size(0), ", ",
      rowptr.numel() - 1, "] (got ", grad.sizes(), ")");
  const auto rows = as_rows(x, values);
  const auto grad_rows = as_rows(grad.to(x.scalar_type()), values);
  const auto [grad_x, grad_values] = AT_DISPATCH_FLOATING_TYPES_AND(
      at::kBFloat16, rows.scalar_type(), "sparse_linear_backward", [&] {
        return run_backward<scalar_t>(
            grad_rows, rows, values.contiguous(), pattern, needs_x,
            needs_values);
      });
  return {grad_x.to(x.scalar_type()), grad_values};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(torch_geometric_ext, m) {
  m.def(
      "sparse_linear(Tensor x, Tensor values, Tensor? bias, Tensor rowptr, "
      "Tensor col, Tensor colptr, Tensor row, Tensor perm, "
      "bool check_invariants=True) -> Tensor");
  m.def(
      "sparse_linear_backward(Tensor grad, Tensor x, Tensor values, "
      "Tensor rowptr, Tensor col, Tensor colptr, Tensor row, Tensor perm, "
      "bool needs_x, bool needs_values, bool check_invariants=True) -> "
      "(Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(torch_geometric_ext, CPU, m) {
  m.impl("sparse_linear", TORCH_FN(sparse_linear_cpu));
  m.impl("sparse_linear_backward", TORCH_FN(sparse_linear_backward_cpu));
}

}  // namespace torch_geometric_ext
