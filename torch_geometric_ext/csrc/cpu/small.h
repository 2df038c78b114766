#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/mm.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

// Dense routines for contiguous matrices of a few thousand elements.
//
// Within a training step, a library routine starts on cold caches and takes
// about ten microseconds (`benchmark/loader/overhead.py`). Hence small work
// stays in these loops, and large work goes to the library.
namespace torch_geometric_ext {

// Upper bounds of small work, which are choices of this order of magnitude:
constexpr int64_t kSmallProduct = 1 << 16;  // Multiply-adds.
constexpr int64_t kSmallMap = 1 << 12;      // Calls of exp, acos, ...

template <typename scalar_t>
scalar_t dot(const scalar_t* a, const scalar_t* b, int64_t size) {
  scalar_t sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < size; i++) sum += a[i] * b[i];
  return sum;
}

// Computes a @ b.t().
template <typename scalar_t>
at::Tensor matmul_nt(const at::Tensor& a, const at::Tensor& b) {
  const auto rows = a.size(0), cols = b.size(0), inner = a.size(1);
  if (rows * cols * inner > kSmallProduct) return at::mm(a, b.t());
  auto out = at::empty({rows, cols}, a.options());
  const auto* x = a.const_data_ptr<scalar_t>();
  const auto* y = b.const_data_ptr<scalar_t>();
  auto* dst = out.mutable_data_ptr<scalar_t>();
  for (int64_t i = 0; i < rows; i++) {
    for (int64_t j = 0; j < cols; j++) {
      *dst++ = dot(x + i * inner, y + j * inner, inner);
    }
  }
  return out;
}

// Computes out += a @ b in-place. `a` may be a transposed view.
template <typename scalar_t>
void addmm_(at::Tensor& out, const at::Tensor& a, const at::Tensor& b) {
  const auto rows = a.size(0), cols = b.size(1), inner = a.size(1);
  if (rows * cols * inner > kSmallProduct) {
    out.addmm_(a, b);
    return;
  }
  const auto row_stride = a.stride(0), stride = a.stride(1);
  const auto* x = a.const_data_ptr<scalar_t>();
  const auto* y = b.const_data_ptr<scalar_t>();
  auto* dst = out.mutable_data_ptr<scalar_t>();
  for (int64_t i = 0; i < rows; i++, dst += cols) {
    for (int64_t k = 0; k < inner; k++) {
      const auto factor = x[i * row_stride + k * stride];
#pragma omp simd
      for (int64_t j = 0; j < cols; j++) dst[j] += factor * y[k * cols + j];
    }
  }
}

template <typename scalar_t>
at::Tensor scaled(const at::Tensor& x, scalar_t scale) {
  auto out = at::empty_like(x);
  const auto* src = x.const_data_ptr<scalar_t>();
  auto* dst = out.mutable_data_ptr<scalar_t>();
  const auto size = x.numel();
#pragma omp simd
  for (int64_t i = 0; i < size; i++) dst[i] = scale * src[i];
  return out;
}

template <typename scalar_t>
at::Tensor arccos(const at::Tensor& x) {
  auto out = at::empty_like(x);
  const auto* src = x.const_data_ptr<scalar_t>();
  auto* dst = out.mutable_data_ptr<scalar_t>();
  const bool small = x.numel() <= kSmallMap;
  for (int64_t i = 0; i < x.numel(); i++) {
    dst[i] = std::clamp(src[i], scalar_t(-1), scalar_t(1));
    if (small) dst[i] = std::acos(dst[i]);
  }
  return small ? out : out.acos_();
}

// Computes log(sum(exp(scale * x))).
template <typename scalar_t>
scalar_t log_sum_exp(const scalar_t* x, int64_t size, scalar_t scale) {
  const auto top = *std::max_element(x, x + size);
  scalar_t sum = 0;
  for (int64_t i = 0; i < size; i++) sum += std::exp((x[i] - top) * scale);
  return top * scale + std::log(sum);
}

// Computes the softmax of each row in-place. Returns the log-sum-exp of each
// row.
template <typename scalar_t>
std::vector<scalar_t> softmax_(at::Tensor& x) {
  const auto rows = x.size(0), cols = x.size(1);
  const bool small = x.numel() <= kSmallMap;
  std::vector<scalar_t> out(rows);
  auto* data = x.mutable_data_ptr<scalar_t>();
  for (int64_t i = 0; i < rows; i++) {
    auto* row = data + i * cols;
    const auto top = *std::max_element(row, row + cols);
    for (int64_t j = 0; j < cols; j++) row[j] -= top;
    for (int64_t j = 0; small && j < cols; j++) row[j] = std::exp(row[j]);
    out[i] = top;
  }
  if (!small) x.exp_();
  for (int64_t i = 0; i < rows; i++) {
    auto* row = data + i * cols;
    const auto sum = std::accumulate(row, row + cols, scalar_t(0));
    for (int64_t j = 0; j < cols; j++) row[j] /= sum;
    out[i] += std::log(sum);
  }
  return out;
}

}  // namespace torch_geometric_ext
