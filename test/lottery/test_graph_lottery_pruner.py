import copy
import math
import time
import warnings
from pathlib import Path

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import assume, example, given, settings
from torch_geometric.data import Batch, Data
from torch_geometric.nn import (
    GCN,
    GIN,
    ChebConv,
    GCNConv,
    Linear,
    Sequential,
)

from devices import withDevice
from searches import SHORT, equal, flat, graph, prune
from torch_geometric_ext.full_batch.sparse_input import SparseInput
from torch_geometric_ext.lottery.edges.edge_pairs import EdgePairs
from torch_geometric_ext.lottery.stage import Stage
from torch_geometric_ext.utils import GraphLotteryPruner

METHODS = ['fast', 'imp', 'one_shot', 'random']
EDGE_SCORES = ['degree', 'learned', 'random']


@pytest.mark.parametrize('method', METHODS)
@pytest.mark.parametrize('undirected', [True, False])
@pytest.mark.parametrize('sparsities', [(0.7, 0.0), (0.0, 0.4), (0.6, 0.15)])
def test_pruner_counts(method, undirected, sparsities, monkeypatch):
    data, seen = graph(undirected=undirected), {}
    pairs = EdgePairs(data.edge_index, data.num_nodes)
    assert pairs.undirected == undirected

    def count(stage, run=Stage.run):
        layers = [x for x in stage.model.modules() if hasattr(x, 'values')]
        sizes = [x.values.numel() for x in layers]
        num_edges = stage.task.graph.data.num_edges
        out = run(stage, lambda stage: None)
        assert [x.values.numel() for x in layers] == sizes
        seen[stage.name] = (sum(sizes), num_edges)
        return out

    monkeypatch.setattr(Stage, 'run', lambda stage, callback: count(stage))
    torch.manual_seed(0)
    model = GCN(5, 8, 2, 3)
    weight_sparsity, edge_sparsity = sparsities
    prune(
        model,
        data,
        method=method,
        weight_sparsity=weight_sparsity,
        edge_sparsity=edge_sparsity,
        edge_score='degree' if undirected else 'learned',
        retrain_epochs=1,
    )

    def num_edges(density):
        step = 1 + undirected
        num_loops = int(pairs.is_loop.sum())
        return num_loops + step * round(density * pairs.num_pairs)

    def num_weights(density):
        return round(density * 64) if weight_sparsity > 0 else 0

    target = (num_weights(1 - weight_sparsity), num_edges(1 - edge_sparsity))
    expected = {'dense': (0, data.num_edges), 'retrained': target}
    if method == 'fast' and weight_sparsity > 0:
        expected['search'] = target
    number = 1
    while method == 'imp':
        densities = (
            max(0.8**number, 1 - weight_sparsity),
            max(0.95**number, 1 - edge_sparsity),
        )
        current = (num_weights(densities[0]), num_edges(densities[1]))
        if densities == (1 - weight_sparsity, 1 - edge_sparsity):
            break
        number += 1
        expected[f'round {number}'] = current
    assert seen == expected


SPARSITIES = st.floats(0, 0.9)


@settings(max_examples=12)
@example('imp', 1e-300, 0.0, True)
@example('fast', 0.9, 1e-300, False)
@given(st.sampled_from(METHODS), SPARSITIES, SPARSITIES, st.booleans())
def test_pruner_any_sparsity(method, weight_sparsity, edge_sparsity, both):
    data, model = graph(8, undirected=both), GCN(5, 8, 1, 3)
    assume(weight_sparsity + edge_sparsity > 0)
    ticket = prune(
        model,
        data,
        method=method,
        weight_sparsity=weight_sparsity,
        edge_sparsity=min(edge_sparsity, 0.5),  # Else there are many rounds.
        **dict.fromkeys(['pretrain_epochs', 'retrain_epochs'], 1),
    )
    kept = sum(int(x.sum()) for x in ticket.weight_masks.values())
    assert kept == (
        round((1 - weight_sparsity) * 15) if weight_sparsity else 0
    )
    if edge_sparsity == 0:
        assert ticket.edge_mask is None
        return
    pairs = EdgePairs(data.edge_index, data.num_nodes)
    target = round((1 - min(edge_sparsity, 0.5)) * pairs.num_pairs)
    counts = torch.zeros(pairs.num_pairs, dtype=torch.long)
    between = pairs.pair >= 0
    counts.index_add_(0, pairs.pair[between], ticket.edge_mask[between].long())
    assert ticket.edge_mask[~between].all()
    size = 1 + pairs.undirected  # Both directions are pruned together:
    assert set(counts.tolist()) <= {0, size}
    assert int((counts == size).sum()) == target


