#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <utility>
#include <vector>

namespace torch_geometric_ext {
namespace {

// A radix selection. Non-negative doubles compare like their bit patterns. The
// 16 bits below the sign (11 of the exponent, 5 of the mantissa) split an
// octave into 32 bins, and only the bin of the threshold is searched. Short
// inputs have a single bin.

// The number of positions that is worth a thread and a histogram. A choice, no
// measurement.
constexpr int64_t kMinChunk = int64_t(1) << 16;

constexpr double kMax = std::numeric_limits<double>::max();

struct Bins {
  int shift;
  int64_t count;

  explicit Bins(int64_t size)
      : shift(size < kMinChunk ? 63 : 47), count(int64_t(1) << (63 - shift)) {}
};

uint64_t bits(double key) {
  uint64_t out;
  std::memcpy(&out, &key, sizeof(out));
  return out;
}

using Candidate = std::pair<uint64_t, int64_t>;  // (key, index)

struct Chunk {
  int64_t begin;
  int64_t end;
  bool valid = true;
  std::vector<int64_t> histogram;
  std::vector<Candidate> candidates;
  int64_t num_selected = 0;
};

std::vector<Chunk> make_chunks(int64_t size) {
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

template <typename scalar_t>
void compute_keys(
    Chunk& chunk, Bins bins, const scalar_t* weight, const double* noise,
    uint64_t* key) {
  chunk.histogram.assign(bins.count, 0);
  for (int64_t i = chunk.begin; i < chunk.end; i++) {
    const auto w = static_cast<double>(weight[i]);
    // Comparisons fail for NaN. An invalid key may have any bit pattern.
    chunk.valid &=
        (w >= 0) && (w <= kMax) && (noise[i] > 0) && (noise[i] <= kMax);
    const auto arrival = noise[i] / std::abs(w);  // Map -0.0 to 0.0.
    // Tiny weights arrive before those of zero, at infinity:
    const auto value = bits(w > 0 ? std::min(arrival, kMax) : arrival);
    key[i] = value;
    chunk.histogram[(value >> bins.shift) & (bins.count - 1)]++;
  }
}

// Returns the bin of the `num_samples`-th smallest key, and the number of keys
// of this bin in the sample.
std::pair<uint64_t, int64_t> find_bin(
    const std::vector<Chunk>& chunks, Bins bins, int64_t num_samples) {
  int64_t remaining = num_samples;
  for (int64_t bin = 0; bin < bins.count; bin++) {
    int64_t count = 0;
    for (const auto& chunk : chunks) count += chunk.histogram[bin];
    if (remaining <= count) return {bin, remaining};
    remaining -= count;
  }
  TORCH_INTERNAL_ASSERT(false, "fewer keys than samples");
}

// Returns the last candidate of the sample. Candidates sort ties by index,
// hence the result does not depend on the number of threads.
Candidate find_threshold(
    std::vector<Chunk>& chunks, Bins bins, const uint64_t* key,
    int64_t num_samples) {
  const auto [bin, rank] = find_bin(chunks, bins, num_samples);
  for_each_chunk(chunks, [&, bin = bin](Chunk& chunk) {
    for (int64_t i = chunk.begin; i < chunk.end; i++) {
      if (key[i] >> bins.shift == bin) chunk.candidates.emplace_back(key[i], i);
    }
  });
  std::vector<Candidate> candidates;
  for (const auto& chunk : chunks) {
    candidates.insert(
        candidates.end(), chunk.candidates.begin(), chunk.candidates.end());
  }
  const auto nth = candidates.begin() + (rank - 1);
  std::nth_element(candidates.begin(), nth, candidates.end());
  return *nth;
}

void write_selected(
    std::vector<Chunk>& chunks, const uint64_t* key, Candidate threshold,
    int64_t* out) {
  const auto selected = [=](int64_t i) {
    return key[i] < threshold.first ||
           (key[i] == threshold.first && i <= threshold.second);
  };
  for_each_chunk(chunks, [&](Chunk& chunk) {
    for (int64_t i = chunk.begin; i < chunk.end; i++) {
      chunk.num_selected += selected(i);
    }
  });
  std::vector<int64_t*> starts;
  for (const auto& chunk : chunks) {
    starts.push_back(out);
    out += chunk.num_selected;
  }
  for_each_chunk(chunks, [&](Chunk& chunk) {
    auto* cursor = starts[&chunk - chunks.data()];
    for (int64_t i = chunk.begin; i < chunk.end; i++) {
      if (selected(i)) *cursor++ = i;
    }
  });
}

at::Tensor weighted_sample_cpu(
    const at::Tensor& weight, const at::Tensor& noise, int64_t num_samples) {
  const auto size = weight.numel();
  const auto dtype = weight.scalar_type();
  TORCH_CHECK_VALUE(
      weight.dim() == 1 && (dtype == at::kFloat || dtype == at::kDouble),
      "weighted_sample: 'weight' needs to be a one-dimensional float32 or "
      "float64 tensor (got ",
      dtype, " of shape ", weight.sizes(), ")");
  TORCH_CHECK_VALUE(
      noise.sizes() == weight.sizes() && noise.scalar_type() == at::kDouble,
      "weighted_sample: 'noise' needs to be a float64 tensor of shape ",
      weight.sizes(), " (got ", noise.scalar_type(), " of shape ",
      noise.sizes(), ")");
  TORCH_CHECK_VALUE(
      num_samples >= 0 && num_samples <= size,
      "weighted_sample: 'num_samples' needs to be in [0, ", size, "] (got ",
      num_samples, ")");

  const Bins bins(size);
  auto chunks = make_chunks(size);
  const auto buffer = at::empty({size}, weight.options().dtype(at::kLong));
  auto* key = reinterpret_cast<uint64_t*>(buffer.mutable_data_ptr<int64_t>());
  AT_DISPATCH_FLOATING_TYPES(weight.scalar_type(), "weighted_sample", [&] {
    const auto weight_c = weight.contiguous();
    const auto noise_c = noise.contiguous();
    const auto* weight_data = weight_c.const_data_ptr<scalar_t>();
    const auto* noise_data = noise_c.const_data_ptr<double>();
    for_each_chunk(chunks, [&](Chunk& chunk) {
      compute_keys(chunk, bins, weight_data, noise_data, key);
    });
  });
  for (const auto& chunk : chunks) {
    TORCH_CHECK_VALUE(
        chunk.valid,
        "weighted_sample: 'weight' needs to be non-negative and 'noise' "
        "positive, both finite");
  }

  const auto options = weight.options().dtype(at::kLong);
  auto out = at::empty({num_samples}, options);
  if (num_samples > 0) {
    const auto threshold = find_threshold(chunks, bins, key, num_samples);
    write_selected(chunks, key, threshold, out.mutable_data_ptr<int64_t>());
  }
  return out;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(torch_geometric_ext, m) {
  m.def(
      "weighted_sample(Tensor weight, Tensor noise, int num_samples) -> "
      "Tensor");
}

TORCH_LIBRARY_IMPL(torch_geometric_ext, CPU, m) {
  m.impl("weighted_sample", TORCH_FN(weighted_sample_cpu));
}

}  // namespace torch_geometric_ext
