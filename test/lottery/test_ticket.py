import copy
import pickle

import pytest
import torch
from torch.nn import LazyLinear, Linear, Module, Sequential
from torch_geometric.data import Data
from torch_geometric.nn import GCN, GCNConv
from torch_geometric.testing import withPackage

from devices import withDevice
from torch_geometric_ext.data.digest import digest
from torch_geometric_ext.nn import SparseLinear
from torch_geometric_ext.utils import GraphLotteryPruner, Ticket

SHORT = dict(
    weight_sparsity=0.75,
    edge_sparsity=0.4,
    pretrain_epochs=3,
    search_epochs=6,
    retrain_epochs=3,
    update_every=2,
)


def graph(device=None):
    generator = torch.Generator().manual_seed(0)
    edges = torch.randint(10, (2, 20), generator=generator)
    edges = edges[:, edges[0] != edges[1]]
    y = torch.arange(10) % 2
    x = torch.randn(10, 4, generator=generator) + y.view(-1, 1)
    mask = torch.arange(10) < 5
    return Data(
        x=x,
        edge_index=torch.cat([edges, edges.flip(0)], dim=1),
        y=y,
        train_mask=mask,
        val_mask=~mask,
    ).to(device)


def build(hidden_channels=8, in_channels=4):
    return GCN(in_channels, hidden_channels, 2, 2, norm='batch_norm')


@pytest.fixture(scope='module')
def found():
    torch.manual_seed(0)
    model, data = build(), graph()
    model(data.x, data.edge_index)  # Statistics to start from.
    return GraphLotteryPruner(model, **SHORT).fit(data), model, data


def lists(value):
    return {key: x.tolist() for key, x in value.items()}


@pytest.mark.parametrize('weights', ['final', 'initial'])
def test_ticket_apply(found, weights):
    ticket, model, data = found
    model = model.train()
    before, data_before = lists(model.state_dict()), lists(data.to_dict())
    dense, small = ticket.apply(model, data, weights=weights)
    sparse, other = ticket.apply(model, data, weights=weights, sparse=True)
    assert not dense.training and not sparse.training and model.training
    assert lists(small.to_dict()) == lists(other.to_dict())
    assert small.num_edges == int(ticket.edge_mask.sum()) < data.num_edges
    out = dense(small.x, small.edge_index)
    expected = sparse(small.x, small.edge_index)
    assert torch.allclose(out, expected, atol=1e-5)

    state = getattr(ticket, f'{weights}_state')
    for key, x in dense.state_dict().items():
        mask = ticket.weight_masks.get(key, torch.ones_like(x))
        assert torch.equal(x, state[key] * mask)
    layers = [x for x in sparse.modules() if isinstance(x, SparseLinear)]
    num_kept = sum(int(x.sum()) for x in ticket.weight_masks.values())
    assert sum(x.values.numel() for x in layers) == num_kept

    # Results share no tensors with the ticket or the arguments:
    for x in [*dense.parameters(), *sparse.parameters()]:
        x.data = x.data + 1
    small.edge_index = small.x = None
    assert lists(model.state_dict()) == before
    assert lists(data.to_dict()) == data_before
    assert ticket.apply(model)[1] is None


def test_ticket_apply_retrained_is_deprecated(found):
    ticket, model, data = found
    with pytest.warns(DeprecationWarning, match="use 'final' instead") as seen:
        old, _ = ticket.apply(model, data, weights='retrained')
    assert seen[0].filename == __file__
    new, _ = ticket.apply(model, data)
    assert lists(old.state_dict()) == lists(new.state_dict())


def test_ticket_final_state(found):
    ticket, model, data = found
    assert ticket.initial_state.keys() == model.state_dict().keys()
    for key, mask in ticket.weight_masks.items():
        assert (ticket.final_state[key][~mask] == 0).all()
    key = 'norms.0.module.running_mean'
    assert lists(ticket.initial_state) == lists(model.state_dict())
    assert not torch.equal(ticket.final_state[key], ticket.initial_state[key])


def assert_equal(ticket, other):
    assert digest(vars(ticket)) == digest(vars(other))
    assert str(ticket) == str(other)