def test_pruner_moves(monkeypatch):
    moved = []

    def spy(stage, callback, run=Stage.run):
        scheduler = stage.scheduler
        if scheduler is None:
            return run(stage, callback)
        layer, step = scheduler.layers['convs.0.lin'], scheduler.step

        def check():
            before = layer.index.clone()
            step()
            new = ~torch.isin(layer.index, before)
            assert (layer.values[new] == 0).all()
            moved.append(int(new.sum()))

        scheduler.step = check
        return run(stage, callback)

    monkeypatch.setattr(Stage, 'run', spy)
    torch.manual_seed(0)
    prune(
        GCN(5, 8, 1, 3),
        graph(),
        weight_sparsity=0.6,
        search_epochs=12,
        update_every=3,
        drop_fraction=0.8,
    )
    # By a cosine that ends at three quarters of the search:
    expected = [0] * 12
    for i in [3, 6]:
        fraction = 0.4 * (1 + math.cos(math.pi * i / 9))
        expected[i - 1] = round(fraction * 6)
    assert moved == expected == [0, 0, 4, 0, 0, 1] + [0] * 6


@pytest.mark.parametrize('method', ['fast', 'imp', 'random'])
def test_pruner_does_not_change_inputs(method):
    model, data = GIN(5, 8, 2, 3, norm='batch_norm', dropout=0.5), graph()
    model.train()
    state, before = copy.deepcopy(model.state_dict()), data.clone()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    kwargs = dict(method=method, weight_sparsity=0.4, edge_sparsity=0.1)
    ticket = prune(model, data, **kwargs)
    assert torch.equal(torch.rand(3), expected)
    assert model.training
    assert flat(model.state_dict()) == flat(state)
    assert flat(ticket.initial_state) == flat(state)
    assert flat(data.to_dict()) == flat(before.to_dict())
    assert all(x.grad is None for x in model.parameters())

    assert equal(ticket, prune(model, data, **kwargs))
    assert not equal(ticket, prune(model, data, seed=1, **kwargs))


class Interrupted(Exception):
    pass


@pytest.mark.parametrize('edge_score', EDGE_SCORES)
@pytest.mark.parametrize('method', METHODS)
def test_pruner_resumes(method, edge_score, tmp_path):
    torch.manual_seed(0)
    model, data = GCN(-1, 8, 2, 3, dropout=0.5, norm='batch_norm'), graph()
    kwargs = dict(
        method=method,
        edge_score=edge_score,
        weight_sparsity=0.4,
        edge_sparsity=0.14,
        evaluate_every=1,
    )
    expected = prune(model, data, **kwargs)
    path, stages = tmp_path / 'search.pt', []

    def interrupt(progress):
        # Once in the middle of each stage:
        if progress.stage not in stages and progress.epoch == 3:
            stages.append(progress.stage)
            raise Interrupted

    while True:
        try:
            ticket = prune(
                model,
                data,
                callbacks=[interrupt],
                checkpoint=path,
                checkpoint_every=2,
                **kwargs,
            )
            break
        except Interrupted:
            torch.rand(5)
    assert equal(ticket, expected)
    rest = {'fast': ['search'], 'imp': ['round 2', 'round 3']}.get(method, [])
    assert stages == ['dense', *rest, 'retrained']
    # The file of a finished search returns its ticket at once:
    again = prune(
        model, data, checkpoint=path, callbacks=[pytest.fail], **kwargs
    )
    assert equal(again, expected)


