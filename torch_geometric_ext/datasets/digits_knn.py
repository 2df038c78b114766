import math
from typing import Callable, List, Optional

import torch
from torch_geometric.data import Data, InMemoryDataset
from torch_geometric.utils import coalesce, to_undirected


class DigitsKNN(InMemoryDataset):
    r"""The handwritten digits of scikit-learn as one graph: 1,797 images of
    :math:`8 \times 8` pixels in ten classes, each linked to its :math:`k`
    nearest neighbors. The images are part of scikit-learn: nothing is
    downloaded.

    Node features are pixel values in :math:`[0, 1]`. The graph is undirected
    and has no self-loops. The masks have the sizes of the public splits of
    citation graphs: 20 training nodes of each class, 500 validation nodes and
    1,097 test nodes. They are random with a fixed seed.

    Args:
        root (str): The folder of the processed data set.
        k (int, optional): The number of nearest neighbors.
            (default: :obj:`5`)
        transform (callable, optional): A transform of the
            :class:`~torch_geometric.data.Data` object at every access.
            (default: :obj:`None`)
        pre_transform (callable, optional): A transform before the data set is
            saved. (default: :obj:`None`)
        force_reload (bool, optional): Whether to process the data set again.
            (default: :obj:`False`)

    Raises:
        ImportError: If :obj:`sklearn` is missing when the data set is
            processed.
        ValueError: If :obj:`k` is not in :math:`[1, 1796]`.

    **STATS:**

    .. list-table::
        :widths: 10 10 10 10
        :header-rows: 1

        * - #nodes
          - #edges
          - #features
          - #classes
        * - 1,797
          - 12,618 (:math:`k = 5`)
          - 64
          - 10
    """

    def __init__(
        self,
        root: str,
        k: int = 5,
        transform: Optional[Callable] = None,
        pre_transform: Optional[Callable] = None,
        force_reload: bool = False,
    ) -> None:
        if not 1 <= k <= 1796:
            raise ValueError(
                f"'k' of '{self.__class__.__name__}' needs to be in [1, 1796] "
                f'(got {k})'
            )
        self.k = k
        super().__init__(
            root, transform, pre_transform, force_reload=force_reload
        )
        self.load(self.processed_paths[0])

    @property
    def processed_file_names(self) -> List[str]:
        r"""The file of the graph with :math:`k` neighbors."""
        return [f'data_{self.k}.pt']

    def process(self) -> None:
        r"""Build the graph from the images of scikit-learn."""
        try:
            from sklearn.datasets import load_digits
        except ImportError as e:
            raise ImportError(
                f"'{self.__class__.__name__}' requires 'scikit-learn' "
                '(pip install scikit-learn)'
            ) from e

        image, label = load_digits(return_X_y=True)
        x, y = torch.from_numpy(image), torch.from_numpy(label).long()
        # Squared distances are exact integers: a stable sort gives the same
        # neighbors on every machine.
        square = x.square().sum(dim=1)
        distance = square.view(-1, 1) + square - 2 * x @ x.t()
        order = distance.fill_diagonal_(math.inf).sort(dim=1, stable=True)
        col = order.indices[:, : self.k].flatten()
        row = torch.arange(y.numel()).repeat_interleave(self.k)
        edge_index = to_undirected(coalesce(torch.stack([row, col])))
        data = Data(x=(x / 16).float(), edge_index=edge_index, y=y)

        perm = torch.randperm(
            y.numel(), generator=torch.Generator().manual_seed(12345)
        )
        train = torch.cat([perm[y[perm] == c][:20] for c in range(10)])
        rest = perm[~torch.isin(perm, train)]
        masks = dict(train=train, val=rest[:500], test=rest[500:])
        for name, nodes in masks.items():
            mask = torch.zeros(y.numel(), dtype=torch.bool)
            mask[nodes] = True
            data[f'{name}_mask'] = mask

        if self.pre_transform is not None:
            data = self.pre_transform(data)
        self.save([data], self.processed_paths[0])
