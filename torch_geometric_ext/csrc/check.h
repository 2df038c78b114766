#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <optional>

// Checks of arguments. A failed check raises a `ValueError` that names the
// operator and the argument. `ops/check.py` checks the same conditions.
namespace torch_geometric_ext {

// Checks that `x` is one-dimensional, of int64 or int32, and, if `size` is
// given, of that size.
inline void check_integers(
    const char* op, const char* name, const at::Tensor& x, at::ScalarType dtype,
    std::optional<int64_t> size = std::nullopt) {
  const auto* type = dtype == at::kLong ? "int64" : "int32";
  TORCH_CHECK_VALUE(
      x.dim() == 1 && x.scalar_type() == dtype, op, ": '", name,
      "' needs to be a one-dimensional ", type, " tensor (got ",
      x.scalar_type(), " of shape ", x.sizes(), ")");
  TORCH_CHECK_VALUE(
      !size || x.numel() == *size, op, ": '", name, "' needs ",
      size.value_or(0), " elements (got ", x.numel(), ")");
}

// Checks the first and the last element of row pointers, in constant time.
template <typename index_t>
void check_ptr_ends(
    const char* op, const char* name, const at::Tensor& ptr, int64_t size) {
  const auto* data = ptr.const_data_ptr<index_t>();
  const auto numel = ptr.numel();
  TORCH_CHECK_VALUE(
      numel > 0 && data[0] == 0 && data[numel - 1] == size, op, ": '", name,
      "' needs to ascend from 0 to ", size);
}

// Checks that contiguous row pointers ascend from 0 to `size`.
template <typename index_t>
void check_ptr(
    const char* op, const char* name, const at::Tensor& ptr, int64_t size) {
  check_ptr_ends<index_t>(op, name, ptr, size);
  const auto* data = ptr.const_data_ptr<index_t>();
  TORCH_CHECK_VALUE(
      std::is_sorted(data, data + ptr.numel()), op, ": '", name,
      "' needs to ascend from 0 to ", size);
}

}  // namespace torch_geometric_ext
