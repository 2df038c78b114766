"""A pretend accelerator: an out-of-tree device of PyTorch, written in Python.

Tensors of the device `pretend` keep their data in the memory of the host, and
PyTorch's CPU kernels compute on them. As on CUDA, operators reject tensors of
several devices, and NumPy rejects tensors of the device. `record_syncs`
records the operations in which the host would wait for CUDA, so that tests can
count them without a GPU.

The hooks are experimental (see `torch.utils.backend_registration`), hence
`is_available` checks whether this version of PyTorch has them.
"""

import contextlib
import functools
import traceback
from typing import (
    Any,
    Callable,
    ContextManager,
    Iterator,
    List,
    NamedTuple,
    Optional,
    Tuple,
)

import torch
from torch import Tensor
from torch.utils import backend_registration
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten

NAME = 'pretend'
ON_CPU = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
CSR = torch._C.DispatchKeySet(torch._C.DispatchKey.SparseCsrCPU)
COMPRESSED = {
    torch.sparse_csr: ['crow_indices', 'col_indices', 'values'],
    torch.sparse_csc: ['ccol_indices', 'row_indices', 'values'],
}

aten = torch.ops.aten

# Operators that copy values to the host on CUDA, since the size of their
# output or an error depends on them. Besides, operators that return numbers.
WAITING = {
    aten._unique,
    aten._unique2,
    aten.bincount,
    aten.histc,
    aten.masked_select,
    aten.nonzero,
    aten.segment_reduce,
    aten.unique_consecutive,
    aten.unique_dim,
    aten.unique_dim_consecutive,
}
INDEXING = {aten.index, aten._index_put_impl_, aten._unsafe_index}


# Layers that need fused cells or sparse COO tensors, which the device lacks.
UNSUPPORTED = ['GRU', 'jk lstm', 'unet']


class Sync(NamedTuple):
    """An operation in which the host waits for the device."""

    name: str
    stack: str

    def __repr__(self) -> str:
        return f'{self.name} in\n{self.stack}'


_records: List[List[Sync]] = []
_libraries: List[torch.library.Library] = []  # Kernels live as long as these.


@contextlib.contextmanager
def record_syncs() -> Iterator[List[Sync]]:
    """Record the operations of a block in which the host waits."""
    syncs: List[Sync] = []
    _records.append(syncs)
    try:
        yield syncs
    finally:
        _records.remove(syncs)


def _record(name: str) -> None:
    stack = ''.join(traceback.format_stack()[-20:-2]) if _records else ''
    for syncs in _records:
        syncs.append(Sync(name, stack))


@functools.cache  # The device is an accelerator, too.
def is_available() -> bool:
    """Check whether PyTorch supports devices that are written in Python, and
    has no other accelerator, whose place the device would take.
    """
    return hasattr(torch._C, '_acc') and not torch.accelerator.is_available()


@functools.cache
def device() -> torch.device:
    """Register the device in the first call, and return it.

    The first backward pass of a process starts a thread for each device, hence
    the device needs to be registered before.
    """
    backend_registration._setup_privateuseone_for_python_backend(
        NAME, _Module()
    )
    torch.UntypedStorage.__new__ = _new_storage
    _libraries.append(torch.library.Library('_', 'IMPL'))
    _libraries[-1].fallback(_fallback, 'PrivateUse1')
    _libraries[-1].fallback(_fallback, 'SparseCsrPrivateUse1')
    fallthrough = torch.library.fallthrough_kernel
    _libraries[-1].fallback(fallthrough, 'AutocastPrivateUse1')
    _libraries.append(torch.library.Library('aten', 'IMPL'))
    for op in [aten.linear, aten.mm, aten.addmm, aten.matmul, aten.bmm]:
        kernel = functools.partial(_autocast, op.default)
        _libraries[-1].impl(op.default.name(), kernel, 'AutocastPrivateUse1')
    for key in ['PrivateUse1', 'SparseCsrPrivateUse1']:
        _libraries[-1].impl('_copy_from', _copy_from, key)
    _libraries[-1].impl(
        'convolution_overrideable',
        functools.partial(_fallback, aten.convolution.default),
        'PrivateUse1',
    )
    _libraries[-1].impl(
        'convolution_backward_overrideable', _convolve_back, 'PrivateUse1'
    )
    for name in [
        'crow_indices',
        'ccol_indices',
        'col_indices',
        'row_indices',
        'values',
        '_nnz',
    ]:
        kernel = functools.partial(getattr(aten, name).default.redispatch, CSR)
        _libraries[-1].impl(name, kernel, 'SparseCsrPrivateUse1')
    for op in [aten.mm.default, aten.addmm.default, aten.clone.default]:
        kernel = functools.partial(_fallback, op)
        _libraries[-1].impl(op.name(), kernel, 'SparseCsrPrivateUse1')
    return torch.device(NAME, 0)


