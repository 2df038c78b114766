#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "../check.h"

namespace torch_geometric_ext {
namespace {

at::Tensor to_tensor(const std::vector<int64_t>& values) {
  auto out =
      at::empty({int64_t(values.size())}, at::TensorOptions().dtype(at::kLong));
  std::copy(values.begin(), values.end(), out.mutable_data_ptr<int64_t>());
  return out;
}

// Numbers nodes in order of discovery. Each thread keeps its buffer of numbers
// between calls and resets only entries in use, so that the cost of a call
// depends on its output only.
class Discovery {
 public:
  explicit Discovery(int64_t size) {
    if (int64_t(positions().size()) < size) positions().resize(size, -1);
  }
  ~Discovery() {
    for (const auto node : nodes) positions()[node] = -1;
  }

  int64_t number(int64_t node) {
    auto& position = positions()[node];
    if (position < 0) {
      position = static_cast<int32_t>(nodes.size());
      nodes.push_back(node);
    }
    return position;
  }

  std::vector<int64_t> nodes;

 private:
  // Holds -1 for undiscovered nodes.
  static std::vector<int32_t>& positions() {
    static thread_local std::vector<int32_t> positions;
    return positions;
  }
};

using Tensors = std::tuple<
    at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor,
    at::Tensor, at::Tensor>;

Tensors extract_trees_cpu(
    const at::Tensor& graph_idx, const at::Tensor& graph_ptr,
    const at::Tensor& tree, const at::Tensor& ptr, const at::Tensor& child,
    const at::Tensor& own, int64_t num_layers) {
  const auto* op = "extract_trees";
  check_integers(op, "graph_idx", graph_idx, at::kLong);
  check_integers(op, "graph_ptr", graph_ptr, at::kLong);
  check_integers(op, "tree", tree, at::kInt);
  check_integers(op, "ptr", ptr, at::kLong);
  check_integers(op, "child", child, at::kInt);
  check_integers(op, "own", own, at::kInt);
  const auto num_graphs = graph_ptr.numel() - 1, num_nodes = ptr.numel() - 1;
  TORCH_CHECK_VALUE(
      num_graphs >= 0 && num_nodes >= 0 && own.numel() == num_nodes,
      "extract_trees: 'graph_ptr' and 'ptr' need at least one element, and "
      "'own' needs ",
      num_nodes, " elements (got ", own.numel(), ")");
  const auto in_range = [=](int64_t i) { return i >= 0 && i < num_nodes; };

  const auto graph_idx_c = graph_idx.contiguous();
  const auto graph_ptr_c = graph_ptr.contiguous();
  const auto tree_c = tree.contiguous(), ptr_c = ptr.contiguous();
  const auto child_c = child.contiguous(), own_c = own.contiguous();
  const auto* graphs = graph_idx_c.const_data_ptr<int64_t>();
  const auto* rows = graph_ptr_c.const_data_ptr<int64_t>();
  const auto* trees = tree_c.const_data_ptr<int32_t>();
  const auto* starts = ptr_c.const_data_ptr<int64_t>();
  const auto* children = child_c.const_data_ptr<int32_t>();
  const auto* owns = own_c.const_data_ptr<int32_t>();

  Discovery discovery(num_nodes);
  std::vector<int64_t> root_ptr{0}, root, entry;
  for (int64_t i = 0; i < graph_idx.numel(); i++) {
    const auto graph = graphs[i];
    TORCH_CHECK_INDEX(
        graph >= 0 && graph < num_graphs,
        "extract_trees: 'graph_idx' needs to be in [0, ", num_graphs, ") (got ",
        graph, ")");
    TORCH_CHECK_VALUE(
        rows[graph] >= 0 && rows[graph + 1] <= tree.numel(),
        "extract_trees: 'graph_ptr' needs to be in [0, ", tree.numel(), "]");
    for (auto k = rows[graph]; k < rows[graph + 1]; k++) {
      TORCH_CHECK_INDEX(
          in_range(trees[k]), "extract_trees: 'tree' needs to be in [0, ",
          num_nodes, ") (got ", trees[k], ")");
      root.push_back(discovery.number(trees[k]));
      entry.push_back(k);
    }
    root_ptr.push_back(root.size());
  }

  // Breadth-first search, level by level:
  std::vector<int64_t> edge, src, dst, own_out, sizes;
  size_t begin = 0;
  for (int64_t level = num_layers; level >= 0; level--) {
    const auto end = discovery.nodes.size(), num_edges = edge.size();
    for (auto i = begin; i < end && level > 0; i++) {
      const auto node = discovery.nodes[i];
      TORCH_CHECK_INDEX(
          starts[node] >= 0 && starts[node + 1] <= child.numel() &&
              in_range(owns[node]),
          "extract_trees: 'ptr' needs to be in [0, ", child.numel(),
          "], and 'own' needs to be in [0, ", num_nodes, ")");
      for (auto k = starts[node]; k < starts[node + 1]; k++) {
        TORCH_CHECK_INDEX(
            in_range(children[k]), "extract_trees: 'child' needs to be in [0, ",
            num_nodes, ") (got ", children[k], ")");
        edge.push_back(k);
        src.push_back(discovery.number(children[k]));
        dst.push_back(i);
      }
      own_out.push_back(discovery.number(owns[node]));
    }
    for (auto i = begin; i < end && level == 0; i++) own_out.push_back(i);
    sizes.push_back(end - begin);
    sizes.push_back(edge.size() - num_edges);
    begin = end;
  }

  auto edge_index = at::empty({2, int64_t(src.size())}, graph_idx.options());
  auto* out = edge_index.mutable_data_ptr<int64_t>();
  std::copy(dst.begin(), dst.end(), std::copy(src.begin(), src.end(), out));
  return {to_tensor(root),    to_tensor(root_ptr),
          to_tensor(entry),   to_tensor(discovery.nodes),
          to_tensor(own_out), to_tensor(edge),
          edge_index,         to_tensor(sizes).view({num_layers + 1, 2})};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(torch_geometric_ext, m) {
  m.def(
      "extract_trees(Tensor graph_idx, Tensor graph_ptr, Tensor tree, "
      "Tensor ptr, Tensor child, Tensor own, int num_layers) -> "
      "(Tensor root, Tensor root_ptr, Tensor entry, Tensor node, Tensor own, "
      "Tensor edge, Tensor edge_index, Tensor sizes)");
}

TORCH_LIBRARY_IMPL(torch_geometric_ext, CPU, m) {
  m.impl("extract_trees", TORCH_FN(extract_trees_cpu));
}

}  // namespace torch_geometric_ext
