#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/zeros.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/library.h>

#include <algorithm>
#include <optional>
#include <tuple>
#include <vector>

#include "block_sparse_linear.h"
#include "memory.h"
#include "pattern.h"
#include "sparse_linear_schedule.h"

namespace torch_geometric_ext::block_sparse_linear {
namespace {

using at::Tensor;

// Rows of a tile. A choice: many rows save loads of gradients of weights, and
// few rows stay in the second-level cache.
constexpr int64_t kMaxRows = 96;
// A bound of the bytes of a tile, for wide layers. A choice, no measurement.
constexpr int64_t kMaxBytes = 1 << 24;
// The density above which a dense product is used. A choice: products of blocks
// reach the rate of dense ones in `benchmark/nn/block_sparse.py`, and the
// margin is for machines with faster dense products.
constexpr double kDenseAbove = 0.5;

template <typename scalar_t>
BlockLoops<scalar_t> block_loops(int64_t block_size) {
#if defined(__x86_64__)
  static const auto capability = at::get_cpu_capability();
  if (capability.rfind("AVX512", 0) == 0) {
    return block_loops_avx512<scalar_t>(block_size);
  }
  if (capability == "AVX2") return block_loops_avx2<scalar_t>(block_size);
#endif
  return block_loops_default<scalar_t>(block_size);
}

int64_t div_up(int64_t x, int64_t y) {
  return (x + y - 1) / y;
}

// A block `k` within the weights: weight (o, i) is at `first + o * stride + i`,
// and (row, col) is its position in the matrix of weights.
struct Block {
  int64_t k, first, stride, height, width, row, col;
};

// A matrix of `out` x `in` weights in blocks. The weights are in row-major
// order: those of a row of blocks form a dense matrix of up to B rows. Blocks
// at the last rows and columns hold the weights that exist.
struct Layout {
  int64_t out, in, size, num_rows, num_cols, num_blocks;
  PatternData pattern;
  // The position of the first weight of each row of blocks:
  std::vector<int64_t> start;

  Layout(const Pattern& x, int64_t out, int64_t in, int64_t size)
      : out(out),
        in(in),
        size(size),
        num_rows(div_up(out, size)),
        num_cols(div_up(in, size)),
        num_blocks(x.col.numel()),
        pattern(x),
        start(num_rows + 1) {
    for (int64_t i = 0; i < num_rows; i++) {
      start[i + 1] = start[i] + height(i) * width(i);
    }
  }

  int64_t num_weights() const {
    return start[num_rows];
  }
  int64_t height(int64_t row) const {
    return std::min(size, out - row * size);
  }
  // The number of active columns of a row of blocks.
  int64_t width(int64_t row) const {
    const auto begin = pattern.rowptr[row], end = pattern.rowptr[row + 1];
    const bool cut = end > begin && pattern.col[end - 1] == num_cols - 1;
    return (end - begin) * size - (cut ? num_cols * size - in : 0);
  }

