#include <ATen/Dispatch.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>
#include <utility>
#include <vector>

#include "../check.h"
#include "radix_select.h"

namespace torch_geometric_ext::top_positions {
namespace {

// The number of scores that a single, vectorized comparison tests. A choice:
// most groups of the blocks of a gradient hold no score above the bound.
constexpr int64_t kGroup = 32;

// Returns a key that descends with the score, where NaN is infinity and both
// zeros are equal.
template <typename scalar_t>
uint64_t descending_key(scalar_t score) {
  using bits_t = std::conditional_t<sizeof(scalar_t) == 4, uint32_t, uint64_t>;
  constexpr auto kSign = bits_t(1) << (8 * sizeof(bits_t) - 1);
  if (score != score) score = INFINITY;
  score += 0;  // Maps -0.0 to 0.0.
  bits_t x;
  std::memcpy(&x, &score, sizeof(x));
  return x & kSign ? x : bits_t(~x) ^ kSign;
}

// Appends the positions of [begin, end) whose score is above the bound or NaN.
template <typename scalar_t>
void append_above(
    const scalar_t* score, int64_t begin, int64_t end, scalar_t bound,
    std::vector<int64_t>& out) {
  size_t size = out.size();
  for (auto start = begin; start < end; start += kGroup) {
    const auto stop = std::min(start + kGroup, end);
    int num_below = 0;
    for (auto i = start; i < stop; i++) num_below += score[i] <= bound;
    if (num_below == stop - start) continue;
    if (out.size() < size + kGroup) out.resize(2 * size + kGroup);
    auto* data = out.data();
    for (auto i = start; i < stop; i++) {
      data[size] = i;
      size += !(score[i] <= bound);
    }
  }
  out.resize(size);
}

template <typename scalar_t>
std::vector<int64_t> find_above(
    const scalar_t* score, int64_t size, scalar_t bound) {
  if (bound == INFINITY) return {};  // NaN is infinity.
  auto chunks = make_chunks(size);
  std::vector<std::vector<int64_t>> parts(chunks.size());
  for_each_chunk(chunks, [&](Chunk& chunk) {
    auto& part = parts[&chunk - chunks.data()];
    append_above(score, chunk.begin, chunk.end, bound, part);
  });
  auto& out = parts.front();
  for (size_t i = 1; i < parts.size(); i++) {
    out.insert(out.end(), parts[i].begin(), parts[i].end());
  }
  return std::move(out);
}

// Returns a bound that about twice as many scores exceed as are selected, from
// a sample at equal distances, or NaN if it would save nothing.
template <typename scalar_t>
scalar_t sample_bound(const scalar_t* score, int64_t num_scores, int64_t size) {
  constexpr int64_t kSamples = 1024;  // A choice: an error of 4 % at most.
  constexpr int64_t kSlack = 16;      // For the error of small fractions.
  if (num_scores < kMinChunk || size > num_scores / 8) return NAN;
  std::vector<Candidate> sample;
  for (int64_t k = 0; k < kSamples; k++) {
    const auto i = num_scores / kSamples * k;
    sample.emplace_back(descending_key(score[i]), i);
  }
  const auto fraction = 2 * static_cast<double>(size) / num_scores;
  const auto nth =
      sample.begin() + static_cast<int64_t>(fraction * kSamples) + kSlack;
  std::nth_element(sample.begin(), nth, sample.end());
  return score[nth->second];
}

// Returns `position(i)` of the `size` largest of `num_scores` scores
// `score[position(i)]`.
template <typename scalar_t, typename F>
at::Tensor select(
    const scalar_t* score, int64_t num_scores, int64_t size,
    const at::TensorOptions& options, const F& position) {
  size = std::min(size, num_scores);
  auto out = at::empty({size}, options);
  auto* data = out.template mutable_data_ptr<int64_t>();
  if (size == num_scores) {
    for (int64_t i = 0; i < size; i++) data[i] = position(i);
  } else if (size > 0) {
    const auto key = [=](int64_t i) {
      return descending_key(score[position(i)]);
    };
    auto chunks = make_chunks(num_scores);
    const auto last = find_threshold(chunks, size, 8 * sizeof(scalar_t), key);
    write_selected(chunks, last, key, position, data);
  }
  return out;
}

template <typename scalar_t>
at::Tensor top_positions(
    const scalar_t* score, int64_t num_scores, int64_t size,
    std::optional<double> bound, const at::TensorOptions& options) {
  const auto select_above = [&](const std::vector<int64_t>& above) {
    const auto* data = above.data();
    return select(
        score, above.size(), size, options, [=](int64_t i) { return data[i]; });
  };
  const auto lowest = static_cast<scalar_t>(bound.value_or(-INFINITY));
  const auto sampled = sample_bound(score, num_scores, size);
  if (sampled > lowest) {  // False for NaN.
    const auto above = find_above(score, num_scores, sampled);
    if (static_cast<int64_t>(above.size()) >= size) return select_above(above);
  }
  if (bound) return select_above(find_above(score, num_scores, lowest));
  return select(score, num_scores, size, options, [](int64_t i) { return i; });
}

at::Tensor top_positions_cpu(
    const at::Tensor& score, int64_t size, std::optional<double> bound) {
  const auto dtype = score.scalar_type();
  TORCH_CHECK_VALUE(
      score.dim() == 1 && (dtype == at::kFloat || dtype == at::kDouble),
      "top_positions: 'score' needs to be a one-dimensional float32 or "
      "float64 tensor (got ",
      dtype, " of shape ", score.sizes(), ")");
  TORCH_CHECK_VALUE(
      size >= 0, "top_positions: 'size' needs to be non-negative (got ", size,
      ")");
  TORCH_CHECK_VALUE(
      !bound || *bound == *bound,
      "top_positions: 'bound' needs to be a number (got nan)");
  const auto score_c = score.contiguous();
  const auto options = score.options().dtype(at::kLong);
  at::Tensor out;
  AT_DISPATCH_FLOATING_TYPES(dtype, "top_positions", [&] {
    const auto* data = score_c.const_data_ptr<scalar_t>();
    out = top_positions(data, score.numel(), size, bound, options);
  });
  return out;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(torch_geometric_ext, m) {
  m.def("top_positions(Tensor score, int size, float? bound=None) -> Tensor");
}

TORCH_LIBRARY_IMPL(torch_geometric_ext, CPU, m) {
  m.impl("top_positions", TORCH_FN(top_positions_cpu));
}

}  // namespace torch_geometric_ext::top_positions
