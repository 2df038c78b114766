import contextlib
import json
import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import Parameter

import torch_geometric_ext.ops.gpu_choice as gpu_choice
import torch_geometric_ext.ops.gpu_crossovers as gpu_crossovers
from torch_geometric_ext.nn import SparseLinear
from torch_geometric_ext.ops import calibrate
from torch_geometric_ext.ops.calibration_file import VARIABLE
from torch_geometric_ext.ops.crossovers import ROWS, SIZE, WIDTHS
from torch_geometric_ext.ops.gpu_choice import (
    BOTH,
    FORWARD,
    VALUES,
    describe,
    get_key,
    interpolate,
    prefers_sparse,
    read_tables,
    set_tables,
    write_tables,
)
from torch_geometric_ext.ops.gpu_crossovers import measure_gpu_crossovers
from torch_geometric_ext.ops.triton_launch import has_triton
from triton_kernels import DEVICE

BLOCK_SIZES = [1, 8, 16, 32]
GPU = torch.device('cuda', 0)


@pytest.fixture(autouse=True)
def gpu(monkeypatch, tmp_path):
    """Pretends that there is a GPU, whose calibrations are lost."""
    if not has_triton():
        pytest.skip('Triton is not installed')
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'get_device_name', lambda device: 'A card')
    monkeypatch.setenv(VARIABLE, str(tmp_path / 'folder'))
    restart(monkeypatch)
    yield
    gpu_choice._find.cache_clear()
    gpu_choice._card_name.cache_clear()


def restart(monkeypatch):
    """Forgets what a process has read."""
    monkeypatch.setattr(gpu_choice, '_tables', {})
    gpu_choice._find.cache_clear()
    gpu_choice._card_name.cache_clear()


def make_tables(density):
    return {size: SIZE * [density] for size in BLOCK_SIZES}


def prefers(num_weights, dtype=torch.float, product=FORWARD, block_size=1):
    """The choice for a weight of 100 elements."""
    x = SimpleNamespace(
        is_cuda=True, dtype=dtype, device=GPU, size=lambda dim: 64
    )
    return prefers_sparse(x, product, (20, 5), num_weights, block_size)


def test_products_are_dense_without_a_calibration():
    for dtype in [torch.float, torch.double, torch.bfloat16, torch.half]:
        for block_size in BLOCK_SIZES:
            assert not prefers(0, dtype, block_size=block_size)


def test_products_are_chosen_by_their_density():
    set_tables(get_key(GPU, torch.float), make_tables(0.5))
    for block_size in BLOCK_SIZES:
        assert prefers(49, block_size=block_size)
        assert not prefers(50, block_size=block_size)
    assert not prefers(1, torch.double)
    assert not prefers_sparse(torch.ones(2, 5), FORWARD, (20, 5), 1, 1)


def test_each_product_has_densities():
    tables = make_tables(0.0)
    size = SIZE // 3
    tables[8] = size * [0.1] + size * [0.3] + size * [0.2]
    set_tables(get_key(GPU, torch.float), tables)
    for product, bound in [(FORWARD, 10), (VALUES, 30), (BOTH, 20)]:
        args = (torch.float, product, 8)
        assert prefers(bound - 1, *args) and not prefers(bound + 1, *args)


def test_tf32_has_a_calibration_of_its_own(monkeypatch):
    set_tables(get_key(GPU, torch.float), make_tables(0.5))
    set_tables(get_key(GPU, torch.bfloat16), make_tables(0.5))
    monkeypatch.setattr(gpu_choice, 'allows_tf32', lambda: True)
    assert not prefers(1) and prefers(1, torch.bfloat16)


def test_transforms_and_modes_are_dense():
    set_tables(get_key(GPU, torch.float), make_tables(1.0))
    found = []

    def call(x):
        found.append(prefers(1))
        return x

    call(None)
    torch.func.vmap(call)(torch.ones(2))
    with FakeTensorMode():
        call(None)
        x = torch.empty(2, 5, device='cuda')
    found.append(prefers_sparse(x, FORWARD, (20, 5), 1, 1))
    assert found == [True, False, False, False]