def test_ticket_save_load(found, tmp_path):
    ticket, model, data = found
    path = tmp_path / 'ticket.pt'
    ticket.save(path)
    assert [x.name for x in tmp_path.iterdir()] == ['ticket.pt']
    assert list(ticket.metrics) == ['dense', 'search', 'retrained']
    other = Ticket.load(path, model)
    assert_equal(other, ticket)
    out = [
        x.apply(model, data)[0](data.x, data.edge_index)
        for x in [ticket, other]
    ]
    assert torch.equal(*out)
    assert Ticket.load(path, build(in_channels=-1)) is not None
    with pytest.raises(FileNotFoundError):
        ticket.save(tmp_path / 'none' / 'ticket.pt')


def test_ticket_load_errors(found, tmp_path):
    ticket, model, data = found
    path = tmp_path / 'ticket.pt'
    ticket.save(path)
    match = "'model' needs to have the parameters of the ticket"
    for other in [build(9), Linear(4, 2), build(9, in_channels=-1)]:
        with pytest.raises(ValueError, match=match):
            Ticket.load(path, other)
        with pytest.raises(ValueError, match=match):
            ticket.apply(other)
    with pytest.raises(ValueError, match="'weights' needs to be 'all' or 'fi"):
        ticket.save(path, weights='initial')
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match=f"'{path}' is truncated"):
        Ticket.load(path)
    for state in [{'version': 0}, [1], {}, {**vars(ticket), 'other': 1}]:
        torch.save(state, path)
        with pytest.raises(ValueError, match="does not hold 'Ticket'"):
            Ticket.load(path)
    with pytest.raises(FileNotFoundError):
        Ticket.load(tmp_path / 'none.pt')


def test_ticket_of_version_0_1(found, tmp_path):
    ticket, model, _ = found
    path = tmp_path / 'ticket.pt'
    keys = ['weight_masks', 'edge_mask', 'initial_state', 'final_state']
    keys += ['metrics', 'history', 'seconds', 'macs', 'dense_state']
    keys += ['narrow_index', 'edges_digest']  # As of all earlier files.
    state = {key: getattr(ticket, key) for key in keys}
    torch.save({'version': 1, **state, 'macs': list(ticket.macs)}, path)
    assert_equal(Ticket.load(path, model), ticket)


@pytest.mark.parametrize('sparse', [False, True])
def test_ticket_of_final_weights(found, sparse, tmp_path):
    ticket, model, data = found
    path = tmp_path / 'ticket.pt'
    ticket.save(path, weights='final')
    other = Ticket.load(path, model)
    assert other.initial_state == other.dense_state == {}
    for x in [ticket, other]:
        x.save(path)
    assert_equal(Ticket.load(path), other)
    outs = []
    for x in [ticket, other]:
        small, graph = x.apply(model, data, sparse=sparse)
        outs.append(small(graph.x, graph.edge_index))
    assert torch.equal(*outs)
    assert str(other) == str(ticket)
    with pytest.raises(ValueError, match="'weights' needs to be 'final' for"):
        other.apply(model, data, weights='initial')
    with pytest.raises(ValueError, match="'model' needs to have the param"):
        Ticket.load(path, build(9))


def test_ticket_file_size(tmp_path):
    weight = torch.rand(1000, 1000)
    masks = {'weight': weight > 0.9}
    states = [{'weight': weight.clone()} for _ in range(3)]
    states[1]['weight'][~masks['weight']] = 0
    initial, final, dense = states
    ticket = Ticket(masks, None, initial, final, {}, {}, {}, (0, 0), dense)
    sizes = {'all': 2.13, 'final': 0.13}  # Of 4 MB: (1 - s) + 1 / 32, + 2.
    for weights, size in sizes.items():
        ticket.save(tmp_path / 'ticket.pt', weights=weights)
        num_bytes = (tmp_path / 'ticket.pt').stat().st_size
        assert num_bytes == pytest.approx(4_000_000 * size, rel=0.02)
    # Weights that are not zero are saved, although they are pruned:
    ticket.final_state = initial
    ticket.save(tmp_path / 'ticket.pt')
    assert_equal(Ticket.load(tmp_path / 'ticket.pt'), ticket)


