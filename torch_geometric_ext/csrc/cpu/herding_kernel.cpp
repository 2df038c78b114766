#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/aminmax.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <c10/util/llvmMathExtras.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <limits>
#include <optional>
#include <utility>
#include <vector>

#include "../check.h"

namespace torch_geometric_ext::herding {
namespace {

constexpr int64_t kLimit = int64_t(1) << 31;

// A score is a sum of five terms below this bound, which fits into 64 bits.
// `ops/herding.py` holds the same bound.
constexpr double kMaxTerm = 1e18;

// Measured by `benchmark/transforms/herding.py`. A row of a group of many parts
// is evaluated at least once in as many visits. `ops/herding.py` holds the same
// number.
constexpr int64_t kMaxPeriod = 8;

// The candidates between loading entries and reading them. A choice.
constexpr size_t kAhead = 4;

// A sum of rows, with an element for each column: `check_values` bounds it.
using Sum = std::vector<int32_t>;

// Sparse rows. Sums of integers do not depend on their order, hence neither
// threads nor instruction sets change the result.
struct Rows {
  at::Tensor ptr_tensor, item_tensor, value_tensor;
  const int64_t* ptr;
  const int32_t* items;  // In [0, num_items].
  const int32_t* values;
  int64_t num_items = 0;

  Rows(const at::Tensor& ptrs, const at::Tensor& item, const at::Tensor& value)
      : ptr_tensor(ptrs.contiguous()),
        item_tensor(item.to(at::kInt).contiguous()),
        value_tensor(value.to(at::kInt).contiguous()),
        ptr(ptr_tensor.const_data_ptr<int64_t>()),
        items(item_tensor.const_data_ptr<int32_t>()),
        values(value_tensor.const_data_ptr<int32_t>()) {
    for (int64_t k = 0; k < item.numel(); k++) {
      num_items = std::max(num_items, int64_t(items[k]) + 1);
    }
    if (num_items > 2 * item.numel()) compact();
    rank();
  }

  // Renumbers the items, so that their number, which bounds the memory of each
  // thread, is that of the distinct ids.
  void compact() {
    std::vector<int32_t> ids(items, items + item_tensor.numel());
    std::sort(ids.begin(), ids.end());
    ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
    num_items = ids.size();
    renumber([&](int32_t id) {
      return std::lower_bound(ids.begin(), ids.end(), id) - ids.begin();
    });
  }

  // Renumbers the items from frequent to rare, since frequent ones should share
  // lines of the cache. Items of a single entry, which add nothing to products
  // of different rows, get the number `num_items`.
  void rank() {
    std::vector<int32_t> ids(num_items);  // First the counts.
    const auto highest = std::numeric_limits<int32_t>::max();
    for (int64_t k = 0; k < item_tensor.numel(); k++) {
      ids[items[k]] += ids[items[k]] < highest;
    }
    const auto level = [](int32_t count) { return c10::llvm::Log2_32(count); };
    std::array<int64_t, 32> next{};
    for (const auto count : ids) {
      if (count > 1) next[level(count)]++;
    }
    num_items = 0;
    for (auto i = next.rbegin(); i != next.rend(); i++) {
      num_items += std::exchange(*i, num_items);
    }
    for (auto& id : ids) id = id > 1 ? next[level(id)]++ : num_items;
    renumber([&](int32_t id) { return ids[id]; });
  }

  template <typename F>
  void renumber(const F& number) {
    auto out = at::empty_like(item_tensor);
    auto* data = out.mutable_data_ptr<int32_t>();
    for (int64_t k = 0; k < out.numel(); k++) data[k] = number(items[k]);
    item_tensor = out, items = data;
  }

  int64_t norm(int64_t row) const {
    int64_t out = 0;
    for (auto k = ptr[row]; k < ptr[row + 1]; k++) {
      out += int64_t(values[k]) * values[k];
    }
    return out;
  }

  // Loads the first 64 entries into the cache.
  void prefetch(int64_t row) const {
    for (int64_t k = ptr[row]; k < ptr[row] + 64; k += 16) {
      __builtin_prefetch(items + k);
      __builtin_prefetch(values + k);
    }
  }

