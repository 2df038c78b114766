#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <optional>

#include "crossovers.h"
#include "csr_row.h"
#include "pattern.h"
#include "sparse_linear_schedule.h"

namespace torch_geometric_ext::csr_sparse_linear {
namespace {

using at::Tensor;

// Sparse features, row by row.
template <typename scalar_t, typename index_t>
struct Features {
  const index_t* ptr;
  const index_t* index;
  const scalar_t* value;
  int64_t num_rows;

  int64_t num_elements() const {
    return ptr[num_rows];
  }
  CsrRow<scalar_t, index_t> row(int64_t i) const {
    return {ptr[i + 1] - ptr[i], index + ptr[i], value + ptr[i]};
  }
};

// The positions of the weights, column by column.
struct Columns {
  const int32_t* ptr;
  const int32_t* row;
  const int32_t* perm;
  int64_t num_weights, in, out;
};

// Returns the loops for the instruction set that PyTorch uses.
template <typename scalar_t, typename index_t>
CsrRowLoops<scalar_t, index_t> csr_row_loops(
    const Features<scalar_t, index_t>& /*x*/) {
  static const auto loops = [] {
#if defined(__x86_64__)
    const auto capability = at::get_cpu_capability();
    if (capability.rfind("AVX512", 0) == 0)
      return csr_row_loops_avx512<scalar_t, index_t>();
    if (capability == "AVX2") return csr_row_loops_avx2<scalar_t, index_t>();
#endif
    return csr_row_loops_default<scalar_t, index_t>();
  }();
  return loops;
}

Columns get_columns(
    const char* op, const Pattern& pattern, bool with_invariants) {
  const auto num_weights = pattern.col.numel();
  const auto in = pattern.colptr.numel() - 1;
  check_tensors(op, pattern, num_weights, in);
  if (with_invariants) check_invariants(op, pattern);
  const PatternData data(pattern);
  return {data.colptr, data.row, data.perm,
          num_weights, in,       pattern.rowptr.numel() - 1};
}

template <typename scalar_t, typename index_t>
Features<scalar_t, index_t> check_features(
    const char* op, const Tensor& ptr, const Tensor& index, const Tensor& value,
    const Columns& weight) {
  const auto dtype = ptr.scalar_type();
  check_integers(op, "ptr", ptr, dtype);
  check_integers(op, "index", index, dtype, value.numel());
  check_ptr<index_t>(op, "ptr", ptr, value.numel());
  const Features<scalar_t, index_t> x{
      ptr.const_data_ptr<index_t>(), index.const_data_ptr<index_t>(),
      value.const_data_ptr<scalar_t>(), ptr.numel() - 1};
  bool valid = true;
  for (int64_t j = 0; j < index.numel(); j++) {
    valid &= x.index[j] >= 0 && x.index[j] < weight.in;
  }
  TORCH_CHECK_INDEX(valid, op, ": 'index' needs to be in [0, ", weight.in, ")");
  return x;
}

// The multiply-adds of both ways to compute a product.
struct Work {
  int64_t sparse = 0, dense, num_elements;
  double num_dense;

  template <typename scalar_t, typename index_t>
  Work(const Features<scalar_t, index_t>& x, const Columns& weight)
      : dense(x.num_elements() * weight.out),
        num_elements(x.num_elements()),
        num_dense(double(weight.in) * double(weight.out)) {
    for (int64_t j = 0; j < x.num_elements(); j++) {
      sparse += weight.ptr[x.index[j] + 1] - weight.ptr[x.index[j]];
    }
  }

