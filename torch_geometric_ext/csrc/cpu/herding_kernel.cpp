#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <limits>
#include <optional>
#include <vector>

#include "../check.h"

namespace torch_geometric_ext {
namespace {

constexpr int64_t kLimit = int64_t(1) << 31;

// A score is a sum of five terms below this bound, which fits into 64 bits.
// `ops/herding.py` holds the same bound.
constexpr double kMaxTerm = 1e18;

// An element of a sparse row. Sums of integers do not depend on their order,
// hence neither threads nor instruction sets change the result.
struct Entry {
  int32_t item;
  int32_t value;
};

struct Rows {
  const int64_t* ptr;
  std::vector<Entry> entries;

  // Renumbers the items if most of the ids up to the largest one are missing.
  // Returns the number of items, which bounds the memory of each thread.
  int64_t compact() {
    const auto num_entries = int64_t(entries.size());
    int64_t num_items = 0;
    for (const auto& x : entries) {
      num_items = std::max(num_items, int64_t(x.item) + 1);
    }
    if (num_items <= 2 * num_entries) return num_items;
    std::vector<int32_t> ids;
    ids.reserve(num_entries);
    for (const auto& x : entries) ids.push_back(x.item);
    std::sort(ids.begin(), ids.end());
    ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
    for (auto& x : entries) {
      x.item = std::lower_bound(ids.begin(), ids.end(), x.item) - ids.begin();
    }
    return ids.size();
  }

  int64_t norm(int64_t row) const {
    int64_t out = 0;
    for (auto k = ptr[row]; k < ptr[row + 1]; k++) {
      out += int64_t(entries[k].value) * entries[k].value;
    }
    return out;
  }

  int64_t dot(int64_t row, const int64_t* dense) const {
    int64_t out = 0;
    for (auto k = ptr[row]; k < ptr[row + 1]; k++) {
      out += entries[k].value * dense[entries[k].item];
    }
    return out;
  }

