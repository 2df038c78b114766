#pragma once

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/grad_mode.h>

namespace torch_geometric_ext {

// Returns a handle to a registered operator, which calls it on any device.
template <typename Signature>
auto find_op(const char* name) {
  return c10::Dispatcher::singleton()
      .findSchemaOrThrow(name, "")
      .typed<Signature>();
}

// Calls an operator within a backward pass. Only a second derivative needs the
// autograd kernel of the operator, which is slower.
template <typename F>
auto call_in_backward(const F& call) {
  if (at::GradMode::is_enabled()) return call();
  at::AutoDispatchBelowADInplaceOrView guard;
  return call();
}

}  // namespace torch_geometric_ext
