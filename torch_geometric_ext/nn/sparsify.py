import math
import warnings
from typing import Dict, Sequence

import torch
from torch.nn import Module

from torch_geometric_ext.nn.dense.distribution import layer_densities
from torch_geometric_ext.nn.dense.pattern import random_index
from torch_geometric_ext.nn.dense.sparse_linear import (
    DenseLinear,
    SparseLinear,
)
from torch_geometric_ext.nn.dense.sparse_parameters import is_lazy
from torch_geometric_ext.nn.linear_layers import (
    Ignored,
    check_initialized,
    find_layers,
    swap_layers,
    swappable_linears,
)
from torch_geometric_ext.nn.named_seed import named_seed


def sparsify(
    model: Module,
    sparsity: float,
    distribution: str = 'erk',
    ignored: Sequence[Ignored] = (),
    seed: int = 0,
    *,
    min_fan_in: int = 16,
) -> Module:
    r"""Swaps the linear layers of a model for
    :class:`~torch_geometric_ext.nn.SparseLinear`, in place, and returns the
    model (or the sparse layer, if the model is a linear layer itself).

    Swapped are :class:`torch.nn.Linear` and
    :class:`torch_geometric.nn.Linear`, on their own and within convolutions,
    wherever they are called. Left dense, and logged with the reason, are

    * layers whose weight is read instead, as by
      :class:`torch.nn.MultiheadAttention` and
      :class:`~torch_geometric.nn.models.PMLP`,
    * layers that override :meth:`forward`, that have hooks, or whose weight
      is parametrized,
    * layers that share a parameter with another module.

    A layer that has several names in the model is swapped once and stays
    shared.

    The pattern of each layer is drawn uniformly, by a seed of its own that
    depends on its name: other layers do not change it. Its values are those
    of the dense layer, divided by the square root of the density, so that
    freshly drawn weights give outputs of the same variance with the fewer
    weights that come in. Biases stay.

    .. note::
        This is meant for models that are yet to be trained. Of a trained one,
        a random part of the weights is of little use: keep those of largest
        magnitude by :meth:`SparseLinear.from_dense(linear, sparsity=...)
        <torch_geometric_ext.nn.SparseLinear.from_dense>`, or prune while
        training by :class:`~torch_geometric_ext.sparsity.GradualMagnitude`.

    .. note::
        Create the optimizer afterwards: there are new parameters.
        A :meth:`reset_parameters` that writes into :obj:`lin.weight` of a
        layer (as that of :class:`~torch_geometric.nn.conv.PDNConv`), and does
        not call its :meth:`reset_parameters`, leaves a sparse layer as it is.

    Args:
        model (torch.nn.Module): The model, initialized: run one forward pass
            first if it has lazy layers.
        sparsity (float): The share of weights of all swapped layers that do
            not exist, in :math:`[0, 1)`.
        distribution (str, optional): How the other weights are spread over
            the layers (:obj:`"uniform"`, :obj:`"er"` or :obj:`"erk"`): with
            equal densities, or in proportion to
            :math:`(I + O) / (I \cdot O)` for :math:`I` inputs and :math:`O`
            outputs, as in the `"Rigging the Lottery: Making All Tickets
            Winners" <https://arxiv.org/abs/1911.11134>`_ paper.
            (default: :obj:`"erk"`)
        ignored (Sequence[str, torch.nn.Module or type], optional): Layers to
            leave dense: by name, as a module, or by class, each with all it
            contains. (default: :obj:`()`)
        seed (int, optional): Seed of the patterns. (default: :obj:`0`)
        min_fan_in (int, optional): How many weights each output of a layer
            has at least, on average over its outputs, as far as there are
            enough weights; not used by :obj:`"uniform"`. It keeps a last
            layer of few classes from starving at high sparsity.
            (default: :obj:`16`)

    Raises:
        ValueError: If an argument is out of its range, an element of
            :obj:`ignored` matches no linear layer, a lazy layer is not
            initialized, or no layer is left to swap. The model is then
            unchanged.

    Example:
        >>> from torch_geometric.nn import GCN
        >>> model = GCN(1433, 64, num_layers=2, out_channels=7)
        >>> model = sparsify(model, sparsity=0.9, ignored=['convs.1'])
        >>> model.convs[0].lin
        SparseLinear(1433, 64, bias=False, sparsity=0.9...)
        >>> model.convs[1].lin
        Linear(64, 7, bias=False)
    """
    layers = swappable_linears(model, ignored)
    densities = layer_densities(
        [(linear.weight.size(1), linear.weight.size(0)) for linear in layers],
        sparsity,
        distribution,
        min_fan_in=min_fan_in,
    )
    swaps: Dict[DenseLinear, SparseLinear] = {}
    for (linear, name), density in zip(layers.items(), densities):
        swaps[linear] = _sparse(linear, density, named_seed(seed, name))
    empty = [layers[x] for x in swaps if swaps[x].values.numel() == 0]
    if len(empty) > 0:
        warnings.warn(
            f"'sparsity={sparsity}' leaves no weight in {empty}; lower it, or "
            f'ignore them',
            stacklevel=2,
        )
    return swap_layers(model, swaps)


def densify(model: Module) -> Module:
    r"""Swaps each :class:`~torch_geometric_ext.nn.SparseLinear` of a model for
    the dense layer of equal outputs, in place, and returns the model (or the
    dense layer): the inverse of :func:`~torch_geometric_ext.nn.sparsify`.

    The weights that do not exist become zeros, which count as any other: save
    and run the model as if it had never been sparse. A layer that has several
    names in the model stays shared.

    .. note::
        To train on, call :meth:`remove` of schedulers first, and create the
        optimizer anew: there are new parameters.

    Args:
        model (torch.nn.Module): The model.

    Raises:
        ValueError: If there is no sparse layer, or a lazy one is not
            initialized. The model is then unchanged.

    Example:
        >>> from torch_geometric.nn import MLP
        >>> model = sparsify(MLP([64, 64, 7]), sparsity=0.9)
        >>> densify(model).lins[0]
        Linear(64, 64, bias=True)
    """
    names = find_layers(model, (SparseLinear,))
    if len(names) == 0:
        raise ValueError("'model' needs a 'SparseLinear' to swap (got none)")
    check_initialized([names[layer] for layer in names if is_lazy(layer)])
    return swap_layers(model, {layer: layer.to_dense() for layer in names})


@torch.no_grad()
def _sparse(linear: DenseLinear, density: float, seed: int) -> SparseLinear:
    numel = linear.weight.numel()
    size = round(density * numel)
    generator = torch.Generator().manual_seed(seed)
    index = random_index(numel, size, generator).to(linear.weight.device)
    out = SparseLinear.from_dense(linear, index=index)
    out.values.mul_(math.sqrt(numel / max(size, 1)))
    return out
