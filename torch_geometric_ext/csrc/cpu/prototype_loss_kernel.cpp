#include <ATen/Dispatch.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/zeros_like.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <tuple>
#include <utility>
#include <vector>

#include "small.h"

namespace torch_geometric_ext::prototype_loss {
namespace {

using at::Tensor;

// `ops/prototype_loss.py` holds the same constants.
constexpr double kEps = 1e-6;       // Bounds norms and sums of angles below.
constexpr double kShrinkage = 0.5;  // The weight of I / D in Eq. (8).

// Returns a row-normalized copy of `x` and the inverse norm of each row, which
// is at most 1 / kEps.
template <typename scalar_t>
std::pair<Tensor, std::vector<scalar_t>> normalize(const Tensor& x) {
  const auto num_rows = x.size(0), dim = x.size(1);
  auto out = at::empty_like(x);
  std::vector<scalar_t> scale(num_rows);
  const auto* src = x.const_data_ptr<scalar_t>();
  auto* dst = out.mutable_data_ptr<scalar_t>();
  for (int64_t i = 0; i < num_rows; i++, src += dim, dst += dim) {
    const auto norm = std::sqrt(dot(src, src, dim));
    scale[i] = 1 / std::max(norm, static_cast<scalar_t>(kEps));
    for (int64_t d = 0; d < dim; d++) dst[d] = src[d] * scale[i];
  }
  return {out, scale};
}

// Computes the gradient of `normalize` in-place: each row becomes
// (grad - out <grad, out>) * scale.
template <typename scalar_t>
void normalize_backward_(
    Tensor& grad, const Tensor& out, const std::vector<scalar_t>& scale) {
  const auto num_rows = grad.size(0), dim = grad.size(1);
  const auto* y = out.const_data_ptr<scalar_t>();
  auto* g = grad.mutable_data_ptr<scalar_t>();
  for (int64_t i = 0; i < num_rows; i++, y += dim, g += dim) {
    const bool clamped = scale[i] >= static_cast<scalar_t>(1 / kEps);
    const auto along = clamped ? scalar_t(0) : dot(g, y, dim);
    for (int64_t d = 0; d < dim; d++) g[d] = (g[d] - y[d] * along) * scale[i];
  }
}

template <typename scalar_t>
void relu_(Tensor& x) {
  auto* data = x.mutable_data_ptr<scalar_t>();
  const auto size = x.numel();
#pragma omp simd
  for (int64_t i = 0; i < size; i++) data[i] = data[i] < 0 ? 0 : data[i];
}

template <typename scalar_t>
void relu_backward_(Tensor& grad, const Tensor& out) {
  const auto* y = out.const_data_ptr<scalar_t>();
  auto* g = grad.mutable_data_ptr<scalar_t>();
  const auto size = grad.numel();
#pragma omp simd
  for (int64_t i = 0; i < size; i++) g[i] = y[i] <= 0 ? 0 : g[i];
}

// Normalized prototypes and their pairwise cosines.
template <typename scalar_t>
struct Geometry {
  int64_t num_classes, num_prototypes, size, dim;
  Tensor prototype;  // [C * K, D], unit rows
  std::vector<scalar_t> scale;
  Tensor gram;  // [C * K, C * K]

  explicit Geometry(const Tensor& prototypes)
      : num_classes(prototypes.size(0)),
        num_prototypes(prototypes.size(1)),
        size(num_classes * num_prototypes),
        dim(prototypes.size(2)) {
    const auto flat = prototypes.contiguous().view({size, dim});
    std::tie(prototype, scale) = normalize<scalar_t>(flat);
    gram = matmul_nt<scalar_t>(prototype, prototype);
  }

  // Returns the cosine between the prototypes `i` and `j` of class `c`.
  scalar_t cosine(int64_t c, int64_t i, int64_t j) const {
    const auto row = (c * num_prototypes + i) * size;
    const auto* data = gram.template const_data_ptr<scalar_t>();
    return data[row + c * num_prototypes + j];
  }

