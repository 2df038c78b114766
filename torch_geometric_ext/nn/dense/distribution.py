from typing import List, Sequence, Tuple

DISTRIBUTIONS = ['uniform', 'er', 'erk']


def layer_densities(
    sizes: Sequence[Tuple[int, int]],
    sparsity: float,
    distribution: str = 'erk',
    *,
    min_fan_in: int = 16,
) -> List[float]:
    r"""Spreads a number of weights over layers, as in the `"Rigging the
    Lottery: Making All Tickets Winners"
    <https://arxiv.org/abs/1911.11134>`_ paper.

    * :obj:`"uniform"`: Every layer has the same density.
    * :obj:`"er"` (Erdős-Rényi): The density of a layer with :math:`I` inputs
      and :math:`O` outputs is proportional to

      .. math::
          \frac{I + O}{I \cdot O},

      so that all of its neurons have about as many connections as those of
      other layers, and small layers are denser than large ones.
    * :obj:`"erk"` (Erdős-Rényi-Kernel): The same for matrices. The two differ
      for convolutions over images only.

    A layer whose share exceeds its size is made dense, and the others take
    what is left over.

    .. note::
        :obj:`"er"` counts inputs and outputs alike. At a high sparsity, this
        starves a last layer of few outputs: of a GCN with 16 hidden channels
        on Cora, it keeps 7 of 112 weights at a density of 2 %, and the model
        collapses. A floor :obj:`min_fan_in` prevents that at little cost,
        since such layers are small.

    Args:
        sizes (Sequence[Tuple[int, int]]): Number of inputs and outputs of each
            layer.
        sparsity (float): The share of all weights that do not exist, in
            :math:`[0, 1)`.
        distribution (str, optional): The distribution (:obj:`"uniform"`,
            :obj:`"er"` or :obj:`"erk"`). (default: :obj:`"erk"`)
        min_fan_in (int, optional): How many weights each output of a layer
            has at least, on average over its outputs (all, where a layer has
            fewer inputs). The other layers pay for them. Where all floors
            together need more than half of the weights, they are lowered in
            proportion. (default: :obj:`16`)

    Returns:
        The density of each layer, in :math:`[0, 1]`.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> sizes = [(1433, 16), (16, 7)]
        >>> densities = layer_densities(sizes, sparsity=0.98)
        >>> [round(d * i * o) for d, (i, o) in zip(densities, sizes)]
        [349, 112]
        >>> densities = layer_densities(sizes, sparsity=0.98, min_fan_in=0)
        >>> [round(d * i * o) for d, (i, o) in zip(densities, sizes)]
        [454, 7]
    """
    _check(sizes, sparsity, distribution, min_fan_in)
    numels = [num_in * num_out for num_in, num_out in sizes]
    floors = [min(min_fan_in / num_in, 1.0) for num_in, _ in sizes]
    weights = [sum(size) / numel for size, numel in zip(sizes, numels)]
    if distribution == 'uniform':
        weights, floors = [1.0] * len(sizes), [0.0] * len(sizes)
    budget = (1 - sparsity) * sum(numels)
    needed = sum(floor * numel for floor, numel in zip(floors, numels))
    if needed > budget:
        return [floor * budget / needed for floor in floors]
    return _fill(numels, weights, floors, budget)


def _fill(
    numels: List[int],
    weights: List[float],
    floors: List[float],
    budget: float,
) -> List[float]:
    """Densities proportional to weights, but within floors and one."""
    densities = [0.0] * len(numels)
    free = list(range(len(numels)))
    while free:
        scale = budget / sum(weights[i] * numels[i] for i in free)
        excess = 0.0
        for i in free:
            densities[i] = min(max(scale * weights[i], floors[i]), 1.0)
            excess += (densities[i] - scale * weights[i]) * numels[i]
        # Only the bounds that move the total the most are sure to hold:
        if excess > 0:
            fixed = [i for i in free if densities[i] > scale * weights[i]]
        else:
            fixed = [i for i in free if densities[i] < scale * weights[i]]
        if len(fixed) == 0:
            break
        budget -= sum(densities[i] * numels[i] for i in fixed)
        free = [i for i in free if i not in fixed]
    return densities


def _check(
    sizes: Sequence[Tuple[int, int]],
    sparsity: float,
    distribution: str,
    min_fan_in: int,
) -> None:
    if any(min(size) < 1 for size in sizes):
        raise ValueError(f"'sizes' need to be positive (got {list(sizes)})")
    if not 0 <= sparsity < 1:
        raise ValueError(f"'sparsity' needs to be in [0, 1) (got {sparsity})")
    if distribution not in DISTRIBUTIONS:
        raise ValueError(
            f"'distribution' needs to be one of {DISTRIBUTIONS} "
            f'(got {distribution!r})'
        )
    if min_fan_in < 0:
        raise ValueError(
            f"'min_fan_in' needs to be at least 0 (got {min_fan_in})"
        )