def test_pruner_checkpoint_errors(tmp_path):
    path, data = tmp_path / 'search.pt', graph()
    model = GCN(5, 8, 2, 3)
    prune(model, data, checkpoint=path)
    match = "'checkpoint' needs to be of a search with the same arguments"
    other = data.clone()
    other.edge_index = 14 - other.edge_index  # As many edges.
    for args, kwargs in [
        ((model, data), {'seed': 1}),
        ((GCN(5, 9, 2, 3), data), {}),
        ((model, other), {}),
    ]:
        with pytest.raises(ValueError, match=match):
            prune(*args, checkpoint=path, **kwargs)
    kwargs = dict(checkpoint=tmp_path / 'weights.pt', edge_sparsity=0.0)
    prune(model, data, **kwargs)
    others = [data.clone() for _ in range(4)]
    others[0].val_mask = ~data.val_mask
    others[1].x = data.x + 1
    others[2].edge_index = data.edge_index.flip(1)
    others[3].edge_weight = torch.ones(data.num_edges)
    for other in [*others, Batch.from_data_list([data, data])]:
        with pytest.raises(ValueError, match=match):
            prune(model, other, **kwargs)
    for optimizer in [torch.optim.SGD, torch.optim.Adam]:
        with pytest.raises(ValueError, match=match):
            prune(model, data, optimizer=optimizer, **kwargs)
    with pytest.raises(ValueError, match=match):
        prune(GCN(5, 8, 2, 3, act='elu'), data, **kwargs)
    with pytest.raises(ValueError, match="'checkpoint_every' needs"):
        prune(model, data, checkpoint=path, checkpoint_every=0)


@withDevice
@pytest.mark.parametrize('edge_score', EDGE_SCORES)
def test_pruner_device(device, edge_score):
    model, data = GCN(5, 8, 2, 3).to(device), graph(device=device)
    ticket = prune(model, data, edge_score=edge_score)
    model, small = ticket.apply(model, data, sparse=True)
    assert model(small.x, small.edge_index).device.type == device.type
    assert ticket.edge_sparsity == pytest.approx(0.3, abs=0.03)


def test_pruner_progress(capsys):
    seen = []
    prune(
        GCN(5, 8, 2, 3),
        graph(),
        callbacks=[seen.append],
        evaluate_every=3,
        log=True,
    )
    stages = [(x.stage, x.epoch, x.num_epochs) for x in seen]
    assert stages == [
        *[('dense', i, 4) for i in [3, 4]],
        *[('search', i, 8) for i in [3, 6, 8]],
        *[('retrained', i, 4) for i in [3, 4]],
    ]
    assert all(x.best >= x.metric for x in seen)
    assert 'retrained: 100%' in capsys.readouterr().err


def test_pruner_scales_weight_decay():
    decays = []

    def optimizer(params):
        out = torch.optim.SGD(params, lr=0.1, weight_decay=0.1)
        decays.append(out.param_groups[0])
        return out

    for kwargs in [
        dict(weight_sparsity=0.75),
        dict(edge_sparsity=0.5),
        dict(edge_sparsity=0.5, distill=0.0),
    ]:
        kwargs = {'weight_sparsity': 0.0, 'edge_sparsity': 0.0, **kwargs}
        prune(GCN(5, 8, 2, 3), graph(), optimizer=optimizer, **kwargs)
    # Weights: dense, search, retrained. Edges: dense, retrained, twice.
    decays = [group['weight_decay'] for group in decays]
    assert decays == pytest.approx([0.1, 0.05, 0.05, 0.1, 0, 0.1, 0.1])


@pytest.mark.parametrize(
    'sparsities, distill',
    [((0.5, 0.0), 0.8), ((0.5, 0.3), 0.8), ((0, 0.3), 1)],
)
def test_pruner_default_of_distill(sparsities, distill):
    torch.manual_seed(0)
    model, data = GCN(5, 8, 2, 3), graph()
    kwargs = dict(zip(['weight_sparsity', 'edge_sparsity'], sparsities))
    ticket = prune(model, data, **kwargs)
    assert equal(ticket, prune(model, data, distill=distill, **kwargs))
    assert not equal(ticket, prune(model, data, distill=0.9, **kwargs))


