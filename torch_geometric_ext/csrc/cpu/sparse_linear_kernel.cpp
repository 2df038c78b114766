#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/sum.h>
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

namespace torch_geometric_ext::sparse_linear {
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
      x.size(0), values.numel(), x.size(1) + channels,
      get_tile_rows<element_t>(loops.max_rows, x.size(1)));
  for_tiles<element_t>(
      x, channels, plan, [](auto&&...) {},
      [&](int64_t, const scalar_t* tile, int64_t row, int64_t num_rows,
          int64_t begin, int64_t end) {
        loops.forward(
            tile, num_rows, begin, end, weight, bias,
            output_rows<element_t>(out, row));
      });
}

struct Gradients {
  bool needs_x, needs_values, needs_bias;
  Tensor x, values, bias;

  std::tuple<Tensor, Tensor, Tensor> as_tuple() const {
    return {x, values, bias};
  }
};

// Sums the gradients of threads. Those of weights are column by column.
template <typename scalar_t>
void sum_parts(const Tensor& parts, const int32_t* perm, Gradients& out) {
  const auto* src = parts.const_data_ptr<scalar_t>();
  const auto num_parts = parts.size(0), size = parts.size(1);
  const auto num_weights = out.values.numel(), num_biases = out.bias.numel();
  auto* values = out.values.mutable_data_ptr<scalar_t>();
  auto* bias = out.bias.mutable_data_ptr<scalar_t>();
  for_weights(num_weights + num_biases, [&](int64_t i) {
    scalar_t sum = 0;
    for (int64_t j = 0; j < num_parts; j++) sum += src[j * size + i];
    (i < num_weights ? values[perm[i]] : bias[i - num_weights]) = sum;
  });
}

template <typename element_t>
void backward(
    const Tensor& grad, const Tensor& x, const Tensor& values,
    const Pattern& pattern, Gradients& out) {
  using scalar_t = Compute<element_t>;
  const auto& loops = tile_loops<element_t>();
  const auto in = x.size(1), num_weights = values.numel();
  const auto* perm = pattern.perm.const_data_ptr<int32_t>();
  auto by_column = at::empty({num_weights}, values.options());
  const auto* src = values.const_data_ptr<scalar_t>();
  auto* dst = by_column.mutable_data_ptr<scalar_t>();
  for_weights(num_weights, [&](int64_t i) { dst[i] = src[perm[i]]; });
  const Compressed<scalar_t> weight{
      pattern.colptr.const_data_ptr<int32_t>(),
      pattern.row.const_data_ptr<int32_t>(), dst};

  const Plan plan(
      x.size(0), num_weights, in + grad.size(1),
      get_tile_rows<element_t>(loops.max_backward_rows, grad.size(1)));
  const auto num_parts = plan.by_tiles ? plan.num_threads : 1;
  const auto size = out.values.numel() + out.bias.numel();
  auto parts = at::zeros({num_parts, size}, values.options());
  auto* sums = parts.mutable_data_ptr<scalar_t>();
  auto* bias_sums = sums + out.values.numel();
  for_tiles<element_t>(
      grad, in, plan,
      [&](int64_t part, const scalar_t* tile, int64_t num_rows, int64_t begin,
          int64_t end) {
        if (!out.needs_bias) return;
        loops.sum(tile, num_rows, begin, end, bias_sums + part * size);
      },
      [&](int64_t part, const scalar_t* tile, int64_t row, int64_t num_rows,
          int64_t begin, int64_t end) {
        loops.backward(
            tile, num_rows, begin, end, weight,
            rows_of<const element_t>(x, row),
            out.needs_x ? output_rows<element_t>(out.x, row)
                        : Matrix<element_t>{},
            out.needs_values ? sums + part * size : nullptr);
      });
  sum_parts<scalar_t>(parts, perm, out);
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
  auto out = empty_matrix(num_rows, in, values.options());
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
    auto out = empty_matrix(x.size(0), channels, x.options());
    if (!bias.defined()) return at::mm_out(out, x, weight.t());
    return at::addmm_out(out, bias.to(dtype), x, weight.t());
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
void run_dense_backward(
    const Tensor& grad, const Tensor& x, const Tensor& values,
    const Pattern& pattern, Gradients& out) {
  const auto weight = values.to(x.scalar_type());
  if (out.needs_x) {
    out.x = empty_matrix(x.size(0), x.size(1), x.options());
    at::mm_out(out.x, grad, to_dense<scalar_t>(weight, pattern, x.size(1)));
  }
  if (out.needs_values) {
    auto dense = empty_matrix(grad.size(1), x.size(1), x.options());
    at::mm_out(dense, grad.t(), x);
    out.values = to_sparse<scalar_t>(dense, weight, pattern).to(values.dtype());
  }
  if (out.needs_bias) {
    // A sum to another type casts all elements first. This one rounds once.
    out.bias = at::sum(grad, at::IntArrayRef{0}).to(values.scalar_type());
  }
}

template <typename scalar_t>
void run_backward(
    const Tensor& grad, const Tensor& x, const Tensor& values,
    const Pattern& pattern, Gradients& out) {
  const auto in = x.size(1), num_weights = values.numel();
  const bool only_bias = !out.needs_x && !out.needs_values;
  if (only_bias || num_weights == 0 ||
      prefers_dense_backward(
          grad, in, num_weights, out.needs_x, out.needs_values)) {
    return run_dense_backward<scalar_t>(grad, x, values, pattern, out);
  }
  if (out.needs_x) out.x = empty_matrix(x.size(0), in, x.options());
  if (out.needs_values) out.values = at::empty({num_weights}, values.options());
  if (out.needs_bias) out.bias = at::empty({grad.size(1)}, values.options());
  backward<Element<scalar_t>>(grad, x, values, pattern, out);
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

std::tuple<Tensor, Tensor, Tensor> sparse_linear_backward_cpu(
    const Tensor& grad, const Tensor& x, const Tensor& values,
    const Tensor& rowptr, const Tensor& col, const Tensor& colptr,
    const Tensor& row, const Tensor& perm, bool needs_x, bool needs_values,
    bool needs_bias, bool check_invariants) {
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
  const auto empty = at::empty({0}, values.options());
  Gradients out{needs_x,    needs_values,
                needs_bias, at::empty({0, 0}, rows.options()),
                empty,      empty};
  AT_DISPATCH_FLOATING_TYPES_AND(
      at::kBFloat16, rows.scalar_type(), "sparse_linear_backward", [&] {
        run_backward<scalar_t>(
            grad_rows, rows, values.contiguous(), pattern, out);
      });
  out.x = out.x.to(x.scalar_type());
  return out.as_tuple();
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
      "bool needs_x, bool needs_values, bool needs_bias, "
      "bool check_invariants=True) -> (Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(torch_geometric_ext, CPU, m) {
  m.impl("sparse_linear", TORCH_FN(sparse_linear_cpu));
  m.impl("sparse_linear_backward", TORCH_FN(sparse_linear_backward_cpu));
}

}  // namespace torch_geometric_ext::sparse_linear
