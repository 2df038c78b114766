from typing import Dict, List, NamedTuple, Optional, Tuple, Union

import torch
from torch.nn import Module
from torch.nn.parameter import is_lazy

from torch_geometric_ext.nn.dense.masked_weight import MaskedWeight
from torch_geometric_ext.nn.dense.sparse_linear import (
    DenseLinear,
    SparseLinear,
)
from torch_geometric_ext.nn.linear_layers import (
    LINEARS,
    find_layers,
    obstacles,
)

AnyLinear = Union[DenseLinear, SparseLinear]


class LayerSummary(NamedTuple):
    """Sparsity of a linear layer."""

    name: str
    kind: str
    shape: Tuple[int, int]
    num_weights: int
    num_active: int
    reason: Optional[str]

    @property
    def sparsity(self) -> float:
        """The fraction of inactive weights."""
        return _inactive(self.num_active, self.num_weights)


class SparsitySummary(NamedTuple):
    """Sparsity of a model; prints as a table."""

    layers: List[LayerSummary]
    num_other: int

    @property
    def num_weights(self) -> int:
        """The number of weights of all linear layers."""
        return sum(layer.num_weights for layer in self.layers)

    @property
    def num_active(self) -> int:
        """The number of active weights of all linear layers."""
        return sum(layer.num_active for layer in self.layers)

    @property
    def sparsity(self) -> float:
        """The fraction of inactive weights of all linear layers."""
        return _inactive(self.num_active, self.num_weights)

    @property
    def skipped(self) -> Dict[str, str]:
        """The reason of each layer that is dense, by its name."""
        return {
            layer.name: layer.reason
            for layer in self.layers
            if layer.reason is not None
        }

    def __str__(self) -> str:
        header = ('Layer', 'Type', 'Shape', 'Weights', 'Active', 'Sparsity')
        rows = [(*header, 'Dense because')]
        for x in self.layers:
            shape = str(list(x.shape))
            numbers = _format(x.num_weights, x.num_active, x.sparsity)
            name = x.name or '(model)'
            rows.append((name, x.kind, shape, *numbers, x.reason or ''))
        numbers = _format(self.num_weights, self.num_active, self.sparsity)
        rows.append(('Total', '', '', *numbers, ''))
        widths = [max(map(len, column)) for column in zip(*rows)]
        lines = []
        for row in rows:
            cells = [
                cell.ljust(width) if i < 3 or i == 6 else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(row, widths))
            ]
            lines.append('  '.join(cells).rstrip())
        return '\n'.join([*lines, f'Other parameters: {self.num_other:,}'])


def sparsity_summary(model: Module) -> SparsitySummary:
    r"""Summarize the sparsity of the linear layers of a model.

    The summary prints as a table of all layers that
    :func:`~torch_geometric_ext.nn.sparsify` and the pruners of
    :mod:`torch_geometric_ext.sparsity` can replace or have replaced, also
    inside convolutions, whose layers :obj:`print(model)` does not show. A
    shared layer counts once. The model is not changed.

    .. code-block:: python

        model = sparsify(model, sparsity=0.9)  # Or `pruner.finalize()`.
        print(sparsity_summary(model))

    Args:
        model (torch.nn.Module): The model.

    Returns:
        The summary, with

        * :obj:`sparsity`, :obj:`num_active` and :obj:`num_weights`: the
          fraction of inactive weights and the number of active and of all
          weights, over all linear layers,
        * :obj:`num_other`: the number of other parameters, such as biases,
        * :obj:`skipped`: the reason of each dense layer, by its name,
        * :obj:`layers`: a list of :obj:`name`, :obj:`kind` (the class),
          :obj:`shape` :math:`(O, I)`, :obj:`num_weights`, :obj:`num_active`,
          :obj:`sparsity` and :obj:`reason` (:obj:`None` if sparse). Layers
          that are not initialized have no weights.

    Raises:
        TypeError: If :obj:`model` is no module.

    Example:
        >>> from torch_geometric.nn import GCN
        >>> from torch_geometric_ext.nn import sparsify
        >>> model = GCN(1433, 64, num_layers=2, out_channels=7)
        >>> model = sparsify(model, sparsity=0.9, ignored=['convs.1'])
        >>> summary = sparsity_summary(model)
        >>> print(summary)
        Layer        Type          Shape       Weights  Active  Sparsity ...
        convs.0.lin  SparseLinear  [64, 1433]   91,712   9,171    0.9000
        convs.1.lin  Linear        [7, 64]         448     448    0.0000 ...
        Total                                   92,160   9,619    0.8956
        Other parameters: 71
        >>> summary.skipped
        {'convs.1.lin': 'ignored or not sparsified'}
    """
    if not isinstance(model, Module):
        raise TypeError(
            f"'model' of 'sparsity_summary' needs to be a module (got "
            f"'{type(model).__name__}')"
        )
    names = find_layers(model, (*LINEARS, SparseLinear))
    reasons = obstacles(
        model, [x for x in names if not isinstance(x, SparseLinear)]
    )
    layers = [_summarize(x, name, reasons) for x, name in names.items()]
    weights = {
        id(param)
        for layer in names
        for name, param in layer.named_parameters()
        if name != 'bias'
    }
    num_other = sum(
        param.numel()
        for param in model.parameters()
        if id(param) not in weights and not is_lazy(param)
    )
    return SparsitySummary(layers, num_other)


def _summarize(
    layer: AnyLinear, name: str, reasons: Dict[DenseLinear, str]
) -> LayerSummary:
    # Do not read `weight`, as parametrizations may count how often it is read:
    if isinstance(layer, torch.nn.Linear):
        shape = (layer.out_features, layer.in_features)
    else:
        shape = (layer.out_channels, layer.in_channels)
    num_weights = num_active = shape[0] * shape[1]
    reason: Optional[str] = None
    mask = _mask(layer)
    if any(is_lazy(param) for param in layer.parameters()):
        num_weights = num_active = 0
        reason = 'not initialized'
    elif isinstance(layer, SparseLinear):
        num_active = layer.values.numel()
    elif mask is not None:
        num_active = int(mask.sum())
    else:
        reason = reasons.get(layer, 'ignored or not sparsified')
    kind = type(layer).__name__
    return LayerSummary(name, kind, shape, num_weights, num_active, reason)


def _mask(layer: AnyLinear) -> Optional[torch.Tensor]:
    """Return the mask of a layer that a pruner masked."""
    for module in find_layers(layer, (MaskedWeight,)):
        return module.mask
    return None


def _inactive(num_active: int, num_weights: int) -> float:
    return 1 - num_active / num_weights if num_weights > 0 else 0.0


def _format(
    num_weights: int, num_active: int, sparsity: float
) -> Tuple[str, str, str]:
    return f'{num_weights:,}', f'{num_active:,}', f'{sparsity:.4f}'
