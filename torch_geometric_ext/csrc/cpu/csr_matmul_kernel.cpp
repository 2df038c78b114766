#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>

namespace torch_geometric_ext {
namespace {

using at::Tensor;

// Edges in compressed rows: `perm` holds their positions in `value`.
struct Rows {
  const int64_t* ptr;
  const int64_t* col;
  const int64_t* perm;
  int64_t size;
};

void check_rows(
    const char* name, const Tensor& ptr, const Tensor& col,
    const Tensor& perm) {
  for (const auto& x : {ptr, col, perm}) {
    TORCH_CHECK_VALUE(
        x.dim() == 1 && x.scalar_type() == at::kLong, name,
        ": boundaries, columns and positions need to be vectors of int64 "
        "(got ",
        x.dim(), " dimensions of ", x.scalar_type(), ")");
  }
  TORCH_CHECK_VALUE(
      ptr.numel() > 0 && col.numel() == perm.numel(), name,
      ": 'ptr' needs to hold a boundary, and 'col' one position 'perm' each "
      "(got ",
      ptr.numel(), " boundaries, ", col.numel(), " columns and ", perm.numel(),
      " positions)");
}

// Boundaries and indices come from outside: a pass over them is cheap beside
// that over the features.
void check_range(
    const char* name, const Rows& rows, int64_t num_edges, int64_t num_cols) {
  bool valid = rows.ptr[0] == 0 && rows.ptr[rows.size] == num_edges;
  for (int64_t i = 0; i < rows.size; i++) {
    valid &= rows.ptr[i] <= rows.ptr[i + 1];
  }
  for (int64_t k = 0; k < num_edges; k++) {
    valid &= rows.col[k] >= 0 && rows.col[k] < num_cols;
    valid &= rows.perm[k] >= 0 && rows.perm[k] < num_edges;
  }
  TORCH_CHECK_INDEX(
      valid, name, ": boundaries, columns or positions are out of range");
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
  check_rows("csr_matmul", ptr, col, perm);
  TORCH_CHECK_VALUE(
      value.dim() == 2 && x.dim() == 3 && value.size(0) == col.numel() &&
          value.size(1) == x.size(1) && value.scalar_type() == x.scalar_type(),
      "csr_matmul: 'value' needs to be of shape [", col.numel(),
      ", H] and 'x' of shape [N, H, C] and of one type (got ", value.sizes(),
      " of ", value.scalar_type(), " and ", x.sizes(), " of ",
      x.scalar_type(), ")");
  const auto ptr_ = ptr.contiguous(), col_ = col.contiguous(),
             perm_ = perm.contiguous();
  const Rows rows{
      ptr_.const_data_ptr<int64_t>(), col_.const_data_ptr<int64_t>(),
      perm_.const_data_ptr<int64_t>(), ptr.numel() - 1};
  check_range("csr_matmul", rows, col.numel(), x.size(0));
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
  check_rows("csr_dot_products", ptr, col, perm);
  TORCH_CHECK_VALUE(
      grad.dim() == 3 && x.dim() == 3 && grad.size(0) == ptr.numel() - 1 &&
          grad.size(1) == x.size(1) && grad.size(2) == x.size(2) &&
          grad.scalar_type() == x.scalar_type(),
      "csr_dot_products: 'grad' needs to be of shape [", ptr.numel() - 1,
      ", H, C] and 'x' of shape [N, H, C] and of one type (got ", grad.sizes(),
      " of ", grad.scalar_type(), " and ", x.sizes(), " of ", x.scalar_type(),
      ")");
  const auto ptr_ = ptr.contiguous(), col_ = col.contiguous(),
             perm_ = perm.contiguous();
  const Rows rows{
      ptr_.const_data_ptr<int64_t>(), col_.const_data_ptr<int64_t>(),
      perm_.const_data_ptr<int64_t>(), ptr.numel() - 1};
  check_range("csr_dot_products", rows, col.numel(), x.size(0));
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

}  // namespace torch_geometric_ext