class _Module(backend_registration._DummyBackendModule):
    """The module `torch.pretend`."""

    def get_amp_supported_dtype(self) -> List[torch.dtype]:
        return [torch.bfloat16, torch.half]

    def get_rng_state(self, device: Any = None) -> Tensor:
        return torch.get_rng_state()  # Kernels draw from the one of the host.

    def set_rng_state(self, state: Tensor, device: Any = None) -> None:
        torch.set_rng_state(state)

    def device(self, device: Any) -> ContextManager:
        return contextlib.nullcontext()

    def synchronize(self, device: Any = None) -> None:
        _record('synchronize')


class _GeneratorType(type):
    def __instancecheck__(cls, x: Any) -> bool:
        return isinstance(x, torch._C.Generator)


class Generator(metaclass=_GeneratorType):
    """Create generators of the host for the device, which has no others.

    Tests set it in place of `torch.Generator`.
    """

    def __new__(cls, device: Any = 'cpu') -> Any:
        return torch._C.Generator(to_host(torch.device(device)))


def _new_storage(
    cls: type, *args: Any, device: Any = None, **kwargs: Any
) -> torch.UntypedStorage:
    """Allocate storages of the device, which has no allocator in C++."""
    if device is not None and torch.device(device).type == NAME:
        host = torch.empty(*args, dtype=torch.uint8)
        return to_device(host).untyped_storage()
    new = torch._C.StorageBase.__new__
    return new(cls, *args, device=device, **kwargs)


def to_host(x: Any) -> Any:
    """Return an argument for an operator on the host. A tensor shares the data
    of the one of the device.
    """
    if isinstance(x, torch.device) and x.type == NAME:
        return torch.device('cpu')
    if isinstance(x, torch.UntypedStorage) and x.device.type == NAME:
        return x.owner  # type: ignore[attr-defined]
    if not isinstance(x, Tensor) or x.device.type != NAME:
        return x
    if x.layout in COMPRESSED:
        return _map_compressed(to_host, x)
    owner = x.untyped_storage().owner  # type: ignore[attr-defined]
    host = torch.empty(0, dtype=x.dtype)
    return host.set_(owner, x.storage_offset(), x.size(), x.stride())


def to_device(host: Tensor) -> Tensor:
    """Return a tensor of the device that shares data with one of the host."""
    if host.layout in COMPRESSED:
        return _map_compressed(to_device, host)
    out = torch._C._acc.create_empty_tensor((0,), host.dtype)
    return _set(out, host)