  // Returns the scaled Gram matrix, with -inf within each class.
  Tensor logits_across_classes(scalar_t factor) const {
    auto out = scaled(gram, factor);
    auto* data = out.template mutable_data_ptr<scalar_t>();
    for (int64_t i = 0; i < size; i++) {
      auto* own = data + i * size + i / num_prototypes * num_prototypes;
      const auto infinity = std::numeric_limits<scalar_t>::infinity();
      std::fill(own, own + num_prototypes, -infinity);
    }
    return out;
  }

  // Returns the Cholesky factors [C, K, K] of (K / D) (s / (1 - s)) I + X X'
  // for the centered prototypes X of each class. The Woodbury identity reduces
  // the inverse covariance to the inverses of these small matrices.
  std::vector<scalar_t> cholesky() const {
    const auto K = num_prototypes;
    const auto ridge = K * kShrinkage / ((1 - kShrinkage) * dim);
    std::vector<scalar_t> out(num_classes * K * K), mean(K);
    for (int64_t c = 0; c < num_classes; c++) {
      for (int64_t i = 0; i < K; i++) {
        mean[i] = 0;
        for (int64_t j = 0; j < K; j++) mean[i] += cosine(c, i, j) / K;
      }
      const auto total = std::accumulate(mean.begin(), mean.end(), 0.0) / K;
      auto* factor = out.data() + c * K * K;
      for (int64_t i = 0; i < K; i++) {
        for (int64_t j = 0; j <= i; j++) {
          scalar_t value = cosine(c, i, j) - mean[i] - mean[j] + total;
          value -= dot(factor + i * K, factor + j * K, j);
          factor[i * K + j] = i == j ? std::sqrt(value + scalar_t(ridge))
                                     : value / factor[j * K + j];
        }
      }
    }
    return out;
  }
};

// Computes Eq. (8), the largest Mahalanobis distance to the prototypes of the
// class of the graph.
template <typename scalar_t>
scalar_t outlier_risk(
    const Geometry<scalar_t>& geometry,
    const scalar_t* factor,  // [K, K], of class `c`
    const scalar_t* cosine,  // [K], to the prototypes of class `c`
    int64_t c, scalar_t squared_norm, std::vector<scalar_t>& along) {
  const auto K = geometry.num_prototypes;
  scalar_t risk = 0;
  for (int64_t k = 0; k < K; k++) {
    scalar_t mean = 0;
    for (int64_t j = 0; j < K; j++) {
      along[j] = cosine[j] - geometry.cosine(c, j, k);
      mean += along[j] / K;
    }
    auto distance = squared_norm + 1 - 2 * cosine[k];
    for (int64_t j = 0; j < K; j++) {  // Forward substitution.
      const auto* row = factor + j * K;
      along[j] = (along[j] - mean - dot(row, along.data(), j)) / row[j];
      distance -= along[j] * along[j];
    }
    risk = distance > risk || std::isnan(distance) ? distance : risk;
  }
  return risk * geometry.dim / static_cast<scalar_t>(kShrinkage);
}

// Computes Eq. (9), the ratio of the summed angles to the prototypes of the
// class of the graph and of all other classes.
template <typename scalar_t>
scalar_t unfamiliarity(
    const scalar_t* angle, int64_t size, int64_t begin, int64_t end) {
  const auto total = std::accumulate(angle, angle + size, scalar_t(0));
  const auto own = std::accumulate(angle + begin, angle + end, scalar_t(0));
  return own / std::max(total - own, static_cast<scalar_t>(kEps));
}

// Computes the separation loss, Eq. (7).
template <typename scalar_t>
scalar_t separation(const Geometry<scalar_t>& geometry, scalar_t scale) {
  auto logits = geometry.logits_across_classes(scale);
  const auto values = softmax_<scalar_t>(logits);
  const auto sum = std::accumulate(values.begin(), values.end(), 0.0);
  return sum / geometry.size -
         std::log(geometry.size - geometry.num_prototypes);
}

// Writes Eq. (8) and (9) to the first two columns of `scores`.
template <typename scalar_t>
void score_risk(
    const Geometry<scalar_t>& geometry, const Tensor& z, const Tensor& cosines,
    const Tensor& y, Tensor& scores) {
  const auto K = geometry.num_prototypes, size = geometry.size;
  const auto angles = arccos<scalar_t>(cosines);
  const auto factors = geometry.cholesky();
  const auto* z_row = z.template const_data_ptr<scalar_t>();
  const auto* cosine = cosines.template const_data_ptr<scalar_t>();
  const auto* angle = angles.template const_data_ptr<scalar_t>();
  const auto* label = y.const_data_ptr<int64_t>();
  auto* out = scores.mutable_data_ptr<scalar_t>();
  std::vector<scalar_t> along(K);
  for (int64_t i = 0; i < z.size(0); i++) {
    const auto c = label[i];
    out[0] = outlier_risk(
        geometry, factors.data() + c * K * K, cosine + c * K, c,
        dot(z_row, z_row, geometry.dim), along);
    out[1] = unfamiliarity(angle, size, c * K, (c + 1) * K);
    z_row += geometry.dim, cosine += size, angle += size, out += 3;
  }
}

// Writes `scores` and returns the mean compactness loss, Eq. (6).
template <typename scalar_t>
scalar_t score(
    const Geometry<scalar_t>& geometry, const Tensor& embedding,
    const Tensor& y, scalar_t scale, bool nearest_only, Tensor& scores) {
  const auto batch_size = embedding.size(0);
  const auto K = geometry.num_prototypes, size = geometry.size;
  const auto z = normalize<scalar_t>(embedding).first;
  const auto cosines = matmul_nt<scalar_t>(z, geometry.prototype);
  auto probs = scaled(cosines, scale);
  const auto normalizer = softmax_<scalar_t>(probs);

  const auto* cosine = cosines.template const_data_ptr<scalar_t>();
  const auto* label = y.const_data_ptr<int64_t>();
  auto* out = scores.mutable_data_ptr<scalar_t>();
  double loss = 0;
  for (int64_t i = 0; i < batch_size; i++) {
    loss += normalizer[i] - log_sum_exp(cosine + label[i] * K, K, scale);
    out[0] = out[1] = 0;
    out[2] = std::max_element(cosine, cosine + size) - cosine;
    cosine += size, out += 3;
  }
  if (!nearest_only) score_risk(geometry, z, cosines, y, scores);
  return loss / std::max<int64_t>(batch_size, 1);
}

// Computes the gradient of the compactness loss by the cosines [B, C * K].
template <typename scalar_t>
Tensor compactness_backward(
    const Geometry<scalar_t>& geometry, const Tensor& cosines, const Tensor& y,
    scalar_t scale, scalar_t grad_loss) {
  const auto batch_size = cosines.size(0), size = geometry.size;
  const auto K = geometry.num_prototypes;
  auto logits = scaled(cosines, scale);
  softmax_<scalar_t>(logits);
  const auto factor = grad_loss * scale / std::max<int64_t>(batch_size, 1);
  auto grad = scaled<scalar_t>(logits, factor);
  const auto* cosine = cosines.template const_data_ptr<scalar_t>();
  const auto* label = y.const_data_ptr<int64_t>();
  auto* out = grad.template mutable_data_ptr<scalar_t>();
  for (int64_t i = 0; i < batch_size; i++) {
    const auto own = i * size + label[i] * K;
    const auto offset = log_sum_exp(cosine + own, K, scale);
    for (int64_t k = own; k < own + K; k++) {
      out[k] -= factor * std::exp(cosine[k] * scale - offset);
    }
  }
  return grad;
}

// Computes the symmetrized gradient of the separation loss by the Gram matrix.
template <typename scalar_t>
Tensor separation_backward(
    const Geometry<scalar_t>& geometry, scalar_t scale, scalar_t grad_loss) {
  const auto size = geometry.size;
  auto probs = geometry.logits_across_classes(scale);
  softmax_<scalar_t>(probs);
  auto grad = at::empty_like(probs);
  const auto* prob = probs.template const_data_ptr<scalar_t>();
  auto* out = grad.template mutable_data_ptr<scalar_t>();
  const auto factor = grad_loss * scale / size;
  for (int64_t i = 0; i < size; i++) {
    for (int64_t j = 0; j < size; j++) {
      *out++ = factor * (prob[i * size + j] + prob[j * size + i]);
    }
  }
  return grad;
}

void check(
    const Tensor& h, const Tensor& y, const Tensor& weight1,
    const Tensor& weight2, const Tensor& prototypes, double temperature) {
  const auto dtype = h.scalar_type();
  TORCH_CHECK_VALUE(
      h.dim() == 2 && (dtype == at::kFloat || dtype == at::kDouble),
      "prototype_loss: 'h' needs to be a float or double tensor of shape "
      "[batch_size, in_channels] (got ",
      dtype, " of shape ", h.sizes(), ")");
  TORCH_CHECK_VALUE(
      prototypes.dim() == 3 && prototypes.size(0) > 1 && prototypes.numel() > 0,
      "prototype_loss: 'prototypes' needs to be of shape [num_classes, "
      "num_prototypes, embedding_dim] with at least two classes of at least "
      "one prototype and one dimension each (got ",
      prototypes.sizes(), ")");
  TORCH_CHECK_VALUE(
      weight1.dim() == 2 && weight2.dim() == 2 &&
          weight1.size(1) == h.size(1) && weight2.size(1) == weight1.size(0) &&
          weight2.size(0) == prototypes.size(2),
      "prototype_loss: 'weight1' and 'weight2' need to lead from in_channels (",
      h.size(1), ") to embedding_dim (", prototypes.size(2), ") (got ",
      weight1.sizes(), " and ", weight2.sizes(), ")");
  const auto check_dtype = [&](const char* name, const Tensor& x) {
    TORCH_CHECK_VALUE(
        x.scalar_type() == dtype, "prototype_loss: '", name,
        "' needs to be of the type of 'h', ", dtype, " (got ", x.scalar_type(),
        ")");
  };
  check_dtype("weight1", weight1);
  check_dtype("weight2", weight2);
  check_dtype("prototypes", prototypes);
  TORCH_CHECK_VALUE(
      temperature > 0,
      "prototype_loss: 'temperature' needs to be positive (got ", temperature,
      ")");
  TORCH_CHECK_VALUE(
      y.scalar_type() == at::kLong && y.dim() == 1 && y.size(0) == h.size(0),
      "prototype_loss: 'y' needs to be an int64 tensor of shape [", h.size(0),
      "] (got ", y.scalar_type(), " of shape ", y.sizes(), ")");
  const auto* label = y.const_data_ptr<int64_t>();
  const auto valid = std::all_of(label, label + y.numel(), [&](int64_t c) {
    return c >= 0 && c < prototypes.size(0);
  });
  TORCH_CHECK_VALUE(
      valid, "prototype_loss: 'y' needs to hold labels in [0, ",
      prototypes.size(0), "), the classes of the prototypes");
}

std::tuple<Tensor, Tensor, Tensor, Tensor> prototype_loss_cpu(
    const Tensor& h, const Tensor& y_in, const Tensor& weight1,
    const Tensor& weight2, const Tensor& prototypes, double temperature,
    double compactness_weight, double separation_weight, bool nearest_only) {
  c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::DispatchKey::AutocastCPU);
  const auto y = y_in.contiguous();
  check(h, y, weight1, weight2, prototypes, temperature);
  auto hidden = at::linear(h, weight1);
  auto scores = at::empty({h.size(0), 3}, h.options());
  auto loss = at::empty({}, h.options());
  Tensor embedding;
  AT_DISPATCH_FLOATING_TYPES(h.scalar_type(), "prototype_loss", [&] {
    relu_<scalar_t>(hidden);
    embedding = at::linear(hidden, weight2);
    const auto scale = static_cast<scalar_t>(1 / temperature);
    const Geometry<scalar_t> geometry(prototypes);
    *loss.mutable_data_ptr<scalar_t>() =
        compactness_weight *
            score(geometry, embedding, y, scale, nearest_only, scores) +
        separation_weight * separation(geometry, scale);
  });
  return {loss, scores, hidden, embedding};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> prototype_loss_backward_cpu(
    const Tensor& grad_loss, const Tensor& h, const Tensor& y_in,
    const Tensor& weight1, const Tensor& weight2, const Tensor& prototypes,
    const Tensor& hidden, const Tensor& embedding, double temperature,
    double compactness_weight, double separation_weight) {
  c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::DispatchKey::AutocastCPU);
  const auto y = y_in.contiguous();
  check(h, y, weight1, weight2, prototypes, temperature);
  TORCH_CHECK_VALUE(
      grad_loss.numel() == 1 && hidden.dim() == 2 && embedding.dim() == 2 &&
          hidden.size(0) == h.size(0) && hidden.size(1) == weight1.size(0) &&
          embedding.size(0) == h.size(0) &&
          embedding.size(1) == weight2.size(0) &&
          grad_loss.scalar_type() == h.scalar_type() &&
          hidden.scalar_type() == h.scalar_type() &&
          embedding.scalar_type() == h.scalar_type(),
      "prototype_loss_backward: 'grad_loss', 'hidden' and 'embedding' need to "
      "come from the same forward pass (got ",
      grad_loss.sizes(), ", ", hidden.sizes(), " and ", embedding.sizes(), ")");
  Tensor grad_embedding, grad_hidden, grad_prototypes;
  AT_DISPATCH_FLOATING_TYPES(h.scalar_type(), "prototype_loss_backward", [&] {
    const auto scale = static_cast<scalar_t>(1 / temperature);
    const auto grad = *grad_loss.const_data_ptr<scalar_t>();
    const Geometry<scalar_t> geometry(prototypes);
    const auto [z, z_scale] = normalize<scalar_t>(embedding.contiguous());
    const auto cosines = matmul_nt<scalar_t>(z, geometry.prototype);
    const auto grad_cosines = compactness_backward<scalar_t>(
        geometry, cosines, y, scale, grad * compactness_weight);
    const auto grad_gram = separation_backward<scalar_t>(
        geometry, scale, grad * separation_weight);

    grad_embedding = at::zeros_like(z);
    addmm_<scalar_t>(grad_embedding, grad_cosines, geometry.prototype);
    normalize_backward_<scalar_t>(grad_embedding, z, z_scale);
    grad_prototypes = at::zeros_like(geometry.prototype);
    addmm_<scalar_t>(grad_prototypes, grad_cosines.t(), z);
    addmm_<scalar_t>(grad_prototypes, grad_gram, geometry.prototype);
    normalize_backward_<scalar_t>(
        grad_prototypes, geometry.prototype, geometry.scale);

    grad_hidden = at::mm(grad_embedding, weight2);
    relu_backward_<scalar_t>(grad_hidden, hidden.contiguous());
  });
  return {
      at::mm(grad_hidden, weight1), at::mm(grad_hidden.t(), h),
      at::mm(grad_embedding.t(), hidden),
      grad_prototypes.view(prototypes.sizes())};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(torch_geometric_ext, m) {
  m.def(
      "prototype_loss(Tensor h, Tensor y, Tensor weight1, Tensor weight2, "
      "Tensor prototypes, float temperature, float compactness_weight, "
      "float separation_weight, bool nearest_only=False) -> "
      "(Tensor loss, Tensor scores, Tensor hidden, Tensor embedding)");
  m.def(
      "prototype_loss_backward(Tensor grad_loss, Tensor h, Tensor y, "
      "Tensor weight1, Tensor weight2, Tensor prototypes, Tensor hidden, "
      "Tensor embedding, float temperature, float compactness_weight, "
      "float separation_weight) -> (Tensor, Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(torch_geometric_ext, CPU, m) {
  m.impl("prototype_loss", TORCH_FN(prototype_loss_cpu));
  m.impl("prototype_loss_backward", TORCH_FN(prototype_loss_backward_cpu));
}

}  // namespace torch_geometric_ext::prototype_loss
