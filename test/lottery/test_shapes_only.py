import pytest
import torch
from torch_geometric.data import Data
from torch_geometric.nn import (
    APPNP,
    GAT,
    GCN,
    GIN,
    PNA,
    ChebConv,
    GATv2Conv,
    GraphSAGE,
    Sequential,
    TransformerConv,
)

from torch_geometric_ext.lottery.loss_macs import loss_macs
from torch_geometric_ext.lottery.node_task import NodeTask
from torch_geometric_ext.lottery.shapes_only import ShapesOnly, keep_shapes
from torch_geometric_ext.nn import sparsify

SIZE = (16, 32, 2, 4)
CONVS = {
    'APPNP': lambda: APPNP(3, 0.1),
    'ChebConv': lambda: ChebConv(16, 4, 3),
    'GATv2Conv': lambda: GATv2Conv(16, 4, heads=2),
    'TransformerConv': lambda: TransformerConv(16, 4, heads=2),
}
MODELS = {
    'GAT': lambda: GAT(*SIZE, heads=4),
    'GCN': lambda: GCN(*SIZE, norm='graph', jk='cat'),
    'GIN': lambda: GIN(*SIZE),  # Holds batch normalization.
    'GraphSAGE': lambda: GraphSAGE(*SIZE, aggr='max'),
    'PNA': lambda: PNA(
        *SIZE,
        aggregators=['mean', 'max', 'std'],
        scalers=['amplification'],
        deg=torch.tensor([0, 1, 2, 3]),
    ),
    'sparse GCN': lambda: sparsify(GCN(*SIZE), 0.9),
    'sparse GAT': lambda: sparsify(GAT(*SIZE), 0.9),
    **{
        name: lambda conv=conv: Sequential(
            'x, edge_index', [(conv(), 'x, edge_index -> x')]
        )
        for name, conv in CONVS.items()
    },
}


def make_task():
    """A graph with self-loops, multi-edges and isolated nodes."""
    generator = torch.Generator().manual_seed(0)
    edge_index = torch.randint(40, (2, 200), generator=generator)
    mask = torch.arange(50) % 2 == 0
    y = torch.arange(50) % 4
    x = torch.randn(50, 16, generator=generator)
    data = Data(x=x, edge_index=edge_index, y=y)
    data.train_mask, data.val_mask = mask, ~mask
    return NodeTask(data)


@pytest.mark.parametrize('name', MODELS)
def test_macs_by_shapes(monkeypatch, name):
    torch.manual_seed(0)
    task, model = make_task(), MODELS[name]()
    expected = loss_macs(model, task.loss, task.data)
    states = {key: x.clone() for key, x in model.state_dict().items()}
    shapes = []

    def loss_fn(model, batch):
        loss = task.loss(model, batch)
        shapes.append(loss.is_meta)
        return loss

    assert loss_macs(model, loss_fn, task.data, by_shapes=True) == expected
    assert shapes == [True]
    assert not task.data.x.is_meta
    for key, x in model.state_dict().items():
        assert torch.equal(x, states[key])


class TopHalf(torch.nn.Module):
    """Multiply the nodes of large features alone."""

    def __init__(self):
        super().__init__()
        self.lin = torch.nn.Linear(16, 4)

    def forward(self, x, edge_index):
        large = x.mean(dim=1) > 0
        return x.new_zeros(x.size(0), 4).index_put(
            (large,), self.lin(x[large])
        )


def test_shapes_that_depend_on_values():
    task, model = make_task(), TopHalf()
    num_rows = int((task.data.x.mean(dim=1) > 0).sum())
    macs = loss_macs(model, task.loss, task.data, by_shapes=True)
    assert macs == num_rows * 16 * 4


def test_shapes_only():
    index = torch.tensor([2, 0, 0])
    x, mask = keep_shapes((torch.randn(3, 4), index > 0))
    assert x.is_meta and not mask.is_meta
    with ShapesOnly():
        assert torch.equal(index + 1, torch.tensor([3, 1, 1]))
        assert torch.ones(3).is_meta
        assert x[mask].shape == (1, 4)
        assert x[:, index[:2]].shape == (3, 2)
        assert x[index].shape == (3, 4)
        x[mask] = 0.0
        with pytest.raises(NotImplementedError, match='integers in place'):
            index.add_(x.argmax(dim=1))
        with pytest.raises((NotImplementedError, RuntimeError)):
            float(x.sum())
