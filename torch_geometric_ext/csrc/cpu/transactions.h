#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <vector>

// The dynamic loader selects an instruction set for the loops over words. All
// instruction sets give the same integers.
#if defined(__x86_64__) && defined(__GLIBC__) && !defined(__SANITIZE_ADDRESS__)
#define DISPATCHED __attribute__((target_clones("popcnt", "default")))
#else
#define DISPATCHED
#endif

namespace torch_geometric_ext {

// A set of transactions, stored as the non-zero words of its bitset.
struct Cover {
  std::vector<int32_t> index;
  std::vector<uint64_t> mask;

  int64_t size() const {
    return index.size();
  }
  void resize(int64_t size) {
    index.resize(size);
    mask.resize(size);
  }
};

DISPATCHED inline int64_t count_bits(const uint64_t* mask, int64_t size) {
  int64_t out = 0;
  for (int64_t i = 0; i < size; i++) out += __builtin_popcountll(mask[i]);
  return out;
}

// Counts the transactions that a row lacks, and stops above `limit`.
DISPATCHED inline int64_t count_missing(
    const int32_t* index, const uint64_t* mask, int64_t size,
    const uint64_t* row, int64_t limit) {
  int64_t out = 0;
  for (int64_t i = 0; i < size && out <= limit; i++) {
    out += __builtin_popcountll(mask[i] & ~row[index[i]]);
  }
  return out;
}

// Transactions and, for each item, the set of its transactions. Items are
// numbered by rank: the most frequent item is 0. Items below `min_support` are
// dropped.
//
// An item in at least one out of 64 transactions has a dense bitset, and any
// other item has the non-zero words of its bitset. Hence an item takes at most
// 12 bytes for each of its transactions.
class Transactions {
 public:
  // Each entry is (item << 32 | transaction).
  Transactions(
      std::vector<uint64_t> entries, int64_t num_transactions,
      int64_t min_support)
      : num_transactions(num_transactions),
        num_words((num_transactions + 63) / 64) {
    const auto start = group(entries, min_support);
    const auto num_items = int64_t(start.size()) - 1;
    column.resize(num_items);
    std::iota(column.begin(), column.end(), 0);
    const auto size = [&](int32_t i) { return start[i + 1] - start[i]; };
    std::stable_sort(column.begin(), column.end(), [&](int32_t i, int32_t j) {
      return size(i) > size(j);
    });

    rank.resize(num_items);
    for (int64_t r = 0; r < num_items; r++) {
      rank[column[r]] = r;
      support.push_back(size(column[r]));
      id.push_back(entries[start[r]] >> 32);
      if (support[r] >= num_words) num_dense++;
    }
    ptr_.assign(num_transactions + 1, 0);
    for (int64_t i = 0; i < start.back(); i++) {
      ptr_[static_cast<uint32_t>(entries[i]) + 1]++;
    }
    std::partial_sum(ptr_.begin(), ptr_.end(), ptr_.begin());
    items_.resize(start.back());
    dense_.assign(num_dense * num_words, 0);
    sparse_ptr_.push_back(0);
    num_above_.assign(num_items + 1, 0);
    std::partial_sum(support.begin(), support.end(), num_above_.begin() + 1);
    auto fill = ptr_;
    for (int64_t r = 0; r < num_items; r++) {
      const auto* first = entries.data() + start[column[r]];
      add_item(r, first, first + support[r], fill);
    }
  }

  // Items of a transaction, by ascending rank.
  const int32_t* begin(int64_t transaction) const {
    return items_.data() + ptr_[transaction];
  }
  const int32_t* end(int64_t transaction) const {
    return items_.data() + ptr_[transaction + 1];
  }
  int64_t num_items() const {
    return column.size();
  }

  // Returns the mean number of items of rank below `limit` in a transaction.
  double mean_size(int64_t limit) const {
    return double(num_above_[limit]) / num_transactions;
  }

  // Writes the set of all transactions.
  void all(Cover& out) const {
    out.resize(num_words);
    std::iota(out.index.begin(), out.index.end(), 0);
    std::fill(out.mask.begin(), out.mask.end(), ~uint64_t(0));
    if (num_transactions % 64) {
      out.mask.back() = (uint64_t(1) << num_transactions % 64) - 1;
    }
  }

