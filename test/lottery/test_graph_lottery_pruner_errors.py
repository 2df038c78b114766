import inspect

import numpy as np
import pytest
import torch
from torch.nn import Module
from torch_geometric.data import Data, HeteroData
from torch_geometric.nn import GCN, GCNConv, Linear

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
        ('seed', ['one', 1.5, None, True, 2**64]),
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
    for number in [0.5, np.float32(0.5)]:
        kwargs = dict.fromkeys(kwargs, number)
        kwargs['retrain_epochs'] = np.int64(4)
        ticket = prune(model, graph(), checkpoint=path, **kwargs)
        assert equal(ticket, expected)


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


class Untrained(torch.optim.SGD):
    """Fails if a model is trained."""

    def step(self, closure=None):
        raise AssertionError('training started')


def assert_refused(error, match, model, data, *args, **kwargs):
    """Assert an error before training that changes nothing."""
    model.eval()
    next(model.children(), model).train()

    def state():
        modes = [module.training for module in model.modules()]
        tensors = dict(model.state_dict(), rng=torch.get_rng_state())
        tensors.update(data.to_dict() if isinstance(data, Data) else {})
        values = {key: values_of(x) for key, x in tensors.items()}
        return str([modes, values])

    before = state()
    kwargs = {'optimizer': Untrained, **kwargs}
    with pytest.raises(error, match=match):
        prune(model, data, *args, **kwargs)
    assert state() == before


def values_of(value):
    if isinstance(value, torch.Tensor) and not value.is_meta:
        return value.tolist()
    return value


def changed(value, index, entry):
    value = value.clone()
    value[index] = entry
    return value


def ones(data):
    return torch.ones(data.num_edges)


NODE = graph().train_mask.nonzero()[0, 0]
VAL_NODE = graph().val_mask.nonzero()[0, 0]
NAN, INF = float('nan'), float('inf')


@pytest.mark.parametrize(
    'key, change, error, match',
    [
        ('y', lambda x, _: changed(x, NODE, -1), ValueError, "'y' .* -1 to 2"),
        ('y', lambda x, _: changed(x, NODE, 3), ValueError, "'y' .* 0 to 3"),
        ('y', lambda x, _: changed(x, VAL_NODE, -1), ValueError, 'val_mask'),
        ('y', lambda x, _: x.to(torch.cfloat), ValueError, 'torch.complex64'),
        ('y', lambda x, _: x.float(), ValueError, r'\[16\] of torch.float32'),
        ('y', lambda x, _: x.view(-1, 1), ValueError, r"'y' .*\[16, 1\]"),
        ('y', lambda x, _: x.tolist(), TypeError, "'y' .* tensor .*list"),
        ('y', lambda x, _: None, ValueError, r"to hold \['y'\]"),
        ('y', lambda x, _: x.to('meta'), ValueError, "'y' .* 'cpu' .*'meta'"),
        ('x', lambda x, _: x.long(), ValueError, "torch.int64 .*'float'"),
        ('x', lambda x, _: x > 0, ValueError, "'x' of torch.bool .*'float'"),
        ('x', lambda x, _: x.double(), ValueError, "'x' of torch.float64"),
        ('x', lambda x, _: changed(x, 0, NAN), ValueError, "'x' .* 5 values"),
        ('x', lambda x, _: changed(x, 0, INF), ValueError, "'x' .* finite"),
        ('x', lambda x, _: x[:, :4], ValueError, r"'x' .* shape \[16, 4\]"),
        ('x', lambda x, _: x[:10], ValueError, r'\[0, 10\), its nodes'),
        ('x', lambda x, _: x[:, 0], ValueError, r"'x' .* shape \[16\]"),
        ('x', lambda x, _: x.numpy(), TypeError, "'x' .* tensor .*ndarray"),
        ('x', lambda x, _: None, ValueError, r"to hold \['x'\]"),
        ('x', lambda x, _: x.to('meta'), ValueError, "'x' .* 'cpu' .*'meta'"),
        ('edge_index', lambda x, _: None, ValueError, r"\['edge_index'\]"),
        ('edge_index', lambda x, _: x.tolist(), TypeError, 'tensor .*list'),
        ('edge_index', lambda x, _: x.float(), ValueError, 'torch.float32'),
        ('edge_index', lambda x, _: x.t(), ValueError, r'\[77, 2\]'),
        ('edge_index', lambda x, _: x + 5, ValueError, r'\[0, 16\).* to 19'),
        ('edge_index', lambda x, _: x - 1, ValueError, r'\[0, 16\).*-1 to'),
        *[
            ('edge_weight', change, error, f"'edge_weight' of 'data' {match}")
            for change, error, match in [
                (lambda _, d: ones(d) * NAN, ValueError, '.* finite'),
                (lambda _, d: ones(d) * INF, ValueError, '.* finite'),
                (lambda _, d: ones(d)[:3], ValueError, r'.*77 edges.*\[3\]'),
                (lambda _, d: ones(d)[0], ValueError, r'.*77 edges.*\[\]'),
                (lambda _, d: ones(d).tolist(), TypeError, '.* a tensor'),
            ]
        ],
        ('edge_weight', lambda _, d: -3 * ones(d), ValueError, 'are numbers'),
        ('train_mask', lambda x, _: x.long(), ValueError, 'torch.bool'),
        ('train_mask', lambda x, _: x[:3], ValueError, r'\[16\], .*\[3\]'),
        ('train_mask', lambda x, _: x & ~x, ValueError, 'selects no node'),
        ('val_mask', lambda x, _: x.tolist(), TypeError, "'val_mask' .*list"),
        ('val_mask', lambda x, _: None, ValueError, r"\['val_mask'\]"),
    ],
)
def test_fit_refuses_attributes(key, change, error, match):
    data = graph()
    data[key] = change(data.get(key), data)
    assert_refused(error, match, GCN(5, 8, 2, 3), data)