def _map_compressed(func: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    parts = [getattr(x, name)() for name in COMPRESSED[x.layout]]
    return torch.sparse_compressed_tensor(
        *map(func, parts), x.size(), layout=x.layout, check_invariants=False
    )


def _set(x: Tensor, host: Tensor) -> Tensor:
    """Let a tensor of the device share the data of one of the host."""
    owner = host.untyped_storage()
    storage = torch._C._construct_storage_from_data_pointer(
        owner.data_ptr(), device(), owner.nbytes()
    )
    storage.owner = owner  # Lives as long as the storage.
    layout = (host.storage_offset(), host.size(), host.stride())
    op = aten.set_.source_Storage_storage_offset
    return op.redispatch(ON_CPU, x, storage, *layout)


def _fallback(op: Any, *args: Any, **kwargs: Any) -> Any:
    """Run an operator of PyTorch on tensors of the device."""
    if op.is_view:  # Shares the storage, whatever the device.
        return op.redispatch(ON_CPU, *args, **kwargs)
    checked = list(args)
    if op.overloadpacket in INDEXING:
        _record_indices(op, checked.pop(1))
    _check_devices(op, tree_flatten((checked, kwargs))[0])
    if op.overloadpacket in WAITING or (
        op is aten.repeat_interleave.Tensor
        and kwargs.get('output_size') is None
    ):
        _record(op.name())

    inputs, spec = tree_flatten((args, kwargs))
    hosts = [to_host(x) for x in inputs]
    args, kwargs = tree_unflatten(hosts, spec)
    out = _accept_numbers(op, args)(*args, **kwargs)
    if any(isinstance(x, (bool, int, float)) for x in tree_flatten(out)[0]):
        _record(op.name())

    origin = {}  # In-place operators return their arguments.
    for x, host in zip(inputs, hosts):
        if x is not host and isinstance(x, Tensor):
            origin[id(host)] = x
            if _layout(x) != _layout(host):  # Was resized or set.
                _set(x, host)
    return tree_map_only(
        Tensor,
        lambda x: origin[id(x)] if id(x) in origin else to_device(x),
        out,
    )


def _accept_numbers(op: Any, args: Tuple) -> Any:
    """Resolve the overload again for tensors that came as Python numbers."""
    for schema, x in zip(op._schema.arguments, args):
        if isinstance(schema.type, torch.TensorType) and x is not None:
            if not isinstance(x, Tensor):
                return op.overloadpacket
    return op


def _autocast(op: Any, *args: Any) -> Any:
    """Run a product in the dtype of autocast."""
    dtype = torch.get_autocast_dtype(NAME)
    key = torch._C.DispatchKey.AutocastPrivateUse1
    with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(key)):
        cast = [x.to(dtype) if isinstance(x, Tensor) else x for x in args]
        return op(*cast)


def _convolve_back(
    grad: Tensor, x: Tensor, weight: Tensor, *args: Any
) -> Tuple[Tensor, ...]:
    op = aten.convolution_backward.default
    return _fallback(op, grad, x, weight, [weight.size(0)], *args)


def _layout(x: Tensor) -> Optional[Tuple]:
    if x.layout in COMPRESSED:
        return None
    return x.shape, x.stride(), x.data_ptr()


def _check_devices(op: Any, args: List[Any]) -> None:
    """Raise an error for tensors of the host, as CUDA does."""
    for x in args:
        if isinstance(x, Tensor) and x.device.type != NAME and x.dim() > 0:
            raise RuntimeError(
                f'Expected all tensors to be on the same device, but found at '
                f'least two devices, {device()} and {x.device}! ({op})'
            )


def _record_indices(op: Any, indices: List[Any]) -> None:
    """Record indices of the host, which CUDA copies, and masks."""
    for index in indices:
        if index is not None and index.device.type != NAME:
            _record(f'{op.name()} with an index of {index.device}')
        elif index is not None and not index.is_floating_point():
            if index.dtype in [torch.bool, torch.uint8]:
                _record(f'{op.name()} with a mask')


def _copy_from(
    source: Tensor, target: Tensor, non_blocking: bool = False
) -> Tensor:
    is_transfer = source.device != target.device
    if is_transfer and not non_blocking and source.numel() > 0:
        _record(f'copy from {source.device} to {target.device}')
    to_host(target).copy_(to_host(source))
    return target
