from typing import Any, Callable, Optional

import torch
from torch.autograd import forward_ad

import torch_geometric_ext.typing

# Python kernels are removed from the dispatcher together with this object.
LIBRARY = torch.library.Library('torch_geometric_ext', 'IMPL')


def is_transformed() -> bool:
    """Check whether a transform of :mod:`torch.func` or forward-mode
    differentiation is active.
    """
    functorch = torch._C._are_functorch_transforms_active()
    return functorch or forward_ad._current_level >= 0


def is_eager() -> bool:
    """Check that no transform and no mode of PyTorch is active."""
    return not (
        torch.jit.is_tracing()
        or is_transformed()
        or torch._C._len_torch_dispatch_stack() > 0
    )


def register_operator(
    name: str,
    reference: Callable[..., Any],
    fake: Callable[..., Any],
    *,
    cuda: Optional[Callable[..., Any]] = None,
    autograd: Optional[Callable[..., Any]] = None,
    composite: Optional[Callable[..., Any]] = None,
) -> Callable[..., Any]:
    """Register the Python side of an operator and return a function that
    calls the operator.

    The C++ file of the operator registers its schema and its CPU kernel.
    Without compiled kernels, the returned function calls :obj:`reference`.

    Args:
        name (str): The name of the operator in the namespace
            :obj:`torch_geometric_ext`.
        reference (callable): The operator in plain PyTorch. It takes the
            positional arguments of the schema on any device.
        fake (callable): The fake kernel, which :func:`torch.compile` and
            :func:`torch.export` call to infer shapes and dtypes.
        cuda (callable, optional): The kernel of CUDA and of out-of-tree
            devices.
            (default: :obj:`reference`)
        autograd (callable, optional): The kernel of the dispatch key
            :obj:`Autograd`, if it is written in Python.
            (default: :obj:`None`)
        composite (callable, optional): The operator as a composition of
            operators of PyTorch. It runs under :mod:`torch.func` transforms
            and forward-mode differentiation, which support neither kernels
            nor :class:`torch.autograd.Function` without rules of their own.
            (default: :obj:`None`)

    Returns:
        callable: A function of the positional arguments of the schema. It
        reads :obj:`torch_geometric_ext.typing.WITH_EXT` in each call.

    Raises:
        ImportError: If the compiled kernels lack the operator.
    """
    kernel = reference
    if torch_geometric_ext.typing.WITH_EXT:
        kernel = _register(name, fake, cuda or reference, autograd)

    def call(*args: Any) -> Any:
        if composite is not None and is_transformed():
            return composite(*args)
        if torch_geometric_ext.typing.WITH_EXT:
            return kernel(*args)
        return reference(*args)

    return call


def _register(
    name: str,
    fake: Callable[..., Any],
    cuda: Callable[..., Any],
    autograd: Optional[Callable[..., Any]],
) -> Callable[..., Any]:
    if not hasattr(torch.ops.torch_geometric_ext, name):
        raise ImportError(
            f"The kernels of 'torch_geometric_ext' lack the operator "
            f"'{name}'. Re-install the package to rebuild them"
        )

    for key in ['CUDA', 'PrivateUse1']:  # Out-of-tree devices, too.
        LIBRARY.impl(name, cuda, key)
    if autograd is not None:
        LIBRARY.impl(name, autograd, 'Autograd')
    torch.library.register_fake(f'torch_geometric_ext::{name}')(fake)
    kernel: Callable[..., Any]
    kernel = getattr(torch.ops.torch_geometric_ext, name).default
    return kernel