  // Calls `func(block)` for all blocks in parallel.
  template <typename F>
  void for_blocks(const F& func) const {
    const auto row_size = num_weights() / std::max<int64_t>(num_rows, 1);
    const auto grain = kWeightGrain / (row_size + 1) + 1;
    at::parallel_for(0, num_rows, grain, [&](int64_t begin, int64_t end) {
      for (auto row = begin; row < end; row++) {
        const auto stride = width(row);
        int64_t offset = 0;
        for (auto k = pattern.rowptr[row]; k < pattern.rowptr[row + 1]; k++) {
          func(
              Block{
                  k, start[row] + offset, stride, height(row),
                  std::min(size, stride - offset), row * size,
                  pattern.col[k] * size});
          offset += size;
        }
      }
    });
  }
};

void check(
    const char* op, const Tensor& x, const Tensor& values,
    const Pattern& pattern, int64_t out_channels, int64_t block_size,
    bool with_invariants) {
  TORCH_CHECK_VALUE(
      block_size == 8 || block_size == 16 || block_size == 32, op,
      ": 'block_size' needs to be 8, 16 or 32 (got ", block_size, ")");
  TORCH_CHECK_VALUE(
      x.dim() == 2, op, ": 'x' needs to be a matrix (got ", x.dim(),
      " dimensions)");
  TORCH_CHECK_VALUE(
      values.dim() == 1 && (values.scalar_type() == at::kFloat ||
                            values.scalar_type() == at::kDouble),
      op, ": 'values' needs to be a vector of float or double (got ",
      values.scalar_type(), " of shape ", values.sizes(), ")");
  TORCH_CHECK_VALUE(
      x.scalar_type() == values.scalar_type() ||
          (at::isReducedFloatingType(x.scalar_type()) &&
           values.scalar_type() == at::kFloat),
      op, ": 'x' needs to be of the type of 'values', ", values.scalar_type(),
      " (got ", x.scalar_type(), ")");
  const auto num_cols = div_up(x.size(1), block_size);
  check_tensors(op, pattern, pattern.col.numel(), num_cols);
  TORCH_CHECK_VALUE(
      out_channels >= 0 &&
          pattern.rowptr.numel() - 1 == div_up(out_channels, block_size),
      op, ": 'rowptr' needs a pointer for each ", block_size, " of the ",
      out_channels, " outputs (got ", pattern.rowptr.numel() - 1, ")");
  if (with_invariants) check_invariants(op, pattern);
}

void check_values(const char* op, const Tensor& values, const Layout& layout) {
  TORCH_CHECK_VALUE(
      values.numel() == layout.num_weights(), op, ": 'values' needs ",
      layout.num_weights(), " elements, the weights of ", layout.num_blocks,
      " blocks (got ", values.numel(), ")");
}

// Casts `x` to the dtype of `values` and makes its rows contiguous.
Tensor as_rows(const Tensor& x, const Tensor& values) {
  const auto out = x.to(values.scalar_type());
  return x.size(1) <= 1 || out.stride(1) == 1 ? out : out.contiguous();
}

bool prefers_dense(const Layout& layout) {
  const auto size = double(layout.in) * double(layout.out);
  return double(layout.num_weights()) > kDenseAbove * size;
}

// Threads and rows of a tile.
struct TilePlan {
  int64_t num_threads, num_rows, num_tiles;

