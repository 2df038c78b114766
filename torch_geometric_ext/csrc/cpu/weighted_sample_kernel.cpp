#include <ATen/Dispatch.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "radix_select.h"

namespace torch_geometric_ext::weighted_sample {
namespace {

// Non-negative doubles compare like their bit patterns below the sign: 11 bits
// of the exponent and 5 of the mantissa split an octave into 32 bins.
constexpr int kKeyBits = 63;

constexpr double kMax = std::numeric_limits<double>::max();

uint64_t bits(double key) {
  uint64_t out;
  std::memcpy(&out, &key, sizeof(out));
  return out;
}

template <typename scalar_t>
void compute_keys(
    Chunk& chunk, const scalar_t* weight, const double* noise, uint64_t* key) {
  for (int64_t i = chunk.begin; i < chunk.end; i++) {
    const auto w = static_cast<double>(weight[i]);
    // Comparisons fail for NaN. An invalid key may have any bit pattern.
    chunk.valid &=
        (w >= 0) && (w <= kMax) && (noise[i] > 0) && (noise[i] <= kMax);
    const auto arrival = noise[i] / std::abs(w);  // Map -0.0 to 0.0.
    // Tiny weights arrive before those of zero, at infinity:
    key[i] = bits(w > 0 ? std::min(arrival, kMax) : arrival);
  }
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

  auto chunks = make_chunks(size);
  const auto buffer = at::empty({size}, weight.options().dtype(at::kLong));
  auto* key = reinterpret_cast<uint64_t*>(buffer.mutable_data_ptr<int64_t>());
  AT_DISPATCH_FLOATING_TYPES(weight.scalar_type(), "weighted_sample", [&] {
    const auto weight_c = weight.contiguous();
    const auto noise_c = noise.contiguous();
    const auto* weight_data = weight_c.const_data_ptr<scalar_t>();
    const auto* noise_data = noise_c.const_data_ptr<double>();
    for_each_chunk(chunks, [&](Chunk& chunk) {
      compute_keys(chunk, weight_data, noise_data, key);
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
    const auto key_at = [=](int64_t i) { return key[i]; };
    const auto last = find_threshold(chunks, num_samples, kKeyBits, key_at);
    const auto position = [](int64_t i) { return i; };
    write_selected(
        chunks, last, key_at, position, out.mutable_data_ptr<int64_t>());
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

}  // namespace torch_geometric_ext::weighted_sample
