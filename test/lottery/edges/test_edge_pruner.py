import pytest
import torch

from devices import withDevice
from torch_geometric_ext.lottery.edges.edge_pairs import EdgePairs
from torch_geometric_ext.lottery.edges.edge_pruner import EdgePruner
from torch_geometric_ext.lottery.edges.edge_selection import (
    prune_by_degree,
    prune_by_score,
    prune_randomly,
)


def generator():
    return torch.Generator().manual_seed(0)


@withDevice
@pytest.mark.parametrize('score', ['degree', 'learned', 'random'])
def test_edge_pruner(device, score):
    edge_index = torch.combinations(torch.arange(8)).t().to(device)
    pairs = EdgePairs(edge_index, num_nodes=8)
    pruner = EdgePruner(pairs, 0.3, score)
    assert pruner.target == 20
    mask = pruner.all_pairs()
    assert mask.device == device and mask.tolist() == [True] * 28
    scores = pruner.learned_scores(mask, generator())
    assert (scores is None) == (score != 'learned')
    if scores is not None:
        expected = prune_by_score(mask, 20, scores.score)
        scores = scores.score.detach()
    elif score == 'degree':
        expected = prune_by_degree(mask, 20, pairs, generator())
    else:
        expected = prune_randomly(mask, 20, generator())
    out = pruner.prune(mask, 20, scores, generator())
    assert torch.equal(out, expected) and out.sum() == 20