  // Returns the product with a sum of rows.
  int64_t dot(int64_t row, const Sum& sum) const {
    int64_t out = 0;
    for (auto k = ptr[row]; k < ptr[row + 1]; k++) {
      out += int64_t(values[k]) * sum[items[k]];
    }
    return out;
  }

  // Returns the product with a sum of rows that include this one.
  int64_t dot_own(int64_t row, const Sum& sum) const {
    auto out = dot(row, sum);
    for (auto k = ptr[row]; k < ptr[row + 1]; k++) {
      if (items[k] == num_items) out += int64_t(values[k]) * values[k];
    }
    return out;
  }

  void add_to(Sum& sum, int64_t row) const {
    for (auto k = ptr[row]; k < ptr[row + 1]; k++) sum[items[k]] += values[k];
    sum[num_items] = 0;
  }
};

// Rows that one step compares.
struct Part {
  struct Candidate {
    int64_t score;  // When it was last evaluated.
    int64_t row;
    int64_t norm;     // |x|^2
    int64_t sum_dot;  // <x, sum of the group>
    int64_t turn;     // The visits that evaluate it anyway.
  };
  std::vector<Candidate> candidates;
  int64_t num_visits = 0;
};

// The sums of a group.
struct Sums {
  Sum all;
  Sum selected;
};

// Selects rows of a group. Step j selects the row x of the smallest score
// n |x|^2 - 2 <x, (j + 1) sum of the group - n sum of the selected rows>,
// which brings the mean of the selected rows closest to the mean of the group.
class Herd {
 public:
  Herd(
      const Rows& rows, int64_t begin, int64_t end, int64_t num_candidates,
      int64_t num_finalists, Sums& sums)
      : rows_(rows),
        selected_(sums.selected),
        size_(end - begin),
        num_finalists_(num_finalists),
        parts_(size_ == 0 ? 0 : (size_ - 1) / num_candidates + 1),
        period_(std::min<int64_t>(parts_.size(), kMaxPeriod)) {
    std::fill(sums.all.begin(), sums.all.end(), 0);
    std::fill(sums.selected.begin(), sums.selected.end(), 0);
    for (auto row = begin; row < end; row++) rows.add_to(sums.all, row);
    const auto num_parts = int64_t(parts_.size());
    auto row = begin;
    for (int64_t i = 0; i < num_parts; i++) {
      const auto part_size = size_ / num_parts + (i < size_ % num_parts);
      for (int64_t k = 0; k < part_size; k++, row++) {
        parts_[i].candidates.push_back(
            {0, row, rows.norm(row), rows.dot_own(row, sums.all),
             k * period_ / part_size});
      }
    }
  }

  int64_t select(int64_t step) {
    auto& part = parts_[step % parts_.size()];
    evaluate_(part, step);
    auto& best =
        *std::min_element(evaluated_.begin(), evaluated_.end(), is_before_);
    const auto row = best->row;
    rows_.add_to(selected_, row);
    *best = part.candidates.back();
    part.candidates.pop_back();
    return row;
  }

 private:
  static bool is_before_(const Part::Candidate* a, const Part::Candidate* b) {
    return a->score != b->score ? a->score < b->score : a->row < b->row;
  }

  // Evaluates the candidates of the lowest scores, and those whose turn it is.
  void evaluate_(Part& part, int64_t step) {
    const auto turn = part.num_visits++ % period_;
    // Scores change most at first, and the first visit evaluates all rows:
    const auto num_finalists = std::max(
        num_finalists_, 4 * int64_t(part.candidates.size()) / part.num_visits);
    evaluated_.clear();
    in_turn_.clear();
    for (auto& x : part.candidates) {
      if (x.turn == turn) {
        in_turn_.push_back(&x);
        continue;
      }
      if (int64_t(evaluated_.size()) == num_finalists) {
        if (!is_before_(&x, evaluated_[0])) continue;
        std::pop_heap(evaluated_.begin(), evaluated_.end(), is_before_);
        evaluated_.pop_back();
      }
      evaluated_.push_back(&x);
      std::push_heap(evaluated_.begin(), evaluated_.end(), is_before_);
    }
    evaluated_.insert(evaluated_.end(), in_turn_.begin(), in_turn_.end());
    const auto size = evaluated_.size();
    for (size_t i = 0; i < size; i++) {
      if (i + kAhead < size) rows_.prefetch(evaluated_[i + kAhead]->row);
      auto* x = evaluated_[i];
      x->score = size_ * (x->norm + 2 * rows_.dot(x->row, selected_)) -
                 2 * (step + 1) * x->sum_dot;
    }
  }

