import pytest
import torch
from hostile_states import check_hostile_states
from torch_geometric.data import Data

from devices import withDevice
from torch_geometric_ext.transforms import Discretize, ShareComputationTrees

pytest.importorskip('sklearn')


def make_graphs(num_graphs=40):
    generator = torch.Generator().manual_seed(0)
    graphs = []
    for _ in range(num_graphs):
        label = torch.randint(2, (5, 1), generator=generator).float()
        value = torch.rand(5, 2, generator=generator) ** 3
        ring = torch.arange(5)
        graphs.append(
            Data(
                x=torch.cat([label, value], dim=1),
                edge_index=torch.stack([ring, ring.roll(1)]),
                edge_attr=torch.rand(5, generator=generator),
            )
        )
    return graphs


@withDevice
@pytest.mark.parametrize('strategy', ['quantile', 'kmeans'])
def test_discretize(strategy, device):
    graphs = make_graphs()
    transform = Discretize(strategy, num_bins=4)
    assert str(transform) == (
        f"Discretize('{strategy}', num_bins=4, attrs=['x'])"
    )
    assert not transform.fitted
    assert transform.fit(graphs) is transform and transform.fitted
    x = torch.cat([data.x for data in graphs])
    out = transform(Data(x=x.to(device))).x
    assert out.device == torch.empty(0, device=device).device
    out = out.cpu()
    assert torch.equal(out[:, 0], x[:, 0])  # Categorical already.
    for column in [1, 2]:
        values, idx, count = out[:, column].unique(
            return_inverse=True, return_counts=True
        )
        assert values.numel() == 4
        if strategy == 'quantile':
            assert count.tolist() == 4 * [50]
        for i, value in enumerate(values):
            inside = x[idx == i, column]
            assert torch.allclose(inside.mean(), value)
        # Bins are intervals:
        order = x[:, column].argsort()
        assert bool((out[order, column].diff() >= 0).all())


def test_edge_attr_and_missing_features():
    graphs = make_graphs()
    transform = Discretize(num_bins=3, attrs=['x', 'edge_attr', 'z'])
    transform.fit(graphs)
    data = graphs[0]
    edge_attr = data.edge_attr
    out = transform(data)
    assert out.edge_attr.shape == (5,)
    assert data.edge_attr is edge_attr  # The input is unchanged.
    assert transform(Data(z=torch.ones(1))).z == 1
    with pytest.raises(ValueError, match=r"'dataset' .* one of \['z'\]"):
        Discretize(attrs=['z']).fit(graphs)


def test_share_discretized_data():
    graphs = make_graphs()
    with pytest.raises(ValueError, match="'x' is continuous"):
        ShareComputationTrees(1, edge_attr=False)(graphs)
    transform = Discretize(num_bins=2)
    share = ShareComputationTrees(
        1, edge_attr=False, discretizer=transform, chunk_size=7
    )
    shared = share(graphs)
    assert transform.fitted
    expected = ShareComputationTrees(1, edge_attr=False)(
        [transform(data) for data in graphs]
    )
    assert shared.num_trees == expected.num_trees
    assert torch.equal(shared.tree, expected.tree)
    assert torch.equal(shared.node_attrs['x'], expected.node_attrs['x'])


def test_graphs_without_edges_and_one_name():
    graphs = make_graphs()
    transform = Discretize(attrs='edge_attr', num_bins=3).fit(graphs)
    assert transform.attrs == ('edge_attr',)
    out = transform(Data(x=graphs[0].x, edge_attr=torch.empty(0)))
    assert out.edge_attr.shape == (0,)
    nan = torch.full((5,), float('nan'))
    with pytest.raises(ValueError, match="'edge_attr' contains NaN"):
        transform(Data(x=graphs[0].x, edge_attr=nan))


def test_equal_quantiles():
    x = torch.cat([torch.zeros(60), torch.linspace(0, 1, 40)]).view(-1, 1)
    transform = Discretize(num_bins=4).fit([Data(x=x)])
    out = transform(Data(x=x)).x
    assert out.isfinite().all() and 1 < out.unique().numel() <= 4
    assert torch.allclose(out.mean(), x.mean())


def test_state_dict():
    graphs = make_graphs()
    transform = Discretize(num_bins=4).fit(graphs)
    other = Discretize(num_bins=4)
    other.load_state_dict(transform.state_dict())
    assert torch.equal(other(graphs[0]).x, transform(graphs[0]).x)
    with pytest.raises(ValueError, match="'num_bins' .expected 5, got 4"):
        Discretize(num_bins=5).load_state_dict(transform.state_dict())


def test_hostile_states():
    graphs = make_graphs()
    fitted = Discretize(num_bins=4).fit(graphs)

    def make():
        transform = Discretize(num_bins=4).fit(graphs[:5])
        return transform, fitted.state_dict()

    def behave(transform):
        data = graphs[0].clone()
        columns = transform.state_dict()['bins'].get('x', [torch.zeros(0)])[0]
        if columns.numel() > 0 and columns.max() >= data.x.size(1):
            return None  # Of other features, as only the data can tell.
        return transform(data).x if transform.fitted else None

    check_hostile_states(make, behave)


def test_errors():
    with pytest.raises(ValueError, match="'strategy' .*got 'uniform'"):
        Discretize('uniform')
    with pytest.raises(ValueError, match="'num_bins' .*got 1"):
        Discretize(num_bins=1)
    with pytest.raises(ValueError, match="call 'fit'"):
        Discretize()(make_graphs(1)[0])
