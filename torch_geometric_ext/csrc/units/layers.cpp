// A translation unit of several files, since PyTorch's headers take most of the
// time to compile.
#include "../cpu/block_sparse_linear_kernel.cpp"
#include "../cpu/crossovers.cpp"
#include "../cpu/csr_matmul_kernel.cpp"
#include "../cpu/csr_sparse_linear_kernel.cpp"
#include "../cpu/prototype_loss_kernel.cpp"
#include "../cpu/sparse_linear_kernel.cpp"
