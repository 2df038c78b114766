import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch.autograd import gradcheck

from devices import withDevice
from torch_geometric_ext.lottery.edges.edge_pairs import EdgePairs
from torch_geometric_ext.lottery.edges.edge_selection import (
    NUM_ROUNDS,
    prune_by_degree,
    prune_by_degree_product,
    prune_by_score,
    prune_randomly,
    spread_penalty,
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def naive_spread(score):
    diff = (score.view(-1, 1) - score).abs().mean()
    return (-diff / 2).exp() - score.var(unbiased=False).log()


@withDevice
@pytest.mark.parametrize('size', [2, 3, 10])
def test_spread_penalty(device, size):
    score = torch.randn(size, generator=generator(), dtype=torch.double)
    score = score.to(device).requires_grad_()
    out = spread_penalty(score)
    assert torch.allclose(out, naive_spread(score))
    assert gradcheck(spread_penalty, [score])


def naive_degree_product(ends, num_nodes, kept, size, noise):
    """Prune pairs in a loop over rounds."""
    num_kept = len(kept)
    for i in range(1, NUM_ROUNDS + 1):
        degree = [0] * num_nodes
        for j in kept:
            for node in ends[j]:
                degree[node] += 1
        product = {j: degree[ends[j][0]] * degree[ends[j][1]] for j in kept}
        step = round(num_kept + (size - num_kept) * i / NUM_ROUNDS)
        order = sorted(kept, key=lambda j: product[j] + noise[j])  # noqa: B023
        kept = order[:step]
    return sorted(kept)


NODES = st.integers(0, 7)
ENDS = st.lists(st.tuples(NODES, NODES), min_size=1, max_size=30)


@settings(max_examples=40)
@given(ENDS, st.data())
def test_prune_by_degree_product(ends, data):
    ends = sorted({(u, v) for u, v in ends if u != v}) or [(0, 1)]
    pairs = EdgePairs(torch.tensor(ends).t(), num_nodes=8)
    mask = torch.rand(pairs.num_pairs, generator=generator(1)) < 0.8
    size = data.draw(st.integers(0, int(mask.sum())))
    noise = torch.rand(mask.numel(), generator=generator()).tolist()
    out = prune_by_degree_product(mask, size, pairs, generator())
    expected = naive_degree_product(
        pairs.ends.t().tolist(),
        8,
        mask.nonzero().flatten().tolist(),
        size,
        noise,
    )
    assert out.nonzero().flatten().tolist() == expected


def test_prune_by_degree_product_of_hubs():
    # The edge between the hubs 0 and 1 is pruned first:
    leaves = torch.arange(2, 5002)
    hubs = torch.tensor([0, 1]).repeat(2500)
    edge_index = torch.stack([hubs, leaves])
    edge_index = torch.cat([edge_index, torch.tensor([[0], [1]])], dim=1)
    pairs = EdgePairs(edge_index, num_nodes=5002)
    mask = torch.ones(pairs.num_pairs, dtype=torch.bool)
    out = prune_by_degree_product(mask, 5000, pairs, generator())
    assert out.nonzero().flatten().tolist() == list(range(5000))


@withDevice
def test_prune_randomly(device):
    mask = torch.rand(50, generator=generator(1)).to(device) < 0.5
    size = int(mask.sum()) // 2
    out = prune_randomly(mask, size, generator())
    assert int(out.sum()) == size
    assert not (out & ~mask).any()
    assert torch.equal(out, prune_randomly(mask, size, generator()))
    assert not torch.equal(out, prune_randomly(mask, size, generator(2)))
    assert torch.equal(
        prune_randomly(mask, 2 * size, generator()) | mask, mask
    )


def test_prune_by_degree():
    # All nodes of a clique have larger degrees than those of a path:
    clique = torch.combinations(torch.arange(9)).t()
    path = torch.stack([torch.arange(10, 15), torch.arange(11, 16)])
    pairs = EdgePairs(torch.cat([clique, path], dim=1), num_nodes=16)
    mask = torch.ones(41, dtype=torch.bool)
    out = prune_by_degree(mask, 27, pairs, generator())
    assert out.sum() == 27 and out[36:].all()
    # Pairs are pruned at random once a third of them is pruned:
    outs = [prune_by_degree(mask, 12, pairs, generator(i)) for i in range(3)]
    assert all(x.sum() == 12 for x in outs)
    assert not all(x[36:].all() for x in outs)


@withDevice
def test_prune_by_score(device):
    scores = torch.tensor([0.5, -2.0, 0.0, 3.0, 0.1], device=device)
    mask = torch.tensor([1, 1, 1, 0, 1], device=device).bool()
    out = prune_by_score(mask, 2, scores)
    assert out.tolist() == [True, True, False, False, False]
    assert torch.equal(prune_by_score(mask, 4, scores), mask)
