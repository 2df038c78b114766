import torch

from torch_geometric_ext.data import SharedTreeBatch
from torch_geometric_ext.nn.tree_levels import (
    Rows,
    TrackRows,
    TreeLevels,
    mark_rows,
    rows_of,
)


def make_levels():
    """Three trees of depth 2, above two of depth 1 and two of depth 0."""
    return TreeLevels(
        SharedTreeBatch(
            x=torch.zeros(7, 1),
            edge_index=torch.tensor([[4, 3, 6], [0, 2, 3]]),
            root=torch.tensor([0, 2, 1, 2]),
            root_ptr=torch.tensor([0, 2, 4]),
            root_count=torch.tensor([2, 1, 1, 2]),
            own=torch.tensor([4, 3, 4, 6, 5, 5, 6]),
            num_roots=6,
            num_sampled_nodes=[3, 2, 2],
            num_sampled_edges=[2, 1],
        )
    )


def test_levels():
    levels = make_levels()
    assert [levels.size(level) for level in range(3)] == [2, 2, 3]
    assert [levels.start(level) for level in range(3)] == [5, 3, 0]
    assert levels.edges(2) == slice(0, 2) and levels.edges(1) == slice(2, 3)
    assert levels.own(2).tolist() == [1, 0, 1]
    assert levels.own(1).tolist() == [1, 0]
    assert levels.count(2).tolist() == [2, 1, 3]
    assert levels.count(1).tolist() == [1, 5]
    assert levels.count(0).tolist() == [5, 1]


def test_move_rows():
    levels = make_levels()
    low, high = Rows(levels, 0, False), Rows(levels, 2, False)
    every = Rows(levels, 2, True)
    x = torch.tensor([[10.0], [20.0]])
    lifted = low.move(x, high)
    assert lifted.view(-1).tolist() == [10, 20, 10]
    assert low.move(x, low) is x
    expanded = low.move(x, every).view(-1).tolist()
    assert expanded == [10, 20, 10, 20, 10, 10, 20]
    assert every.move(torch.arange(7), high).tolist() == [0, 1, 2]
    middle = Rows(levels, 1, False).move(x, every).view(-1).tolist()
    assert middle == [20, 10, 20, 10, 20, 0, 0]


def test_track_rows():
    levels = make_levels()
    low, high = Rows(levels, 1, False), Rows(levels, 2, False)
    x, full = torch.tensor([[10.0], [20.0]]), torch.arange(7.0).view(-1, 1)
    with TrackRows(levels) as tracker:
        x, y = mark_rows(x, low), mark_rows(torch.ones(3, 1), high)
        assert rows_of((2 * x).relu()) == low
        out = torch.cat([x, y], dim=1)
        assert rows_of(out) == high
        assert out.tolist() == [[20, 1], [10, 1], [20, 1]]
        assert (x + full).view(-1).tolist() == [13, 24]
        assert rows_of(x.sum()) is None and rows_of(full + 1) is None
        with tracker.pause():
            assert rows_of(x + 1) is None
        assert rows_of(x + 1) == low
    assert rows_of(x + 1) is None
    assert rows_of(x) == low
