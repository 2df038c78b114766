from typing import Any, Dict, List, Optional, Tuple

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from torch_geometric_ext.nn import SparseLinear


class Recorder:
    """Keeps the input of a layer and the gradient of its output, for each
    backward pass through it, until it is removed.
    """

    # Copies of a model copy its hooks; theirs record nothing.
    layer: Optional[SparseLinear] = None

    def __init__(self, layer: SparseLinear) -> None:
        self.layer = layer
        self.pairs: List[Tuple[Tensor, Tensor]] = []
        # Before hooks that change the output:
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
        """The hook of the layer."""
        # The code of a compiled model would record for ever.
        if torch.compiler.is_compiling() or module is not self.layer:
            return
        if not out.requires_grad or not module.values.requires_grad:
            return
        x = (args[0] if args else kwargs['x']).detach()

        def record(grad: Tensor) -> None:
            # The input may be overwritten from now on, by the optimizer even.
            copy = x.reshape(-1, x.size(-1)).clone()
            self.pairs.append((copy, grad.reshape(-1, grad.size(-1))))

        # Operations in place replace the history of a view, but not of what
        # it views:
        base = out._base
        if base is not None and base.numel() == out.numel():
            out = base
        self._handles.append(out.register_hook(record))

    def remove(self) -> None:
        """Removes all hooks and frees all tensors."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self.pairs.clear()

    def __getstate__(self) -> Dict[str, Any]:
        return {}
