#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <limits>
#include <optional>
#include <tuple>

#include "../check.h"
#include "pattern_frontier.h"
#include "transactions.h"

namespace torch_geometric_ext::frequent_itemsets {
namespace {

constexpr int64_t kMaxId = int64_t(1) << 31;

struct Options {
  int64_t min_support, max_patterns, max_size;
  bool closed;
  const uint8_t* cancel;
};

// Best-first search over patterns. Each pattern has one parent: the pattern
// without its most frequent item or, if closed, the pattern that it extends
// with its prefix preserved (LCM ver. 2, https://ceur-ws.org/Vol-126/uno.pdf).
// A parent has fewer items and at least as much support, hence the search
// reaches patterns in the order of their keys.
class Search {
 public:
  Search(const Transactions& data, const Options& options)
      : data_(data),
        options_(options),
        frontier_(options.max_patterns),
        supports_(data.num_items()),
        in_pattern_(data.num_items()) {}

  void run() {
    const auto num_transactions = data_.num_transactions;
    if (num_transactions < options_.min_support) return;
    std::vector<int32_t> root;
    if (options_.closed) {
      for (int64_t i = 0; i < data_.num_items(); i++) {
        if (data_.support[i] == num_transactions) {
          root.push_back(data_.column[i]);
        }
      }
      std::sort(root.begin(), root.end());
    }
    if (root.empty()) {
      expand({num_transactions, 0}, nullptr);
    } else if (int64_t(root.size()) <= options_.max_size) {
      frontier_.push({num_transactions, int64_t(root.size())}, root);
    }
    while (!frontier_.empty()) {
      const auto bucket = frontier_.pop();
      emit(bucket.first, bucket.second);
      const auto& key = bucket.first;
      const PatternKey child{key.support - options_.closed, key.size + 1};
      for (size_t i = 0; i < bucket.second.size(); i += key.size) {
        if (!wants(child)) break;
        expand(key, bucket.second.data() + i);
      }
    }
  }

  std::vector<std::pair<PatternKey, int64_t>> keys;  // With pattern counts.
  std::vector<int32_t> items;                        // By position.

 private:
  bool wants(const PatternKey& key) const {
    return key.support >= options_.min_support &&
           key.size <= options_.max_size && frontier_.wants(key);
  }

  void emit(const PatternKey& key, const std::vector<int32_t>& rows) {
    const auto count = int64_t(rows.size()) / key.size;
    keys.emplace_back(key, count);
    for (const auto i : first_rows(rows, key.size, count, true)) {
      const auto* row = rows.data() + i * key.size;
      items.insert(items.end(), row, row + key.size);
    }
  }

  void expand(const PatternKey& key, const int32_t* row) {
    const auto cancelled =
        options_.cancel && __atomic_load_n(options_.cancel, __ATOMIC_RELAXED);
    TORCH_CHECK(!cancelled, "frequent_itemsets: cancelled");
    pattern_.assign(row, row + key.size);
    const auto limit = find_transactions(key.support);
    count_children(key.support, limit);
    for (const auto i : ranks_) in_pattern_[i] = true;
    for (const auto i : children_) {
      if (in_pattern_[i] || !wants({supports_[i], key.size + 1})) continue;
      options_.closed ? push_closed(i, limit) : push(i);
    }
    for (const auto i : ranks_) in_pattern_[i] = false;
    for (const auto i : children_) supports_[i] = 0;
  }

  // Intersects the transactions of the items of the pattern, rarest first.
  // Children may add only items that are more frequent than the returned one:
  // the last item of the pattern or, if closed, its core item, whose
  // intersection is the first one with the support of the pattern.
  int64_t find_transactions(int64_t support) {
    ranks_.clear();
    for (const auto i : pattern_) ranks_.push_back(data_.rank[i]);
    std::sort(ranks_.begin(), ranks_.end(), std::greater<>());
    const auto last = ranks_.empty() ? data_.num_items() : ranks_.back();
    if (!options_.closed && last == 0) return 0;
    data_.all(cover_);
    auto size = data_.num_transactions;
    auto core = data_.num_items();
    for (size_t k = 0; size > support; k++) {
      core = ranks_[k];
      data_.intersect(cover_, core, cover_);
      size = count_bits(cover_.mask.data(), cover_.size());
    }
    return options_.closed ? core : last;
  }

