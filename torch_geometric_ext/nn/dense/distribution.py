from typing import List, Sequence, Tuple

DISTRIBUTIONS = ['uniform', 'er', 'erk']
# Fraction of the weights that minimums may take (chosen by
# `benchmark/sparsity/train_and_prune.py`):
MAX_FLOORS = 0.5


def layer_densities(
    sizes: Sequence[Tuple[int, int]],
    sparsity: float,
    distribution: str = 'erk',
    *,
    min_fan_in: int = 16,
) -> List[float]:
    r"""Return the density of each layer at a given sparsity of the model, as
    in the `"Rigging the Lottery: Making All Tickets Winners"
    <https://arxiv.org/abs/1911.11134>`_ paper.

    * :obj:`"uniform"`: All layers have the same density.
    * :obj:`"er"` (Erdős-Rényi): The density of a layer with :math:`I` inputs
      and :math:`O` outputs is proportional to :math:`(I + O) / (I \cdot O)`.
    * :obj:`"erk"` (Erdős-Rényi-Kernel): Equal to :obj:`"er"` for linear
      layers.

    Densities are capped at one. The other layers get the excess weights.

    Args:
        sizes (Sequence[Tuple[int, int]]): Number of inputs and outputs of each
            layer.
        sparsity (float): Fraction of inactive weights, in :math:`[0, 1)`.
        distribution (str, optional): The distribution (:obj:`"uniform"`,
            :obj:`"er"` or :obj:`"erk"`). (default: :obj:`"erk"`)
        min_fan_in (int, optional): Minimum number of active weights per
            output, averaged over the outputs of a layer and capped at its
            number of inputs. :obj:`"uniform"` ignores it. Minimums that
            exceed half of the active weights are scaled down.
            (default: :obj:`16`)

    Returns:
        The density of each layer, in :math:`[0, 1]`.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> sizes = [(1433, 16), (16, 7)]
        >>> densities = layer_densities(sizes, sparsity=0.98)
        >>> [round(d * i * o) for d, (i, o) in zip(densities, sizes)]
        [391, 70]
    """
    _check(sizes, sparsity, distribution, min_fan_in)
    numels = [num_in * num_out for num_in, num_out in sizes]
    floors = [min(min_fan_in / num_in, 1.0) for num_in, _ in sizes]
    proportions = [sum(size) / numel for size, numel in zip(sizes, numels)]
    if distribution == 'uniform':
        proportions, floors = [1.0] * len(sizes), [0.0] * len(sizes)
    budget = (1 - sparsity) * sum(numels)
    needed = sum(floor * numel for floor, numel in zip(floors, numels))
    # A wide layer would otherwise leave nothing to a layer of few outputs:
    scale = min(MAX_FLOORS * budget / needed, 1.0) if needed > 0 else 1.0
    floors = [scale * floor for floor in floors]
    return _fill(numels, proportions, floors, budget)


def layer_budgets(
    sizes: Sequence[Tuple[int, int]],
    sparsity: float,
    distribution: str = 'erk',
    *,
    min_fan_in: int = 16,
) -> List[int]:
    r"""Return the number of active weights of each layer, with the exact sum
    of :obj:`round((1 - sparsity) * N)` for :math:`N` weights.

    See :func:`layer_densities` for the arguments.
    """
    densities = layer_densities(
        sizes, sparsity, distribution, min_fan_in=min_fan_in
    )
    numels = [num_in * num_out for num_in, num_out in sizes]
    exact = [min(d * n, n) for d, n in zip(densities, numels)]
    out = [int(x) for x in exact]
    missing = round((1 - sparsity) * sum(numels)) - sum(out)
    # The largest remainders are rounded up, as far as a layer has weights:
    order = sorted(range(len(out)), key=lambda i: out[i] - exact[i])
    for i in [i for i in order if out[i] < numels[i]][:missing]:
        out[i] += 1
    return out


def _fill(
    numels: List[int],
    proportions: List[float],
    floors: List[float],
    budget: float,
) -> List[float]:
    """Return densities in proportion to `proportions`, clamped to
    `[floors, 1]`, that sum up to the budget.
    """
    densities = [0.0] * len(numels)
    free = list(range(len(numels)))
    while free:
        scale = budget / sum(proportions[i] * numels[i] for i in free)
        excess = 0.0
        for i in free:
            densities[i] = min(max(scale * proportions[i], floors[i]), 1.0)
            excess += (densities[i] - scale * proportions[i]) * numels[i]
        # Fix one kind of bound at a time, as it may release the other kind:
        if excess > 0:
            fixed = [i for i in free if densities[i] > scale * proportions[i]]
        else:
            fixed = [i for i in free if densities[i] < scale * proportions[i]]
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
