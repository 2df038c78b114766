from contextlib import contextmanager
from typing import Any, Callable, Counter, Dict, Iterator, List, Tuple

import torch
from torch import Tensor
from torch.nn import Module
from torch.utils._python_dispatch import TorchDispatchMode
from torch_geometric import EdgeIndex
from torch_geometric.nn import MessagePassing
from torch_geometric.typing import SparseTensor

from torch_geometric_ext.nn import SparseLinear

aten = torch.ops.aten

# The products of an operation, each as its number of MACs and its factors:
Products = List[Tuple[Any, ...]]


class MACCounter(TorchDispatchMode):
    """Context manager that counts the multiply-adds of a model.

    See :func:`~torch_geometric_ext.utils.count_macs` for the rules. A product
    counts for the innermost running module.

    Args:
        model (torch.nn.Module): The model. Pass a copy, as the hooks of the
            counter are never removed.

    Attributes:
        forward (Counter[torch.nn.Module]): Multiply-adds of the forward pass.
        training (Counter[torch.nn.Module]): Multiply-adds of a training step.
    """

    def __init__(self, model: Module) -> None:
        super().__init__()
        self.forward: Counter[Module] = Counter()
        self.training: Counter[Module] = Counter()
        self.running: List[Module] = []
        self.muted = False  # Set while a layer runs that counts as a whole.
        # The output and the factors of the last elementwise product:
        self.product: Tuple[Any, ...] = (None,)
        for module in model.modules():
            module.register_forward_pre_hook(self._enter, prepend=True)
            module.register_forward_hook(self._leave, with_kwargs=True)
            if isinstance(module, MessagePassing):
                module.register_message_forward_hook(self._message)
                module.register_message_and_aggregate_forward_pre_hook(
                    self._enter_fused
                )
                module.register_message_and_aggregate_forward_hook(
                    self._leave_fused
                )

    def add(self, num_macs: int, *factors: Tensor) -> None:
        """Count a product and the gradients of its factors.

        Args:
            num_macs (int): The multiply-adds of the product.
            *factors (torch.Tensor): The factors of the product.
        """
        module = self.running[-1]
        num_gradients = sum(factor.requires_grad for factor in factors)
        self.forward[module] += num_macs
        self.training[module] += num_macs * (1 + num_gradients)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        op = func.overloadpacket
        if self.muted:
            return out
        if op in PRODUCTS:
            for num_macs, *factors in PRODUCTS[op](out, *args):
                self.add(num_macs, *factors)
        elif op is aten.mul and isinstance(args[1], Tensor):
            self.product = (out, *args)
        elif op is aten.sum and args[0] is self.product[0]:
            self.add(args[0].numel(), *self.product[1:])
        return out

    def _enter(self, module: Module, args: Any) -> None:
        self.running.append(module)
        if isinstance(module, SparseLinear):  # May run a dense product.
            self.muted = True

    def _leave(self, module: Module, args: Any, kwargs: Any, out: Any) -> None:
        if isinstance(module, SparseLinear):
            x = [*args, *kwargs.values()][0]
            self.add(num_layer_macs(module, x), x, module.values)
            self.muted = False
        self.running.pop()

    def _message(self, module: Module, args: Any, out: Tensor) -> None:
        weighted = out is self.product[0]
        self.add(out.numel(), *(self.product[1:] if weighted else [out]))

    def _enter_fused(self, module: Module, args: Any) -> None:
        self.muted = True

    def _leave_fused(self, module: Any, args: Any, out: Tensor) -> None:
        num_channels = out.numel() // max(out.size(module.node_dim), 1)
        self.add(num_elements(args[0]) * num_channels, out)
        self.muted = False


def num_layer_macs(layer: SparseLinear, x: Tensor) -> int:
    """Return the multiply-adds of a sparse layer on dense features, or of
    nonzero features and the active weights of each.
    """
    if x.layout == torch.strided:
        return x.shape[:-1].numel() * layer.values.numel()
    return int(layer.colptr.diff()[x.col_indices()].sum())


def num_elements(x: Any) -> int:
    """Return the number of stored elements of a dense or sparse matrix."""
    if isinstance(x, EdgeIndex):
        return x.size(1)
    if isinstance(x, SparseTensor):
        return x.nnz()
    if x.layout == torch.strided:
        return x.numel()
    values = x._values() if x.layout == torch.sparse_coo else x.values()
    return values.numel()


def _matmul(out: Any, a: Tensor, b: Tensor, *args: Any) -> Products:
    if b.layout != torch.strided:
        return [(a.size(0) * num_elements(b), a, b)]
    num_columns = b.size(-1) if b.dim() > 1 else 1
    return [(num_elements(a) * num_columns, a, b)]


def _addmm(out: Tensor, bias: Tensor, *args: Any) -> Products:
    return _matmul(out, *args)


def _bilinear(
    out: Tensor, x: Tensor, weight: Tensor, y: Tensor, *args: Any
) -> Products:
    return [(out.numel() * weight[0].numel(), x, weight, y)]


def _convolution(
    out: Tensor, x: Tensor, weight: Tensor, *args: Any
) -> Products:
    transposed = args[4]
    num_inputs = x.numel() if transposed else out.numel()
    return [(num_inputs * weight[0].numel(), x, weight)]


def _attention(
    out: Any, query: Tensor, key: Tensor, value: Tensor, *args: Any
) -> Products:
    num_scores = query.shape[:-1].numel() * key.size(-2)
    score = query if query.requires_grad else key
    return [
        (num_scores * query.size(-1), query, key),
        (num_scores * value.size(-1), score, value),
    ]


PRODUCTS: Dict[Any, Callable[..., Products]] = {
    aten.mm: _matmul,
    aten.bmm: _matmul,
    aten.mv: _matmul,
    aten.dot: _matmul,
    aten._sparse_mm_reduce_impl: _matmul,
    aten.addmm: _addmm,
    aten.addmv: _addmm,
    aten.baddbmm: _addmm,
    aten._sparse_addmm: _addmm,
    aten._trilinear: _bilinear,
    aten.convolution: _convolution,
    aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    aten._scaled_dot_product_flash_attention: _attention,
    aten._scaled_dot_product_efficient_attention: _attention,
    aten._scaled_dot_product_cudnn_attention: _attention,
}


@contextmanager
def unfused() -> Iterator[None]:
    """Disable fused recurrent and transformer layers, so that their products
    can be counted.
    """
    backends: List[Any] = [torch.backends.mkldnn, torch.backends.cudnn]
    enabled = [backend.enabled for backend in backends]
    fastpath = torch.backends.mha.get_fastpath_enabled()
    try:
        for backend in backends:
            backend.enabled = False
        torch.backends.mha.set_fastpath_enabled(False)
        yield
    finally:
        for backend, value in zip(backends, enabled):
            backend.enabled = value
        torch.backends.mha.set_fastpath_enabled(fastpath)
