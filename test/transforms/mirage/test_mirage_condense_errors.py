import warnings

import pytest
import torch
from torch_geometric.data import Data, HeteroData

from torch_geometric_ext.transforms import (
    MirageCondense,
    ShareComputationTrees,
)


def make_graphs(num_graphs=12):
    generator = torch.Generator().manual_seed(0)
    return [
        Data(
            x=torch.randint(2, (3, 1), generator=generator),
            edge_index=torch.randint(3, (2, 4), generator=generator),
            edge_attr=torch.randint(2, (4, 1), generator=generator),
            y=torch.tensor([i % 2]),
        )
        for i in range(num_graphs)
    ]


def share(graphs, num_layers=2, **kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # Random graphs share little.
        return ShareComputationTrees(num_layers, **kwargs)(graphs)


@pytest.mark.parametrize(
    'kwargs, match',
    [
        ({}, r"'MirageCondense' needs exactly one of .* \(got none\)"),
        (dict(ratio=0.5, num_graphs=2), r"\(got \['num_graphs', 'ratio'\]\)"),
        (dict(ratio=0.0), r"'ratio' of .* in \(0, 1\] \(got 0.0\)"),
        (dict(ratio=1.1), r"'ratio' of .* \(got 1.1\)"),
        (dict(ratio=float('nan')), r"'ratio' of .* \(got nan\)"),
        (dict(ratio='5%'), r"'ratio' of .* a number in .* \(got '5%'\)"),
        (dict(num_bytes=0), r"'num_bytes' of .* positive integer \(got 0\)"),
        (dict(num_bytes=1e6), r"'num_bytes' of .* \(got 1000000.0\)"),
        (dict(num_graphs=-1), r"'num_graphs' of .* \(got -1\)"),
        (dict(num_graphs=True), r"'num_graphs' of .* \(got True\)"),
        (dict(num_graphs=2, max_patterns=0), r"'max_patterns' .* \(got 0\)"),
        (dict(num_graphs=2, selection='best'), r"'selection' .*'best'\)"),
        (dict(min_support=2), r"'min_support', 'closed' .* \(got 'herding'\)"),
        (dict(num_graphs=2, closed=True), "'exclusive' of 'MirageCondense'"),
        (dict(num_graphs=2, exclusive=True), "need selection='patterns'"),
        (dict(num_graphs=2, self_loops='add'), r"'self_loops' .*'add'\)"),
        (dict(num_graphs=2, gcn_norm=True, edge_attr=True), "'edge_attr'"),
    ],
)
def test_invalid_arguments(kwargs, match):
    with pytest.raises(ValueError, match=match):
        MirageCondense(2, **kwargs)


def test_invalid_number_of_layers():
    for num_layers in [0, -1, 1.5]:
        with pytest.raises(ValueError, match="'num_layers' of 'MirageCond"):
            MirageCondense(num_layers, num_graphs=2)


def test_invalid_data_sets():
    graphs = make_graphs()
    condense = MirageCondense(2, num_graphs=4)
    condense(graphs)
    report = condense.report()
    for bad in [graphs[0], HeteroData(), iter(graphs)]:
        with pytest.raises(TypeError, match="'dataset' of 'MirageCondense'"):
            condense(bad)
    with pytest.raises(TypeError, match="'dataset' needs to hold graphs of"):
        condense([HeteroData(), HeteroData()])
    for bad in [[], share(graphs).index_select(torch.tensor([]).long())]:
        with pytest.raises(ValueError, match='needs at least one graph'):
            condense(bad)
    with pytest.raises(ValueError, match=r"same attributes .*\['foo'\]"):
        condense([*graphs, graphs[0].clone().update({'foo': torch.ones(1)})])
    for key in ['root_mask', 'weight', 'root_count', 'root_ptr']:
        bad = [data.clone().update({key: torch.ones(1)}) for data in graphs]
        match = f"without an attribute '{key}'"
        with pytest.raises(ValueError, match=match):
            condense(bad)
    bad = [data.clone() for data in graphs]
    for data in bad:
        del data.y
    with pytest.raises(ValueError, match="needs graphs with 'y'"):
        condense(bad)
    for data in bad:
        data.y, data.num_nodes = torch.zeros(1), data.num_nodes
        del data.x
    with pytest.raises(ValueError, match="needs graphs with 'x'"):
        condense(bad)
    assert condense.report() is report


def test_invalid_shared_trees():
    graphs = make_graphs()
    graphs[0].edge_index = torch.tensor([[0], [0]])
    graphs[0].edge_attr = torch.tensor([[1]])
    for kwargs, match in [
        (dict(num_layers=3), "'num_layers' .got 2, expected 3"),
        (dict(gcn_norm=True), "'gcn_norm' .got False, expected True"),
        (dict(self_loops='remove'), "made with self_loops='remove'"),
        (dict(edge_attr=False), 'made with edge_attr=False'),
    ]:
        kwargs = {'num_layers': 2, 'num_graphs': 2, **kwargs}
        with pytest.raises(ValueError, match=match):
            MirageCondense(**kwargs)(share(graphs))
    trees = share(graphs, self_loops='remove', edge_attr=False)
    MirageCondense(2, num_graphs=2)(trees)
