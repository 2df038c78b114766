#include "crossovers.h"

#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <deque>
#include <mutex>
#include <optional>
#include <utility>
#include <vector>

namespace torch_geometric_ext {
namespace {

// The sizes of a table, as in `ops/calibration.py`: powers of two.
struct Axis {
  int first, step, size;

  // Returns the point below `value` and the fraction of the way to the next.
  std::pair<int, float> locate(int64_t value) const {
    const auto size2 = std::log2(float(std::max<int64_t>(value, 1)));
    const auto last = float(size - 1);
    const auto x = std::clamp((size2 - float(first)) / float(step), 0.f, last);
    const auto i = std::min(int(x), size - 2);
    return {i, x - float(i)};
  }
};
constexpr Axis kRows{0, 3, 5};    // 1 to 4,096.
constexpr Axis kWidths{4, 2, 5};  // 16 to 4,096.
constexpr int kSize = kNumProducts * kRows.size * kWidths.size * kWidths.size;

// The density up to which sparse products are faster than dense ones without a
// calibration: dense in doubt. `benchmark/nn/sparse_linear.py` measured lower
// densities to be faster on an AMD Zen 5 and on an Intel Xeon with AMX.
constexpr float kDefault = 0.25;

// `benchmark/sparsity/sparse_features.py` measured the first two on an AMD Zen
// 5. The last one is a choice: a product reads and writes each element.
constexpr CsrCosts kDefaultCosts{9, 60, 4};

struct Table {
  int64_t num_threads;
  at::ScalarType dtype;
  std::array<float, kSize> density;
  CsrCosts costs;

  double find(Product product, int64_t rows, int64_t in, int64_t out) const {
    const auto [r, r_part] = kRows.locate(rows);
    const auto [i, i_part] = kWidths.locate(in);
    const auto [o, o_part] = kWidths.locate(out);
    constexpr int size = kWidths.size;
    const auto* start =
        &density[((product * kRows.size + r) * size + i) * size + o];
    const auto line = [&, o_part = o_part](const float* x) {
      return x[0] + o_part * (x[1] - x[0]);
    };
    const auto plane = [&, i_part = i_part](const float* x) {
      const auto low = line(x), high = line(x + size);
      return low + i_part * (high - low);
    };
    const auto low = plane(start), high = plane(start + size * size);
    return low + r_part * (high - low);
  }
};

// All tables. Readers take no lock: they read a list that never changes, and
// old lists stay, since other threads may still read them.
class Tables {
 public:
  const Table* find(int64_t num_threads, at::ScalarType dtype) const {
    for (const auto* table : *current_.load(std::memory_order_acquire)) {
      if (table->num_threads == num_threads && table->dtype == dtype)
        return table;
    }
    return nullptr;
  }

  // Replaces the table of a number of threads and a dtype, or keeps the one
  // that is there.
  const Table* set(const Table& table, bool replace) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto* old = find(table.num_threads, table.dtype);
    if (old != nullptr && !replace) return old;
    const auto* added = &tables_.emplace_back(table);
    auto list = lists_.back();
    list.erase(std::remove(list.begin(), list.end(), old), list.end());
    list.push_back(added);
    current_.store(
        &lists_.emplace_back(std::move(list)), std::memory_order_release);
    return added;
  }