@given(st.integers(-5, 2**40), st.integers(-5, 2**40), st.integers(-5, 2**40))
def test_densities_are_interpolated(num_rows, in_channels, out_channels):
    # A linear function of the logarithms:
    table = [
        (math.log2(r) + 2 * math.log2(i) + 3 * math.log2(o)) / 72 + product
        for product in range(3)
        for r in ROWS
        for i in WIDTHS
        for o in WIDTHS
    ]
    sizes = (num_rows, in_channels, out_channels)
    expected = sum(
        weight * math.log2(min(max(size, low), 4096)) / 72
        for size, weight, low in zip(sizes, [1, 2, 3], [1, 16, 16])
    )
    for product in range(3):
        found = interpolate(table, product, *sizes)
        assert abs(found - product - expected) < 1e-9


def test_files(monkeypatch, tmp_path):
    key, tables = get_key(GPU, torch.float), make_tables(0.5)
    assert read_tables(key) is None
    path = write_tables(key, tables)
    content = json.loads((tmp_path / 'folder' / path).read_text())
    assert content['machine'] == describe(key)
    assert content['machine']['card'] == 'A card'
    assert read_tables(key) == tables and prefers(49)
    assert read_tables(get_key(GPU, torch.double)) is None
    monkeypatch.setattr(torch.cuda, 'get_device_name', lambda device: 'B card')
    restart(monkeypatch)
    assert not prefers(49)

    monkeypatch.setenv(VARIABLE, 'off')
    assert write_tables(key, tables) is None and read_tables(key) is None
    monkeypatch.setenv(VARIABLE, str(tmp_path / 'new' / 'node.json'))
    path = write_tables(key, tables)  # The named file holds for CPUs.
    assert path.startswith(str(tmp_path / 'new')) and 'node' not in path
    (tmp_path / 'file').touch()
    monkeypatch.setenv(VARIABLE, str(tmp_path / 'file' / 'folder'))
    assert write_tables(key, tables) is None


@pytest.mark.parametrize(
    'change',
    [
        lambda content: None,
        lambda content: [],
        lambda content: {**content, 'version': 2},
        lambda content: {**content, 'machine': {}},
        lambda content: {**content, 'crossovers': 5},
        lambda content: {**content, 'crossovers': {'1': SIZE * [0.5]}},
        lambda content: {**content, 'crossovers': {'1': SIZE * [2.0]}},
    ],
)
def test_damaged_files_are_not_read(change):
    key = get_key(GPU, torch.float)
    path = write_tables(key, make_tables(0.5))
    content = json.loads(open(path).read())
    with open(path, 'w') as file:
        json.dump(change(content), file)
    assert read_tables(key) is None and not prefers(1)


def test_calibrate(monkeypatch):
    calls = []

    def measure(dtype, device, block_size):
        calls.append((dtype, device, block_size))
        return SIZE * [0.25 if block_size == 1 else 0.5]

    monkeypatch.setattr(gpu_crossovers, 'measure_gpu_crossovers', measure)
    assert not prefers(1, torch.half)
    report = calibrate(torch.half, 'cuda')
    device = torch.device('cuda')
    assert calls == [(torch.half, device, size) for size in BLOCK_SIZES]
    assert report.dtype == torch.half and report.device == 'A card'
    assert report.seconds > 0
    for _ in range(2):
        assert prefers(24, torch.half) and not prefers(26, torch.half)
        assert prefers(49, torch.half, block_size=16)
        restart(monkeypatch)  # Later processes read the file.
    assert read_tables(get_key(GPU, torch.half))[8] == SIZE * [0.5]


def test_calibrate_invalid(monkeypatch):
    with pytest.raises(ValueError, match="'device' of 'calibrate' needs"):
        calibrate(device='meta')
    with pytest.raises(ValueError, match="'dtype' of 'calibrate' needs"):
        calibrate(torch.long, 'cuda')
    with pytest.raises(ValueError, match="'dtype' of 'calibrate' needs"):
        calibrate(torch.half)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    with pytest.raises(RuntimeError, match='needs a GPU and Triton'):
        calibrate(device='cuda')


