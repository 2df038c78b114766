import torch

from torch_geometric_ext.loader import SoftRandomSampler


def test_soft_random_sampler():
    sampler = SoftRandomSampler(100, keep_ratio=0.3, num_epochs=20)
    assert str(sampler) == (
        'SoftRandomSampler(100, keep_ratio=0.3, num_epochs=20)'
    )
    epochs = [list(sampler) for _ in range(20)]
    assert all(len(set(epoch)) == 30 for epoch in epochs)
    assert len({tuple(sorted(epoch)) for epoch in epochs}) == 20
    assert set().union(*epochs) == set(range(100))

    same = SoftRandomSampler(100, keep_ratio=0.3, num_epochs=20)
    assert [list(same) for _ in range(20)] == epochs
    other = SoftRandomSampler(100, keep_ratio=0.3, num_epochs=20, seed=1)
    assert list(other) != epochs[0]

    same.load_state_dict(sampler.state_dict())
    assert list(same) == list(sampler)


def test_soft_random_sampler_is_uniform():
    sampler = SoftRandomSampler(10, keep_ratio=0.3, num_epochs=4000)
    count = torch.zeros(10)
    for _ in range(4000):
        count[list(sampler)] += 1
    error = (0.3 * 0.7 / 4000) ** 0.5
    assert ((count / 4000 - 0.3).abs() <= 4 * error).all()
