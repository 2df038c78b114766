#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <cstdint>

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

// What a kernel needs to know about the memory of the machine.
namespace torch_geometric_ext {

// Returns the size in bytes of the second-level cache, which a core does not
// share, or a common one if the system does not tell.
inline int64_t core_cache_bytes() {
  static const int64_t size = [] {
    int64_t found = 0;
#if defined(_SC_LEVEL2_CACHE_SIZE)
    found = sysconf(_SC_LEVEL2_CACHE_SIZE);
#endif
    return found > 0 ? found : int64_t(1) << 20;
  }();
  return size;
}

// Returns an uninitialized matrix. Asks the system for huge pages: a system
// clears 4,096 pages of an output of 16 MB otherwise, one at a time, which can
// take longer than the product itself.
inline at::Tensor empty_matrix(
    int64_t num_rows, int64_t num_columns, const at::TensorOptions& options) {
  auto out = at::empty({num_rows, num_columns}, options);
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t kPage = 1 << 21;
  if (out.nbytes() >= 2 * kPage) {
    const auto address = reinterpret_cast<uintptr_t>(out.mutable_data_ptr());
    const auto begin = (address + kPage - 1) / kPage * kPage;
    const auto end = (address + out.nbytes()) / kPage * kPage;
    // A hint: errors do not matter.
    madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
  }
#endif
  return out;
}

}  // namespace torch_geometric_ext