 private:
  std::mutex mutex_;
  std::deque<Table> tables_;
  std::deque<std::vector<const Table*>> lists_{{}};
  std::atomic<const std::vector<const Table*>*> current_{&lists_.back()};
};

Tables& tables() {
  static auto* tables = new Tables;  // Threads may outlive static objects.
  return *tables;
}

// Returns the table that choices are made by from now on.
const Table* current_table(at::ScalarType dtype) {
  const auto num_threads = at::get_num_threads();
  const auto* table = tables().find(num_threads, dtype);
  if (table != nullptr) return table;
  Table conservative{num_threads, dtype, {}, kDefaultCosts};
  conservative.density.fill(kDefault);
  return tables().set(conservative, false);
}

// A choice that a measurement makes for its own thread.
thread_local std::optional<bool> forced_dense;

void force_dense(std::optional<bool> dense) {
  forced_dense = dense;
}

void set_crossovers(
    at::ArrayRef<double> density, at::ArrayRef<double> costs,
    int64_t num_threads, at::ScalarType dtype) {
  constexpr auto* op = "sparse_linear_set_crossovers";
  TORCH_CHECK_VALUE(
      num_threads > 0, op, ": 'num_threads' needs to be positive (got ",
      num_threads, ")");
  TORCH_CHECK_VALUE(
      density.size() == kSize, op, ": 'density' needs to hold ", kSize,
      " values (got ", density.size(), ")");
  TORCH_CHECK_VALUE(
      costs.size() == 3, op, ": 'costs' needs to hold 3 values (got ",
      costs.size(), ")");
  for (const auto cost : costs) {
    TORCH_CHECK_VALUE(
        std::isfinite(cost) && cost >= 0, op,
        ": 'costs' needs to be in [0, inf) (got ", cost, ")");
  }
  Table table{num_threads, dtype, {}, {}};
  table.costs = {float(costs[0]), float(costs[1]), float(costs[2])};
  for (int i = 0; i < kSize; i++) {
    TORCH_CHECK_VALUE(
        density[i] >= 0 && density[i] <= 1, op,
        ": 'density' needs to be in [0, 1] (got ", density[i], ")");
    table.density[i] = float(density[i]);
  }
  tables().set(table, true);
}

std::vector<double> get_crossovers(int64_t num_threads, at::ScalarType dtype) {
  const auto* table = tables().find(num_threads, dtype);
  if (table == nullptr) return {};
  return {table->density.begin(), table->density.end()};
}

double forward_crossover(int64_t num_rows, int64_t in, int64_t out) {
  return get_crossover(kForward, at::kFloat, num_rows, in, out);
}

}  // namespace

double get_crossover(
    Product product, at::ScalarType dtype, int64_t num_rows, int64_t in,
    int64_t out) {
  const auto* table = tables().find(at::get_num_threads(), dtype);
  return table == nullptr ? kDefault : table->find(product, num_rows, in, out);
}

bool prefers_dense(
    Product product, at::ScalarType dtype, int64_t num_rows, int64_t in,
    int64_t out, int64_t num_weights) {
  if (forced_dense.has_value()) return *forced_dense;
  const auto size = double(in) * double(out);
  if (double(num_weights) >= size) return true;
  return double(num_weights) >
         size * current_table(dtype)->find(product, num_rows, in, out);
}

CsrCosts get_csr_costs(at::ScalarType dtype) {
  return current_table(dtype)->costs;
}

std::optional<bool> get_forced_dense() {
  return forced_dense;
}

TORCH_LIBRARY_FRAGMENT(torch_geometric_ext, m) {
  m.def(
      "sparse_linear_crossover(int num_rows, int in_channels, "
      "int out_channels) -> float");
  m.def(
      "sparse_linear_set_crossovers(float[] density, float[] costs, "
      "int num_threads, ScalarType dtype) -> ()");
  m.def(
      "sparse_linear_get_crossovers(int num_threads, ScalarType dtype) -> "
      "float[]");
  m.def("sparse_linear_force_dense(bool? dense) -> ()");
}

TORCH_LIBRARY_IMPL(torch_geometric_ext, CompositeExplicitAutograd, m) {
  m.impl("sparse_linear_crossover", TORCH_FN(forward_crossover));
  m.impl("sparse_linear_set_crossovers", TORCH_FN(set_crossovers));
  m.impl("sparse_linear_get_crossovers", TORCH_FN(get_crossovers));
  m.impl("sparse_linear_force_dense", TORCH_FN(force_dense));
}

}  // namespace torch_geometric_ext
