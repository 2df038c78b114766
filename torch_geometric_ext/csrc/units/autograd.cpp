// A translation unit of several files, since PyTorch's headers take most of the
// time to compile.
#include "../autograd/block_sparse_linear_kernel.cpp"
#include "../autograd/prototype_loss_kernel.cpp"
#include "../autograd/sparse_linear_kernel.cpp"
