import pytest
import torch
from torch_geometric.data import Data

from torch_geometric_ext.transforms import MirageCondense
from torch_geometric_ext.transforms.mirage.class_labels import class_labels


@pytest.mark.parametrize('shape', [[-1], [-1, 1], [-1, 1, 1]])
@pytest.mark.parametrize('dtype', [torch.long, torch.float, torch.bfloat16])
def test_class_labels(shape, dtype):
    y = torch.tensor([4, -1, 4, 7, -1], dtype=dtype).view(shape)
    out = class_labels(y)
    assert out.value.tolist() == [-1, 4, 7]
    assert out.group.tolist() == [1, 0, 1, 2, 0]
    assert out.first.tolist() == [1, 0, 3]
    assert out.size.tolist() == [2, 2, 1]
    assert out.of(y[2:]).tolist() == [1, 2, 0]


def test_largest_labels():
    high = (1 << 63) - 1
    out = class_labels(torch.tensor([high, -high - 1]))
    assert out.value.tolist() == [-high - 1, high]
    assert class_labels(torch.arange(1000)).value.numel() == 1000
    assert class_labels(torch.tensor([True, False])).value.tolist() == [0, 1]


@pytest.mark.parametrize(
    'y, match',
    [
        (None, "'dataset' needs graphs with 'y', the class of each graph"),
        (torch.ones(3, 2), r'got 2 labels for each: choose one .* data.y'),
        (torch.ones(3, 0), 'got 0 labels for each'),
        (torch.tensor([0.0, float('nan')]), r'got NaN for 1 graphs: leave'),
        (torch.tensor([0.0, 0.25]), r'regression \(got 0.25: replace .*buck'),
        (torch.tensor([0.0, float('inf')]), r'regression \(got inf'),
        (torch.tensor([-float('inf')]), r'regression \(got -inf'),
        (torch.tensor([1e30, 0]), r'regression \(got 1e\+30'),
        (torch.arange(1001), 'got 1001 distinct values in 1001 graphs'),
    ],
)
def test_invalid_labels(y, match):
    with pytest.raises(ValueError, match=match):
        class_labels(y)


@pytest.mark.parametrize(
    'y, error, match',
    [
        (torch.rand(1, 12), ValueError, 'got 12 labels for each'),
        (torch.tensor([[float('nan')]]), ValueError, 'NaN for 8 graphs'),
        (torch.tensor([0.5]), ValueError, r'regression \(got 0.5'),
        (torch.rand(2), NotImplementedError, '16 rows in 8 graphs'),
        (None, ValueError, "needs graphs with 'y'"),
        ('mutagen', ValueError, r"number of a class .*\(got 'mutagen'"),
    ],
)
def test_invalid_labels_of_data_sets(y, error, match):
    data = Data(x=torch.zeros(3, 1), edge_index=torch.tensor([[0], [1]]), y=y)
    condense = MirageCondense(1, num_graphs=4)
    with pytest.raises(error, match=match):
        condense(8 * [data])
    with pytest.raises(RuntimeError, match='nothing to report yet'):
        condense.report()
