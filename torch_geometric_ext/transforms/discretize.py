import warnings
from typing import Any, Dict, List, Sequence, Tuple

import torch
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.data.datapipes import functional_transform
from torch_geometric.transforms import BaseTransform

from torch_geometric_ext.ops.check_state_dict import (
    check_state_dict,
    is_finite,
    is_index,
)
from torch_geometric_ext.transforms.collated import read_chunks

# Numbers that limit the time to fit; choices:
NUM_GRAPHS = 20_000  # Of larger data sets, fewer than twice as many are read.
MAX_SAMPLES = 200_000  # Rows of features.


@functional_transform('discretize')
class Discretize(BaseTransform):
    r"""Discretize continuous features: replace each value by the mean of its
    bin (functional name: :obj:`discretize`).

    :class:`sklearn.preprocessing.KBinsDiscretizer` finds the bins of each
    column. A column of at most :obj:`num_bins` distinct values does not
    change, such as a column of a one-hot encoding.

    .. code-block:: python

        discretize = Discretize('quantile', num_bins=4).fit(train_dataset)
        transform = ShareComputationTrees(2, discretizer=discretize)
        shared = transform(train_dataset)
        test_dataset.transform = discretize

    Args:
        strategy (str, optional): The strategy to find bins:
            :obj:`"quantile"` (bins of equally many values) or :obj:`"kmeans"`
            (bins of close values). (default: :obj:`"quantile"`)
        num_bins (int, optional): The number of bins of each column.
            (default: :obj:`8`)
        attrs (List[str], optional): The names of the features. Features that
            a graph does not have are skipped. (default: :obj:`["x"]`)

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
        # The discretized columns of each feature, with the inner edges and
        # the means of their bins:
        self._bins: Dict[str, Tuple[Tensor, Tensor, Tensor]] = {}

    @property
    def fitted(self) -> bool:
        """Return whether :meth:`fit` was called."""
        return len(self._bins) > 0

    def fit(self, dataset: Any) -> 'Discretize':
        r"""Find the bins, and return this transform.

        Reads up to 40,000 graphs spread evenly over the data set, and up to
        200,000 of their rows.

        Args:
            dataset (Dataset or Sequence): The training graphs.

        Raises:
            ValueError: If no graph has any of the features.
        """
        samples: Dict[str, List[Tensor]] = {key: [] for key in self.attrs}
        step = max(len(dataset) // NUM_GRAPHS, 1)
        subset = torch.utils.data.Subset(dataset, range(0, len(dataset), step))
        for chunk in read_chunks(subset):
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
        """Return the columns to discretize, their inner edges and means."""
        x = _as_matrix(x).cpu().double()
        x = x[:: x.size(0) // MAX_SAMPLES + 1]
        columns, edges, means = [], [], []
        for column, values in enumerate(x.t()):
            if values.unique().numel() <= self.num_bins:
                continue
            inner = self._find_edges(values)
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

    def _find_edges(self, values: Tensor) -> Tensor:
        """Return the inner edges of the bins of a column. Missing bins, of
        equal quantiles, have infinite edges.
        """
        from sklearn.preprocessing import KBinsDiscretizer

        model = KBinsDiscretizer(
            self.num_bins,
            encode='ordinal',
            strategy=self.strategy,
            subsample=None,
            **_quantile_method(self.strategy),
        )
        with warnings.catch_warnings():  # Equal quantiles are fine.
            warnings.simplefilter('ignore', UserWarning)
            model.fit(values.view(-1, 1).numpy())
        bounds = model.bin_edges_[0][1:-1]
        out = values.new_full((self.num_bins - 1,), float('inf'))
        out[: len(bounds)] = torch.from_numpy(bounds)
        return out

    def forward(self, data: Data) -> Data:
        """Return the graph with discretized features.

        Raises:
            ValueError: If there are no bins yet, or a feature contains NaN.
        """
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
        """Return the bins."""
        return {'num_bins': self.num_bins, 'bins': dict(self._bins)}

    def load_state_dict(self, state_dict: Dict[str, Any]) -> None:
        """Load the bins.

        Args:
            state_dict (dict): The result of :meth:`state_dict`.

        Raises:
            ValueError: If the state is incomplete or damaged, or has another
                number of bins. The transform is not changed in these cases.
            TypeError: If the state is not a dictionary.
        """
        same = {'num_bins': self.num_bins}
        check_state_dict(self, state_dict, same, {'bins': self._are_bins})
        bins = state_dict['bins']
        self._bins = {key: (*value,) for key, value in bins.items()}

    def _are_bins(self, value: Any) -> bool:
        return isinstance(value, dict) and all(
            isinstance(key, str)
            and isinstance(bins, (tuple, list))
            and len(bins) == 3
            and self._is_feature(*bins)
            for key, bins in value.items()
        )

    def _is_feature(self, columns: Any, edges: Any, means: Any) -> bool:
        if not is_index(columns, torch.iinfo(torch.int64).max):
            return False
        size = columns.numel()
        return (
            is_finite(means, (size, self.num_bins))
            and isinstance(edges, Tensor)
            and edges.dtype == means.dtype == torch.double
            and edges.shape == (size, self.num_bins - 1)
            and bool((edges[:, 1:] >= edges[:, :-1]).all())
        )

    def __repr__(self) -> str:
        return (
            f"{self.__class__.__name__}('{self.strategy}', "
            f'num_bins={self.num_bins}, attrs={list(self.attrs)})'
        )


def _as_matrix(x: Tensor) -> Tensor:
    return x.unsqueeze(1) if x.dim() == 1 else x.flatten(1)


def _quantile_method(strategy: str) -> Dict[str, str]:
    """Return an explicit default, since scikit-learn 1.7 warns without."""
    import sklearn

    version = tuple(int(part) for part in sklearn.__version__.split('.')[:2])
    if strategy == 'quantile' and version >= (1, 7):
        return {'quantile_method': 'averaged_inverted_cdf'}
    return {}