  // Intersects a cover with the transactions of an item, possibly in-place.
  void intersect(const Cover& cover, int64_t item, Cover& out) const {
    const auto size = cover.size();
    out.resize(size);
    const auto* index = cover.index.data();
    const auto* mask = cover.mask.data();
    auto* out_index = out.index.data();
    auto* out_mask = out.mask.data();
    int64_t n = 0;
    const auto keep = [&](int32_t index, uint64_t mask) {
      out_index[n] = index;
      out_mask[n] = mask;
      n += mask != 0;
    };
    if (item < num_dense) {
      const auto* row = dense(item);
      for (int64_t i = 0; i < size; i++) {
        keep(index[i], mask[i] & row[index[i]]);
      }
    } else {
      auto k = sparse_ptr_[item - num_dense];
      const auto last = sparse_ptr_[item - num_dense + 1];
      for (int64_t i = 0; i < size && k < last; i++) {
        while (k < last && sparse_index_[k] < index[i]) k++;
        if (k < last && sparse_index_[k] == index[i]) {
          keep(index[i], mask[i] & sparse_mask_[k]);
        }
      }
    }
    out.resize(n);
  }

  // Returns whether all transactions of a cover contain an item.
  bool contain(const Cover& cover, int64_t item) const {
    if (item < num_dense) {
      const auto* row = dense(item);
      for (int64_t i = 0; i < cover.size(); i++) {
        if (cover.mask[i] & ~row[cover.index[i]]) return false;
      }
      return true;
    }
    auto k = sparse_ptr_[item - num_dense];
    const auto last = sparse_ptr_[item - num_dense + 1];
    for (int64_t i = 0; i < cover.size(); i++, k++) {
      while (k < last && sparse_index_[k] < cover.index[i]) k++;
      if (k == last || sparse_index_[k] != cover.index[i]) return false;
      if (cover.mask[i] & ~sparse_mask_[k]) return false;
    }
    return true;
  }

  const uint64_t* dense(int64_t item) const {
    return dense_.data() + item * num_words;
  }

  const int64_t num_transactions, num_words;
  int64_t num_dense = 0;         // Dense items come first.
  std::vector<int32_t> column;   // Position in ascending ids, by rank.
  std::vector<int32_t> rank;     // Rank, by position.
  std::vector<int64_t> id;       // By position.
  std::vector<int64_t> support;  // By rank.

 private:
  // Sorts entries by item and drops rare items. Returns the row pointers of the
  // items.
  static std::vector<int64_t> group(
      std::vector<uint64_t>& entries, int64_t min_support) {
    std::sort(entries.begin(), entries.end());
    std::vector<int64_t> start{0};
    const auto size = int64_t(entries.size());
    for (int64_t i = 0, next = 0; i < size; i = next) {
      const auto item = entries[i] >> 32;
      while (next < size && entries[next] >> 32 == item) {
        entries[start.back() + next - i] = entries[next];
        next++;
      }
      if (next - i >= min_support) start.push_back(start.back() + next - i);
    }
    return start;
  }

  void add_item(
      int64_t item, const uint64_t* first, const uint64_t* last,
      std::vector<int64_t>& fill) {
    for (auto* entry = first; entry != last; entry++) {
      const auto transaction = static_cast<uint32_t>(*entry);
      items_[fill[transaction]++] = item;
      const int32_t index = transaction / 64;
      const auto mask = uint64_t(1) << transaction % 64;
      if (item < num_dense) {
        dense_[item * num_words + index] |= mask;
      } else if (entry != first && sparse_index_.back() == index) {
        sparse_mask_.back() |= mask;
      } else {
        sparse_index_.push_back(index);
        sparse_mask_.push_back(mask);
      }
    }
    if (item >= num_dense) sparse_ptr_.push_back(sparse_index_.size());
  }

  std::vector<int64_t> ptr_, sparse_ptr_, num_above_;
  std::vector<int32_t> items_, sparse_index_;
  std::vector<uint64_t> dense_, sparse_mask_;
};

}  // namespace torch_geometric_ext