class Wrapped(Module):
    def __init__(self, function):
        super().__init__()
        self.net = GCN(5, 8, 2, 3)
        self.function = function

    def forward(self, x, edge_index):
        return self.function(self.net(x, edge_index))


class Weightless(Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(5, 3))

    def forward(self, x, edge_index):
        return x @ self.weight


def diverged():
    model = GCN(5, 8, 2, 3)
    model.convs[0].lin.weight.data[0] = NAN
    return model


@pytest.mark.parametrize(
    'model, match',
    [
        (lambda: Wrapped(lambda h: (h, h)), 'score of each class .*tuple'),
        (lambda: Wrapped(lambda h: {'h': h}), 'score of each class .*dict'),
        (lambda: Wrapped(lambda h: h[:, 0]), r'score of each class .*\[16\]'),
        (lambda: Wrapped(lambda h: h.long()), 'score .*torch.int64'),
        (lambda: Wrapped(lambda h: h[:4]), r'each of 16 nodes .*\[4, 3\]'),
        (lambda: Wrapped(lambda h: h[:, :0]), r"'y' .* \[0, 0\)"),
        (lambda: Wrapped(lambda h: h.detach()), "'model' detaches"),
        (lambda: Wrapped(lambda h: h['h']), "'model' needs to run on 'x'"),
        (lambda: GCN(5, 8, 2, 2), r"'y' of 'data' .* \[0, 2\).* 0 to 2"),
        (lambda: GCN(4, 8, 2, 3), r"'x' of torch.float32 and .*\[16, 5\]"),
        (lambda: GCN(5, 8, 2, 3).double(), 'parameters of torch.float64'),
        (lambda: GCN(5, 8, 2, 3).requires_grad_(False), 'require gradients'),
        (lambda: GCN(5, 8, 2, 3).to('meta'), "device of 'model', 'meta'"),
        (lambda: Weightless(), "'model' needs a linear layer"),
        (lambda: diverged(), "'model' .* scores that are numbers"),
    ],
)
def test_fit_refuses_models(model, match):
    model = model()
    assert_refused(ValueError, match, model, graph(), edge_sparsity=0.0)


def loss_fn(model, data):
    return model(data.x, data.edge_index).square().mean()


def evaluate(model, data):
    return 0.5