def test_pruner_degree_products():
    """Prune a third of the edges by degrees, and all others at random."""
    data = graph()
    data.edge_index = torch.combinations(torch.arange(9)).t()
    path = torch.stack([torch.arange(10, 15), torch.arange(11, 16)])
    data.edge_index = torch.cat([data.edge_index, path], dim=1)
    masks = [
        prune(
            GCN(5, 8, 2, 3),
            data,
            method='one_shot',
            weight_sparsity=0.0,
            edge_sparsity=edge_sparsity,
            seed=seed,
        ).edge_mask
        for edge_sparsity, seed in [(0.35, 0), (0.7, 0), (0.7, 1), (0.7, 2)]
    ]
    assert masks[0][36:].all() and masks[0][:36].sum() == 27 - 5
    assert not masks[0].logical_not()[masks[1]].any()  # A part of the first.
    assert any(not mask[36:].all() for mask in masks[1:])


def test_pruner_random_edges():
    torch.manual_seed(0)
    model, data = GCN(5, 8, 2, 3), graph()
    kwargs = dict(weight_sparsity=0.0, edge_sparsity=0.5, edge_score='random')
    masks = torch.stack(
        [prune(model, data, seed=i, **kwargs).edge_mask for i in range(20)]
    )
    loops = data.edge_index[0] == data.edge_index[1]
    assert masks[:, loops].all()
    assert masks[:, ~loops].any(dim=0).all()
    assert not masks[:, ~loops].all(dim=0).any()
    assert (masks.sum(dim=1) == masks[0].sum()).all()


def test_pruner_odd_settings():
    data = graph()
    model = GCN(5, 8, 2, 3)
    ticket = prune(model, data, evaluate_every=50, patience=1)
    assert [len(x) for x in ticket.history.values()] == [1, 1, 1]
    ticket = prune(model, data, evaluate_every=1, patience=1, distill=0.0)
    assert len(ticket.history['dense']) <= 4
    pruner = GraphLotteryPruner(model, weight_sparsity=0.5, search_epochs=6)
    with pytest.warns(UserWarning, match='no weights will move') as seen:
        ticket = pruner.fit(data)
    assert seen[0].filename == __file__
    assert ticket.weight_sparsity == pytest.approx(0.5, abs=0.01)
    optimizer = lambda params: torch.optim.SGD(params, lr=0.1)  # noqa: E731
    ticket = prune(model, data, optimizer=optimizer, edge_score='learned')
    assert ticket.weight_sparsity == pytest.approx(0.7, abs=0.01)


def test_pruner_within_no_grad():
    model, data = GCN(5, 8, 2, 3), graph()
    with torch.no_grad():
        ticket = prune(model, data)
        assert not torch.is_grad_enabled()
    assert equal(ticket, prune(model, data))


def test_pruner_keeps_layers():
    # The last layer has the smallest weights, and would lose all of them:
    model, data = GCN(5, 16, 2, 3), graph()
    model.convs[1].lin.weight.data.mul_(1e-6)
    for method in METHODS:
        ticket = prune(
            model, data, method=method, weight_sparsity=0.95, pretrain_epochs=1
        )
        assert all(mask.any() for mask in ticket.weight_masks.values())
    with pytest.raises(ValueError, match='of 2 layers.* keeps 1 weights'):
        prune(model, data, weight_sparsity=0.99)


def test_pruner_ignored():
    model, data = GCN(5, 8, 2, 3), graph()
    ticket = prune(model, data, ignored=['convs.0'])
    assert list(ticket.weight_masks) == ['convs.1.lin.weight']
    with pytest.raises(ValueError, match="'ignored' needs to name modules"):
        prune(model, data, ignored=['conv'])
    with pytest.raises(ValueError, match='needs a linear layer to swap'):
        prune(model, data, ignored=[Linear])


def test_seconds_are_those_of_fit():
    def wait(progress):
        time.sleep(0.03)

    model, data = GCN(5, 8, 2, 3), graph()
    pruner = GraphLotteryPruner(model, **SHORT)
    start = time.perf_counter()
    ticket = pruner.fit(data, callbacks=[wait])
    total = time.perf_counter() - start
    parts = ['dense', 'search', 'retrained', 'setup', 'channels', 'other']
    assert sorted(ticket.seconds) == sorted(parts)
    assert all(seconds > 0 for seconds in ticket.seconds.values())
    assert ticket.seconds['other'] > 8 * 0.03  # Eight evaluations.
    assert 0 <= total - sum(ticket.seconds.values()) < 0.1
    assert ' (setup ' in str(ticket) and ', other ' in str(ticket)


