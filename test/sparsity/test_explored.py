import torch
from hypothesis import given
from hypothesis import strategies as st

from devices import withDevice
from torch_geometric_ext.sparsity.explored import Explored


def draw(size, generator):
    mask = torch.rand(400, generator=generator) < size
    return mask.nonzero().flatten()


@given(
    sizes=st.lists(st.floats(0, 0.3), max_size=12), seed=st.integers(0, 1000)
)
def test_explored_is_the_union(sizes, seed):
    generator = torch.Generator().manual_seed(seed)
    explored = Explored(draw(0.1, generator))
    expected = set(explored.index().tolist())
    new = draw(0.1, generator)
    for i, size in enumerate(sizes):
        # Every third time, others moved weights between two updates:
        old = draw(0.1, generator) if i % 3 == 2 else new
        grown, new = draw(size, generator), draw(0.1, generator)
        new = torch.cat([old[::2], grown]).unique()
        explored.update(old, grown, new)
        expected.update(old.tolist(), grown.tolist())
        sizes_of_sets = [x.numel() for x in explored._sets]
        assert sum(sizes_of_sets) <= 2 * max(sizes_of_sets)
    assert explored.index().tolist() == sorted(expected)


@withDevice
def test_explored_follows_the_device(device):
    explored = Explored(torch.tensor([0, 5]))
    old, grown = (torch.tensor([x], device=device) for x in [3, 9])
    explored.update(old, grown, torch.cat([old, grown]))
    assert explored.index().device == old.device
    assert explored.index().tolist() == [0, 3, 5, 9]
