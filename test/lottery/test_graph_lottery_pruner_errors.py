import inspect

import numpy as np
import pytest
import torch
from torch_geometric.data import Data, HeteroData
from torch_geometric.nn import GCN, Linear

from searches import equal, graph, prune
from torch_geometric_ext.nn import sparsify
from torch_geometric_ext.utils import GraphLotteryPruner


@pytest.mark.parametrize(
    'key, values',
    [
        ('weight_sparsity', [-0.1, 1.0, float('nan'), '0.9']),
        ('edge_sparsity', [-0.1, 1.0]),
        ('method', ['slow']),
        ('edge_score', ['spectral']),
        ('pretrain_epochs', [0]),
        ('search_epochs', [0, 2.5]),
        ('retrain_epochs', [0]),
        ('update_every', [0]),
        ('evaluate_every', [0]),
        ('patience', [0]),
        ('drop_fraction', [0, 1.1]),
        ('distill', [-0.1, 1.1]),
    ],
)
def test_pruner_ranges(key, values):
    for value in values:
        kwargs = {'weight_sparsity': 0.5, key: value}
        match = f"'{key}' of 'GraphLotteryPruner' needs to be .*{value}"
        with pytest.raises(ValueError, match=match):
            GraphLotteryPruner(GCN(5, 8, 2, 3), **kwargs)


def test_pruner_arguments():
    params = inspect.signature(GraphLotteryPruner).parameters
    assert list(params)[0] == 'model'
    keywords = [x for x in params.values() if x.kind is x.KEYWORD_ONLY]
    assert len(keywords) == len(params) - 1 == 16
    assert params['edge_sparsity'].default == 0.0
    assert params['distill'].default is params['optimizer'].default is None
    with pytest.raises(TypeError, match="keyword argument 'sparsity'"):
        GraphLotteryPruner(GCN(5, 8, 2, 3), sparsity=0.5)
    with pytest.raises(TypeError, match='positional'):
        GraphLotteryPruner(GCN(5, 8, 2, 3), 0.5)
    pruner = GraphLotteryPruner(GCN(5, 8, 2, 3), edge_sparsity=0.5)
    assert pruner in {pruner} and pruner == pruner
    assert str(pruner) == (
        'GraphLotteryPruner(GCN, weight_sparsity=0.0, edge_sparsity=0.5, '
        "method='fast')"
    )


def test_pruner_numbers_of_other_libraries(tmp_path):
    model, path = GCN(5, 8, 2, 3), tmp_path / 'search.pt'
    number = np.float64(0.5)
    kwargs = dict(weight_sparsity=number, distill=number, drop_fraction=number)
    expected = prune(model, graph(), checkpoint=path, **kwargs)
    kwargs = dict.fromkeys(kwargs, 0.5)
    assert equal(prune(model, graph(), checkpoint=path, **kwargs), expected)


def test_pruner_of_other_models():
    model = GCN(5, 8, 2, 3)
    with pytest.raises(TypeError, match="'model' .* 'torch.nn.Module'"):
        GraphLotteryPruner('model', weight_sparsity=0.5)
    with pytest.raises(ValueError, match='needs to be above zero'):
        GraphLotteryPruner(model)
    with pytest.raises(ValueError, match="'MessagePassing' .* in 'Linear'"):
        GraphLotteryPruner(Linear(5, 3), edge_sparsity=0.5)
    optimizer = torch.optim.Adam(model.parameters())
    with pytest.raises(TypeError, match="'optimizer' .* of parameters"):
        GraphLotteryPruner(model, weight_sparsity=0.5, optimizer=optimizer)

    class Versioned(GCN):
        def get_extra_state(self):
            return {'version': 1}

    with pytest.raises(ValueError, match="tensors alone .* '_extra_state'"):
        GraphLotteryPruner(Versioned(5, 8, 2, 3), weight_sparsity=0.5)
    sparsify(model, sparsity=0.5)
    with pytest.raises(ValueError, match="to be dense .* 'SparseLinear'"):
        GraphLotteryPruner(model, edge_sparsity=0.5)


def test_fit_of_other_data():
    mask = torch.tensor([True, False])
    data = Data(
        x=torch.randn(2, 5),
        edge_index=torch.tensor([[1], [1]]),
        y=torch.tensor([0, 1]),
        train_mask=mask,
        val_mask=~mask,
    )
    pruner = GraphLotteryPruner(GCN(5, 8, 2, 3), edge_sparsity=0.5)
    with pytest.raises(ValueError, match='edges other than self-loops'):
        pruner.fit(data)
    with pytest.raises(TypeError, match="'callbacks' needs to be a sequence"):
        pruner.fit(data, callbacks=print)
    with pytest.raises(ValueError, match='need to be given together'):
        pruner.fit(data, evaluate=lambda model, data: 0.0)
    with pytest.raises(NotImplementedError, match='homogeneous'):
        pruner.fit(HeteroData())
    data.y = None
    with pytest.raises(ValueError, match=r"needs to hold \['y'\]"):
        pruner.fit(data)
