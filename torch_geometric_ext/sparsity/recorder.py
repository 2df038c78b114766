from typing import Any, Dict, List, Optional, Tuple

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from torch_geometric_ext.nn import SparseLinear


class Recorder:
    """Record the input of a layer and the gradient of its output in each
    backward pass, until :meth:`remove`.

    Attributes:
        pairs (List[Tuple[torch.Tensor, torch.Tensor]]): Inputs of shape
            :math:`(N, I)`, dense or in CSR format, and gradients of outputs of
            shape :math:`(N, O)`.
    """

    # A copy of a model copies this hook without a layer: it records nothing.
    layer: Optional[SparseLinear] = None

    def __init__(self, layer: SparseLinear) -> None:
        self.layer = layer
        self.pairs: List[Tuple[Tensor, Tensor]] = []
        # Run before hooks that change the output:
        hook = layer.register_forward_hook(
            self, with_kwargs=True, prepend=True
        )
        self._handles: List[RemovableHandle] = [hook]

    def __call__(
        self,
        module: torch.nn.Module,
        args: Tuple[Any, ...],
        kwargs: Dict[str, Any],
        out: Tensor,
    ) -> None:
        """Run as the forward hook of the layer."""
        # Compiled code would keep recording after `remove()`.
        if torch.compiler.is_compiling() or module is not self.layer:
            return
        if not out.requires_grad or not module.values.requires_grad:
            return
        x = (args[0] if args else kwargs['x']).detach()

        def record(grad: Tensor) -> None:
            # Copy the input, as it may be overwritten after the backward pass.
            is_dense = x.layout == torch.strided
            rows = x.reshape(-1, x.size(-1)) if is_dense else x
            copy = rows.clone()
            self.pairs.append((copy, grad.reshape(-1, grad.size(-1))))

        # In-place operations replace the history of a view, but not of its
        # base:
        base = out._base
        if base is not None and base.numel() == out.numel():
            out = base
        self._handles.append(out.register_hook(record))

    def remove(self) -> None:
        """Remove all hooks and free all tensors."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self.pairs.clear()

    def __getstate__(self) -> Dict[str, Any]:
        return {}
