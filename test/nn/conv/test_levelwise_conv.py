import pytest
import torch
from torch_geometric.data import Data
from torch_geometric.nn import GIN, GATConv, SAGEConv

from devices import withDevice
from torch_geometric_ext.loader import SharedTreeLoader
from torch_geometric_ext.nn import (
    LevelwiseConv,
    RootAggregation,
    shared_batch,
)
from torch_geometric_ext.transforms import ShareComputationTrees


@pytest.fixture
def batch():
    ring = torch.arange(6)
    edge_index = torch.stack([ring, ring.roll(-1)])
    edge_index = torch.cat([edge_index, edge_index.flip(0)], dim=1)
    x = torch.tensor([[1.0], [0], [0], [0], [0], [0]])
    graphs = 5 * [Data(x=x, edge_index=edge_index, y=torch.tensor([0]))]
    shared = ShareComputationTrees(num_layers=2)(graphs)
    return next(iter(SharedTreeLoader(shared, batch_size=5)))


class Recorder(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.sizes = []

    def forward(self, x):
        self.sizes.append(x.size(0))
        return x


def test_computes_one_level_in_each_layer(batch):
    # Trees of depth 0, 1, 2 in a ring with one marked node: 2, 3, 4.
    assert batch.num_sampled_nodes == [4, 3, 2]
    recorder = Recorder()
    model = GIN(1, 8, num_layers=2, act=recorder)
    model = LevelwiseConv.convert(model)
    assert str(model.convs[0]).startswith('LevelwiseConv(GINConv(')
    aggr = RootAggregation('sum')
    expected = aggr(model(batch.x, batch.edge_index), batch)
    recorder.sizes.clear()
    with shared_batch(batch):
        h = model(batch.x, batch.edge_index)
    assert h.size(0) == 4
    # Within a convolution, a level and the one below; after it, the level:
    assert recorder.sizes == [3 + 2, 3, 4 + 3]
    assert torch.allclose(aggr(h, batch), expected)


def test_one_model_twice(batch):
    conv = SAGEConv(1, 1)
    model = LevelwiseConv.convert(torch.nn.ModuleList([conv, conv]))
    assert model[0] is model[1]
    with shared_batch(batch):
        outs = []
        for _ in range(2):
            h = batch.x
            for conv in model:
                h = conv(h, batch.edge_index)
            outs.append(h)
    assert torch.equal(*outs)


def test_convert_one_convolution():
    conv = LevelwiseConv.convert(SAGEConv(1, 8))
    assert isinstance(conv, LevelwiseConv)
    assert LevelwiseConv.convert(torch.nn.ModuleList([conv]))[0] is conv
    conv.reset_parameters()
    assert LevelwiseConv.revert(conv) is conv.conv


def test_revert():
    model = GIN(1, 8, num_layers=2)
    convs, keys = list(model.convs), list(model.state_dict())
    assert list(LevelwiseConv.convert(model).state_dict()) != keys
    assert LevelwiseConv.revert(model) is model
    assert list(model.state_dict()) == keys
    assert all(a is b for a, b in zip(model.convs, convs))


def test_errors(batch):
    convs = [LevelwiseConv(SAGEConv(1, 1)) for _ in range(2)]
    trimmed = batch.edge_index[:, :-1]
    with shared_batch(batch):
        with pytest.raises(ValueError, match="'x' .* 9 trees .*got 3"):
            convs[0](batch.x[:3], batch.edge_index)
        with pytest.raises(ValueError, match="'levelwise=False'"):
            convs[0](batch.x, trimmed)
        h = convs[0](batch.x, batch.edge_index)
        h = convs[1](h, batch.edge_index)
        with pytest.raises(ValueError, match='further than trees of depth 2'):
            convs[1](h, batch.edge_index)
    with pytest.raises(ValueError, match='got 1 for trees of depth 2'):
        with shared_batch(batch):
            convs[0](batch.x, batch.edge_index)


def test_other_outputs_run_on_all_levels(batch):
    gat = LevelwiseConv(GATConv(1, 4))
    with shared_batch(batch) as fallbacks:
        out, (edge_index, _) = gat(
            batch.x, batch.edge_index, return_attention_weights=True
        )
    expected, _ = gat.conv(
        batch.x, batch.edge_index, return_attention_weights=True
    )
    assert len(fallbacks) == 1 and torch.allclose(out, expected)
    assert edge_index.size(1) == batch.num_edges + batch.num_nodes


@withDevice
def test_device(batch, device):
    batch = batch.to(device)
    model = LevelwiseConv.convert(GIN(1, 8, num_layers=2)).to(device)
    aggr = RootAggregation('sum')
    with shared_batch(batch):
        out = aggr(model(batch.x, batch.edge_index), batch)
    expected = aggr(model(batch.x, batch.edge_index), batch)
    assert torch.allclose(out, expected, atol=1e-5)