  const Rows& rows_;
  Sum& selected_;
  int64_t size_;
  int64_t num_finalists_;
  std::vector<Part> parts_;
  int64_t period_;
  std::vector<Part::Candidate*> evaluated_;
  std::vector<Part::Candidate*> in_turn_;
};

// Checks that no score overflows 64 bits, and no sum of rows 32 bits: its
// elements are at most n |x| for n rows, and n^2 |x|^2 is below the bound.
void check_values(const Rows& rows, const at::Tensor& group_ptr) {
  const auto* ptr = group_ptr.const_data_ptr<int64_t>();
  for (int64_t g = 0; g + 1 < group_ptr.numel(); g++) {
    const auto size = static_cast<double>(ptr[g + 1] - ptr[g]);
    double highest = 0;
    for (auto row = ptr[g]; row < ptr[g + 1]; row++) {
      double norm = 0;  // May exceed 64 bits.
      for (auto k = rows.ptr[row]; k < rows.ptr[row + 1]; k++) {
        const double value = rows.values[k];
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

at::ScalarType index_type(const at::Tensor& x) {
  return x.scalar_type() == at::kInt ? at::kInt : at::kLong;
}

// Checks that elements are in [low, 2^31).
void check_range(const char* name, const at::Tensor& x, int64_t low) {
  if (x.numel() == 0) return;
  const auto [lowest, highest] = x.aminmax();
  const auto a = lowest.item<int64_t>(), b = highest.item<int64_t>();
  TORCH_CHECK_VALUE(
      a >= low && b < kLimit, "herding: '", name, "' needs to be in ",
      low == 0 ? "[0, 2^31)" : "(-2^31, 2^31)", " (got ", a < low ? a : b, ")");
}

at::Tensor herding_cpu(
    const at::Tensor& ptr, const at::Tensor& item, const at::Tensor& value,
    const at::Tensor& group_ptr, int64_t num_candidates,
    std::optional<int64_t> num_samples, int64_t num_finalists) {
  check_integers("herding", "ptr", ptr, at::kLong);
  check_integers("herding", "item", item, index_type(item));
  check_integers("herding", "value", value, index_type(value), item.numel());
  check_integers("herding", "group_ptr", group_ptr, at::kLong);
  TORCH_CHECK_VALUE(
      num_candidates > 0,
      "herding: 'num_candidates' needs to be positive (got ", num_candidates,
      ")");
  TORCH_CHECK_VALUE(
      num_finalists > 0, "herding: 'num_finalists' needs to be positive (got ",
      num_finalists, ")");
  TORCH_CHECK_VALUE(
      num_samples.value_or(0) >= 0,
      "herding: 'num_samples' needs to be non-negative (got ",
      num_samples.value_or(0), ")");
  const auto group_c = group_ptr.contiguous();
  check_ptr<int64_t>("herding", "ptr", ptr.contiguous(), item.numel());
  check_ptr<int64_t>("herding", "group_ptr", group_c, ptr.numel() - 1);
  check_range("item", item, 0);
  check_range("value", value, -kLimit + 1);
  const Rows rows(ptr, item, value);
  check_values(rows, group_c);

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
    Sums sums{Sum(rows.num_items + 1), Sum(rows.num_items + 1)};
    for (auto g = begin; g < end; g++) {
      Herd herd(
          rows, groups[g], groups[g + 1], num_candidates, num_finalists, sums);
      const auto num_steps = out_ptr[g + 1] - out_ptr[g];
      for (int64_t j = 0; j < num_steps; j++) {
        out_data[out_ptr[g] + j] = herd.select(j);
      }
    }
  });
  return out;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(torch_geometric_ext, m) {
  m.def(
      "herding(Tensor ptr, Tensor item, Tensor value, Tensor group_ptr, "
      "int num_candidates, int? num_samples=None, int num_finalists=16) -> "
      "Tensor");
}

TORCH_LIBRARY_IMPL(torch_geometric_ext, CPU, m) {
  m.impl("herding", TORCH_FN(herding_cpu));
}

}  // namespace torch_geometric_ext::herding
