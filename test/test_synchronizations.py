"""Compare how often the host waits for the device with the documentation."""

import csv

import pytest
import torch

import accelerator
import torch_geometric_ext as package
from synchronizations import CASES, STEP, TABLE, count

ROOMS = ['data', 'full_batch', 'loader', 'lottery', 'nn', 'sparsity']
ROOMS += ['transforms', 'utils']
NAMES = {name for room in ROOMS for name in getattr(package, room).__all__}

# It adds self-loops in each pass.
WAITING = ['torch_geometric.nn.GCNConv']

with TABLE.open(newline='') as file:
    ROWS = {(row['Name'], row['Unit']): row for row in csv.DictReader(file)}

pytestmark = pytest.mark.skipif(
    not accelerator.is_available(), reason='PyTorch has no Python devices'
)


@pytest.mark.parametrize(
    'name, unit, prepare', CASES, ids=[f'{x.name}-{x.unit}' for x in CASES]
)
def test_waits(name, unit, prepare):
    syncs = count(prepare, accelerator.device())
    if unit == STEP and name not in WAITING:
        assert syncs == []
    assert len(syncs) == int(ROWS[name, unit]['Waits']), syncs


def test_table_is_complete():
    assert set(ROWS) == {(name, unit) for name, unit, _ in CASES}
    assert NAMES - {name for name, _, _ in CASES} == set()


def test_waits_are_recorded():
    device = accelerator.device()
    x = torch.arange(4.0, device=device)
    mask, index = x > 1, torch.tensor([0])
    for wait in [
        lambda: x.sum().item(),
        lambda: x.tolist(),
        lambda: x.cpu(),
        lambda: bool(mask.any()),
        lambda: x[mask],
        lambda: x[index],
        lambda: x.nonzero(),
        lambda: x.unique(),
        lambda: torch.equal(x, x),
        lambda: torch.tensor([1.0], device=device),
        lambda: x.repeat_interleave(mask.long()),
    ]:
        with accelerator.record_syncs() as syncs:
            wait()
        assert len(syncs) > 0
        assert 'test_synchronizations.py' in syncs[0].stack
    with accelerator.record_syncs() as syncs:
        x[mask.long()] = 2 * x.masked_fill(mask, 0)
        index.to(device, non_blocking=True)
    assert syncs == []


def test_devices_do_not_mix():
    x = torch.ones(3, device=accelerator.device())
    assert x.device.type == 'pretend'
    with pytest.raises(RuntimeError, match='to be on the same device'):
        x + torch.ones(3)
    with pytest.raises(TypeError, match='to numpy'):
        x.numpy()
    assert (x + torch.tensor(1.0)).tolist() == [2, 2, 2]
