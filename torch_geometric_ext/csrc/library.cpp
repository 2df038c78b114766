#include <torch/library.h>

// Operator schemas. One file per operator and dispatch key implements them;
// fake kernels and the CUDA fallbacks are registered in `ops/*.py`.
TORCH_LIBRARY(torch_geometric_ext, m) {
  m.def(
      "weighted_sample(Tensor weight, Tensor noise, int num_samples) -> "
      "Tensor");
  m.def(
      "prototype_loss(Tensor h, Tensor y, Tensor weight1, Tensor weight2, "
      "Tensor prototypes, float temperature, float compactness_weight, "
      "float separation_weight) -> "
      "(Tensor loss, Tensor scores, Tensor hidden, Tensor embedding)");
  m.def(
      "prototype_loss_backward(Tensor grad_loss, Tensor h, Tensor y, "
      "Tensor weight1, Tensor weight2, Tensor prototypes, Tensor hidden, "
      "Tensor embedding, float temperature, float compactness_weight, "
      "float separation_weight) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def("unique_rows(Tensor x, int num_known=0) -> (Tensor ids, Tensor index)");
  m.def(
      "unique_trees(Tensor label, Tensor ptr, Tensor child, "
      "Tensor? edge_label=None, int num_known=0) -> "
      "(Tensor ids, Tensor index, Tensor ptr, Tensor child, "
      "Tensor edge_label)");
  m.def(
      "extract_trees(Tensor graph_idx, Tensor graph_ptr, Tensor tree, "
      "Tensor ptr, Tensor child, Tensor own, int num_layers) -> "
      "(Tensor root, Tensor root_ptr, Tensor entry, Tensor node, Tensor own, "
      "Tensor edge, Tensor edge_index, Tensor sizes)");
  m.def(
      "frequent_itemsets(Tensor ptr, Tensor item, int min_support=1, "
      "int max_patterns=1000000, bool closed=False, int? max_size=None, "
      "Tensor? cancel=None) -> (Tensor ptr, Tensor item, Tensor support)");
  m.def(
      "herding(Tensor ptr, Tensor item, Tensor value, Tensor group_ptr, "
      "int num_candidates, int? num_samples=None) -> Tensor");
  m.def(
      "sparse_linear(Tensor x, Tensor values, Tensor? bias, Tensor rowptr, "
      "Tensor col, Tensor colptr, Tensor row, Tensor perm) -> Tensor");
  m.def(
      "sparse_linear_backward(Tensor grad, Tensor x, Tensor values, "
      "Tensor rowptr, Tensor col, Tensor colptr, Tensor row, Tensor perm, "
      "bool needs_x, bool needs_values) -> (Tensor, Tensor)");
  m.def(
      "sparse_linear_crossover(int num_rows, int in_channels, "
      "int out_channels) -> float");
}