@pytest.mark.parametrize('block_size', [1, 8])
def test_layers_tell_the_density_of_their_device(block_size):
    lin = SparseLinear(64, 32, block_size=block_size)
    with FakeTensorMode():
        values = torch.empty(lin.values.numel(), device=GPU)
    lin.values = Parameter(values)
    assert lin.crossover() == 0
    set_tables(get_key(GPU, torch.float), make_tables(0.75))
    assert lin.crossover(1) == 0.75 and 'dense_above=0.75' in str(lin)


def small_sizes(monkeypatch):
    monkeypatch.setattr(gpu_crossovers, 'ROWS', [1, 3])
    monkeypatch.setattr(gpu_crossovers, 'WIDTHS', [16, 64])
    monkeypatch.setattr(gpu_crossovers, 'DENSITIES', (0.2, 0.6))


@pytest.mark.parametrize('block_size', BLOCK_SIZES)
def test_measured_densities(monkeypatch, block_size):
    small_sizes(monkeypatch)

    def get_seconds(weight, is_sparse, needs):
        if not is_sparse:
            return 0.22 * weight.size[1] / 64
        density = weight.values.numel() / math.prod(weight.size)
        return (1 + sum(needs)) * density

    for name, is_sparse in [('sparse', True), ('dense', False)]:
        for product in ['multiply', 'backward']:
            # Both take two tensors, the weight, and perhaps the needs.
            monkeypatch.setattr(
                gpu_crossovers,
                f'{product}_{name}',
                lambda a, b, weight, needs=(), is_sparse=is_sparse: (
                    get_seconds(weight, is_sparse, needs)
                ),
            )
    args = (torch.float, torch.device('cpu'), block_size)
    out = measure_gpu_crossovers(*args, lambda run, device: run())
    out = torch.tensor(out).view(3, 2, 2, 2)
    # A margin of 1.1:
    expected = torch.tensor([0.2, 0.1, 0.2 / 3]).view(3, 1, 1, 1)
    expected = expected * torch.tensor([0.25, 1]).view(1, 1, 2, 1)
    assert (out[:, :, 1, 1] > 0).all()
    few = out == 0  # Both masks have the same blocks, or none.
    assert few.any() == (block_size == 32)
    assert torch.allclose(out, expected.masked_fill(few, 0), atol=1e-4)


@pytest.mark.parametrize(
    'dtype, block_size',
    [
        (torch.float, 1),
        (torch.half, 8),
        (torch.half, 16),
        (torch.float, 32),
    ],
)
def test_measured_kernels_run(monkeypatch, triton_kernels, dtype, block_size):
    small_sizes(monkeypatch)
    found = []

    def time_run(run, device):
        found.append(run())
        return 1.0

    args = (dtype, DEVICE, block_size)
    measure_gpu_crossovers(*args, time_run)
    assert len(found) % 9 == 0 and len(found) > 0
    for i in range(0, len(found), 9):
        # Sparse and dense products of the same weight:
        torch.testing.assert_close(found[i + 3], found[i + 6])
        torch.testing.assert_close(found[i + 5], found[i + 8])


def test_timer(monkeypatch):
    clock = [0.0]  # Milliseconds.

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            self.time = clock[0]

        def synchronize(self):
            clock[0] += 50  # Does not count.

        def elapsed_time(self, end):
            return end.time - self.time

    durations = []

    def run():
        durations.append(9.0 if len(durations) < 2 else 0.25 / len(durations))
        clock[0] += durations[-1]

    monkeypatch.setattr(torch.cuda, 'Event', Event)
    monkeypatch.setattr(
        torch.cuda, 'device', lambda device: contextlib.nullcontext()
    )
    seconds = gpu_crossovers.time_run(run, GPU)
    assert len(durations) == 2 + gpu_crossovers.REPETITIONS
    assert seconds == pytest.approx(durations[-1] / 1e3)
