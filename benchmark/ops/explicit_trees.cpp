// A rival in `computation_tree.py`: writes the computation tree of each node as
// a string with sorted children and separators, and finds its id in a hash
// table of strings, as in the code of the MIRAGE paper.
#include <torch/extension.h>

#include <algorithm>
#include <string>
#include <unordered_map>
#include <vector>

struct Graph {
  const int64_t* label;
  const int64_t* ptr;
  const int64_t* source;
  const int64_t* edge_label;  // May be null.
};

std::string write_tree(const Graph& graph, int64_t node, int64_t depth) {
  auto out = std::to_string(graph.label[node]);
  if (depth == 0) return out;
  std::vector<std::string> children;
  for (auto k = graph.ptr[node]; k < graph.ptr[node + 1]; k++) {
    auto child = write_tree(graph, graph.source[k], depth - 1);
    if (graph.edge_label) {
      child = std::to_string(graph.edge_label[k]) + ":" + child;
    }
    children.push_back(std::move(child));
  }
  std::sort(children.begin(), children.end());
  out += '(';
  for (const auto& child : children) out += child + ',';
  return out + ')';
}

torch::Tensor explicit_tree_ids(
    torch::Tensor label, torch::Tensor ptr, torch::Tensor source,
    c10::optional<torch::Tensor> edge_label, int64_t depth) {
  const Graph graph{
      label.data_ptr<int64_t>(), ptr.data_ptr<int64_t>(),
      source.data_ptr<int64_t>(),
      edge_label ? edge_label->data_ptr<int64_t>() : nullptr};
  std::unordered_map<std::string, int64_t> ids;
  auto out = torch::empty_like(label);
  for (int64_t node = 0; node < label.numel(); node++) {
    auto tree = write_tree(graph, node, depth);
    out.data_ptr<int64_t>()[node] =
        ids.emplace(std::move(tree), ids.size()).first->second;
  }
  return out;
}

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.def("explicit_tree_ids", &explicit_tree_ids);
}