  // Counts the items more frequent than `limit` in the transactions of the
  // pattern. `children_` lists these items, `supports_` holds the counts.
  void count_children(int64_t support, int64_t limit) {
    children_.clear();
    if (support == data_.num_transactions) {
      for (int64_t i = 0; i < limit; i++) supports_[i] = data_.support[i];
    } else if (
        limit <= data_.num_dense &&
        limit * cover_.size() <= support * data_.mean_size(limit)) {
      count_by_item(support, limit);
    } else {
      return count_by_transaction(limit);
    }
    children_.resize(limit);
    std::iota(children_.begin(), children_.end(), 0);
  }

  // Stops counting an item once its support is below the smallest wanted one.
  void count_by_item(int64_t support, int64_t limit) {
    const auto size = int64_t(pattern_.size()) + 1;
    const auto floor =
        std::max(options_.min_support, frontier_.min_support(size));
    for (int64_t i = 0; i < limit; i++) {
      const auto missing = count_missing(
          cover_.index.data(), cover_.mask.data(), cover_.size(),
          data_.dense(i), support - floor);
      supports_[i] = support - missing >= floor ? support - missing : 0;
    }
  }

  void count_by_transaction(int64_t limit) {
    for (int64_t k = 0; k < cover_.size(); k++) {
      for (auto mask = cover_.mask[k]; mask; mask &= mask - 1) {
        const auto transaction =
            int64_t(64) * cover_.index[k] + __builtin_ctzll(mask);
        const auto* end = data_.end(transaction);
        for (auto* i = data_.begin(transaction); i < end && *i < limit; i++) {
          if (supports_[*i]++ == 0) children_.push_back(*i);
        }
      }
    }
  }

  void push(int64_t item) {
    row_ = pattern_;
    const auto position = data_.column[item];
    row_.insert(std::upper_bound(row_.begin(), row_.end(), position), position);
    frontier_.push({supports_[item], int64_t(row_.size())}, row_);
  }

  // Pushes the closure of a child, unless the closure adds an item rarer than
  // `item`: it then has another parent. A closure is a subset of each of its
  // transactions, hence the items of one transaction are its candidates.
  void push_closed(int64_t item, int64_t limit) {
    const auto support = supports_[item];
    data_.intersect(cover_, item, child_);
    const auto transaction =
        int64_t(64) * child_.index[0] + __builtin_ctzll(child_.mask[0]);
    row_ = pattern_;
    row_.push_back(data_.column[item]);
    for (auto* i = data_.end(transaction); i != data_.begin(transaction);) {
      i--;
      if (*i == item || in_pattern_[*i]) continue;
      const auto bound = *i < limit ? supports_[*i] : data_.support[*i];
      if (bound < support || !data_.contain(child_, *i)) continue;
      if (*i > item) return;
      row_.push_back(data_.column[*i]);
    }
    const PatternKey key{support, int64_t(row_.size())};
    if (!wants(key)) return;
    std::sort(row_.begin(), row_.end());
    frontier_.push(key, row_);
  }

  const Transactions& data_;
  const Options options_;
  PatternFrontier frontier_;

