import pytest
import torch
from hostile_states import check_hostile_states
from torch.utils.data import SequentialSampler
from torch_geometric.datasets import FakeDataset
from torch_geometric.loader import DataLoader

from devices import withDevice
from torch_geometric_ext.data import IndexedDataset
from torch_geometric_ext.loader import (
    NodeBudgetBatchSampler,
    SoftRandomSampler,
)
from torch_geometric_ext.loader.node_budget_batch_sampler import (
    _split_largest,
)


def fill(order, sizes, max_num):
    """Fill mini-batches one graph at a time."""
    batches, total = [], 0
    for i in order:
        if not batches or total + sizes[i] > max_num:
            batches, total = [*batches, []], 0
        batches[-1].append(i)
        total += sizes[i]
    return batches


@pytest.mark.parametrize('max_num', [1, 7, 30, 10**6])
def test_node_budget_batch_sampler(max_num):
    sizes = torch.randint(0, 20, (200,), generator=torch.manual_seed(1))
    sampler = SoftRandomSampler(200, keep_ratio=0.4, num_epochs=5)
    other = SoftRandomSampler(200, keep_ratio=0.4, num_epochs=5)
    batch_sampler = NodeBudgetBatchSampler(sampler, sizes, max_num)
    for _ in range(3):
        out, order = list(batch_sampler), list(other)
        assert out == fill(order, sizes.tolist(), max_num)
        assert len(batch_sampler) == len(out)
        for batch in out:
            assert sizes[batch].sum() <= max_num or len(batch) == 1


def test_too_big():
    sizes = torch.tensor([9, 1, 9, 2, 3, 9])
    order = [0, 1, 2, 3, 4, 5, 1]
    args = order, sizes, 6
    out = list(NodeBudgetBatchSampler(*args))
    assert out == [[0], [1], [2], [3, 4], [5], [1]]
    out = list(NodeBudgetBatchSampler(*args, too_big='skip'))
    assert out == [[1, 3, 4], [1]]
    with pytest.raises(ValueError, match=r'largest graph, 9 \(got 6\)'):
        NodeBudgetBatchSampler(*args, too_big='error')
    assert list(NodeBudgetBatchSampler(order, sizes, 8, too_big='skip')) == [
        [1, 3, 4, 1]
    ]
    assert list(NodeBudgetBatchSampler([0], sizes, 8, too_big='skip')) == []
    assert list(NodeBudgetBatchSampler([], sizes, 8)) == []


def test_set_epoch_plans_the_next_iterator():
    sampler = SoftRandomSampler(50, keep_ratio=0.5, num_epochs=9, seed=2)
    sizes = torch.arange(50) % 7
    batch_sampler = NodeBudgetBatchSampler(sampler, sizes, max_num=15)
    with pytest.raises(TypeError, match="Call 'set_epoch' first"):
        len(batch_sampler)
    expected = SoftRandomSampler(50, keep_ratio=0.5, num_epochs=9, seed=2)
    for epoch in range(3):
        batch_sampler.set_epoch(epoch)
        length = len(batch_sampler)
        # The sampler has not started, so that a checkpoint repeats the epoch:
        assert not sampler.state_dict()['started']
        out = list(batch_sampler)
        assert len(out) == length
        assert sum(out, []) == list(expected)
        assert sampler.epoch == epoch
    # The epoch can also be set in the sampler:
    sampler.set_epoch(3)
    assert sum(batch_sampler, []) == list(expected)
    assert len(sampler.history()['epoch']) == 4


@withDevice
@pytest.mark.parametrize('num_workers', [0, 2])
def test_data_loader(device, num_workers):
    dataset = IndexedDataset(FakeDataset(num_graphs=40, avg_num_nodes=20))
    sampler = SoftRandomSampler(dataset, keep_ratio=0.5, num_epochs=3)
    batch_sampler = NodeBudgetBatchSampler(
        sampler, dataset, max_num=300, mode='edge'
    )
    loader = DataLoader(
        dataset, batch_sampler=batch_sampler, num_workers=num_workers
    )
    for _ in range(3):
        seen, num_steps = [], 0
        for batch in loader:
            batch = batch.to(device)
            assert batch.num_edges <= 300 or batch.num_graphs == 1
            seen += batch.graph_idx.tolist()
            num_steps += 1
        sampler.set_epoch(sampler.epoch)
        assert seen == list(sampler)
        assert len(loader) == num_steps
    assert str(batch_sampler) == (
        'NodeBudgetBatchSampler(SoftRandomSampler(40, keep_ratio=0.5, '
        "num_epochs=3), max_num=300, mode='edge')"
    )