  void add_to(int64_t* dense, int64_t row) const {
    for (auto k = ptr[row]; k < ptr[row + 1]; k++) {
      dense[entries[k].item] += entries[k].value;
    }
  }
};

struct Candidate {
  int64_t row;
  int64_t norm;     // |x|^2
  int64_t sum_dot;  // <x, sum of the group>
};

// Step j selects the row x of the smallest score
// n |x|^2 - 2 <x, (j + 1) sum of the group - n sum of the selected rows>,
// which brings the mean of the selected rows closest to the mean of the group.
void herd(
    const Rows& rows, int64_t begin, int64_t end, int64_t num_candidates,
    int64_t num_samples, std::vector<int64_t>& dense, int64_t* out) {
  const auto size = end - begin;
  const auto num_parts = size == 0 ? 0 : (size - 1) / num_candidates + 1;
  std::fill(dense.begin(), dense.end(), 0);
  for (auto row = begin; row < end; row++) rows.add_to(dense.data(), row);
  std::vector<std::vector<Candidate>> parts(num_parts);
  for (int64_t i = 0; i < size; i++) {
    const auto row = begin + i;
    parts[i % num_parts].push_back(
        {row, rows.norm(row), rows.dot(row, dense.data())});
  }
  std::fill(dense.begin(), dense.end(), 0);  // The sum of the selected rows.
  for (int64_t j = 0; j < num_samples; j++) {
    auto& candidates = parts[j % num_parts];
    size_t best = 0;
    auto lowest = std::numeric_limits<int64_t>::max();
    for (size_t i = 0; i < candidates.size(); i++) {
      const auto& x = candidates[i];
      const auto score = size * (x.norm + 2 * rows.dot(x.row, dense.data())) -
                         2 * (j + 1) * x.sum_dot;
      if (score < lowest) lowest = score, best = i;
    }
    out[j] = candidates[best].row;
    rows.add_to(dense.data(), out[j]);
    candidates.erase(candidates.begin() + best);
  }
}

// Checks that no score overflows 64 bits.
void check_values(const Rows& rows, const at::Tensor& group_ptr) {
  const auto* ptr = group_ptr.const_data_ptr<int64_t>();
  for (int64_t g = 0; g + 1 < group_ptr.numel(); g++) {
    const auto size = static_cast<double>(ptr[g + 1] - ptr[g]);
    double highest = 0;
    for (auto row = ptr[g]; row < ptr[g + 1]; row++) {
      double norm = 0;  // May exceed 64 bits.
      for (auto k = rows.ptr[row]; k < rows.ptr[row + 1]; k++) {
        const double value = rows.entries[k].value;
        norm += value * value;
      }
      highest = std::max(highest, norm);
    }
    // |<x, y>| <= highest for all rows, and a score adds 5 n^2 such products.
    TORCH_CHECK_VALUE(
        size * size * highest < kMaxTerm,
        "herding: 'value' needs smaller values or groups (got a squared norm "
        "of ",
        highest, " in a group of ", ptr[g + 1] - ptr[g], " rows)");
  }
}

at::Tensor herding_cpu(
    const at::Tensor& ptr, const at::Tensor& item, const at::Tensor& value,
    const at::Tensor& group_ptr, int64_t num_candidates,
    std::optional<int64_t> num_samples) {
  check_integers("herding", "ptr", ptr, at::kLong);
  check_integers("herding", "item", item, at::kLong);
  check_integers("herding", "value", value, at::kLong, item.numel());
  check_integers("herding", "group_ptr", group_ptr, at::kLong);
  TORCH_CHECK_VALUE(
      num_candidates > 0,
      "herding: 'num_candidates' needs to be positive (got ", num_candidates,
      ")");
  TORCH_CHECK_VALUE(
      num_samples.value_or(0) >= 0,
      "herding: 'num_samples' needs to be non-negative (got ",
      num_samples.value_or(0), ")");
  const auto ptr_c = ptr.contiguous(), item_c = item.contiguous(),
             value_c = value.contiguous(), group_c = group_ptr.contiguous();
  check_ptr<int64_t>("herding", "ptr", ptr_c, item.numel());
  check_ptr<int64_t>("herding", "group_ptr", group_c, ptr.numel() - 1);
  Rows rows{ptr_c.const_data_ptr<int64_t>(), {}};
  rows.entries.reserve(item.numel());
  const auto* items = item_c.const_data_ptr<int64_t>();
  const auto* values = value_c.const_data_ptr<int64_t>();
  for (int64_t k = 0; k < item.numel(); k++) {
    TORCH_CHECK_VALUE(
        items[k] >= 0 && items[k] < kLimit,
        "herding: 'item' needs to be in [0, 2^31) (got ", items[k], ")");
    TORCH_CHECK_VALUE(
        values[k] > -kLimit && values[k] < kLimit,
        "herding: 'value' needs to be in (-2^31, 2^31) (got ", values[k], ")");
    rows.entries.push_back(
        {static_cast<int32_t>(items[k]), static_cast<int32_t>(values[k])});
  }
  check_values(rows, group_c);
  const auto num_items = rows.compact();

  const auto num_groups = group_c.numel() - 1;
  const auto* groups = group_c.const_data_ptr<int64_t>();
  std::vector<int64_t> out_ptr(num_groups + 1);
  for (int64_t g = 0; g < num_groups; g++) {
    const auto size = groups[g + 1] - groups[g];
    out_ptr[g + 1] = out_ptr[g] + std::min(size, num_samples.value_or(size));
  }
  auto out = at::empty({out_ptr[num_groups]}, ptr.options());
  auto* out_data = out.mutable_data_ptr<int64_t>();
  at::parallel_for(0, num_groups, 1, [&](int64_t begin, int64_t end) {
    std::vector<int64_t> dense(num_items);
    for (auto g = begin; g < end; g++) {
      herd(
          rows, groups[g], groups[g + 1], num_candidates,
          out_ptr[g + 1] - out_ptr[g], dense, out_data + out_ptr[g]);
    }
  });
  return out;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(torch_geometric_ext, m) {
  m.def(
      "herding(Tensor ptr, Tensor item, Tensor value, Tensor group_ptr, "
      "int num_candidates, int? num_samples=None) -> Tensor");
}

TORCH_LIBRARY_IMPL(torch_geometric_ext, CPU, m) {
  m.impl("herding", TORCH_FN(herding_cpu));
}

}  // namespace torch_geometric_ext
