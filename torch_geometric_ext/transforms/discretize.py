import warnings
from typing import Any, Dict, List, Sequence, Tuple

import torch
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.data.datapipes import functional_transform
from torch_geometric.transforms import BaseTransform

from torch_geometric_ext.transforms.collated import read_chunks

MAX_SAMPLES = 200_000


@functional_transform('discretize')
class Discretize(BaseTransform):
    r"""Makes continuous features categorical: each value is replaced by the
    mean of its bin (functional name: :obj:`discretize`).

    Bins are those of :class:`sklearn.preprocessing.KBinsDiscretizer`, column
    by column. A column of no more than :obj:`num_bins` distinct values, such
    as one of a one-hot encoding, stays as it is.

    .. code-block:: python

        discretize = Discretize('quantile', num_bins=4).fit(train_dataset)
        transform = ShareComputationTrees(2, discretizer=discretize)
        shared = transform(train_dataset)
        test_dataset.transform = discretize

    Args:
        strategy (str, optional): How bins are found: :obj:`"quantile"` (as
            many values in each) or :obj:`"kmeans"` (small distances within
            each). (default: :obj:`"quantile"`)
        num_bins (int, optional): The number of bins of each column.
            (default: :obj:`8`)
        attrs (List[str], optional): The names of the features. Those that a
            graph does not have are skipped. (default: :obj:`["x"]`)

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(
        self,
        strategy: str = 'quantile',
        num_bins: int = 8,
        attrs: Sequence[str] = ('x',),
    ) -> None:
        name = self.__class__.__name__
        if strategy not in ['quantile', 'kmeans']:
            raise ValueError(
                f"'strategy' of '{name}' needs to be 'quantile' or 'kmeans' "
                f"(got '{strategy}')"
            )
        if num_bins < 2:
            raise ValueError(
                f"'num_bins' of '{name}' needs to be at least 2 (got "
                f'{num_bins})'
            )
        self.strategy = strategy
        self.num_bins = num_bins
        self.attrs = (attrs,) if isinstance(attrs, str) else tuple(attrs)
        # For each feature, its columns, their inner bin edges, and the means:
        self._bins: Dict[str, Tuple[Tensor, Tensor, Tensor]] = {}

    @property
    def fitted(self) -> bool:
        """Whether bins are known."""
        return len(self._bins) > 0

    def fit(self, dataset: Any) -> 'Discretize':
        r"""Finds the bins, from up to 200,000 rows of graphs spread evenly
        over the data set, and returns itself.

        Args:
            dataset (Dataset or Sequence): The graphs to learn from.

        Raises:
            ValueError: If no graph has any of the features.
        """
        samples: Dict[str, List[Tensor]] = {key: [] for key in self.attrs}
        step = max(len(dataset) // 20_000, 1)
        subset = torch.utils.data.Subset(dataset, range(0, len(dataset), step))
        for chunk in read_chunks(subset, 0, len(subset), 4096):
            for key in self.attrs:
                if key in chunk.attrs:
                    samples[key].append(chunk.attrs[key])
        bins = {
            key: self._fit(torch.cat(values))
            for key, values in samples.items()
            if values
        }
        if not bins:
            raise ValueError(
                f"'dataset' needs graphs with one of {list(self.attrs)}"
            )
        self._bins = bins
        return self

    def _fit(self, x: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
        from sklearn.preprocessing import KBinsDiscretizer

        x = _as_matrix(x).cpu().double()
        x = x[:: x.size(0) // MAX_SAMPLES + 1]
        columns, edges, means = [], [], []
        for column, values in enumerate(x.t()):
            if values.unique().numel() <= self.num_bins:
                continue
            model = KBinsDiscretizer(
                self.num_bins,
                encode='ordinal',
                strategy=self.strategy,
                subsample=None,
                **_quantile_method(self.strategy),
            )
            with warnings.catch_warnings():  # Of quantiles that are equal.
                warnings.simplefilter('ignore', UserWarning)
                model.fit(values.view(-1, 1).numpy())
            bounds = model.bin_edges_[0][1:-1]
            inner = values.new_full((self.num_bins - 1,), float('inf'))
            inner[: len(bounds)] = torch.from_numpy(bounds)
            idx = torch.searchsorted(inner, values.contiguous(), right=True)
            count = idx.bincount(minlength=self.num_bins)
            total = idx.bincount(values, minlength=self.num_bins)
            columns.append(column)
            edges.append(inner)
            means.append(total / count.clamp(min=1))
        if not columns:
            empty = torch.empty(0, self.num_bins, dtype=torch.double)
            return torch.empty(0, dtype=torch.long), empty[:, 1:], empty
        return torch.tensor(columns), torch.stack(edges), torch.stack(means)

    def forward(self, data: Data) -> Data:
        """Replaces the features of a graph."""
        if not self.fitted:
            raise ValueError(
                f"'{self.__class__.__name__}' has no bins yet (call 'fit' "
                f'with the training data first)'
            )
        for key, (columns, edges, means) in self._bins.items():
            if key in data and columns.numel() > 0:
                data[key] = self._replace(
                    key, data[key], columns, edges, means
                )
        return data

    def _replace(
        self,
        key: str,
        x: Tensor,
        columns: Tensor,
        edges: Tensor,
        means: Tensor,
    ) -> Tensor:
        columns, edges, means = (
            value.to(x.device) for value in [columns, edges, means]
        )
        out = _as_matrix(x).clone()
        values = out[:, columns].t().double().contiguous()
        if bool(values.isnan().any()):
            raise ValueError(f"'{key}' contains NaN")
        idx = torch.searchsorted(edges, values, right=True)
        out[:, columns] = means.gather(1, idx).t().to(out.dtype)
        return out.view_as(x)

    def state_dict(self) -> Dict[str, Any]:
        """Returns the bins."""
        return {'num_bins': self.num_bins, 'bins': dict(self._bins)}

    def load_state_dict(self, state: Dict[str, Any]) -> None:
        """Restores the bins."""
        if state['num_bins'] != self.num_bins:
            raise ValueError(
                f"'state' needs to be of {self.num_bins} bins (got "
                f'{state["num_bins"]})'
            )
        self._bins = dict(state['bins'])

    def __repr__(self) -> str:
        return (
            f"{self.__class__.__name__}('{self.strategy}', "
            f'num_bins={self.num_bins}, attrs={list(self.attrs)})'
        )


def _as_matrix(x: Tensor) -> Tensor:
    return x.unsqueeze(1) if x.dim() == 1 else x.flatten(1)


def _quantile_method(strategy: str) -> Dict[str, str]:
    """Names the default, which warns otherwise since scikit-learn 1.7."""
    import sklearn

    version = tuple(int(part) for part in sklearn.__version__.split('.')[:2])
    if strategy == 'quantile' and version >= (1, 7):
        return {'quantile_method': 'averaged_inverted_cdf'}
    return {}
