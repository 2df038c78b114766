#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "../check.h"

namespace torch_geometric_ext::extract_trees {
namespace {

// More levels would be a mistake. `ops/check.py` holds the same bound.
constexpr int64_t kMaxLayers = 1000;

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

// Levels of shared trees, as raw pointers.
struct Levels {
  const int64_t* ptr;
  const int32_t* child;
  const int32_t* own;
  int64_t num_nodes;
  int64_t num_children;

  void check(int64_t node, const char* name) const {
    TORCH_CHECK_INDEX(
        node >= 0 && node < num_nodes, "extract_trees: '", name,
        "' needs to be in [0, ", num_nodes, ") (got ", node, ")");
  }
};

// The subgraph that a mini-batch needs, in order of discovery.
class Subgraph {
 public:
  explicit Subgraph(const Levels& levels)
      : discovery(levels.num_nodes), levels_(levels) {}

  void add_graph(const int32_t* tree, int64_t begin, int64_t end) {
    for (auto k = begin; k < end; k++) {
      levels_.check(tree[k], "tree");
      root.push_back(discovery.number(tree[k]));
      entry.push_back(k);
    }
    root_ptr.push_back(root.size());
  }

  // Adds the edges from the nodes of the current level to the next level.
  void add_level(bool is_lowest) {
    const auto end = discovery.nodes.size(), num_edges = edge.size();
    for (auto i = begin_; i < end; i++) {
      is_lowest ? own.push_back(i) : add_children(i);
    }
    sizes.push_back(end - begin_);
    sizes.push_back(edge.size() - num_edges);
    begin_ = end;
  }

  Discovery discovery;
  std::vector<int64_t> root_ptr{0}, root, entry, edge, src, dst, own, sizes;

 private:
  void add_children(int64_t i) {
    const auto node = discovery.nodes[i];
    const auto begin = levels_.ptr[node], end = levels_.ptr[node + 1];
    TORCH_CHECK_INDEX(
        begin >= 0 && begin <= end && end <= levels_.num_children,
        "extract_trees: 'ptr' needs to ascend in [0, ", levels_.num_children,
        "]");
    levels_.check(levels_.own[node], "own");
    for (auto k = begin; k < end; k++) {
      levels_.check(levels_.child[k], "child");
      edge.push_back(k);
      src.push_back(discovery.number(levels_.child[k]));
      dst.push_back(i);
    }
    own.push_back(discovery.number(levels_.own[node]));
  }

  const Levels levels_;
  size_t begin_ = 0;
};

using Tensors = std::tuple<
    at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor,
    at::Tensor, at::Tensor>;

Tensors to_tensors(const Subgraph& x, int64_t num_layers) {
  const auto num_edges = int64_t(x.src.size());
  auto edge_index =
      at::empty({2, num_edges}, at::TensorOptions().dtype(at::kLong));
  auto* out = edge_index.mutable_data_ptr<int64_t>();
  std::copy(x.src.begin(), x.src.end(), out);
  std::copy(x.dst.begin(), x.dst.end(), out + num_edges);
  return {to_tensor(x.root),  to_tensor(x.root_ptr),
          to_tensor(x.entry), to_tensor(x.discovery.nodes),
          to_tensor(x.own),   to_tensor(x.edge),
          edge_index,         to_tensor(x.sizes).view({num_layers + 1, 2})};
}

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

  TORCH_CHECK_VALUE(
      num_layers >= 0 && num_layers <= kMaxLayers,
      "extract_trees: 'num_layers' needs to be in [0, ", kMaxLayers, "] (got ",
      num_layers, ")");

  const auto graph_idx_c = graph_idx.contiguous();
  const auto graph_ptr_c = graph_ptr.contiguous();
  const auto tree_c = tree.contiguous(), ptr_c = ptr.contiguous();
  const auto child_c = child.contiguous(), own_c = own.contiguous();
  const auto* graphs = graph_idx_c.const_data_ptr<int64_t>();
  const auto* rows = graph_ptr_c.const_data_ptr<int64_t>();
  Subgraph out(
      {ptr_c.const_data_ptr<int64_t>(), child_c.const_data_ptr<int32_t>(),
       own_c.const_data_ptr<int32_t>(), num_nodes, child.numel()});
  for (int64_t i = 0; i < graph_idx.numel(); i++) {
    const auto graph = graphs[i];
    TORCH_CHECK_INDEX(
        graph >= 0 && graph < num_graphs,
        "extract_trees: 'graph_idx' needs to be in [0, ", num_graphs, ") (got ",
        graph, ")");
    TORCH_CHECK_INDEX(
        rows[graph] >= 0 && rows[graph] <= rows[graph + 1] &&
            rows[graph + 1] <= tree.numel(),
        "extract_trees: 'graph_ptr' needs to ascend in [0, ", tree.numel(),
        "]");
    out.add_graph(
        tree_c.const_data_ptr<int32_t>(), rows[graph], rows[graph + 1]);
  }
  for (auto level = num_layers; level >= 0; level--) out.add_level(level == 0);
  return to_tensors(out, num_layers);
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

}  // namespace torch_geometric_ext::extract_trees
