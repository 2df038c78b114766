#include <torch/library.h>

#include <atomic>
#include <optional>
#include <tuple>

#include "../check.h"
#include "unique.h"

namespace torch_geometric_ext::unique_trees {
namespace {

constexpr int64_t kMaxId = int64_t(1) << 31;

// Trees as rows: a label and the multiset of (edge label, child), stored as
// ascending 64-bit integers.
struct TreeRows {
  const int64_t* label;
  const int64_t* ptr;
  uint64_t* items;

  const uint64_t* begin(int64_t i) const {
    return items + ptr[i];
  }
  const uint64_t* end(int64_t i) const {
    return items + ptr[i + 1];
  }
  int64_t size(int64_t i) const {
    return ptr[i + 1] - ptr[i];
  }

  uint64_t hash(int64_t i) const {
    auto out = mix(label[i], size(i));
    for (auto* item = begin(i); item != end(i); item++) out = mix(out, *item);
    return out;
  }

  bool equal(int64_t i, int64_t j) const {
    return label[i] == label[j] && size(i) == size(j) &&
           std::equal(begin(i), end(i), begin(j));
  }

  Prefix prefix(int64_t i) const {
    const auto degree = std::min<uint64_t>(size(i), 0xffffffff);
    return {
        static_cast<uint64_t>(label[i]) << 32 | degree,
        size(i) > 0 ? *begin(i) : 0};
  }

  bool less(int64_t i, int64_t j) const {
    if (label[i] != label[j]) return label[i] < label[j];
    if (size(i) != size(j)) return size(i) < size(j);
    return std::lexicographical_compare(begin(i), end(i), begin(j), end(j));
  }
};

// Sorts by insertion up to this number of children. A choice, no measurement.
constexpr int64_t kSmallSort = 16;

void sort_children(uint64_t* begin, uint64_t* end) {
  if (end - begin > kSmallSort) return std::sort(begin, end);
  for (auto* i = begin; i < end; i++) {
    const auto value = *i;
    auto* j = i;
    for (; j > begin && value < j[-1]; j--) *j = j[-1];
    *j = value;
  }
}

// Checks values, and packs and sorts the children of each tree.
void fill_items(
    const TreeRows& rows, int64_t size, const int64_t* child,
    const int64_t* edge_label) {
  std::atomic<bool> valid{true};
  at::parallel_for(0, size, kMinRows, [&](int64_t begin, int64_t end) {
    const auto in_range = [](int64_t id) { return id >= 0 && id < kMaxId; };
    bool ok = true;
    for (auto i = begin; i < end; i++) {
      const auto first = rows.ptr[i], last = rows.ptr[i + 1];
      ok &= in_range(rows.label[i]);
      for (auto k = first; k < last; k++) {
        const auto edge = edge_label ? edge_label[k] : 0;
        ok &= in_range(child[k]) && in_range(edge);
        rows.items[k] = static_cast<uint64_t>(edge) << 32 | child[k];
      }
      sort_children(rows.items + first, rows.items + last);
    }
    if (!ok) valid = false;
  });
  TORCH_CHECK_VALUE(
      valid,
      "unique_trees: 'label', 'child' and 'edge_label' need to be in "
      "[0, 2^31)");
}

using Tensors =
    std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

Tensors unique_trees_cpu(
    const at::Tensor& label, const at::Tensor& ptr, const at::Tensor& child,
    const std::optional<at::Tensor>& edge_label, int64_t num_known) {
  const auto size = label.numel(), num_items = child.numel();
  const auto* op = "unique_trees";
  check_integers(op, "label", label, at::kLong);
  check_integers(op, "ptr", ptr, at::kLong, size + 1);
  check_integers(op, "child", child, at::kLong);
  if (edge_label) {
    check_integers(op, "edge_label", *edge_label, at::kLong, num_items);
  }

  const auto label_c = label.contiguous(), ptr_c = ptr.contiguous();
  const auto child_c = child.contiguous();
  const auto edge_c = edge_label ? edge_label->contiguous() : at::Tensor();
  const auto options = label.options();
  const auto buffer = at::empty({num_items}, options);
  const TreeRows rows{
      label_c.const_data_ptr<int64_t>(), ptr_c.const_data_ptr<int64_t>(),
      reinterpret_cast<uint64_t*>(buffer.mutable_data_ptr<int64_t>())};

  check_ptr<int64_t>(op, "ptr", ptr_c, num_items);
  fill_items(
      rows, size, child_c.const_data_ptr<int64_t>(),
      edge_label ? edge_c.const_data_ptr<int64_t>() : nullptr);
  const auto out = unique(op, rows, size, num_known);

  // Copy the distinct trees in the order of their ids:
  const auto num_trees = out.index.numel();
  const auto* index = out.index.const_data_ptr<int64_t>();
  auto out_ptr = at::empty({num_trees + 1}, options);
  auto* row_ptr = out_ptr.mutable_data_ptr<int64_t>();
  row_ptr[0] = 0;
  for (int64_t i = 0; i < num_trees; i++) {
    row_ptr[i + 1] = row_ptr[i] + rows.size(index[i]);
  }
  auto out_child = at::empty({row_ptr[num_trees]}, options);
  auto out_edge = at::empty({edge_label ? row_ptr[num_trees] : 0}, options);
  auto* child_out = out_child.mutable_data_ptr<int64_t>();
  auto* edge_out = edge_label ? out_edge.mutable_data_ptr<int64_t>() : nullptr;
  at::parallel_for(0, num_trees, kMinRows, [&](int64_t begin, int64_t end) {
    for (auto i = begin; i < end; i++) {
      auto k = row_ptr[i];
      for (auto* item = rows.begin(index[i]); item != rows.end(index[i]);
           item++, k++) {
        child_out[k] = *item & 0xffffffff;
        if (edge_out) edge_out[k] = *item >> 32;
      }
    }
  });
  return {out.ids, out.index, out_ptr, out_child, out_edge};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(torch_geometric_ext, m) {
  m.def(
      "unique_trees(Tensor label, Tensor ptr, Tensor child, "
      "Tensor? edge_label=None, int num_known=0) -> "
      "(Tensor ids, Tensor index, Tensor ptr, Tensor child, "
      "Tensor edge_label)");
}

TORCH_LIBRARY_IMPL(torch_geometric_ext, CPU, m) {
  m.impl("unique_trees", TORCH_FN(unique_trees_cpu));
}

}  // namespace torch_geometric_ext::unique_trees
