#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <limits>
#include <numeric>
#include <tuple>
#include <utility>
#include <vector>

// Exact ids of equal rows by hash consing, for any type of row: a hash finds
// candidates, a comparison decides. `Rows` implements `hash(i)`, `equal(i, j)`,
// and the total order `less(i, j)`, which agrees with the order of `prefix(i)`
// wherever prefixes differ.
namespace torch_geometric_ext {

using Prefix = std::pair<uint64_t, uint64_t>;

// The number of rows that is worth a thread. A choice, no measurement.
constexpr int64_t kMinRows = 1 << 14;

inline uint64_t mix(uint64_t hash, uint64_t value) {
  hash = (hash ^ value) * 0x9e3779b97f4a7c15;
  return hash ^ (hash >> 29);
}

// A hash table of distinct rows, numbered in order of first occurrence.
class Table {
 public:
  std::vector<int64_t> rows;
  std::vector<uint64_t> hashes;

  template <typename Rows>
  int32_t insert(const Rows& source, uint64_t hash, int64_t row) {
    if (2 * rows.size() >= slots_.size()) grow();
    const auto tag = static_cast<uint32_t>(hash >> 32);
    for (uint64_t i = hash & mask_;; i = (i + 1) & mask_) {
      auto& slot = slots_[i];
      if (slot.id < 0) {
        TORCH_CHECK_VALUE(
            rows.size() < size_t(std::numeric_limits<int32_t>::max()),
            "unique_rows and unique_trees support at most 2^31 - 1 distinct "
            "rows");
        slot = {tag, static_cast<int32_t>(rows.size())};
        rows.push_back(row);
        hashes.push_back(hash);
        return slot.id;
      }
      if (slot.tag == tag && source.equal(rows[slot.id], row)) return slot.id;
    }
  }

 private:
  struct Slot {
    uint32_t tag = 0;
    int32_t id = -1;
  };

  void grow() {
    const auto size = std::max<size_t>(2 * slots_.size(), 64);
    slots_.assign(size, Slot());
    mask_ = size - 1;
    for (size_t id = 0; id < rows.size(); id++) {
      auto i = hashes[id] & mask_;
      while (slots_[i].id >= 0) i = (i + 1) & mask_;
      slots_[i] = {
          static_cast<uint32_t>(hashes[id] >> 32), static_cast<int32_t>(id)};
    }
  }

  std::vector<Slot> slots_;
  uint64_t mask_ = 0;
};

template <typename F>
void parallel_each(int64_t size, const F& f) {
  at::parallel_for(0, size, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) f(i);
  });
}

// Returns the positions of the distinct rows in the order of their ids: known
// rows in their order, then all other rows in ascending order.
template <typename Rows>
std::vector<int64_t> canonical_order(
    const char* op, const Rows& source, const std::vector<int64_t>& rows,
    int64_t num_known) {
  struct Entry {
    Prefix prefix;
    int64_t row;
    int64_t position;
  };
  std::vector<int64_t> order(num_known);
  std::vector<Entry> entries;
  for (size_t i = 0; i < rows.size(); i++) {
    if (rows[i] < num_known) {
      order[rows[i]] = i;
    } else {
      entries.push_back({source.prefix(rows[i]), rows[i], int64_t(i)});
    }
  }
  TORCH_CHECK_VALUE(
      int64_t(rows.size() - entries.size()) == num_known, op, ": the first ",
      num_known, " rows need to be distinct");
  std::sort(entries.begin(), entries.end(), [&](const auto& a, const auto& b) {
    if (a.prefix != b.prefix) return a.prefix < b.prefix;
    return source.less(a.row, b.row);
  });
  for (const auto& entry : entries) order.push_back(entry.position);
  return order;
}

struct Unique {
  at::Tensor ids;    // [N]
  at::Tensor index;  // [T], the first row of each id
};

// The distinct rows of all parts, and, for each part, the positions of its
// distinct rows among them.
struct Merged {
  std::vector<int64_t> rows;
  std::vector<std::vector<int64_t>> position;
};

// Merges the distinct rows of parts. Each thread merges one shard of the
// hashes. Parts are in order, hence the first row still represents its id.
template <typename Rows>
Merged merge(const Rows& source, const std::vector<Table>& parts) {
  const auto num_parts = int64_t(parts.size());
  if (num_parts == 1) {
    Merged out{parts[0].rows, {std::vector<int64_t>(parts[0].rows.size())}};
    std::iota(out.position[0].begin(), out.position[0].end(), 0);
    return out;
  }
  const auto shard_of = [=](uint64_t hash) {
    return static_cast<int64_t>((hash >> 40) % num_parts);
  };
  Merged out;
  for (const auto& part : parts) out.position.emplace_back(part.rows.size());
  std::vector<Table> shards(num_parts);
  parallel_each(num_parts, [&](int64_t shard) {
    for (int64_t part = 0; part < num_parts; part++) {
      const auto& [rows, hashes] =
          std::tie(parts[part].rows, parts[part].hashes);
      for (size_t i = 0; i < rows.size(); i++) {
        if (shard_of(hashes[i]) != shard) continue;
        out.position[part][i] =
            shards[shard].insert(source, hashes[i], rows[i]);
      }
    }
  });
  std::vector<int64_t> offset;
  for (const auto& shard : shards) {
    offset.push_back(out.rows.size());
    out.rows.insert(out.rows.end(), shard.rows.begin(), shard.rows.end());
  }
  parallel_each(num_parts, [&](int64_t part) {
    auto& position = out.position[part];
    for (size_t i = 0; i < position.size(); i++) {
      position[i] += offset[shard_of(parts[part].hashes[i])];
    }
  });
  return out;
}

// Assigns ids to rows. The first `num_known` rows keep their positions as ids,
// and all other distinct rows are ranked behind them. The result does not
// depend on the number of threads.
template <typename Rows>
Unique unique(
    const char* op, const Rows& source, int64_t size, int64_t num_known) {
  TORCH_CHECK_VALUE(
      num_known >= 0 && num_known <= size, op,
      ": 'num_known' needs to be in [0, ", size, "] (got ", num_known, ")");
  const auto options = at::TensorOptions().dtype(at::kLong);
  auto ids = at::empty({size}, options);
  auto* id = ids.mutable_data_ptr<int64_t>();

  // Each thread numbers the distinct rows of its part.
  const auto limit = std::max<int64_t>(size / kMinRows, 1);
  const auto num_parts = std::min<int64_t>(at::get_num_threads(), limit);
  std::vector<Table> parts(num_parts);
  parallel_each(num_parts, [&](int64_t part) {
    const auto end = (part + 1) * size / num_parts;
    for (auto i = part * size / num_parts; i < end; i++) {
      id[i] = parts[part].insert(source, source.hash(i), i);
    }
  });

  const auto merged = merge(source, parts);
  const auto order = canonical_order(op, source, merged.rows, num_known);
  auto index = at::empty({int64_t(order.size())}, options);
  auto* first = index.mutable_data_ptr<int64_t>();
  std::vector<int64_t> rank(order.size());
  for (size_t i = 0; i < order.size(); i++) {
    first[i] = merged.rows[order[i]];
    rank[order[i]] = i;
  }
  parallel_each(num_parts, [&](int64_t part) {
    const auto& position = merged.position[part];
    const auto end = (part + 1) * size / num_parts;
    for (auto i = part * size / num_parts; i < end; i++) {
      id[i] = rank[position[id[i]]];
    }
  });
  return {ids, index};
}

}  // namespace torch_geometric_ext
