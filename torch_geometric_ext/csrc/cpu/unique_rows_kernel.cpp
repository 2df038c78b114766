#include <ATen/Dispatch.h>
#include <torch/library.h>

#include <atomic>
#include <cstring>
#include <tuple>
#include <type_traits>

#include "unique.h"

namespace torch_geometric_ext::unique_rows {
namespace {

template <typename scalar_t>
using wide_t =
    std::conditional_t<std::is_integral_v<scalar_t>, int64_t, double>;

template <typename scalar_t>
class MatrixRows {
 public:
  mutable std::atomic<bool> has_nan{false};

  MatrixRows(const scalar_t* data, int64_t width)
      : data_(data), width_(width) {}

  // Four independent chains hide the latency of multiplications.
  uint64_t hash(int64_t i) const {
    uint64_t out[4] = {};
    bool nan = false;
    const auto* row = data_ + i * width_;
    int64_t k = 0;
    for (; k + 4 <= width_; k += 4) {
      for (int64_t lane = 0; lane < 4; lane++) {
        nan |= row[k + lane] != row[k + lane];
        out[lane] = mix(out[lane], bits(row[k + lane]));
      }
    }
    for (; k < width_; k++) {
      nan |= row[k] != row[k];
      out[k % 4] = mix(out[k % 4], bits(row[k]));
    }
    if (nan) has_nan.store(true, std::memory_order_relaxed);
    return mix(mix(mix(out[0], out[1]), out[2]), out[3]);
  }

  bool equal(int64_t i, int64_t j) const {
    const auto *a = data_ + i * width_, *b = data_ + j * width_;
    return std::equal(a, a + width_, b);
  }

  Prefix prefix(int64_t i) const {
    const auto* row = data_ + i * width_;
    return {width_ > 0 ? ordered(row[0]) : 0, width_ > 1 ? ordered(row[1]) : 0};
  }

  bool less(int64_t i, int64_t j) const {
    const auto *a = data_ + i * width_, *b = data_ + j * width_;
    return std::lexicographical_compare(a, a + width_, b, b + width_);
  }

 private:
  static uint64_t bits(scalar_t value) {
    auto wide = static_cast<wide_t<scalar_t>>(value);
    wide += 0;  // Map -0.0 to 0.0.
    uint64_t out;
    std::memcpy(&out, &wide, sizeof(out));
    return out;
  }

  // Maps numbers to unsigned integers of the same order.
  static uint64_t ordered(scalar_t value) {
    constexpr auto sign = uint64_t(1) << 63;
    const auto out = bits(value);
    if (std::is_integral_v<scalar_t>) return out ^ sign;
    return out & sign ? ~out : out | sign;
  }

  const scalar_t* data_;
  int64_t width_;
};

std::tuple<at::Tensor, at::Tensor> unique_rows_cpu(
    const at::Tensor& x, int64_t num_known) {
  TORCH_CHECK_VALUE(
      x.dim() == 2, "unique_rows: 'x' needs to be two-dimensional (got ",
      x.dim(), " dimensions)");
  TORCH_CHECK_VALUE(
      !x.is_complex(), "unique_rows: 'x' needs to be real (got ",
      x.scalar_type(), ")");
  const auto x_c = x.contiguous();
  Unique out;
  AT_DISPATCH_ALL_TYPES_AND3(
      at::kBool, at::kHalf, at::kBFloat16, x.scalar_type(), "unique_rows", [&] {
        const MatrixRows<scalar_t> rows(
            x_c.const_data_ptr<scalar_t>(), x.size(1));
        out = unique("unique_rows", rows, x.size(0), num_known);
        TORCH_CHECK_VALUE(!rows.has_nan, "unique_rows: 'x' contains NaN");
      });
  return {out.ids, out.index};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(torch_geometric_ext, m) {
  m.def("unique_rows(Tensor x, int num_known=0) -> (Tensor ids, Tensor index)");
}

TORCH_LIBRARY_IMPL(torch_geometric_ext, CPU, m) {
  m.impl("unique_rows", TORCH_FN(unique_rows_cpu));
}

}  // namespace torch_geometric_ext::unique_rows
