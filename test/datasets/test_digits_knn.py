import builtins

import pytest
import torch
from torch_geometric.testing import withPackage
from torch_geometric.transforms import AddSelfLoops

from torch_geometric_ext.datasets import DigitsKNN


@withPackage('sklearn')
def test_digits_knn(tmp_path):
    dataset = DigitsKNN(str(tmp_path))
    assert str(dataset) == 'DigitsKNN()'
    assert dataset.num_classes == 10 and dataset.num_features == 64
    data = dataset[0]
    assert data.num_nodes == 1797 and data.num_edges == 12618
    assert data.is_undirected() and not data.has_self_loops()
    assert data.x.min() == 0 and data.x.max() == 1

    # Every node is linked to its nearest neighbors:
    distance = torch.cdist(data.x, data.x).fill_diagonal_(float('inf'))
    nearest = distance.argmin(dim=1)
    row, col = data.edge_index
    linked = set(zip(row.tolist(), col.tolist()))
    assert all(pair in linked for pair in enumerate(nearest.tolist()))
    assert int((data.y[row] == data.y[col]).sum()) > 0.95 * data.num_edges

    masks = torch.stack([data.train_mask, data.val_mask, data.test_mask])
    assert masks.sum(dim=1).tolist() == [200, 500, 1097]
    assert (masks.sum(dim=0) == 1).all()
    assert data.y[data.train_mask].bincount().tolist() == [20] * 10

    other = DigitsKNN(str(tmp_path), k=3)
    assert other[0].num_edges < data.num_edges
    assert torch.equal(other[0].train_mask, data.train_mask)

    root = str(tmp_path / 'transformed')
    other = DigitsKNN(root, pre_transform=AddSelfLoops())
    assert other[0].num_edges == data.num_edges + data.num_nodes


def test_digits_knn_errors(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"'k' .* \(got 0\)"):
        DigitsKNN(str(tmp_path), k=0)

    load = builtins.__import__

    def fail(name, *args, **kwargs):
        if name.startswith('sklearn'):
            raise ImportError
        return load(name, *args, **kwargs)

    monkeypatch.setattr(builtins, '__import__', fail)
    with pytest.raises(ImportError, match='pip install scikit-learn'):
        DigitsKNN(str(tmp_path))
