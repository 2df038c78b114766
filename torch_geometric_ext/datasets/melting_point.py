from typing import Callable, List, Optional

import torch
from torch_geometric.data import Data, InMemoryDataset
from torch_geometric.utils import coalesce, one_hot

from torch_geometric_ext.datasets.open_melting_points import (
    Molecule,
    melting_class,
    open_melting_points,
)

ELEMENTS = ['C', 'N', 'O', 'F', 'P', 'S', 'Cl', 'Br', 'I', 'Si', 'B']
BONDS = [1.0, 2.0, 3.0, 1.5]  # Single, double, triple and aromatic.
NUM_TEST = 2276  # A fifth.


class MeltingPoint(InMemoryDataset):
    r"""Load the Open Melting Point Dataset: 11,381 molecules in three classes,
    with a train/test split. The :obj:`chemicals` package contains it: nothing
    is downloaded.

    Molecules are as in :class:`~torch_geometric.datasets.TUDataset`: node
    features :obj:`x` are the one-hot elements (the last one is any element but
    C, N, O, F, P, S, Cl, Br, I, Si and B), :obj:`edge_attr` are the one-hot
    bond types (single, double, triple, aromatic, any other). The class
    :obj:`y` tells whether the molecule is liquid at 25 °C (0), melts up to
    125 °C (1) or above (2). Each molecule has its :obj:`smiles` and its
    :obj:`melting_point` (Kelvin). The split is random with a fixed seed.

    Args:
        root (str): The folder of the processed data set.
        split (str, optional): If :obj:`"train"`, loads the 9,105 training
            molecules. If :obj:`"test"`, loads the 2,276 test molecules.
            (default: :obj:`"train"`)
        transform (callable, optional): A transform of a
            :class:`~torch_geometric.data.Data` object at every access.
            (default: :obj:`None`)
        pre_transform (callable, optional): A transform before molecules are
            saved. (default: :obj:`None`)
        pre_filter (callable, optional): A function that returns :obj:`True`
            for molecules to save. (default: :obj:`None`)
        force_reload (bool, optional): Whether to process the data set again.
            (default: :obj:`False`)

    Raises:
        ImportError: If :obj:`chemicals` or :obj:`rdkit` is missing when the
            data set is processed.
        ValueError: If :obj:`split` has another value.

    **STATS:**

    .. list-table::
        :widths: 10 10 10 10 10 10
        :header-rows: 1

        * - Split
          - #graphs
          - #nodes
          - #edges
          - #features
          - #classes
        * - train
          - 9,105
          - ~13.7
          - ~28.1
          - 12
          - 3
        * - test
          - 2,276
          - ~13.7
          - ~28.1
          - 12
          - 3
    """

    def __init__(
        self,
        root: str,
        split: str = 'train',
        transform: Optional[Callable] = None,
        pre_transform: Optional[Callable] = None,
        pre_filter: Optional[Callable] = None,
        force_reload: bool = False,
    ) -> None:
        splits = ['train', 'test']
        if split not in splits:
            raise ValueError(
                f"'split' of '{self.__class__.__name__}' needs to be one of "
                f"{splits} (got '{split}')"
            )
        super().__init__(
            root,
            transform,
            pre_transform,
            pre_filter,
            force_reload=force_reload,
        )
        self.load(self.processed_paths[splits.index(split)])

    @property
    def processed_file_names(self) -> List[str]:
        r"""The files of both splits."""
        return ['train.pt', 'test.pt']

    def process(self) -> None:
        r"""Convert the molecules of the :obj:`chemicals` package."""
        data_list = [
            to_data(molecule)
            for molecule in open_melting_points(self.__class__.__name__)
        ]
        generator = torch.Generator().manual_seed(12345)
        perm = torch.randperm(len(data_list), generator=generator).tolist()
        parts = perm[NUM_TEST:], perm[:NUM_TEST]
        for indices, path in zip(parts, self.processed_paths):
            part = [data_list[i] for i in indices]
            if self.pre_filter is not None:
                part = [x for x in part if self.pre_filter(x)]
            if self.pre_transform is not None:
                part = [self.pre_transform(x) for x in part]
            self.save(part, path)


def to_data(molecule: Molecule) -> Data:
    """Convert a molecule to a graph with edges in both directions."""
    mol = molecule.mol
    elements = [index(ELEMENTS, atom.GetSymbol()) for atom in mol.GetAtoms()]
    bonds = [
        (
            bond.GetBeginAtomIdx(),
            bond.GetEndAtomIdx(),
            index(BONDS, bond.GetBondTypeAsDouble()),
        )
        for bond in mol.GetBonds()
    ]
    row, col, kind = torch.tensor(bonds, dtype=torch.long).view(-1, 3).t()
    edge_index, kind = coalesce(
        torch.stack([torch.cat([row, col]), torch.cat([col, row])]),
        torch.cat([kind, kind]),
        num_nodes=mol.GetNumAtoms(),
    )
    kelvin = torch.tensor([molecule.melting_point])
    return Data(
        x=one_hot(torch.tensor(elements), len(ELEMENTS) + 1),
        edge_index=edge_index,
        edge_attr=one_hot(kind, len(BONDS) + 1),
        y=melting_class(kelvin),
        smiles=molecule.smiles,
        melting_point=kelvin,
    )


def index(values: list, value: object) -> int:
    """Return the index of a value, or the number of values if missing."""
    return values.index(value) if value in values else len(values)
