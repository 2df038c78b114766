from typing import Any, Dict

import torch
from torch import Tensor
from torch.nn.utils import parametrize

from torch_geometric_ext.nn.dense.sparse_linear import DenseLinear


class MaskedWeight(torch.nn.Module):
    """Parametrization that holds pruned weights at zero.

    Args:
        mask (torch.Tensor): The mask of the remaining weights (bool).
    """

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer('mask', mask)

    @classmethod
    def apply_to(cls, linear: DenseLinear, mask: Tensor) -> None:
        """Hold the pruned weights of a layer at zero."""
        with torch.no_grad():
            linear.weight.masked_fill_(~mask, 0.0)
        parametrize.register_parametrization(linear, 'weight', cls(mask))
        # PyG's layer saves the product, too, which no layer could load:
        linear.register_state_dict_post_hook(_drop_product)

    def forward(self, weight: Tensor) -> Tensor:  # noqa: D102
        return weight.masked_fill(~self.mask, 0.0)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """Return the parameter of a weight that is assigned."""
        return weight


def _drop_product(
    module: torch.nn.Module, state: Dict[str, Any], prefix: str, *args: Any
) -> None:
    if parametrize.is_parametrized(module, 'weight'):
        state.pop(f'{prefix}weight', None)
