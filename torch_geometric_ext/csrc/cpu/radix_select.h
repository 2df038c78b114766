#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

// A radix selection of the smallest of many unsigned keys. Their 16 highest
// bits fill a histogram, and only the bin of the threshold is searched. Short
// inputs have a single bin. Keys sort ties by position, hence the result does
// not depend on the number of threads.
namespace torch_geometric_ext {

// The number of positions that is worth a thread and a histogram. A choice, no
// measurement.
constexpr int64_t kMinChunk = int64_t(1) << 16;

constexpr int kBinBits = 16;

using Candidate = std::pair<uint64_t, int64_t>;  // (key, position)

struct Chunk {
  int64_t begin;
  int64_t end;
  bool valid = true;
  std::vector<int64_t> histogram;
  std::vector<Candidate> candidates;
  int64_t num_selected = 0;
};

inline std::vector<Chunk> make_chunks(int64_t size) {
  const auto limit = std::max<int64_t>(size / kMinChunk, 1);
  const auto num_chunks = std::min<int64_t>(at::get_num_threads(), limit);
  std::vector<Chunk> chunks;
  for (int64_t i = 0; i < num_chunks; i++) {
    chunks.push_back({i * size / num_chunks, (i + 1) * size / num_chunks});
  }
  return chunks;
}

template <typename F>
void for_each_chunk(std::vector<Chunk>& chunks, const F& f) {
  at::parallel_for(0, chunks.size(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) f(chunks[i]);
  });
}

// Returns the bin of the `rank`-th smallest key, counted from one, and the
// rank of the key in its bin.
inline std::pair<uint64_t, int64_t> find_bin(
    const std::vector<Chunk>& chunks, int64_t rank) {
  for (int64_t bin = 0; bin < int64_t(1) << kBinBits; bin++) {
    int64_t count = 0;
    for (const auto& chunk : chunks) count += chunk.histogram[bin];
    if (rank <= count) return {bin, rank};
    rank -= count;
  }
  TORCH_INTERNAL_ASSERT(false, "fewer keys than the rank");
}

// Calls `f(chunk, key, end)` for each chunk. Copies of `key` and of the end
// stay in registers: what a loop writes could change what a reference reads.
template <typename F, typename G>
void for_each_key(std::vector<Chunk>& chunks, const G& key, const F& f) {
  for_each_chunk(
      chunks, [&](Chunk& chunk) { f(chunk, G(key), int64_t(chunk.end)); });
}

// Returns the last of the `num_selected` > 0 smallest candidates, for keys
// `key(i)` below 2^`key_bits`.
template <typename G>
Candidate find_threshold(
    std::vector<Chunk>& chunks, int64_t num_selected, int key_bits,
    const G& key) {
  const bool single = chunks.back().end < kMinChunk;
  const int shift = key_bits - kBinBits;
  std::pair<uint64_t, int64_t> found{0, num_selected};
  if (!single) {
    for_each_key(chunks, key, [=](Chunk& chunk, G key, int64_t end) {
      chunk.histogram.assign(int64_t(1) << kBinBits, 0);
      auto* histogram = chunk.histogram.data();
      for (auto i = chunk.begin; i < end; i++) histogram[key(i) >> shift]++;
    });
    found = find_bin(chunks, num_selected);
  }
  const auto [bin, rank] = found;
  for_each_key(chunks, key, [=, bin = bin](Chunk& chunk, G key, int64_t end) {
    for (auto i = chunk.begin; i < end; i++) {
      const uint64_t x = key(i);
      if (single || x >> shift == bin) chunk.candidates.emplace_back(x, i);
    }
  });
  auto& candidates = chunks.front().candidates;
  for (size_t i = 1; i < chunks.size(); i++) {
    const auto& more = chunks[i].candidates;
    candidates.insert(candidates.end(), more.begin(), more.end());
  }
  const auto nth = candidates.begin() + (rank - 1);
  std::nth_element(candidates.begin(), nth, candidates.end());
  return *nth;
}

// Writes `position(i)` of each selected `i`, in ascending order of `i`.
template <typename G, typename H>
void write_selected(
    std::vector<Chunk>& chunks, Candidate threshold, const G& key,
    const H& position, int64_t* out) {
  const auto [highest, last] = threshold;
  const auto selected = [=, highest = highest, last = last](int64_t i) {
    const uint64_t x = key(i);
    return (x < highest) | ((x == highest) & (i <= last));
  };
  using S = decltype(selected);
  for_each_key(chunks, selected, [](Chunk& chunk, S selected, int64_t end) {
    int64_t count = 0;
    for (auto i = chunk.begin; i < end; i++) count += selected(i);
    chunk.num_selected = count;
  });
  std::vector<int64_t*> starts;
  for (const auto& chunk : chunks) {
    starts.push_back(out);
    out += chunk.num_selected;
  }
  for_each_key(chunks, selected, [&](Chunk& chunk, S selected, int64_t) {
    auto* cursor = starts[&chunk - chunks.data()];
    const auto* stop = cursor + chunk.num_selected;
    // A branch would be mispredicted often.
    for (auto i = chunk.begin; cursor != stop; i++) {
      *cursor = position(i);
      cursor += selected(i);
    }
  });
}

}  // namespace torch_geometric_ext