  bool prefers_dense(at::ScalarType dtype) const {
    if (const auto forced = get_forced_dense()) return *forced;
    const auto costs = get_csr_costs(dtype);
    return double(dense) + costs.dense_element * num_dense <
           costs.scattered * double(sparse) +
               costs.feature * double(num_elements);
  }
};

// Computes rows of the output: `add(row, out)` adds the product of a row of
// features.
template <typename scalar_t, typename index_t, typename F>
void forward(
    const Features<scalar_t, index_t>& x, const Tensor& bias, int64_t work,
    Tensor& out, const F& add) {
  const auto width = out.size(1);
  const auto* start =
      bias.defined() ? bias.const_data_ptr<scalar_t>() : nullptr;
  auto* data = out.mutable_data_ptr<scalar_t>();
  // The multiply-adds that are worth a thread. A choice, no measurement.
  const auto grain = x.num_rows * (int64_t(1) << 15) / (work + out.numel() + 1);
  at::parallel_for(0, x.num_rows, grain + 1, [&](int64_t begin, int64_t end) {
    for (auto i = begin; i < end; i++) {
      auto* row = data + i * width;
      if (start != nullptr) {
        std::copy(start, start + width, row);
      } else {
        std::fill(row, row + width, scalar_t(0));
      }
      add(x.row(i), row);
    }
  });
}

// Sums the gradients of `size` weights: `add(row, grad, sums)` adds those of a
// row of features. Each thread has sums of its own, unless there are so many
// weights that these cost more than threads gain.
template <typename scalar_t, typename index_t, typename F>
Tensor backward(
    const Features<scalar_t, index_t>& x, const Tensor& grad, int64_t size,
    int64_t work, const F& add) {
  const auto affordable = work / (8 * std::max<int64_t>(size, 1));
  const auto num_parts =
      std::clamp<int64_t>(affordable, 1, at::get_num_threads());
  auto parts = at::zeros({num_parts, size}, grad.options());
  auto* sums = parts.template mutable_data_ptr<scalar_t>();
  const auto* data = grad.const_data_ptr<scalar_t>();
  const auto width = grad.size(1);
  for_chunks(
      x.num_rows, num_parts, 1, [&](int64_t part, int64_t begin, int64_t end) {
        for (auto i = begin; i < end; i++) {
          add(x.row(i), data + i * width, sums + part * size);
        }
      });
  for_weights(size, [&](int64_t k) {
    for (int64_t i = 1; i < num_parts; i++) sums[k] += sums[i * size + k];
  });
  return parts;
}

// Calls `func(position, weight)` for all weights, feature by feature.
// Positions are those in the transposed dense weight.
template <typename F>
void for_dense(const Columns& weight, const F& func) {
  const auto grain = (int64_t(1) << 15) / (weight.out + 1) + 1;
  at::parallel_for(0, weight.in, grain, [&](int64_t begin, int64_t end) {
    for (auto f = begin; f < end; f++) {
      for (auto k = weight.ptr[f]; k < weight.ptr[f + 1]; k++) {
        func(f * weight.out + weight.row[k], weight.perm[k]);
      }
    }
  });
}

template <typename scalar_t, typename index_t>
Tensor run_forward(
    const Features<scalar_t, index_t>& x, const Tensor& values,
    const Tensor& bias, const Columns& weight) {
  const Work work(x, weight);
  auto out = at::empty({x.num_rows, weight.out}, values.options());
  const auto* src = values.const_data_ptr<scalar_t>();
  if (work.prefers_dense(values.scalar_type())) {
    const auto dense = at::zeros({weight.in, weight.out}, values.options());
    auto* data = dense.template mutable_data_ptr<scalar_t>();
    for_dense(weight, [&](int64_t i, int64_t k) { data[i] = src[k]; });
    const auto multiply = csr_row_loops(x).multiply;
    forward(x, bias, work.dense, out, [&](const auto& row, scalar_t* dst) {
      multiply(row, data, weight.out, dst);
    });
    return out;
  }
  const auto by_column = at::empty({weight.num_weights}, values.options());
  auto* data = by_column.template mutable_data_ptr<scalar_t>();
  for_weights(
      weight.num_weights, [&](int64_t k) { data[k] = src[weight.perm[k]]; });
  forward(x, bias, work.sparse, out, [&](const auto& row, scalar_t* dst) {
    for (int64_t j = 0; j < row.size; j++) {
      const auto value = row.value[j];
      const auto end = weight.ptr[row.index[j] + 1];
      for (auto k = weight.ptr[row.index[j]]; k < end; k++) {
        dst[weight.row[k]] += value * data[k];
      }
    }
  });
  return out;
}

template <typename scalar_t, typename index_t>
Tensor run_backward(
    const Features<scalar_t, index_t>& x, const Tensor& grad,
    const Columns& weight) {
  const Work work(x, weight);
  auto out = at::zeros({weight.num_weights}, grad.options());
  auto* dst = out.template mutable_data_ptr<scalar_t>();
  if (work.prefers_dense(grad.scalar_type())) {
    const auto add_outer = csr_row_loops(x).add_outer;
    const auto dense = backward(
        x, grad, weight.in * weight.out, work.dense,
        [&](const auto& row, const scalar_t* src, scalar_t* sums) {
          add_outer(row, src, weight.out, sums);
        });
    const auto* src = dense.template const_data_ptr<scalar_t>();
    for_dense(weight, [&](int64_t i, int64_t k) { dst[k] = src[i]; });
    return out;
  }
  const auto by_column = backward(
      x, grad, weight.num_weights, work.sparse,
      [&](const auto& row, const scalar_t* src, scalar_t* sums) {
        for (int64_t j = 0; j < row.size; j++) {
          const auto value = row.value[j];
          const auto end = weight.ptr[row.index[j] + 1];
          for (auto k = weight.ptr[row.index[j]]; k < end; k++) {
            sums[k] += value * src[weight.row[k]];
          }
        }
      });
  const auto* src = by_column.template const_data_ptr<scalar_t>();
  for (int64_t k = 0; k < weight.num_weights; k++) dst[weight.perm[k]] = src[k];
  return out;
}

// Calls `func` with the checked features.
template <typename F>
Tensor dispatch(
    const char* op, const Tensor& ptr, const Tensor& index, const Tensor& x,
    const Tensor& other, const Columns& weight, const F& func) {
  TORCH_CHECK_VALUE(
      x.dim() == 1 && x.scalar_type() == other.scalar_type(), op,
      ": 'x' needs to be a vector of ", other.scalar_type(), " (got ",
      x.scalar_type(), " of shape ", x.sizes(), ")");
  TORCH_CHECK_VALUE(
      ptr.is_cpu() && index.is_cpu(), op, ": 'ptr' and 'index' need to be on ",
      x.device());
  TORCH_CHECK_VALUE(
      ptr.scalar_type() == at::kInt || ptr.scalar_type() == at::kLong, op,
      ": 'ptr' needs to be of int32 or int64 (got ", ptr.scalar_type(), ")");
  const auto begin = ptr.contiguous(), columns = index.contiguous();
  const auto value = x.contiguous();
  return AT_DISPATCH_FLOATING_TYPES(
      value.scalar_type(), "csr_sparse_linear", [&] {
        return AT_DISPATCH_INDEX_TYPES(
            begin.scalar_type(), "csr_sparse_linear", [&] {
              return func(
                  check_features<scalar_t, index_t>(
                      op, begin, columns, value, weight));
            });
      });
}

Tensor csr_sparse_linear_cpu(
    const Tensor& ptr, const Tensor& index, const Tensor& x,
    const Tensor& values, const std::optional<Tensor>& bias,
    const Tensor& rowptr, const Tensor& col, const Tensor& colptr,
    const Tensor& row, const Tensor& perm, bool check_invariants) {
  const auto* op = "csr_sparse_linear";
  const auto weight =
      get_columns(op, {rowptr, col, colptr, row, perm}, check_invariants);
  TORCH_CHECK_VALUE(
      values.dim() == 1 && values.numel() == weight.num_weights, op,
      ": 'values' needs to be a vector of ", weight.num_weights,
      " elements (got shape ", values.sizes(), ")");
  const bool with_bias = bias.has_value() && bias->defined();
  TORCH_CHECK_VALUE(
      !with_bias || (bias->dim() == 1 && bias->numel() == weight.out &&
                     bias->scalar_type() == values.scalar_type()),
      op, ": 'bias' needs to be a vector of ", weight.out, " ",
      values.scalar_type());
  const auto src = values.contiguous();
  const auto start = with_bias ? bias->contiguous() : Tensor();
  return dispatch(op, ptr, index, x, values, weight, [&](const auto& rows) {
    return run_forward(rows, src, start, weight);
  });
}

Tensor csr_sparse_linear_backward_cpu(
    const Tensor& grad, const Tensor& ptr, const Tensor& index, const Tensor& x,
    const Tensor& rowptr, const Tensor& col, const Tensor& colptr,
    const Tensor& row, const Tensor& perm, bool check_invariants) {
  const auto* op = "csr_sparse_linear_backward";
  const auto weight =
      get_columns(op, {rowptr, col, colptr, row, perm}, check_invariants);
  TORCH_CHECK_VALUE(
      grad.dim() == 2 && grad.size(0) == ptr.numel() - 1 &&
          grad.size(1) == weight.out,
      op, ": 'grad' needs to be of shape [", ptr.numel() - 1, ", ", weight.out,
      "] (got ", grad.sizes(), ")");
  const auto src = grad.contiguous();
  return dispatch(op, ptr, index, x, grad, weight, [&](const auto& rows) {
    return run_backward(rows, src, weight);
  });
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(torch_geometric_ext, m) {
  m.def(
      "csr_sparse_linear(Tensor ptr, Tensor index, Tensor x, Tensor values, "
      "Tensor? bias, Tensor rowptr, Tensor col, Tensor colptr, Tensor row, "
      "Tensor perm, bool check_invariants=True) -> Tensor");
  m.def(
      "csr_sparse_linear_backward(Tensor grad, Tensor ptr, Tensor index, "
      "Tensor x, Tensor rowptr, Tensor col, Tensor colptr, Tensor row, "
      "Tensor perm, bool check_invariants=True) -> Tensor");
}

TORCH_LIBRARY_IMPL(torch_geometric_ext, CPU, m) {
  m.impl("csr_sparse_linear", TORCH_FN(csr_sparse_linear_cpu));
  m.impl(
      "csr_sparse_linear_backward", TORCH_FN(csr_sparse_linear_backward_cpu));
}

}  // namespace torch_geometric_ext::csr_sparse_linear
