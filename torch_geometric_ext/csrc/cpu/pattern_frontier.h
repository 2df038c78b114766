#pragma once

#include <algorithm>
#include <cstdint>
#include <map>
#include <numeric>
#include <utility>
#include <vector>

namespace torch_geometric_ext {

// The key by which the search sorts patterns. Patterns of one key are the rows
// of a matrix, each with ascending item positions.
struct PatternKey {
  int64_t support, size;

  bool operator<(const PatternKey& other) const {
    if (support != other.support) return support > other.support;
    return size < other.size;
  }
};

// Returns the first `count` rows in lexicographic order.
inline std::vector<int64_t> first_rows(
    const std::vector<int32_t>& rows, int64_t size, int64_t count, bool sort) {
  std::vector<int64_t> out(rows.size() / size);
  std::iota(out.begin(), out.end(), 0);
  const auto less = [&](int64_t i, int64_t j) {
    const auto *a = rows.data() + i * size, *b = rows.data() + j * size;
    return std::lexicographical_compare(a, a + size, b, b + size);
  };
  if (count < int64_t(out.size())) {
    std::nth_element(out.begin(), out.begin() + count, out.end(), less);
    out.resize(count);
  }
  if (sort) std::sort(out.begin(), out.end(), less);
  return out;
}

// A priority queue of known patterns that are not yet emitted. It holds at most
// as many patterns as may still be emitted (`room`), and as many again in its
// last bucket until it truncates this bucket.
class PatternFrontier {
 public:
  using Buckets = std::map<PatternKey, std::vector<int32_t>>;

  explicit PatternFrontier(int64_t room) : room_(room) {}

  bool empty() const {
    return buckets_.empty();
  }

  // Returns whether a pattern of this key may still be emitted.
  bool wants(const PatternKey& key) const {
    return size_ < room_ || (room_ > 0 && !(buckets_.rbegin()->first < key));
  }

  // Returns the smallest support of wanted patterns of a size.
  int64_t min_support(int64_t size) const {
    if (size_ < room_) return 1;
    const auto& key = buckets_.rbegin()->first;
    return key.support + (size > key.size);
  }

  void push(const PatternKey& key, const std::vector<int32_t>& row) {
    auto& rows = buckets_[key];
    rows.insert(rows.end(), row.begin(), row.end());
    size_++;
    while (size_ - last_size() >= room_) pop_last();
    if (size_ - room_ > room_ + kSlack) truncate_last();
  }

  // Returns the patterns of the best key, at most as many as may be emitted.
  Buckets::value_type pop() {
    if (buckets_.size() == 1) truncate_last();
    auto out = std::move(*buckets_.begin());
    buckets_.erase(buckets_.begin());
    size_ -= out.second.size() / out.first.size;
    room_ -= out.second.size() / out.first.size;
    return out;
  }

 private:
  // Truncate only after this many extra patterns, which amortizes the cost of
  // small frontiers. A choice, no measurement.
  static constexpr int64_t kSlack = 1024;

  int64_t last_size() const {
    const auto& last = *buckets_.rbegin();
    return last.second.size() / last.first.size;
  }

  void pop_last() {
    size_ -= last_size();
    buckets_.erase(std::prev(buckets_.end()));
  }

  void truncate_last() {
    if (size_ <= room_) return;
    const auto size = buckets_.rbegin()->first.size;
    auto& rows = buckets_.rbegin()->second;
    const auto keep = last_size() - (size_ - room_);
    std::vector<int32_t> out;
    out.reserve(keep * size);
    for (const auto i : first_rows(rows, size, keep, false)) {
      out.insert(
          out.end(), rows.begin() + i * size, rows.begin() + (i + 1) * size);
    }
    rows = std::move(out);
    size_ = room_;
  }

  Buckets buckets_;
  int64_t size_ = 0, room_;
};

}  // namespace torch_geometric_ext