  TilePlan(int64_t size, int64_t row_bytes, const Layout& layout) {
    // The multiply-adds that are worth a thread. A choice, no measurement.
    constexpr int64_t kGrain = 1 << 16;
    const auto num_grains = size * layout.num_weights() / kGrain + 1;
    num_threads = std::min<int64_t>(at::get_num_threads(), num_grains);
    const auto bound = std::clamp<int64_t>(
        kMaxBytes / std::max<int64_t>(row_bytes, 1), 8, kMaxRows);
    const auto share = std::max<int64_t>(div_up(size, num_threads), 1);
    num_rows = std::min(bound, share);
    num_tiles = div_up(size, num_rows);
  }
};

// Copies weights to blocks, padded with zeros, at `position(k)`.
template <bool transpose, typename scalar_t, typename F>
Tensor to_blocks(
    const Tensor& values, const Layout& layout, const F& position) {
  const auto size = layout.size;
  auto out = at::empty({layout.num_blocks * size * size}, values.options());
  const auto* src = values.const_data_ptr<scalar_t>();
  auto* blocks = out.mutable_data_ptr<scalar_t>();
  layout.for_blocks([&](const Block& x) {
    auto* dst = blocks + position(x.k) * size * size;
    if (x.height < size || x.width < size) {
      std::fill(dst, dst + size * size, scalar_t(0));
    }
    for (int64_t o = 0; o < x.height; o++) {
      const auto* row = src + x.first + o * x.stride;
      for (int64_t i = 0; i < x.width; i++) {
        dst[transpose ? i * size + o : o * size + i] = row[i];
      }
    }
  });
  return out;
}

// Calls `func(weights, dense or blocked weights, number)` for each row of each
// block with two pointers, and with the number of weights in it.
template <typename F>
void for_segments(const Layout& layout, bool blocked, const F& func) {
  const auto size = layout.size;
  layout.for_blocks([&](const Block& x) {
    for (int64_t o = 0; o < x.height; o++) {
      const auto other =
          blocked ? (x.k * size + o) * size : (x.row + o) * layout.in + x.col;
      func(x.first + o * x.stride, other, x.width);
    }
  });
}

// Selects the weights of blocks, or of a dense matrix.
template <typename scalar_t>
Tensor select(const Tensor& x, const Layout& layout, bool blocked) {
  if (!blocked && x.numel() == layout.num_weights()) return x.view(-1);
  auto out = at::empty({layout.num_weights()}, x.options());
  const auto* src = x.const_data_ptr<scalar_t>();
  auto* dst = out.mutable_data_ptr<scalar_t>();
  for_segments(layout, blocked, [&](int64_t to, int64_t from, int64_t size) {
    std::copy(src + from, src + from + size, dst + to);
  });
  return out;
}

template <typename scalar_t>
Tensor to_dense(const Tensor& values, const Layout& layout) {
  if (values.numel() == layout.out * layout.in) {
    return values.view({layout.out, layout.in});
  }
  auto out = at::zeros({layout.out, layout.in}, values.options());
  const auto* src = values.const_data_ptr<scalar_t>();
  auto* dst = out.mutable_data_ptr<scalar_t>();
  for_segments(layout, false, [&](int64_t from, int64_t to, int64_t size) {
    std::copy(src + from, src + from + size, dst + to);
  });
  return out;
}

template <typename scalar_t>
Tensor forward(
    const Tensor& x, const Tensor& values, const std::optional<Tensor>& bias,
    const Layout& layout) {
  if (prefers_dense(layout)) {
    return at::linear(x, to_dense<scalar_t>(values, layout), bias);
  }
  const auto size = layout.size;
  const auto loops = block_loops<scalar_t>(size);
  const auto blocks =
      to_blocks<true, scalar_t>(values, layout, [](int64_t k) { return k; });
  const auto added = at::zeros({layout.num_rows * size}, values.options());
  if (bias) added.narrow(0, 0, layout.out).copy_(*bias);
  const Compressed<scalar_t> weight{
      layout.pattern.rowptr, layout.pattern.col,
      blocks.template const_data_ptr<scalar_t>()};
  const auto* initial = added.template const_data_ptr<scalar_t>();
  auto out = empty_matrix(x.size(0), layout.out, values.options());

  const auto num_features = layout.num_cols * size;
  const TilePlan plan(x.size(0), num_features * sizeof(scalar_t), layout);
  // Threads share a tile if there are few tiles.
  const auto num_parts = std::max<int64_t>(
      plan.num_threads / std::max<int64_t>(plan.num_tiles, 1), 1);
  const auto num_tasks = plan.num_tiles * num_parts;
  const auto grain = div_up(num_tasks, plan.num_threads);
  at::parallel_for(0, num_tasks, grain, [&](int64_t begin, int64_t end) {
    auto buffer = at::empty({plan.num_rows * num_features}, values.options());
    auto* tile = buffer.template mutable_data_ptr<scalar_t>();
    for (auto task = begin; task < end; task++) {
      const auto row = task / num_parts * plan.num_rows;
      const auto part = task % num_parts;
      const auto num_rows = std::min(plan.num_rows, x.size(0) - row);
      loops.pack(rows_of<const scalar_t>(x, row), num_rows, layout.in, tile);
      loops.multiply(
          tile, num_rows, layout.num_rows * part / num_parts,
          layout.num_rows * (part + 1) / num_parts, weight, initial, layout.out,
          rows_of<scalar_t>(out, row));
    }
  });
  return out;
}

// Computes the gradient of the input, and adds the gradients of blocks of
// weights and of the bias, the latter by parts of the batch. Gradients that are
// undefined are not computed.
template <typename scalar_t>
void add_gradients(
    const Tensor& grad, const Tensor& x, const Tensor& values,
    const Layout& layout, const Tensor& grad_x, const Tensor& grad_blocks,
    const Tensor& grad_bias) {
  const auto size = layout.size, num_blocks = layout.num_blocks;
  const auto loops = block_loops<scalar_t>(size);
  const auto& pattern = layout.pattern;
  std::vector<int32_t> position(num_blocks);  // Of each block in CSC format.
  for (int64_t i = 0; i < num_blocks; i++) position[pattern.perm[i]] = i;
  Tensor blocks;
  if (grad_x.defined()) {
    blocks = to_blocks<false, scalar_t>(
        values, layout, [&](int64_t k) { return position[k]; });
  }
  const auto zero = at::zeros({layout.num_cols * size}, values.options());
  const auto num_out = layout.num_rows * size, num_in = layout.num_cols * size;
  const TilePlan plan(x.size(0), (num_out + num_in) * sizeof(scalar_t), layout);
  const auto buffer = at::empty(
      {plan.num_threads, plan.num_rows * (num_out + num_in)}, values.options());
  auto* tiles = buffer.template mutable_data_ptr<scalar_t>();

  // Each thread fills tiles, then it adds the gradients of its weights.
  for (int64_t first = 0; first < plan.num_tiles; first += plan.num_threads) {
    const auto num_tiles = std::min(plan.num_threads, plan.num_tiles - first);
    const auto for_tiles = [&](int64_t begin, int64_t end, const auto& func) {
      for (auto i = begin; i < end; i++) {
        const auto row = (first + i) * plan.num_rows;
        auto* tile = tiles + i * buffer.size(1);
        const auto num_rows = std::min(plan.num_rows, x.size(0) - row);
        func(row, num_rows, tile, tile + plan.num_rows * num_out);
      }
    };
    at::parallel_for(0, num_tiles, 1, [&](int64_t begin, int64_t end) {
      for_tiles(begin, end, [&](auto row, auto num_rows, auto* g, auto* h) {
        loops.pack(rows_of<const scalar_t>(grad, row), num_rows, layout.out, g);
        if (grad_blocks.defined()) {
          loops.pack(rows_of<const scalar_t>(x, row), num_rows, layout.in, h);
        }
        if (grad_bias.defined()) {
          const auto part = row / plan.num_rows % grad_bias.size(0);
          auto* sum = grad_bias.template mutable_data_ptr<scalar_t>();
          loops.add_rows(g, num_rows, layout.num_rows, sum + part * num_out);
        }
        if (!grad_x.defined()) return;
        loops.multiply(
            g, num_rows, 0, layout.num_cols,
            {pattern.colptr, pattern.row,
             blocks.template const_data_ptr<scalar_t>()},
            zero.template const_data_ptr<scalar_t>(), layout.in,
            rows_of<scalar_t>(grad_x, row));
      });
    });
    if (!grad_blocks.defined()) continue;
    auto* dst = grad_blocks.template mutable_data_ptr<scalar_t>();
    const auto grain = num_blocks / plan.num_threads + 1;
    at::parallel_for(0, num_blocks, grain, [&](int64_t begin, int64_t end) {
      for_tiles(0, num_tiles, [&](auto, auto num_rows, auto* g, auto* h) {
        for (auto k = begin; k < end; k++) {
          loops.add_outer(
              g + pattern.row[position[k]] * num_rows * size,
              h + pattern.col[k] * num_rows * size, num_rows,
              dst + k * size * size);
        }
      });
    });
  }
}

template <typename scalar_t>
std::tuple<Tensor, Tensor, Tensor> backward(
    const Tensor& grad, const Tensor& x, const Tensor& values,
    const Layout& layout, bool needs_x, bool needs_values, bool needs_bias) {
  auto grad_x = at::empty({0, 0}, values.options());
  auto grad_values = at::empty({0}, values.options());
  auto grad_bias = at::empty({0}, values.options());
  if (prefers_dense(layout)) {
    if (needs_x) grad_x = at::mm(grad, to_dense<scalar_t>(values, layout));
    if (needs_values) {
      grad_values = select<scalar_t>(at::mm(grad.t(), x), layout, false);
    }
    if (needs_bias) grad_bias = grad.sum(0);
    return {grad_x, grad_values, grad_bias};
  }
  const auto size = layout.size;
  Tensor blocks, parts;
  if (needs_x) grad_x = empty_matrix(x.size(0), x.size(1), values.options());
  if (needs_values) {
    blocks = at::zeros({layout.num_blocks * size * size}, values.options());
  }
  if (needs_bias) {  // Concurrent tiles belong to different parts.
    parts = at::zeros(
        {at::get_num_threads(), layout.num_rows * size}, values.options());
  }
  add_gradients<scalar_t>(
      grad, x, values, layout, needs_x ? grad_x : Tensor(), blocks, parts);
  if (needs_values) grad_values = select<scalar_t>(blocks, layout, true);
  if (needs_bias) grad_bias = parts.sum(0).narrow(0, 0, layout.out).clone();
  return {grad_x, grad_values, grad_bias};
}

Tensor block_sparse_linear_cpu(
    const Tensor& x, const Tensor& values, const std::optional<Tensor>& bias,
    const Tensor& rowptr, const Tensor& col, const Tensor& colptr,
    const Tensor& row, const Tensor& perm, int64_t out_channels,
    int64_t block_size, bool check_invariants) {
  c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::DispatchKey::AutocastCPU);
  constexpr auto* op = "block_sparse_linear";
  const Pattern pattern{rowptr, col, colptr, row, perm};
  check(op, x, values, pattern, out_channels, block_size, check_invariants);
  const Layout layout(pattern, out_channels, x.size(1), block_size);
  check_values(op, values, layout);
  const bool with_bias = bias.has_value() && bias->defined();
  TORCH_CHECK_VALUE(
      !with_bias || (bias->dim() == 1 && bias->numel() == out_channels &&
                     bias->scalar_type() == values.scalar_type()),
      op, ": 'bias' needs to be a vector of ", out_channels, " ",
      values.scalar_type());
  const auto rows = as_rows(x, values), weight = values.contiguous();
  auto out = AT_DISPATCH_FLOATING_TYPES(values.scalar_type(), op, [&] {
    return forward<scalar_t>(
        rows, weight, with_bias ? bias : std::nullopt, layout);
  });
  return out.to(x.scalar_type());
}

std::tuple<Tensor, Tensor, Tensor> block_sparse_linear_backward_cpu(
    const Tensor& grad, const Tensor& x, const Tensor& values,
    const Tensor& rowptr, const Tensor& col, const Tensor& colptr,
    const Tensor& row, const Tensor& perm, int64_t block_size, bool needs_x,
    bool needs_values, bool needs_bias, bool check_invariants) {
  c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::DispatchKey::AutocastCPU);
  constexpr auto* op = "block_sparse_linear_backward";
  const Pattern pattern{rowptr, col, colptr, row, perm};
  TORCH_CHECK_VALUE(
      grad.dim() == 2 && x.dim() == 2 && grad.size(0) == x.size(0), op,
      ": 'grad' needs to be a matrix with a row for each one of 'x' (got ",
      grad.sizes(), " and ", x.sizes(), ")");
  check(op, x, values, pattern, grad.size(1), block_size, check_invariants);
  const Layout layout(pattern, grad.size(1), x.size(1), block_size);
  check_values(op, values, layout);
  const auto rows = as_rows(x, values), grad_rows = as_rows(grad, values);
  const auto [grad_x, grad_values, grad_bias] =
      AT_DISPATCH_FLOATING_TYPES(values.scalar_type(), op, [&] {
        return backward<scalar_t>(
            grad_rows, rows, values.contiguous(), layout, needs_x, needs_values,
            needs_bias);
      });
  return {grad_x.to(x.scalar_type()), grad_values, grad_bias};
}