def test_seconds_of_a_resumed_search(tmp_path):
    def interrupt(progress):
        time.sleep(0.03)
        if progress.stage == 'search' and progress.epoch == 6:
            raise KeyboardInterrupt

    pruner = GraphLotteryPruner(GCN(5, 8, 2, 3), **SHORT)
    fit = dict(checkpoint=tmp_path / 'search.pt', checkpoint_every=1)
    start = time.perf_counter()
    with pytest.raises(KeyboardInterrupt):
        pruner.fit(graph(), callbacks=[interrupt], **fit)
    interrupted = time.perf_counter() - start
    time.sleep(0.5)  # Between the runs.
    start = time.perf_counter()
    ticket = pruner.fit(graph(), **fit)
    total = time.perf_counter() - start + interrupted
    # The work after the last checkpoint is lost:
    assert 0 < total - sum(ticket.seconds.values()) < 0.3
    assert {'dense', 'search', 'retrained', 'other'} < set(ticket.seconds)


@pytest.mark.parametrize(
    'model, match',
    [
        (
            lambda: GCN(5, 8, 2, 3, norm='batch'),
            "the receptive field in training .*'norms.0.module' normalizes "
            'over all nodes.*: each step computes all 16 nodes$',
        ),
        (
            lambda: Sequential(
                'x, edge_index', [(ChebConv(5, 3, 1), 'x, edge_index -> x')]
            ),
            "sparse products in 'module_0' .ChebConv. .it has no faster "
            'version.: each step passes a message along each of 77 edges$',
        ),
        (
            lambda: Sequential(
                'x, edge_index',
                [
                    (ChebConv(5, channels, 2), 'x, edge_index -> x')
                    for channels in [5, 5, 5, 3]
                ],
            ),
            "'module_0' .*'module_1' .*, 2 more optimizations: each step "
            'computes all 16 nodes and passes a message along each of 77 '
            'edges$',
        ),
    ],
)
def test_fallback_is_reported_once(model, match):
    with pytest.warns(UserWarning, match=match) as records:
        prune(model(), graph(), edge_sparsity=0.0)
    records = [x for x in records if 'trains slower' in str(x.message)]
    assert len(records) == 1 and '\n' not in str(records[0].message)
    assert Path(records[0].filename).name == 'searches.py'


def test_fallback_of_features_with_gradients():
    data = graph()
    data.x.requires_grad_()
    with pytest.warns(UserWarning, match='slower.* needs no gradient'):
        prune(GCN(5, 8, 2, 3), data)


def test_no_fallback():
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)
        prune(GCN(5, 8, 2, 3), graph())


def test_cost_outside_of_stages(monkeypatch):
    """Edges are grouped once, and no pass over the whole graph needs a message
    for each edge.
    """
    num_nodes, counts = 3000, {'pairs': 0, 'features': 0, 'messages': 0}
    generator = torch.Generator().manual_seed(0)
    edges = torch.randint(num_nodes, (2, 6000), generator=generator)
    x = torch.rand(num_nodes, 40, generator=generator)
    train = torch.arange(num_nodes) < 20
    data = Data(
        x=x * (x > 0.95),
        edge_index=torch.cat([edges, edges.flip(0)], dim=1),
        y=torch.arange(num_nodes) % 3,
        train_mask=train,
        val_mask=train.roll(20),
    )

    def group(self, *args, init=EdgePairs.__init__):
        counts['pairs'] += 1
        init(self, *args)

    def compress(x, find=SparseInput.find):
        counts['features'] += x is data.x
        return find(x)

    def message(self, x_j, *args, message=GCNConv.message, **kwargs):
        if not x_j.is_meta:
            counts['messages'] = max(counts['messages'], x_j.size(0))
        return message(self, x_j, *args, **kwargs)

    monkeypatch.setattr(EdgePairs, '__init__', group)
    monkeypatch.setattr(SparseInput, 'find', compress)
    monkeypatch.setattr(GCNConv, 'message', message)
    ticket = prune(GCN(40, 32, 2, 3), data)
    assert ticket.edge_sparsity == pytest.approx(0.3, abs=1e-3)
    assert counts['pairs'] == counts['features'] == 1
    assert 0 < counts['messages'] < data.num_edges / 4
