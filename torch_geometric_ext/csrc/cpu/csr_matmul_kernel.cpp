#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>

#include "../check.h"

namespace torch_geometric_ext::csr_matmul {
namespace {

using at::Tensor;

// Edges in compressed rows: `perm` holds their positions in `value`.
struct Rows {
  const int64_t* ptr;
  const int64_t* col;
  const int64_t* perm;
  int64_t size;
};

// Checks edges once per call: a pass over them is cheap beside that over the
// features.
Rows check_rows(
    const char* op, const Tensor& ptr, const Tensor& col, const Tensor& perm,
    int64_t num_cols) {
  check_integers(op, "ptr", ptr, at::kLong);
  check_integers(op, "col", col, at::kLong);
  check_integers(op, "perm", perm, at::kLong, col.numel());
  TORCH_CHECK_VALUE(
      ptr.is_contiguous() && col.is_contiguous() && perm.is_contiguous(), op,
      ": 'ptr', 'col' and 'perm' need to be contiguous");
  check_ptr<int64_t>(op, "ptr", ptr, col.numel());
  const Rows rows{
      ptr.const_data_ptr<int64_t>(), col.const_data_ptr<int64_t>(),
      perm.const_data_ptr<int64_t>(), ptr.numel() - 1};
  bool valid = true;
  for (int64_t k = 0; k < col.numel(); k++) {
    valid &= rows.col[k] >= 0 && rows.col[k] < num_cols;
    valid &= rows.perm[k] >= 0 && rows.perm[k] < col.numel();
  }
  TORCH_CHECK_INDEX(
      valid, op, ": 'col' needs to be in [0, ", num_cols,
      ") and 'perm' in [0, ", col.numel(), ")");
  return rows;
}

// Splits rows such that threads get as many edges each.
template <typename Function>
void parallel_rows(const Rows& rows, int64_t width, const Function& function) {
  const auto num_edges = rows.ptr[rows.size];
  const auto work = std::max<int64_t>(num_edges * width, 1);
  const auto grain = std::max<int64_t>(rows.size * 32768 / work, 1);
  at::parallel_for(0, rows.size, grain, function);
}

// out[i, h] = sum over edges k of row i: value[perm[k], h] * x[col[k], h].
template <typename scalar_t>
void matmul(
    const Rows& rows, const scalar_t* value, const scalar_t* x, int64_t heads,
    int64_t channels, scalar_t* out) {
  const auto width = heads * channels;
  parallel_rows(rows, width, [&](int64_t begin, int64_t end) {
    for (auto i = begin; i < end; i++) {
      auto* dst = out + i * width;
      std::fill(dst, dst + width, scalar_t(0));
      for (auto k = rows.ptr[i]; k < rows.ptr[i + 1]; k++) {
        const auto* src = x + rows.col[k] * width;
        const auto* factor = value + rows.perm[k] * heads;
        for (int64_t h = 0; h < heads; h++) {
          const auto scale = factor[h];
          auto* __restrict to = dst + h * channels;
          const auto* __restrict from = src + h * channels;
#pragma omp simd
          for (int64_t c = 0; c < channels; c++) to[c] += scale * from[c];
        }
      }
    }
  });
}

// out[perm[k], h] = dot product of grad[i, h] and x[col[k], h] for each edge k
// of row i.
template <typename scalar_t>
void dot_products(
    const Rows& rows, const scalar_t* grad, const scalar_t* x, int64_t heads,
    int64_t channels, scalar_t* out) {
  const auto width = heads * channels;
  parallel_rows(rows, width, [&](int64_t begin, int64_t end) {
    for (auto i = begin; i < end; i++) {
      for (auto k = rows.ptr[i]; k < rows.ptr[i + 1]; k++) {
        for (int64_t h = 0; h < heads; h++) {
          const auto* a = grad + i * width + h * channels;
          const auto* b = x + rows.col[k] * width + h * channels;
          scalar_t sum = 0;
#pragma omp simd reduction(+ : sum)
          for (int64_t c = 0; c < channels; c++) sum += a[c] * b[c];
          out[rows.perm[k] * heads + h] = sum;
        }
      }
    }
  });
}

Tensor csr_matmul_cpu(
    const Tensor& value, const Tensor& x, const Tensor& ptr, const Tensor& col,
    const Tensor& perm) {
  TORCH_CHECK_VALUE(
      value.dim() == 2 && x.dim() == 3 && value.size(0) == col.numel() &&
          value.size(1) == x.size(1) && value.scalar_type() == x.scalar_type(),
      "csr_matmul: 'value' needs to be of shape [", col.numel(),
      ", H] and 'x' of shape [N, H, C] and of one type (got ", value.sizes(),
      " of ", value.scalar_type(), " and ", x.sizes(), " of ", x.scalar_type(),
      ")");
  const auto rows = check_rows("csr_matmul", ptr, col, perm, x.size(0));
  const auto a = value.contiguous(), b = x.contiguous();
  auto out = at::empty({rows.size, x.size(1), x.size(2)}, x.options());
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "csr_matmul", [&] {
    matmul<scalar_t>(
        rows, a.const_data_ptr<scalar_t>(), b.const_data_ptr<scalar_t>(),
        x.size(1), x.size(2), out.mutable_data_ptr<scalar_t>());
  });
  return out;
}

Tensor csr_dot_products_cpu(
    const Tensor& grad, const Tensor& x, const Tensor& ptr, const Tensor& col,
    const Tensor& perm) {
  TORCH_CHECK_VALUE(
      grad.dim() == 3 && x.dim() == 3 && grad.size(0) == ptr.numel() - 1 &&
          grad.size(1) == x.size(1) && grad.size(2) == x.size(2) &&
          grad.scalar_type() == x.scalar_type(),
      "csr_dot_products: 'grad' needs to be of shape [", ptr.numel() - 1,
      ", H, C] and 'x' of shape [N, H, C] and of one type (got ", grad.sizes(),
      " of ", grad.scalar_type(), " and ", x.sizes(), " of ", x.scalar_type(),
      ")");
  const auto rows = check_rows("csr_dot_products", ptr, col, perm, x.size(0));
  const auto a = grad.contiguous(), b = x.contiguous();
  auto out = at::zeros({col.numel(), x.size(1)}, x.options());
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "csr_dot_products", [&] {
    dot_products<scalar_t>(
        rows, a.const_data_ptr<scalar_t>(), b.const_data_ptr<scalar_t>(),
        x.size(1), x.size(2), out.mutable_data_ptr<scalar_t>());
  });
  return out;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(torch_geometric_ext, m) {
  m.def(
      "csr_matmul(Tensor value, Tensor x, Tensor ptr, Tensor col, "
      "Tensor perm) -> Tensor");
  m.def(
      "csr_dot_products(Tensor grad, Tensor x, Tensor ptr, Tensor col, "
      "Tensor perm) -> Tensor");
}

TORCH_LIBRARY_IMPL(torch_geometric_ext, CPU, m) {
  m.impl("csr_matmul", TORCH_FN(csr_matmul_cpu));
  m.impl("csr_dot_products", TORCH_FN(csr_dot_products_cpu));
}

}  // namespace torch_geometric_ext::csr_matmul
