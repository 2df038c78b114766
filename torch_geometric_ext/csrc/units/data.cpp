// A translation unit of several files, since PyTorch's headers take most of the
// time to compile.
#include "../cpu/extract_trees_kernel.cpp"
#include "../cpu/frequent_itemsets_kernel.cpp"
#include "../cpu/herding_kernel.cpp"
#include "../cpu/merge_positions_kernel.cpp"
#include "../cpu/sparse_pattern_kernel.cpp"
#include "../cpu/top_positions_kernel.cpp"
#include "../cpu/unique_rows_kernel.cpp"
#include "../cpu/unique_trees_kernel.cpp"
#include "../cpu/weighted_sample_kernel.cpp"
