"""Detect graphs with unusual embeddings."""

import math
from typing import Tuple

import torch
from torch import Tensor

# Constants were chosen on NCI1 and PROTEINS (`benchmark/loader/pruning.py`).
TRIM = 0.6  # Fraction of graphs that the robust covariance describes.
NUM_ITERATIONS = 5  # The covariance changes little afterwards.
SHRINKAGE = 0.1  # Of the covariance towards its diagonal.
MIN_FRACTION, MAX_FRACTION = 0.02, 0.45  # Of outliers among all graphs.
NEAR_LARGEST = 0.85  # Of the largest gap.
MAX_ROWS = 1024  # Of the sample that determines the central rows.
MAX_FEATURES = 64  # Wider embeddings are projected at random.
TAIL = 0.1  # Quantile that represents the end of a group.
EPS = 1e-6
EQUAL = 1e-5  # Rounding errors of equal embeddings, relative to the largest.


def embedding_features(h: Tensor) -> Tensor:
    r"""Return the direction and the logarithmic norm of embeddings.

    Args:
        h (torch.Tensor): The embeddings, of shape :math:`(B, E)`.

    Returns:
        The features, of shape :math:`(B, \min(E, 64) + 1)` (float). A fixed
        random projection reduces wider embeddings.
    """
    h = h.detach().float()
    norm = h.norm(dim=-1, keepdim=True).clamp(min=EPS)
    direction = h / norm
    if h.size(1) > MAX_FEATURES:
        generator = torch.Generator().manual_seed(h.size(1))
        projection = torch.randn(
            h.size(1), MAX_FEATURES, generator=generator
        ).to(h.device)
        direction = direction @ (projection / MAX_FEATURES**0.5)
    return torch.cat([direction, norm.log()], dim=-1)


def robust_distance(x: Tensor) -> Tensor:
    r"""Compute the logarithm of robust Mahalanobis distances.

    The mean and the covariance describe the central 60 % of the rows, which
    five concentration steps determine (the fast minimum covariance determinant
    of Rousseeuw and Van Driessen, 1999, with one start and a shrunk
    covariance). Outliers do not affect them. The first steps run on a sample
    of about 1,000 rows.

    Takes :math:`O(B F^2 + F^3)` time.

    Args:
        x (torch.Tensor): The features, of shape :math:`(B, F)`.

    Returns:
        The logarithm of the squared distances relative to their median, of
        shape :math:`(B)`. It is zero if there are fewer than eight rows or
        half of them are equal, and NaN for rows that are not finite.
    """
    num_rows = x.size(0)
    finite = (0 * x).sum(dim=-1) == 0  # Faster than to look at each value.
    if num_rows < 8:
        return x.new_zeros(num_rows).masked_fill(~finite, math.nan)
    # Rows that are not finite move to the center. To remove them would
    # synchronize with the device:
    # A sample determines the central rows, and all rows the covariance:
    stride = -(-num_rows // MAX_ROWS)
    sample = x[::stride].masked_fill(~finite[::stride].view(-1, 1), math.nan)
    center = sample.t().nanmedian(dim=-1).values
    x = torch.where(finite.view(-1, 1), x, center)
    sample = x[::stride]
    distance = (sample - center).abs().sum(dim=-1)
    # Equal rows have no covariance, and all other rows would be far:
    is_equal = distance.median() <= EQUAL * distance.max()
    for _ in range(NUM_ITERATIONS - 1):
        distance = _squared_distance(sample, sample, distance)
    if sample.size(0) < num_rows:
        distance = _squared_distance(x, sample, distance)
    distance = _squared_distance(x, x, distance)
    out = distance.clamp(min=1e-12).log().masked_fill(~finite, math.nan)
    return torch.where(is_equal & finite, 0.0, out - out.nanmedian())


def _squared_distance(x: Tensor, rows: Tensor, distance: Tensor) -> Tensor:
    """Compute squared distances of :obj:`x` by the covariance of those
    :obj:`rows` with the smallest previous :obj:`distance`.
    """
    num_central = int(TRIM * rows.size(0))
    central = rows[distance.topk(num_central, largest=False).indices]
    mean = central.mean(dim=0)
    center = central - mean
    cov = center.t() @ center / (num_central - 1)
    variance = cov.diagonal()
    ridge = SHRINKAGE * variance + 1e-4 * variance.mean() + 1e-12
    cov = (1 - SHRINKAGE) * cov + ridge.diag()
    factor, _ = torch.linalg.cholesky_ex(cov)
    # A product with the small inverse is faster than to solve for all rows:
    eye = torch.eye(x.size(1), dtype=x.dtype, device=x.device)
    inverse = torch.linalg.solve_triangular(factor, eye, upper=False)
    return ((x - mean) @ inverse.t()).square().sum(dim=-1)


def find_gap(x: Tensor) -> Tuple[float, float, float]:
    r"""Find the gap between ordinary values and a group of large ones.

    Each candidate splits the sorted values into a lower and an upper group,
    with 2 to 45 % of the values in the upper one. The gap of a split is

    .. math::
        \frac{q^{\textrm{up}}_{0.1} - q^{\textrm{low}}_{0.9}}
        {(q^{\textrm{low}}_{0.9} - q^{\textrm{low}}_{0.1}) +
        (q^{\textrm{up}}_{0.9} - q^{\textrm{up}}_{0.1})}

    with the quantiles :math:`q` of both groups. Of the splits with nearly the
    largest gap (85 %), the one with the smallest upper group counts: ordinary
    values can have groups of their own.

    Args:
        x (torch.Tensor): The values, of shape :math:`(N)`.

    Returns:
        The largest gap, and two values in the chosen one: the threshold of
        outliers at its first quarter, and its middle.
    """
    size = x.numel()
    begin = max(math.ceil(MIN_FRACTION * size), 3)
    end = int(MAX_FRACTION * size)
    if end <= begin:
        return 0.0, math.inf, math.inf
    x = x.sort().values
    num_upper = torch.arange(begin, end)
    num_lower = size - num_upper

    def lower(q: float) -> Tensor:
        return x[(q * num_lower).long()]

    def upper(q: float) -> Tensor:
        return x[(num_lower + q * num_upper).long()]

    spread = lower(1 - TAIL) - lower(TAIL) + upper(1 - TAIL) - upper(TAIL)
    gap = (upper(TAIL) - lower(1 - TAIL)) / (spread + 0.1)
    best = int((gap >= NEAR_LARGEST * gap.max()).nonzero()[0])
    low, high = float(lower(1 - TAIL)[best]), float(upper(TAIL)[best])
    return float(gap.max()), low + (high - low) / 4, (low + high) / 2
