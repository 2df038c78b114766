import copy

import pytest
import torch
import torch.nn.functional as F

from devices import withDevice
from torch_geometric_ext.nn import SparseLinear
from torch_geometric_ext.sparsity import SET, GradualMagnitude, RigL
from torch_geometric_ext.sparsity.blocks import ActiveBlocks


def build(sparsity=0.5, **kwargs):
    torch.manual_seed(0)
    layer = SparseLinear(44, 36, sparsity=sparsity, block_size=8, **kwargs)
    return layer, torch.optim.Adam(layer.parameters(), lr=0.01)


def train_step(layer, optimizer, scheduler):
    optimizer.zero_grad()
    x = torch.randn(30, 44, device=layer.values.device)
    (layer(x) - x[:, :36]).square().mean().backward()
    optimizer.step()
    scheduler.step()
    return x


def to_blocks(x):
    """The blocks of a matrix, padded with zeros, and their sizes."""
    ones = F.pad(torch.ones_like(x), (0, 4, 0, 4))
    return [
        y.view(5, 8, 6, 8).transpose(1, 2).flatten(2)
        for y in [F.pad(x, (0, 4, 0, 4)), ones]
    ]


@withDevice
@pytest.mark.parametrize('cls', [RigL, SET])
def test_schedulers_move_blocks(device, cls):
    layer, optimizer = build()
    layer = layer.to(device)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.01)
    scheduler = cls(layer, optimizer, num_steps=40, update_every=5)
    pointer, shape = layer.values.data_ptr(), layer.values.shape
    masks = [layer.mask]
    for _ in range(10):
        train_step(layer, optimizer, scheduler)
        masks.append(layer.mask)
    assert layer.values.data_ptr() == pointer  # Overwritten in-place.
    assert layer.values.shape == shape and layer.col.numel() == 15
    assert not torch.equal(masks[4], masks[5])
    assert torch.equal(masks[5], masks[9])
    for mask in masks:  # Blocks are active as a whole.
        active, sizes = to_blocks(mask.float())
        count = active.sum(-1)
        assert ((count == 0) | (count == sizes.sum(-1))).all()
    union = torch.stack(masks).any(0)
    assert scheduler.explored == pytest.approx(union.float().mean().item())


def test_rigl_grows_blocks_of_large_gradients():
    layer, optimizer = build()
    scheduler = RigL(
        layer, optimizer, num_steps=40, update_every=1, drop_fraction=0.4
    )
    before = layer.weight.detach(), layer.mask
    other = copy.deepcopy(layer.to_dense())
    x = train_step(layer, optimizer, scheduler)
    (other(x) - x[:, :36]).square().mean().backward()
    grad, sizes = to_blocks(other.weight.grad)
    score = grad.square().sum(-1) / sizes.sum(-1)
    old, new = (
        to_blocks(m.float())[0][..., 0] > 0 for m in (before[1], layer.mask)
    )
    is_whole = sizes.sum(-1) == 64
    grown = new & ~old & is_whole
    rest = ~new & ~old & is_whole
    assert grown.any() and rest.any()
    assert score[grown].min() >= score[rest].max()
    dropped, kept = old & ~new & is_whole, old & new & is_whole
    assert grown.sum() == dropped.sum()
    # A step of Adam changes each weight by at most the learning rate:
    norm = to_blocks(before[0])[0].square().mean(-1).sqrt()
    assert norm[dropped].max() <= norm[kept].min() + 0.02
    is_new = layer.mask & ~before[1]
    assert (layer.weight[is_new] == 0).all()


def test_rigl_grows_allowed_blocks_only():
    layer, optimizer = build(sparsity=0.9)
    allowed = layer.mask
    allowed[:16, :16] = True
    allowed[16:24, :7] = True  # Not the whole block.
    scheduler = RigL(
        layer,
        optimizer,
        num_steps=40,
        update_every=1,
        drop_fraction=1.0,
        allowed={'': allowed},
    )
    for _ in range(5):
        train_step(layer, optimizer, scheduler)
        assert not (layer.mask & ~allowed).any()


@pytest.mark.parametrize('global_ranking', [False, True])
def test_gradual_magnitude_prunes_blocks(global_ranking):
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        SparseLinear(44, 36, sparsity=0.0, block_size=8),
        SparseLinear(36, 20, sparsity=0.0, block_size=16),
        SparseLinear(20, 12, sparsity=0.0),
    )
    optimizer = torch.optim.Adam(model.parameters())
    scheduler = GradualMagnitude(
        model,
        optimizer,
        num_steps=12,
        update_every=2,
        sparsity=0.8,
        stop=0.5,
        global_ranking=global_ranking,
    )
    for _ in range(12):
        optimizer.zero_grad()
        model(torch.randn(9, 44)).square().sum().backward()
        optimizer.step()
        scheduler.step()
    layers = list(model)
    total = sum(x.values.numel() for x in layers)
    size = sum(round(0.2 * x.grid.size[0] * x.grid.size[1]) for x in layers)
    assert size - 256 < total <= size
    if not global_ranking:
        assert all(0.8 <= round(x.sparsity, 2) < 0.95 for x in layers)
    assert optimizer.state[layers[0].values]['exp_avg'].shape == (
        layers[0].values.shape
    )


def test_magnitudes_of_blocks():
    layer, _ = build()
    active = ActiveBlocks.of(layer)
    values, sizes = to_blocks(layer.weight.detach())
    square = values.square().sum(-1) / sizes.sum(-1)
    expected = square.flatten()[active.position].sqrt()
    torch.testing.assert_close(active.magnitude, expected)
    count = sizes.sum(-1).flatten()[active.position].long()
    assert torch.equal(active.num_weights, count)
    assert torch.equal(active.owner.bincount(), count)
