import math
import warnings
from typing import Dict, Sequence

import torch
from torch.nn import Module

from torch_geometric_ext.nn.dense.block_grid import (
    BlockGrid,
    check_block_size,
)
from torch_geometric_ext.nn.dense.check_weights import check_initialized
from torch_geometric_ext.nn.dense.distribution import layer_densities
from torch_geometric_ext.nn.dense.sparse_linear import (
    DenseLinear,
    SparseLinear,
)
from torch_geometric_ext.nn.linear_layers import (
    Ignored,
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
    block_size: int = 1,
) -> Module:
    r"""Replace the linear layers of a model with
    :class:`~torch_geometric_ext.nn.SparseLinear` layers, in-place.

    The pattern of each layer is drawn uniformly, with a seed derived from
    :obj:`seed` and the name of the layer. The active weights keep their
    values, divided by the square root of the density, so that the variance of
    outputs is preserved at initialization. Biases are unchanged.

    .. note::
        Create the optimizer afterwards, as parameters are replaced.
        A :meth:`reset_parameters` that writes into :obj:`lin.weight` (as in
        :class:`~torch_geometric.nn.conv.PDNConv`) does not reset a sparse
        layer.

    Args:
        model (torch.nn.Module): The model, without uninitialized layers.
        sparsity (float): Fraction of inactive weights among the weights of
            all replaced layers, in :math:`[0, 1)`.
        distribution (str, optional): The distribution of active weights over
            layers: :obj:`"uniform"` (equal densities), or :obj:`"er"` or
            :obj:`"erk"` (densities in proportion to
            :math:`(I + O) / (I \cdot O)` for :math:`I` inputs and :math:`O`
            outputs), as in the `"Rigging the Lottery: Making All Tickets
            Winners" <https://arxiv.org/abs/1911.11134>`_ paper.
            (default: :obj:`"erk"`)
        ignored (Sequence[str, torch.nn.Module or type], optional): Names,
            modules or classes of layers that stay dense, or of modules that
            contain them. (default: :obj:`()`)
        seed (int, optional): Seed of the patterns. (default: :obj:`0`)
        min_fan_in (int, optional): Minimum number of active weights per
            output, averaged over the outputs of a layer, as far as the
            sparsity permits. It protects a last layer of few classes.
            :obj:`"uniform"` ignores it. (default: :obj:`16`)
        block_size (int, optional): The size of blocks of weights that are
            active or not as a whole (see
            :class:`~torch_geometric_ext.nn.SparseLinear`). The number of
            active weights of a layer is rounded to whole blocks, at least
            one. (default: :obj:`1`)

    Returns:
        The model, or the sparse layer if the model is a linear layer.

    Raises:
        ValueError: If an argument is out of its range, an element of
            :obj:`ignored` matches no linear layer, a layer is not
            initialized or on the meta device, or no layer can be replaced,
            for example as all are sparse already. The model is not changed
            in these cases.

    Example:
        >>> from torch_geometric.nn import GCN
        >>> model = GCN(1433, 64, num_layers=2, out_channels=7)
        >>> model = sparsify(model, sparsity=0.9, ignored=['convs.1'])
        >>> model.convs[0].lin
        SparseLinear(1433, 64, bias=False, sparsity=0.9...)
        >>> model.convs[1].lin
        Linear(64, 7, bias=False)

    .. rubric:: Details

    All modules of class :class:`torch.nn.Linear` or
    :class:`torch_geometric.nn.Linear` are replaced, including those inside
    convolutions. A shared layer is replaced once and stays shared. The
    following layers stay dense, and
    :func:`~torch_geometric_ext.nn.sparsity_summary` and the logger of the
    package name them with the reason:

    * layers whose weight another module reads, as in
      :class:`torch.nn.MultiheadAttention` and
      :class:`~torch_geometric.nn.models.PMLP`,
    * layers that override :meth:`forward`, have hooks, or have a parametrized
      weight,
    * layers that share a parameter with another module.

    .. note::
        Apply :func:`sparsify` to untrained models. To prune a trained model,
        use :meth:`SparseLinear.from_dense(linear, sparsity=...)
        <torch_geometric_ext.nn.SparseLinear.from_dense>` or
        :class:`~torch_geometric_ext.sparsity.GradualMagnitude`.

    .. note::
        The sparse model also loads the :meth:`state_dict` of the dense model.
        It keeps its pattern and loads the active weights, without scaling
        them. :func:`densify` describes the opposite direction.
    """
    check_block_size('sparsify', block_size)
    layers = swappable_linears(model, ignored)
    densities = layer_densities(
        [(linear.weight.size(1), linear.weight.size(0)) for linear in layers],
        sparsity,
        distribution,
        min_fan_in=min_fan_in,
    )
    swaps: Dict[DenseLinear, SparseLinear] = {}
    for (linear, name), density in zip(layers.items(), densities):
        swaps[linear] = _sparsify_layer(
            linear, density, named_seed(seed, name), block_size
        )
    empty = [layers[x] for x in swaps if swaps[x].values.numel() == 0]
    if len(empty) > 0:
        warnings.warn(
            f"'sparsity={sparsity}' leaves no weight in {empty}. Lower it, or "
            f"add them to 'ignored'",
            stacklevel=2,
        )
    return swap_layers(model, swaps)


def densify(model: Module) -> Module:
    r"""Replace each :class:`~torch_geometric_ext.nn.SparseLinear` of a model
    with the equivalent dense layer, in-place.

    This is the inverse of :func:`~torch_geometric_ext.nn.sparsify`. Inactive
    weights become zeros. A shared layer stays shared.

    .. note::
        A dense model does not load the :meth:`state_dict` of a sparse model.
        It loads :obj:`densify(copy.deepcopy(model)).state_dict()`.

    .. note::
        To train the dense model further, call :meth:`remove` of schedulers
        first, and create a new optimizer, as parameters are replaced.

    Args:
        model (torch.nn.Module): The model.

    Returns:
        The model, or the dense layer if the model is a sparse layer.

    Raises:
        ValueError: If the model has no sparse layer, or one is not
            initialized. The model is not changed in these cases.

    Example:
        >>> from torch_geometric.nn import MLP
        >>> model = sparsify(MLP([64, 64, 7]), sparsity=0.9)
        >>> densify(model).lins[0]
        Linear(64, 64, bias=True)
    """
    names = find_layers(model, (SparseLinear,))
    if len(names) == 0:
        raise ValueError("'model' needs a 'SparseLinear' to swap (got none)")
    values = {name: layer.values for layer, name in names.items()}
    check_initialized('model', values)
    return swap_layers(model, {layer: layer.to_dense() for layer in names})


@torch.no_grad()
def _sparsify_layer(
    linear: DenseLinear, density: float, seed: int, block_size: int
) -> SparseLinear:
    size = (linear.weight.size(0), linear.weight.size(1))
    grid = BlockGrid(size, block_size)
    num_blocks = round(density * grid.num_blocks)
    if block_size > 1:
        num_blocks = max(num_blocks, 1)
    generator = torch.Generator().manual_seed(seed)
    blocks = grid.draw(num_blocks, generator).to(linear.weight.device)
    index = grid.expand(blocks)
    out = SparseLinear.from_dense(linear, index=index, block_size=block_size)
    num_weights = max(out.values.numel(), 1)
    out.values.mul_(math.sqrt(linear.weight.numel() / num_weights))
    return out