double crossover() {
  return kDenseAbove;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(torch_geometric_ext, m) {
  m.def(
      "block_sparse_linear(Tensor x, Tensor values, Tensor? bias, "
      "Tensor rowptr, Tensor col, Tensor colptr, Tensor row, Tensor perm, "
      "int out_channels, int block_size, bool check_invariants=True) -> "
      "Tensor");
  m.def(
      "block_sparse_linear_backward(Tensor grad, Tensor x, Tensor values, "
      "Tensor rowptr, Tensor col, Tensor colptr, Tensor row, Tensor perm, "
      "int block_size, bool needs_x, bool needs_values, bool needs_bias, "
      "bool check_invariants=True) -> (Tensor, Tensor, Tensor)");
  m.def("block_sparse_linear_crossover() -> float");
}

TORCH_LIBRARY_IMPL(torch_geometric_ext, CompositeExplicitAutograd, m) {
  m.impl("block_sparse_linear_crossover", TORCH_FN(crossover));
}

TORCH_LIBRARY_IMPL(torch_geometric_ext, CPU, m) {
  m.impl("block_sparse_linear", TORCH_FN(block_sparse_linear_cpu));
  m.impl(
      "block_sparse_linear_backward",
      TORCH_FN(block_sparse_linear_backward_cpu));
}

}  // namespace torch_geometric_ext::block_sparse_linear
