#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <tuple>

#include "../check.h"

// Merges of ascending positions, in linear time.
namespace torch_geometric_ext::merge_positions {
namespace {

// Sums of larger positions could overflow. `ops/merge_positions.py` holds the
// same bound.
constexpr int64_t kMaxPosition = int64_t(1) << 62;

// Returns `x`, contiguous. Elements have to differ by at least `step`.
at::Tensor checked(
    const char* op, const char* name, const at::Tensor& x, int64_t step) {
  check_integers(op, name, x, at::kLong);
  const auto out = x.contiguous();
  const auto* data = out.const_data_ptr<int64_t>();
  int64_t lowest = 0;
  for (int64_t i = 0; i < out.numel(); i++) {
    TORCH_CHECK_VALUE(
        data[i] >= lowest && data[i] < kMaxPosition, op, ": '", name,
        "' needs to be ascending in [0, 2^62)",
        step > 0 ? ", without duplicates" : "");
    lowest = data[i] + step;
  }
  return out;
}

std::tuple<at::Tensor, at::Tensor> merge_positions_cpu(
    const at::Tensor& index, const at::Tensor& other) {
  const auto index_c = checked("merge_positions", "index", index, 1);
  const auto other_c = checked("merge_positions", "other", other, 1);
  const auto* a = index_c.const_data_ptr<int64_t>();
  const auto* b = other_c.const_data_ptr<int64_t>();
  const auto num_a = index_c.numel(), num_b = other_c.numel();
  auto out = at::empty({num_a + num_b}, index_c.options());
  auto source = at::empty_like(out);
  auto* position = out.mutable_data_ptr<int64_t>();
  auto* origin = source.mutable_data_ptr<int64_t>();
  int64_t i = 0, j = 0, size = 0;
  for (; i < num_a && j < num_b; size++) {
    const bool from_a = a[i] <= b[j], from_b = b[j] <= a[i];
    position[size] = from_a ? a[i] : b[j];
    origin[size] = from_a ? i : num_a;
    i += from_a;
    j += from_b;
  }
  for (; i < num_a; i++, size++) {
    position[size] = a[i];
    origin[size] = i;
  }
  for (; j < num_b; j++, size++) {
    position[size] = b[j];
    origin[size] = num_a;
  }
  if (size == out.numel()) return {out, source};
  return {out.narrow(0, 0, size).clone(), source.narrow(0, 0, size).clone()};
}

at::Tensor missing_positions_cpu(
    const at::Tensor& index, const at::Tensor& rank) {
  const auto index_c = checked("missing_positions", "index", index, 1);
  const auto rank_c = checked("missing_positions", "rank", rank, 0);
  const auto* present = index_c.const_data_ptr<int64_t>();
  const auto* ranks = rank_c.const_data_ptr<int64_t>();
  const auto num_present = index_c.numel();
  auto out = at::empty_like(rank_c);
  auto* position = out.mutable_data_ptr<int64_t>();
  int64_t i = 0;
  for (int64_t k = 0; k < rank_c.numel(); k++) {
    while (i < num_present && present[i] - i <= ranks[k]) i++;
    position[k] = ranks[k] + i;
  }
  return out;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(torch_geometric_ext, m) {
  m.def("merge_positions(Tensor index, Tensor other) -> (Tensor, Tensor)");
  m.def("missing_positions(Tensor index, Tensor rank) -> Tensor");
}

TORCH_LIBRARY_IMPL(torch_geometric_ext, CPU, m) {
  m.impl("merge_positions", TORCH_FN(merge_positions_cpu));
  m.impl("missing_positions", TORCH_FN(missing_positions_cpu));
}

}  // namespace torch_geometric_ext::merge_positions