def test_ticket_apply_errors(found):
    ticket, model, data = found
    with pytest.raises(ValueError, match="'weights' needs to be one of"):
        ticket.apply(model, data, weights='best')
    small = data.edge_subgraph(torch.arange(4))
    with pytest.raises(ValueError, match=r'needs to have the .* 4 edges\)'):
        ticket.apply(model, small)
    small.e_id = torch.arange(4)
    out = ticket.apply(model, small)[1]
    assert out.num_edges == int(ticket.edge_mask[:4].sum())
    data = data.clone()
    data.edge_index = data.edge_index.flip(1)
    with pytest.raises(ValueError, match='in their order'):
        ticket.apply(model, data)


class Lazy(Module):
    def __init__(self):
        super().__init__()
        self.conv = GCNConv(-1, 8)
        self.lin = Sequential(LazyLinear(8), LazyLinear(2))

    def forward(self, x, edge_index):
        return self.lin(self.conv(x, edge_index).relu())


def test_ticket_lazy():
    data = graph()
    ticket = GraphLotteryPruner(Lazy(), **SHORT).fit(data)
    outs = []
    for sparse in [False, True]:
        model, small = ticket.apply(Lazy(), data, sparse=sparse)
        outs.append(model(small.x, small.edge_index))
    assert torch.allclose(*outs, atol=1e-5)


@pytest.mark.parametrize('sparse', [False, True])
def test_ticket_models_are_ordinary(found, sparse):
    ticket, model, data = found
    model, small = ticket.apply(model, data, sparse=sparse)
    expected = model(small.x, small.edge_index)
    assert expected.requires_grad
    for other in [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]:
        assert torch.equal(other(small.x, small.edge_index), expected)
        other.load_state_dict(model.state_dict())
        optimizer = torch.optim.Adam(other.parameters())
        other(small.x, small.edge_index).sum().backward()
        optimizer.step()


def test_ticket_repr(found):
    ticket = found[0]
    assert ticket.weight_sparsity == 0.75
    assert ticket.edge_sparsity == pytest.approx(0.4, abs=0.03)
    lines = str(ticket).splitlines()
    assert lines[0] == 'Ticket(' and lines[-1] == ')'
    assert lines[1] == '  weights   48 -> 12 (75.0% less)'
    keys = [line.split()[0] for line in lines[2:-1]]
    stages = ['dense', 'search', 'retrained']
    assert keys == ['edges', 'MACs', *stages, 'seconds']
    empty = Ticket({}, None, {}, {}, {}, {}, {}, (0, 0), {})
    assert empty.weight_sparsity == empty.edge_sparsity == 0
    assert '  edges     all' in str(empty)


def test_ticket_equality(found):
    ticket = found[0]
    assert ticket == ticket and ticket != copy.copy(ticket)
    assert ticket in [None, ticket]


@withPackage('matplotlib')
def test_ticket_plot(found):
    import matplotlib

    matplotlib.use('Agg')
    ticket, _, data = found
    figure = ticket.plot(data)
    assert len(figure.axes) == 2
    lines = figure.axes[0].get_lines()
    assert [x.get_label() for x in lines] == ['dense', 'search', 'retrained']
    counts = [sum(x.get_ydata()) for x in figure.axes[1].get_lines()]
    assert counts == [10, 10]
    assert len(ticket.plot().axes) == 1
    matplotlib.pyplot.close('all')


@withDevice
def test_ticket_device(found, device, tmp_path):
    # A ticket of the CPU serves models of any device:
    ticket, model, data = found
    model, data = copy.deepcopy(model).to(device), data.to(device)
    for weights in ['final', 'initial']:
        outs = []
        for sparse in [False, True]:
            other, small = ticket.apply(
                model, data, sparse=sparse, weights=weights
            )
            outs.append(other(small.x, small.edge_index))
        assert outs[0].device.type == device.type
        assert torch.allclose(*outs, atol=1e-5)


def test_ticket_refuses_other_arguments(found, tmp_path):
    ticket, model, data = found
    path = tmp_path / 'ticket.pt'
    ticket.save(path)
    for other in [None, data, 'model']:
        with pytest.raises(TypeError, match="'model' .* 'torch.nn.Module'"):
            ticket.apply(other, data)
        if other is not None:
            with pytest.raises(TypeError, match="'model' .*'torch.nn.Module'"):
                Ticket.load(path, other)
    with pytest.raises(ValueError, match=r"'weights' .*\['final'\]"):
        ticket.apply(model, data, weights=['final'])
