from typing import Callable, List, Optional

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import Data, InMemoryDataset
from torch_geometric.utils import coalesce, to_undirected

from torch_geometric_ext.datasets.open_melting_points import (
    melting_class,
    open_melting_points,
)

NUM_MOLECULES = 11381


class FingerprintKNN(InMemoryDataset):
    r"""Load the molecules of
    :class:`~torch_geometric_ext.datasets.MeltingPoint` as the nodes of one
    graph with sparse features, each linked to the :math:`k` molecules of the
    most similar fingerprint. Nothing is downloaded.

    Node features are Morgan fingerprints of radius 2: one bit for each
    substructure, of which 1 % are set. Similarities are those of Tanimoto. The
    graph is undirected and has no self-loops. The class :obj:`y` is that of
    the melting point. Half of the nodes are training nodes, a fifth are
    validation nodes and the others are test nodes, at random with a fixed
    seed. Building all neighbors takes :math:`\mathcal{O}(n^2)` time for
    :math:`n` molecules.

    Args:
        root (str): The folder of the processed data set.
        num_molecules (int, optional): The number of molecules, which are
            random with a fixed seed. (default: :obj:`4000`)
        num_bits (int, optional): The number of features.
            (default: :obj:`2048`)
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
        ImportError: If :obj:`chemicals` or :obj:`rdkit` is missing when the
            data set is processed.
        ValueError: If :obj:`num_molecules` is not in :math:`[2, 11381]`,
            :obj:`num_bits` is not positive, or :obj:`k` is not in
            :math:`[1, \textrm{num\_molecules} - 1]`.

    **STATS:**

    .. list-table::
        :widths: 10 10 10 10
        :header-rows: 1

        * - #nodes
          - #edges
          - #features
          - #classes
        * - 4,000
          - 28,826
          - 2,048
          - 3
    """

    def __init__(
        self,
        root: str,
        num_molecules: int = 4000,
        num_bits: int = 2048,
        k: int = 5,
        transform: Optional[Callable] = None,
        pre_transform: Optional[Callable] = None,
        force_reload: bool = False,
    ) -> None:
        bounds = [
            ('num_molecules', num_molecules, 2, NUM_MOLECULES),
            ('num_bits', num_bits, 1, 2**20),
            ('k', k, 1, num_molecules - 1),
        ]
        for name, value, low, high in bounds:
            if not low <= value <= high:
                raise ValueError(
                    f"'{name}' of '{self.__class__.__name__}' needs to be in "
                    f'[{low}, {high}] (got {value})'
                )
        self.num_molecules = num_molecules
        self.num_bits = num_bits
        self.k = k
        super().__init__(
            root, transform, pre_transform, force_reload=force_reload
        )
        self.load(self.processed_paths[0])

    @property
    def processed_file_names(self) -> List[str]:
        r"""The file of the graph of these arguments."""
        return [f'data_{self.num_molecules}_{self.num_bits}_{self.k}.pt']

    def process(self) -> None:
        r"""Build the graph from the molecules of :obj:`chemicals`."""
        molecules = list(open_melting_points(self.__class__.__name__))
        generator = torch.Generator().manual_seed(12345)
        perm = torch.randperm(len(molecules), generator=generator)
        chosen = [molecules[i] for i in perm[: self.num_molecules].tolist()]

        from rdkit.Chem import rdFingerprintGenerator

        morgan = rdFingerprintGenerator.GetMorganGenerator(
            radius=2, fpSize=self.num_bits
        )
        bits = [morgan.GetFingerprintAsNumPy(m.mol) for m in chosen]
        x = torch.from_numpy(np.stack(bits)).float()
        col = most_similar(x, self.k).flatten()
        row = torch.arange(len(chosen)).repeat_interleave(self.k)
        data = Data(
            x=x,
            edge_index=to_undirected(coalesce(torch.stack([row, col]))),
            y=melting_class(torch.tensor([m.melting_point for m in chosen])),
        )
        # The molecules are in random order.
        order = torch.arange(len(chosen)) / len(chosen)
        data.train_mask = order < 0.5
        data.val_mask = (order >= 0.5) & (order < 0.7)
        data.test_mask = order >= 0.7
        if self.pre_transform is not None:
            data = self.pre_transform(data)
        self.save([data], self.processed_paths[0])


def most_similar(x: Tensor, k: int, chunk_size: int = 1024) -> Tensor:
    """Return the :obj:`k` rows of the highest Tanimoto similarity to each row
    of bits. Lower indices win ties, on any machine.
    """
    size, index = x.sum(dim=1).double(), torch.arange(x.size(0))
    chosen = []
    for rows in index.split(chunk_size):
        both = (x[rows] @ x.t()).double()  # Exact: counts of bits.
        either = size[rows].view(-1, 1) + size - both
        rank = (both / either.clamp_(min=1) * 2**32).long()
        # No two similarities are equal with the index in the lower digits:
        rank = rank * x.size(0) - index
        rank[torch.arange(rows.numel()), rows] = -x.size(0) - 1
        chosen.append(rank.topk(k, dim=1).indices)
    return torch.cat(chosen)