@pytest.mark.parametrize(
    'kwargs, error, match',
    [
        (dict(loss_fn='loss'), TypeError, "'loss_fn' .* function .*str"),
        (dict(evaluate=3), TypeError, "'evaluate' .* function .*int"),
        (dict(loss_fn=lambda m, d: 1.0), ValueError, 'the loss .*1.0'),
        (dict(loss_fn=lambda m, d: None), ValueError, "'loss_fn'.*None"),
        (
            dict(loss_fn=lambda m, d: m(d.x, d.edge_index)),
            ValueError,
            r"'loss_fn'.* shape \[16, 3\]",
        ),
        (
            dict(loss_fn=lambda m, d: loss_fn(m, d).detach()),
            ValueError,
            "'loss_fn'.* requires_grad=False",
        ),
        (
            dict(loss_fn=lambda m, d: None, edge_score='learned'),
            ValueError,
            "'loss_fn'.* None",
        ),
        (dict(evaluate=lambda m, d: (1, 2)), TypeError, r'a number .*\(1, 2'),
        (dict(evaluate=lambda m, d: None), TypeError, 'a number .*None'),
        (dict(evaluate=lambda m, d: torch.ones(2)), TypeError, 'a number'),
        (dict(callbacks=[3]), TypeError, r"'callbacks' .*\[3\]"),
        (dict(callbacks=None), TypeError, "'callbacks' .*None"),
        (dict(callbacks=print), TypeError, "'callbacks' .*print"),
        (dict(checkpoint=3), TypeError, "'checkpoint' .* path .*int"),
        (dict(checkpoint='/'), IsADirectoryError, "'/' is a folder"),
        (dict(checkpoint_every=2.5), ValueError, "'checkpoint_every' .*2.5"),
        (dict(checkpoint_every='2'), ValueError, "'checkpoint_every' .*'2'"),
        (dict(ignored=None), TypeError, "'ignored' .* sequence .*None"),
        (dict(ignored=['conv']), ValueError, "'ignored' .*'conv'"),
        (dict(ignored=[GCNConv]), ValueError, "not in 'ignored'"),
        (dict(log='yes'), TypeError, "'log' .*'yes'"),
        (
            dict(optimizer=lambda params: None),
            TypeError,
            "'optimizer' .*'torch.optim.Optimizer' .*NoneType",
        ),
        (
            dict(optimizer=torch.optim.LBFGS),
            ValueError,
            "'optimizer' .* 'step' without arguments .*'closure'",
        ),
        (
            dict(optimizer=lambda _: Untrained(Linear(2, 2).parameters())),
            ValueError,
            "'optimizer' .* parameters .* called with",
        ),
    ],
)
def test_fit_refuses_arguments(kwargs, error, match):
    kwargs = {'loss_fn': loss_fn, 'evaluate': evaluate, **kwargs}
    assert_refused(error, match, GCN(5, 8, 2, 3), graph(), **kwargs)


def far_edges():
    data = graph()
    data.edge_index = data.edge_index + 5
    data.e_id = torch.arange(data.num_edges)
    return data


CUSTOM = dict(loss_fn=loss_fn, evaluate=evaluate)


@pytest.mark.parametrize(
    'data, kwargs, error, match',
    [
        (None, {}, TypeError, "'data' .*'Data' or a loader .*NoneType"),
        (graph().x, {}, ValueError, r"'data' .*'dataset\[0\]' .*Tensor"),
        ((graph().x, graph().edge_index), {}, ValueError, "'data' .*tuple"),
        ([graph()], {}, ValueError, "a loader as 'data' needs .*list"),
        (Data(), {}, ValueError, "'data' needs to hold .*'x'"),
        (HeteroData(), {}, NotImplementedError, 'homogeneous'),
        ([], CUSTOM, ValueError, 'a mini-batch .* empty .*list'),
        ([HeteroData()], CUSTOM, ValueError, "'data' .* 'edge_index'"),
        ([1, 2], CUSTOM, ValueError, "'data' .* 'edge_index'"),
        (far_edges(), CUSTOM, ValueError, r"'edge_index' of 'data' .* to 19"),
        ([far_edges()], CUSTOM, ValueError, r"'edge_index' of 'data' .* 19"),
    ],
)
def test_fit_refuses_data(data, kwargs, error, match):
    assert_refused(error, match, GCN(5, 8, 2, 3), data, **kwargs)


class Embedded(Module):
    def __init__(self):
        super().__init__()
        self.embedding = torch.nn.Embedding(3, 5)
        self.net = GCN(5, 8, 2, 3)

    def forward(self, x, edge_index):
        return self.net(self.embedding(x[:, 0]), edge_index)


def test_fit_takes_unusual_data():
    data = graph()
    data.x = data.y.view(-1, 1)  # Integers, which a model may embed.
    rest = ~(data.train_mask | data.val_mask)
    rest[VAL_NODE], data.val_mask[VAL_NODE] = True, False
    data.y = data.y.masked_fill(rest, -1)  # Nodes without a label.
    assert prune(Embedded(), data).weight_sparsity > 0.6
    data = graph()
    data.edge_index, data.y = data.edge_index.int(), data.y.byte()
    assert prune(GCN(-1, 8, 2, 3), data).weight_sparsity > 0.6