  // Buffers for the pattern to expand:
  std::vector<int32_t> pattern_, ranks_, children_, row_;
  std::vector<int64_t> supports_;
  std::vector<uint8_t> in_pattern_;
  Cover cover_, child_;
};

template <typename index_t>
std::vector<uint64_t> get_entries(
    const at::Tensor& ptr, const at::Tensor& item) {
  const auto ptr_c = ptr.contiguous(), item_c = item.contiguous();
  const auto* rows = ptr_c.const_data_ptr<int64_t>();
  const auto* data = item_c.const_data_ptr<index_t>();
  const auto num_rows = ptr.numel() - 1, num_items = item.numel();
  check_ptr<int64_t>("frequent_itemsets", "ptr", ptr_c, num_items);
  std::vector<uint64_t> out;
  out.reserve(num_items);
  for (int64_t i = 0; i < num_rows; i++) {
    for (auto k = rows[i], last = int64_t(-1); k < rows[i + 1]; k++) {
      const int64_t id = data[k];
      TORCH_CHECK_VALUE(
          id > last && id < kMaxId,
          "frequent_itemsets: 'item' needs to be ascending and distinct "
          "within each transaction, and in [0, 2^31) (got ",
          id, " in transaction ", i, ")");
      out.push_back(static_cast<uint64_t>(id) << 32 | i);
      last = id;
    }
  }
  return out;
}

using Tensors = std::tuple<at::Tensor, at::Tensor, at::Tensor>;

template <typename index_t>
Tensors to_tensors(
    const Search& search, const Transactions& data, const at::Tensor& item) {
  int64_t num_patterns = 0;
  for (const auto& run : search.keys) num_patterns += run.second;
  auto ptr = at::empty({num_patterns + 1}, item.options().dtype(at::kLong));
  auto support = at::empty({num_patterns}, ptr.options());
  auto out = at::empty({int64_t(search.items.size())}, item.options());

  auto* ptr_data = ptr.mutable_data_ptr<int64_t>();
  auto* support_data = support.mutable_data_ptr<int64_t>();
  auto* out_data = out.mutable_data_ptr<index_t>();
  *ptr_data = 0;
  for (const auto& [key, count] : search.keys) {
    for (int64_t i = 0; i < count; i++, ptr_data++) {
      *support_data++ = key.support;
      ptr_data[1] = ptr_data[0] + key.size;
    }
  }
  for (const auto i : search.items) *out_data++ = data.id[i];
  return {ptr, out, support};
}

Tensors frequent_itemsets_cpu(
    const at::Tensor& ptr, const at::Tensor& item, int64_t min_support,
    int64_t max_patterns, bool closed, std::optional<int64_t> max_size,
    const std::optional<at::Tensor>& cancel) {
  check_integers("frequent_itemsets", "ptr", ptr, at::kLong);
  TORCH_CHECK_VALUE(
      ptr.numel() <= kMaxId,
      "frequent_itemsets: 'ptr' needs to hold fewer than 2^31 transactions");
  const auto is_long = item.scalar_type() == at::kLong;
  TORCH_CHECK_VALUE(
      item.dim() == 1 && (is_long || item.scalar_type() == at::kInt),
      "frequent_itemsets: 'item' needs to be a one-dimensional int64 or int32 "
      "tensor (got ",
      item.scalar_type(), " of shape ", item.sizes(), ")");
  const auto check = [](const char* name, int64_t value) {
    TORCH_CHECK_VALUE(
        value > 0, "frequent_itemsets: '", name, "' needs to be positive (got ",
        value, ")");
  };
  check("min_support", min_support);
  check("max_patterns", max_patterns);
  if (max_size) check("max_size", *max_size);
  TORCH_CHECK_VALUE(
      !cancel || (cancel->is_cpu() && cancel->scalar_type() == at::kByte &&
                  cancel->numel() == 1),
      "frequent_itemsets: 'cancel' needs to be a uint8 tensor on CPU with one "
      "element");

  const Options options{
      min_support,
      std::min(max_patterns, std::numeric_limits<int64_t>::max() / 4),
      max_size.value_or(std::numeric_limits<int64_t>::max()), closed,
      cancel ? cancel->const_data_ptr<uint8_t>() : nullptr};
  const Transactions data(
      is_long ? get_entries<int64_t>(ptr, item) : get_entries<int>(ptr, item),
      ptr.numel() - 1, min_support);
  Search search(data, options);
  search.run();
  return is_long ? to_tensors<int64_t>(search, data, item)
                 : to_tensors<int>(search, data, item);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(torch_geometric_ext, m) {
  m.def(
      "frequent_itemsets(Tensor ptr, Tensor item, int min_support=1, "
      "int max_patterns=1000000, bool closed=False, int? max_size=None, "
      "Tensor? cancel=None) -> (Tensor ptr, Tensor item, Tensor support)");
}

TORCH_LIBRARY_IMPL(torch_geometric_ext, CPU, m) {
  m.impl("frequent_itemsets", TORCH_FN(frequent_itemsets_cpu));
}

}  // namespace torch_geometric_ext::frequent_itemsets