def test_other_samplers():
    dataset = FakeDataset(num_graphs=10)
    out = NodeBudgetBatchSampler(SequentialSampler(dataset), dataset, 10**4)
    assert sum(out, []) == list(range(10))
    with pytest.raises(AttributeError, match='set_epoch'):
        out.set_epoch(1)


def test_errors():
    sizes = torch.ones(3, dtype=torch.long)
    with pytest.raises(ValueError, match=r"'max_num' .* one \(got 0\)"):
        NodeBudgetBatchSampler(range(3), sizes, 0)
    with pytest.raises(ValueError, match=r"'mode' .* \(got graph\)"):
        NodeBudgetBatchSampler(range(3), sizes, 9, mode='graph')
    with pytest.raises(ValueError, match=r"'too_big' .* \(got drop\)"):
        NodeBudgetBatchSampler(range(3), sizes, 9, too_big='drop')
    with pytest.raises(ValueError, match=r"'dataset' .* \(got torch.float32"):
        NodeBudgetBatchSampler(range(3), sizes.float(), 9)


@pytest.mark.parametrize(
    'num_batches, ends',
    [
        (1, [3, 8]),  # Nothing is joined.
        (2, [3, 8]),
        (3, [3, 5, 8]),
        (4, [1, 3, 5, 8]),
        (99, [1, 2, 3, 4, 5, 6, 7, 8]),
    ],
)
def test_largest_batches_are_split(num_batches, ends):
    assert _split_largest([3, 8], num_batches) == ends


def run_rank(path):
    rank = torch.distributed.get_rank()
    # Rank 1 draws the large graphs, and needs more mini-batches:
    sizes = torch.tensor([1, 9] * 10)
    sampler = SoftRandomSampler(20, keep_ratio=1.0, num_epochs=3)
    order = torch.arange(20)
    sampler._draw = lambda epoch: order
    out = []
    for too_big in ['single', 'skip']:
        batch_sampler = NodeBudgetBatchSampler(
            sampler, sizes, max_num=8, too_big=too_big
        )
        batch_sampler.set_epoch(sampler.epoch + 1)
        length = len(batch_sampler)
        batches = list(batch_sampler)
        assert length == len(batches)
        sampler.set_epoch(sampler.epoch)
        out.append((list(sampler), batches))
    torch.save(out, f'{path}/{rank}.pt')


def test_two_ranks(run_ranks, tmp_path):
    run_ranks(__file__)
    ranks = [torch.load(tmp_path / f'{rank}.pt') for rank in range(2)]
    sizes = torch.tensor([1, 9] * 10)
    counts = []
    for case, too_big in enumerate(['single', 'skip']):
        steps = [len(rank[case][1]) for rank in ranks]
        assert steps[0] == steps[1]
        plain = []
        for rank in ranks:
            order, batches = rank[case]
            small = [i for i in order if sizes[i] <= 8]
            graphs = order if too_big == 'single' else small
            assert sum(batches, [])[: len(graphs)] == graphs
            assert all(
                sizes[batch].sum() <= 8 or len(batch) == 1 for batch in batches
            )
            plain.append(len(fill(graphs, sizes.tolist(), 8)))
        assert steps[0] == max(plain)
        counts.append(plain)
    assert any(a != b for a, b in counts)  # Ranks had to be levelled.


def test_hostile_states():
    sizes = torch.arange(20) % 5 + 1

    def make():
        out = []
        for num_epochs in [1, 2]:
            sampler = SoftRandomSampler(20, 0.5, num_epochs=9)
            batch_sampler = NodeBudgetBatchSampler(sampler, sizes, 8)
            for _ in range(num_epochs):
                list(batch_sampler)
            out.append(batch_sampler)
        return out[0], out[1].state_dict()

    def behave(batch_sampler):
        out = [list(batch_sampler) for _ in range(2)]
        return [out, len(batch_sampler), batch_sampler.state_dict()]

    check_hostile_states(make, behave)


def test_states_of_other_samplers():
    # An iterable has no state of its own:
    batch_sampler = NodeBudgetBatchSampler(range(5), torch.ones(5).long(), 2)
    iterator = iter(batch_sampler)
    states = [(iterator.state_dict(), batch_sampler.state_dict())]
    first = next(iterator)
    states.append((iterator.state_dict(), batch_sampler.state_dict()))
    other = NodeBudgetBatchSampler(range(5), torch.ones(5).long(), 2)
    for (position, state), rest in zip(states, [3, 2]):
        other.load_state_dict(state)
        iterator = iter(other)
        iterator.load_state_dict(position)
        assert len(list(iterator)) == rest
    assert [first, *other] == [[0, 1], [0, 1], [2, 3], [4]]
    with pytest.raises(ValueError, match="'position'"):
        iter(other).load_state_dict({'position': 4})
