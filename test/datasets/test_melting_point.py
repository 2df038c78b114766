import builtins

import pytest
import torch
from torch_geometric.testing import withPackage

from torch_geometric_ext.datasets import FingerprintKNN, MeltingPoint
from torch_geometric_ext.datasets.fingerprint_knn import most_similar


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    return str(tmp_path_factory.mktemp('MeltingPoint'))


@withPackage('chemicals', 'rdkit')
def test_melting_point(root):
    train, test = MeltingPoint(root), MeltingPoint(root, split='test')
    assert str(train) == 'MeltingPoint(9105)' and len(test) == 2276
    assert train.num_classes == 3 and train.num_features == 12
    assert train.num_edge_features == 5
    assert train.y.bincount().tolist() == [2401, 3833, 2871]
    kelvin = train.melting_point
    assert torch.equal(train.y, (kelvin > 298.15).long() + (kelvin > 398.15))

    [ethanol] = [data for data in [*train, *test] if data.smiles == 'CCO']
    assert ethanol.x.argmax(dim=1).tolist() == [0, 0, 2]
    assert ethanol.edge_index.tolist() == [[0, 1, 1, 2], [1, 0, 2, 1]]
    assert ethanol.edge_attr.argmax(dim=1).tolist() == [0, 0, 0, 0]
    assert float(ethanol.melting_point) == pytest.approx(159, abs=1)
    [benzene] = [
        data for data in [*train, *test] if data.smiles == 'C1=CC=CC=C1'
    ]
    assert benzene.edge_attr.argmax(dim=1).unique().tolist() == [3]


@withPackage('chemicals', 'rdkit')
def test_melting_point_filter_and_transform(tmp_path):
    dataset = MeltingPoint(
        str(tmp_path),
        pre_filter=lambda data: data.num_nodes < 6,
        pre_transform=lambda data: data.update({'num_atoms': data.num_nodes}),
    )
    assert 0 < len(dataset) < 9105
    assert all(data.num_atoms == data.num_nodes < 6 for data in dataset)


@withPackage('chemicals', 'rdkit')
def test_fingerprint_knn(tmp_path, monkeypatch):
    dataset = FingerprintKNN(str(tmp_path), 200, num_bits=512, k=3)
    data = dataset[0]
    assert data.x.size() == (200, 512) and dataset.num_classes == 3
    assert data.x.unique().tolist() == [0, 1]
    assert data.is_undirected() and not data.has_self_loops()
    assert data.edge_index[0].bincount().min() >= 3
    masks = [data.train_mask, data.val_mask, data.test_mask]
    assert [int(mask.sum()) for mask in masks] == [100, 40, 60]
    assert torch.stack(masks).sum(dim=0).eq(1).all()

    monkeypatch.setattr(FingerprintKNN, 'process', None)
    again = FingerprintKNN(str(tmp_path), 200, num_bits=512, k=3)[0]
    assert torch.equal(again.edge_index, data.edge_index)


def test_most_similar():
    torch.manual_seed(12345)
    x = (torch.rand(50, 16) < 0.3).float()
    x[7] = 0
    expected = []
    for i in range(50):
        others = []
        for j in range(50):
            both = int((x[i] * x[j]).sum())
            either = max(int(x[i].sum() + x[j].sum()) - both, 1)
            others += [(-both / either, j)] if i != j else []
        expected.append([j for _, j in sorted(others)[:4]])
    assert most_similar(x, 4, chunk_size=8).tolist() == expected


@pytest.mark.parametrize('cls', [MeltingPoint, FingerprintKNN])
def test_missing_package(tmp_path, monkeypatch, cls):
    load = builtins.__import__

    def fail(name, *args, **kwargs):
        if name == 'rdkit':
            raise ImportError
        return load(name, *args, **kwargs)

    monkeypatch.setattr(builtins, '__import__', fail)
    with pytest.raises(ImportError, match=f"'{cls.__name__}' .* install chem"):
        cls(str(tmp_path))


def test_errors(tmp_path):
    with pytest.raises(ValueError, match=r"'split' .* \(got 'val'\)"):
        MeltingPoint(str(tmp_path), split='val')
    with pytest.raises(ValueError, match=r"'num_molecules' .* \(got 1\)"):
        FingerprintKNN(str(tmp_path), num_molecules=1)
    with pytest.raises(ValueError, match=r"'num_bits' .* \(got 0\)"):
        FingerprintKNN(str(tmp_path), num_bits=0)
    with pytest.raises(ValueError, match=r"'k' .* \[1, 9\] \(got 10\)"):
        FingerprintKNN(str(tmp_path), num_molecules=10, k=10)
