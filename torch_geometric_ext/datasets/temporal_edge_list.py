import os.path as osp
from typing import Callable, List, Optional

import numpy as np
import torch
from torch_geometric.data import InMemoryDataset, TemporalData, download_url


class TemporalEdgeList(InMemoryDataset):
    r"""The temporal networks of messages, e-mails and answers of the `SNAP
    <https://snap.stanford.edu/data/#temporal>`_ collection, as used in the
    `"Motifs in Temporal Networks" <https://arxiv.org/abs/1612.09259>`_ paper.

    Each event is a directed edge with a time in seconds: a private message
    (:obj:`"CollegeMsg"`), an e-mail (:obj:`"email-Eu-core-temporal"`), or an
    answer or comment (:obj:`"sx-mathoverflow"`). The data set holds one
    :class:`~torch_geometric.data.TemporalData` object with :obj:`src`,
    :obj:`dst` and :obj:`t` (int64). There are no features.

    The data set is downloaded. Without network access, put the file
    :obj:`{name}.txt.gz` into the folder :obj:`{root}/{name}/raw`.

    Args:
        root (str): The folder of all data sets.
        name (str): The name of the data set (:obj:`"CollegeMsg"`,
            :obj:`"email-Eu-core-temporal"` or :obj:`"sx-mathoverflow"`).
        transform (callable, optional): A transform of the
            :class:`~torch_geometric.data.TemporalData` object at every
            access. (default: :obj:`None`)
        pre_transform (callable, optional): A transform before the data set is
            saved. (default: :obj:`None`)
        force_reload (bool, optional): Whether to process the data set again.
            (default: :obj:`False`)

    Raises:
        ValueError: If :obj:`name` is unknown, or the file does not hold three
            columns of integers.
        OSError: If the download fails.

    **STATS:**

    .. list-table::
        :widths: 10 10 10 10
        :header-rows: 1

        * - Name
          - #nodes
          - #edges
          - Time span (days)
        * - CollegeMsg
          - 1,899
          - 59,835
          - 194
        * - email-Eu-core-temporal
          - 986
          - 332,334
          - 804
        * - sx-mathoverflow
          - 24,818
          - 506,550
          - 2,350

    .. rubric:: Details

    * **Order.** Events are sorted by time. Events of equal time keep their
      order in the file.
    * **Nodes** are numbered from :math:`0` to :math:`N - 1` in the order of
      their numbers in the file. If the file has no gaps, as
      :obj:`"CollegeMsg"`, this only subtracts the first number.
    * **Self-loops and repeated edges** remain. :obj:`"sx-mathoverflow"` has
      116,109 self-loops: users who comment on their own posts.

    :meth:`~torch_geometric.data.TemporalData.train_val_test_split` splits
    events by time and keeps events of equal time together. Call it twice to
    split the training events into a history, from which embeddings are
    learned, and later events, on which a classifier is trained:

    .. code-block:: python

        data = TemporalEdgeList(root, 'CollegeMsg')[0]
        train, val, test = data.train_val_test_split(0.05, 0.2)
        # 15 % of all events, hence a fifth of the training events:
        history, head, _ = train.train_val_test_split(0.2, 0.0)
    """

    url = 'https://snap.stanford.edu/data/{}.txt.gz'
    names = ['CollegeMsg', 'email-Eu-core-temporal', 'sx-mathoverflow']

    def __init__(
        self,
        root: str,
        name: str,
        transform: Optional[Callable] = None,
        pre_transform: Optional[Callable] = None,
        force_reload: bool = False,
    ) -> None:
        if name not in self.names:
            raise ValueError(
                f"'name' of '{self.__class__.__name__}' needs to be one of "
                f"{self.names} (got '{name}')"
            )
        self.name = name
        super().__init__(
            root, transform, pre_transform, force_reload=force_reload
        )
        self.load(self.processed_paths[0], data_cls=TemporalData)

    @property
    def raw_dir(self) -> str:
        r"""The folder of the edge list."""
        return osp.join(self.root, self.name, 'raw')

    @property
    def processed_dir(self) -> str:
        r"""The folder of the processed data set."""
        return osp.join(self.root, self.name, 'processed')

    @property
    def raw_file_names(self) -> List[str]:
        r"""The compressed edge list."""
        return [f'{self.name}.txt.gz']

    @property
    def processed_file_names(self) -> List[str]:
        r"""The file of the processed data set."""
        return ['data.pt']

    def download(self) -> None:
        r"""Download the edge list from SNAP."""
        url = self.url.format(self.name)
        try:
            download_url(url, self.raw_dir)
        except OSError as e:
            raise OSError(
                f"'{self.__class__.__name__}' could not download '{url}' "
                f"({e}). Put the file into the folder '{self.raw_dir}'"
            ) from e

    def process(self) -> None:
        r"""Sort the events by time and number the nodes."""
        path = self.raw_paths[0]
        rows = np.loadtxt(path, dtype=np.int64, ndmin=2)
        if rows.shape[1] != 3:
            raise ValueError(
                f"'{path}' needs to hold the columns 'src', 'dst' and 't' "
                f'(got {rows.shape[1]} columns)'
            )
        src, dst, t = torch.from_numpy(rows).t()
        t, perm = t.sort(stable=True)
        _, edge_index = torch.stack([src, dst])[:, perm].unique(
            return_inverse=True
        )
        data = TemporalData(src=edge_index[0], dst=edge_index[1], t=t)
        if self.pre_transform is not None:
            data = self.pre_transform(data)
        self.save([data], self.processed_paths[0])

    def __repr__(self) -> str:
        return f"{self.__class__.__name__}('{self.name}')"
