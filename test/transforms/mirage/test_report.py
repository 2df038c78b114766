import pytest
import torch
from torch_geometric.data import Data

from torch_geometric_ext.data.atomic_save import tensor_bytes
from torch_geometric_ext.transforms import MirageCondense


@pytest.fixture
def graphs():
    """Class 0: three single edges. Class 3: two paths of three nodes, and a
    single edge.
    """
    out = []
    for num_nodes, y in [(2, 0), (3, 3), (2, 0), (3, 3), (2, 0), (2, 3)]:
        path = torch.stack([torch.arange(num_nodes - 1)] * 2)
        path[1] += 1
        out.append(
            Data(
                x=torch.zeros(num_nodes, 1),
                edge_index=torch.cat([path, path.flip(0)], dim=1),
                y=torch.tensor([y]),
            )
        )
    return out


BEFORE = 14 * 4 + 16 * 16 + 6 * 8  # 14 nodes, 16 edges, 6 labels.


def test_report_of_graphs(graphs):
    condense = MirageCondense(1, num_graphs=3)
    assert len(condense(graphs)) == 3
    report = condense.report()
    # Depth 1: a node with one neighbor, and the center of a path. The kept
    # graphs have all trees of their class:
    assert report.classes == [(0, 3, 1, 2, None, 1.0), (3, 3, 2, 1, None, 1.0)]
    assert report.num_bytes == BEFORE
    # Graphs have 1, 2 and 1 nodes of 4 + 1 + 8 bytes and as many edges as the
    # trees have children, a label, and a weight:
    assert report.num_condensed_bytes == 4 * 13 + (1 + 3 + 1) * 16 + 3 * 12
    assert report.ratio == report.num_condensed_bytes / BEFORE
    assert list(report.seconds) == ['trees', 'selection', 'graphs']
    assert min(report.seconds.values()) > 0


def test_report_of_patterns(graphs):
    condense = MirageCondense(1, selection='patterns', num_graphs=3)
    small = condense(graphs)
    # Class 0: {end}. Class 3: {end} three times, {center} and both twice.
    assert small.y.tolist() == [0, 3, 3]
    assert torch.allclose(small.weight, torch.tensor([1 / 2, 3 / 10, 2 / 10]))
    assert condense.report().classes == [
        (0, 3, 1, 1, 3, 1.0),
        (3, 3, 2, 2, 2, 1.0),
    ]
    condense = MirageCondense(1, selection='patterns', min_support=3)
    assert len(condense(graphs)) == 2
    row = condense.report().classes[1]
    assert row == (3, 3, 2, 1, 3, row.coverage)
    assert row.coverage == pytest.approx(6 / 8)
    condense = MirageCondense(1, selection='patterns', min_support=0.5)
    assert len(condense(graphs)) == 4


def test_table(graphs):
    condense = MirageCondense(1, selection='patterns', min_support=3)
    condense(graphs)
    report = condense.report()._replace(
        num_bytes=1000,
        num_condensed_bytes=250,
        num_file_bytes=12345,
        seconds={'trees': 0.25, 'graphs': 1.0},
    )
    assert str(report).splitlines() == [
        '   class    graphs     trees      kept   support  coverage',
        '       0         3         1         1         3    100.0%',
        '       3         3         2         1         3     75.0%',
        'bytes: 1,000 before, 250 after (25.00%), 12,345 in a file',
        'seconds: trees 0.25 s, graphs 1.00 s',
    ]
    condense = MirageCondense(1, num_graphs=2)
    condense(graphs)
    line = str(condense.report()).splitlines()[1]
    assert line.split() == ['0', '3', '1', '1', '-', '100.0%']


@pytest.mark.parametrize('share', [False, True])
def test_bytes(graphs, share, tmp_path):
    condense = MirageCondense(1, num_graphs=3, share=share)
    small = condense(graphs, root=tmp_path)
    report = condense.report()
    if share:
        assert report.num_condensed_bytes == small.report().num_shared_bytes
        small.save(tmp_path / 'trees.pt')
        size = (tmp_path / 'trees.pt').stat().st_size
    else:
        assert report.num_condensed_bytes == tensor_bytes(
            small._data.to_dict()
        )
        small.save(list(small), tmp_path / 'graphs.pt')
        size = (tmp_path / 'graphs.pt').stat().st_size
    assert report.num_file_bytes == pytest.approx(size, rel=0.2)


def test_report_of_shared_patterns(graphs):
    # Sizes are those of the patterns, not of the original data set:
    shared = MirageCondense(
        1, selection='patterns', min_support=3, share=True
    )(graphs)
    report = shared.report()
    assert (report.num_nodes, report.num_edges) == (2, 2)
    assert report.num_bytes == round(BEFORE * 4 / 30)


def test_nothing_to_report():
    with pytest.raises(RuntimeError, match='call it with a data set first'):
        MirageCondense(1, num_graphs=2).report()
