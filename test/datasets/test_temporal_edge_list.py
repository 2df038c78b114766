import gzip

import pytest
import torch
from torch_geometric.data import TemporalData

import torch_geometric_ext.datasets.temporal_edge_list as temporal_edge_list
from torch_geometric_ext.datasets import TemporalEdgeList

NAME = 'email-Eu-core-temporal'
# Node 4 is missing, two events have the same time, times are not in order:
LINES = ['5 2 30', '2 5 10', '7 7 20', '3 5 10', '5 2 30']


@pytest.fixture
def root(tmp_path):
    write(tmp_path, LINES)
    return str(tmp_path)


def write(root, lines, name=NAME):
    folder = root / name / 'raw'
    folder.mkdir(parents=True)
    with gzip.open(folder / f'{name}.txt.gz', 'wt') as f:
        f.write('\n'.join(lines) + '\n')


def test_temporal_edge_list(root):
    dataset = TemporalEdgeList(root, NAME)
    assert str(dataset) == f"TemporalEdgeList('{NAME}')"
    assert len(dataset) == 1
    data = dataset[0]
    assert isinstance(data, TemporalData)
    # 2, 3, 5 and 7 become 0, 1, 2 and 3:
    assert data.src.tolist() == [0, 1, 3, 2, 2]
    assert data.dst.tolist() == [2, 2, 3, 0, 0]
    assert data.t.tolist() == [10, 10, 20, 30, 30]
    assert data.src.dtype == data.dst.dtype == data.t.dtype == torch.long
    assert data.num_nodes == 4


def test_temporal_edge_list_is_processed_once(root, monkeypatch):
    TemporalEdgeList(root, NAME)
    process = TemporalEdgeList.process
    monkeypatch.setattr(TemporalEdgeList, 'process', None)
    assert TemporalEdgeList(root, NAME)[0].num_events == 5
    monkeypatch.setattr(TemporalEdgeList, 'process', process)
    dataset = TemporalEdgeList(
        root, NAME, pre_transform=lambda data: data[:2], force_reload=True
    )
    assert dataset[0].num_events == 2


def test_temporal_edge_list_without_gaps(tmp_path):
    write(tmp_path, ['1 2 5', '3 1 6'], name='CollegeMsg')
    data = TemporalEdgeList(str(tmp_path), 'CollegeMsg')[0]
    assert data.src.tolist() == [0, 2] and data.dst.tolist() == [1, 0]


def test_temporal_edge_list_split(tmp_path):
    generator = torch.Generator().manual_seed(0)
    nodes = torch.randint(20, (1000, 2), generator=generator).tolist()
    times = torch.randint(300, (1000,), generator=generator).tolist()
    write(tmp_path, [f'{i} {j} {t}' for (i, j), t in zip(nodes, times)])
    data = TemporalEdgeList(str(tmp_path), NAME)[0]
    # The four parts of the docstring:
    train, val, test = data.train_val_test_split(0.05, 0.2)
    history, head, rest = train.train_val_test_split(0.2, 0.0)
    assert rest.num_events == 0
    parts = [history, head, val, test]
    assert torch.equal(torch.cat([x.t for x in parts]), data.t)
    for part, ratio in zip(parts, [0.6, 0.15, 0.05, 0.2]):
        assert abs(part.num_events - 1000 * ratio) < 10
    for part, later in zip(parts, parts[1:]):
        assert int(part.t.max()) < int(later.t.min())


def test_temporal_edge_list_errors(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"'name' .* \(got 'wiki'\)"):
        TemporalEdgeList(str(tmp_path), 'wiki')

    write(tmp_path, ['1 2', '2 3'])
    with pytest.raises(ValueError, match=r'\(got 2 columns\)'):
        TemporalEdgeList(str(tmp_path), NAME)

    urls = []

    def fail(url, folder):
        urls.append(url)
        raise OSError('no network')

    monkeypatch.setattr(temporal_edge_list, 'download_url', fail)
    match = r'\(no network\). Put the file into the folder .*CollegeMsg/raw'
    with pytest.raises(OSError, match=match):
        TemporalEdgeList(str(tmp_path), 'CollegeMsg')
    assert urls == ['https://snap.stanford.edu/data/CollegeMsg.txt.gz']
