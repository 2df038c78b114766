import copy

import pytest
import torch
from torch_geometric.nn import GCN

from searches import flat, graph
from torch_geometric_ext.lottery.clock import Clock
from torch_geometric_ext.lottery.edges.edge_pairs import EdgePairs
from torch_geometric_ext.lottery.node_task import NodeTask
from torch_geometric_ext.lottery.search import Search
from torch_geometric_ext.lottery.settings import Settings

NAMES = ['convs.0.lin', 'convs.1.lin']


def build(observe=lambda stage: None, model_seed=0, **kwargs):
    torch.manual_seed(model_seed)
    model, data = GCN(5, 64, 2, 3), graph()
    settings = Settings(
        weight_sparsity=0.7,
        edge_sparsity=0.12,
        pretrain_epochs=2,
        search_epochs=4,
        retrain_epochs=4,
        update_every=1,
        evaluate_every=1,
        **kwargs,
    )
    pairs = EdgePairs(data.edge_index, data.num_nodes)
    task, optimizer = NodeTask(data), torch.optim.Adam
    args = (model, task, NAMES, pairs, optimizer, settings, observe)
    return Search(*args, Clock())


@pytest.mark.parametrize('method', ['fast', 'imp', 'one_shot'])
def test_search_state_dict(method):
    search = build(method=method)
    expected = search.run(), search.outcomes
    states = []
    search = build(
        lambda stage: states.append(copy.deepcopy(search.state_dict())),
        method=method,
    )
    search.run()
    assert len(states) == {'fast': 10, 'imp': 28, 'one_shot': 6}[method]
    for state in [*states[1::4], search.state_dict()]:
        resumed = build(method=method, model_seed=1)
        resumed.load_state_dict(state)
        found = resumed.run()
        assert flat(found.masks) == flat(expected[0].masks)
        assert torch.equal(found.pairs, expected[0].pairs)
        assert resumed.outcomes.keys() == expected[1].keys()
        for name, outcome in resumed.outcomes.items():
            assert outcome.history == expected[1][name].history
            best = expected[1][name].best
            assert flat(outcome.best.state) == flat(best.state)


def test_search_config():
    config = build().config()
    assert config == build(model_seed=1).config()
    assert config != build(seed=1).config()
    assert config['settings']['distill'] == 0.8
