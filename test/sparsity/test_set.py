import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch._dynamo.testing

from devices import withDevice
from torch_geometric_ext.nn import SparseLinear
from torch_geometric_ext.sparsity import SET


def grow(layer, num_weights, seed=0):
    optimizer = torch.optim.SGD(layer.parameters(), 0.1)
    scheduler = SET(layer, optimizer, num_steps=9, update_every=1, seed=seed)
    return scheduler._grow('', layer.index, num_weights)


@withDevice
def test_set(device):
    torch.manual_seed(12345)
    layer = SparseLinear(20, 10, sparsity=0.9, seed=0).to(device)
    optimizer = torch.optim.Adam(layer.parameters())
    scheduler = SET(layer, optimizer, num_steps=20, update_every=2)
    num_remaining = []
    for _ in range(20):
        old = layer.index
        optimizer.zero_grad()
        layer(torch.randn(5, 20, device=device)).sum().backward()
        optimizer.step()
        scheduler.step()
        num_remaining.append(int(torch.isin(layer.index, old).sum()))
    assert layer.index.device.type == device.type
    assert layer.values.numel() == 20 and scheduler.explored > 0.1
    # Eq. (1) at steps 2, 4, ..., 14:
    assert num_remaining[1:14:2] == [14, 15, 16, 17, 18, 19, 20]
    assert set(num_remaining[::2] + num_remaining[14:]) == {20}


def test_set_depends_on_its_seed_only():
    layer = SparseLinear(20, 10, sparsity=0.9, seed=0)
    torch.manual_seed(1)
    out = grow(layer, 10)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    assert torch.equal(grow(layer, 10), out)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(grow(layer, 10, seed=1), out)


@pytest.mark.parametrize('sparsity', [0.1, 0.5, 0.9])
def test_set_grows_inactive_positions(sparsity):
    layer = SparseLinear(10, 10, sparsity=sparsity, seed=0)
    num_inactive = 100 - layer.values.numel()
    for num_weights in [1, num_inactive // 2, num_inactive]:
        out = grow(layer, num_weights)
        assert out.unique().numel() == num_weights
        assert not torch.isin(out, layer.index).any()
    everything = torch.cat([out, layer.index]).sort().values
    assert torch.equal(everything, torch.arange(100))


def test_set_grows_uniformly():
    layer = SparseLinear(5, 4, sparsity=0.6, seed=0)
    optimizer = torch.optim.SGD(layer.parameters(), 0.1)
    scheduler = SET(layer, optimizer, num_steps=9, update_every=1)
    count = torch.zeros(20)
    for _ in range(6000):
        count[scheduler._grow('', layer.index, 2)] += 1
    frequency = count[~layer.mask.flatten()] / 6000
    # Two of twelve positions per draw, within six standard errors:
    assert (frequency - 1 / 6).abs().max() < 6 * (5 / 36 / 6000) ** 0.5


def test_set_compiled():
    torch.manual_seed(12345)
    layer = SparseLinear(20, 10, sparsity=0.9, seed=0)
    optimizer = torch.optim.SGD(layer.parameters(), 0.1)
    scheduler = SET(layer, optimizer, num_steps=20, update_every=1)
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend('aot_eager')
    compiled = torch.compile(layer, backend=counter)
    x = torch.randn(5, 20)
    for _ in range(5):
        torch.testing.assert_close(compiled(x), layer(x))
        compiled(x).sum().backward()
        optimizer.step()
        num_frames = counter.frame_count
        scheduler.step()
    compiled(x)
    assert counter.frame_count == num_frames  # No recompilation.


def run_huge():
    import resource

    def peak():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10

    layer = SparseLinear(65_536, 65_536, sparsity=0.999, seed=0)
    optimizer = torch.optim.SGD(layer.parameters(), 0.1, momentum=0.9)
    layer.values.grad = torch.ones_like(layer.values)
    optimizer.step()
    scheduler = SET(layer, optimizer, num_steps=9, update_every=1)
    before, index = peak(), layer.index
    scheduler.step()
    assert layer.values.numel() == 4_294_967
    assert not torch.equal(layer.index, index)
    assert peak() - before < 500  # A dense mask would take 4,096 MB.


def test_set_huge_layer():
    pytest.importorskip('resource')
    command = [sys.executable, '-m', 'sparsity.test_set']
    folder = Path(__file__).parents[1]
    subprocess.run(command, cwd=folder, check=True, timeout=100)


if __name__ == '__main__':
    run_huge()
