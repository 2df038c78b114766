import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_geometric.data import Data

from torch_geometric_ext.data import SharedTrees
from torch_geometric_ext.data.trees_to_graphs import trees_to_graphs
from torch_geometric_ext.transforms import MirageCondense


def make_graphs(num_graphs=12, seed=0, edge_attr=True):
    generator = torch.Generator().manual_seed(seed)

    def randint(high, *shape):
        return torch.randint(0, high, shape, generator=generator)

    graphs = []
    for i in range(num_graphs):
        num_nodes = int(randint(5)) + (i < 2)
        data = Data(
            x=randint(2, num_nodes, 3).float(),
            edge_index=randint(max(num_nodes, 1), 2, int(randint(7))),
            y=torch.tensor([[i % 2]]),
        )
        if num_nodes == 0:
            data.edge_index = data.edge_index[:, :0]
        if edge_attr:
            data.edge_attr = randint(2, data.num_edges, 2)
        graphs.append(data)
    return graphs


def measure(out):
    if isinstance(out, SharedTrees):
        return out.report().num_shared_bytes
    tensors = [x for data in out for x in data.to_dict().values()]
    return sum(x.numel() * x.element_size() for x in tensors)


def keys(out):
    """Returns graphs as lists, without their weights."""
    if isinstance(out, SharedTrees):
        out = trees_to_graphs(out)
    rows = [{k: v.tolist() for k, v in data.to_dict().items()} for data in out]
    return [[row.pop('weight'), row][1] for row in rows]


@given(
    seed=st.integers(0, 10**6),
    ratio=st.floats(0.01, 1.0),
    in_bytes=st.booleans(),
    selection=st.sampled_from(['herding', 'random', 'patterns']),
    share=st.booleans(),
    gcn_norm=st.booleans(),
)
@settings(max_examples=20)
def test_budgets(seed, ratio, in_bytes, selection, share, gcn_norm):
    graphs = make_graphs(seed=seed)
    kwargs = dict(selection=selection, share=share, gcn_norm=gcn_norm)
    total = sum(measure([data]) for data in graphs)
    budget = dict(ratio=ratio)
    if in_bytes:
        budget = dict(num_bytes=max(int(3 * ratio * total), 1))
    condense = MirageCondense(2, **budget, **kwargs)
    limit = budget.get('num_bytes', ratio * total)
    everything = MirageCondense(2, num_graphs=1000, **kwargs)(graphs)
    smallest = MirageCondense(2, num_graphs=2, **kwargs)(graphs)
    if measure(smallest) > limit:
        with pytest.raises(ValueError, match='is too small for one graph'):
            condense(graphs)
        return
    out = condense(graphs)
    size = len(out)
    assert measure(out) <= limit
    assert measure(out) == condense.report().num_condensed_bytes
    assert condense.report().num_bytes == total
    assert keys(out) == keys(everything)[:size]
    if size < len(everything):  # One more graph exceeds the budget.
        kwargs['num_graphs'] = size + 1
        assert measure(MirageCondense(2, **kwargs)(graphs)) > limit


@pytest.mark.parametrize('selection', ['herding', 'random', 'patterns'])
def test_larger_budgets_add_graphs(selection):
    graphs = make_graphs(40)
    sizes, last = [], []
    for num_bytes in range(1000, 6000, 1000):
        condense = MirageCondense(
            2, num_bytes=num_bytes, selection=selection, max_patterns=50
        )
        out = keys(condense(graphs))
        assert out[: len(last)] == last
        sizes.append(len(out))
        last = out
    assert sizes[0] < sizes[2] < sizes[-1]


@pytest.mark.parametrize('share', [False, True])
@pytest.mark.parametrize('selection', ['herding', 'random', 'patterns'])
@pytest.mark.parametrize('name', ['num_bytes', 'ratio'])
def test_budget_that_is_too_small(name, selection, share):
    graphs = make_graphs(40)
    kwargs = dict(selection=selection, share=share)
    low = dict(num_bytes=1, ratio=1e-6)[name]
    match = f"'{name}' .* 2 classes, which takes .* .got {low}.$"
    with pytest.raises(ValueError, match=match) as info:
        MirageCondense(2, **{name: low}, **kwargs)(graphs)
    needed = re.search(r'which takes ([^ ]+) ', str(info.value)).group(1)
    # The value in the message is enough, and slightly less is too small:
    value = type(low)(needed)
    assert len(MirageCondense(2, **{name: value}, **kwargs)(graphs)) >= 2
    value = value - 1 if name == 'num_bytes' else value * 0.99
    with pytest.raises(ValueError, match=match.replace(str(low), f'{value}')):
        MirageCondense(2, **{name: value}, **kwargs)(graphs)


def test_too_few_graphs():
    with pytest.raises(ValueError, match=r'which takes 2 \(got 1\)'):
        MirageCondense(2, num_graphs=1)(make_graphs())
