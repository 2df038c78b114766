from itertools import permutations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import torch_geometric_ext.typing
from devices import withDevice
from torch_geometric_ext.ops import weighted_sample
from torch_geometric_ext.ops.weighted_sample import weighted_sample_reference

withKernels = pytest.mark.skipif(
    not torch_geometric_ext.typing.WITH_EXT,
    reason='the kernels are not installed',
)


def kernel(weight, noise, num_samples):
    op = torch.ops.torch_geometric_ext.weighted_sample
    return op(weight, noise, num_samples)


@withKernels
@given(
    size=st.integers(0, 200),
    fraction=st.floats(0, 1),
    levels=st.integers(1, 50),
    dtype=st.sampled_from([torch.float, torch.double]),
    seed=st.integers(0, 1000),
)
def test_weighted_sample_equals_reference(size, fraction, levels, dtype, seed):
    # Few levels of weight and noise give many ties and zero weights:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randint(levels + 1, (size,), generator=generator).to(dtype)
    noise = torch.randint(1, levels + 1, (size,), generator=generator).double()
    k = int(fraction * size)
    out = kernel(weight, noise, k)
    assert torch.equal(out, weighted_sample_reference(weight, noise, k))
    assert torch.equal(out, out.unique()) and out.numel() == k


@withKernels
@pytest.mark.parametrize('num_threads', [1, 2, 3])
@pytest.mark.parametrize('num_samples', [0, 1, 70_000, 299_999, 300_000])
def test_weighted_sample_of_large_input(num_threads, num_samples):
    generator = torch.Generator().manual_seed(12345)
    weight = torch.rand(300_000, generator=generator)
    weight[::3] = 0
    noise = torch.rand(300_000, generator=generator, dtype=torch.double) + 0.1
    noise[::5] = 0.5  # Ties across chunks.
    weight[::5] = 0.5
    expected = weighted_sample_reference(weight, noise, num_samples)
    default = torch.get_num_threads()
    try:
        torch.set_num_threads(num_threads)
        assert torch.equal(kernel(weight, noise, num_samples), expected)
        # Non-contiguous inputs:
        pair = torch.stack([weight.double(), noise], dim=1)
        out = kernel(pair[:, 0], pair[:, 1], num_samples)
        assert torch.equal(out, expected)
    finally:
        torch.set_num_threads(default)


def test_weighted_sample_distribution(ext):
    # The probability of each set, by enumeration of successive draws:
    weight = torch.tensor([1.0, 2.0, 3.0, 6.0, 0.0])
    expected = torch.zeros(5, 5)
    for i, j in permutations(range(4), 2):
        first = weight[i] / weight.sum()
        second = weight[j] / (weight.sum() - weight[i])
        expected[min(i, j), max(i, j)] += first * second

    generator = torch.Generator().manual_seed(12345)
    num_draws, count = 4000, torch.zeros(5, 5)
    for _ in range(num_draws):
        i, j = weighted_sample(weight, 2, generator).tolist()
        count[i, j] += 1
    error = (expected * (1 - expected) / num_draws).sqrt()
    assert ((count / num_draws - expected).abs() <= 4 * error).all()


def test_weighted_sample_of_zero_weights(ext):
    weight = torch.tensor([0.0, -0.0, 3.0, 0.0])
    assert weighted_sample(weight, 1).tolist() == [2]
    assert weighted_sample(weight, 3).tolist() == [0, 1, 2]
    assert weighted_sample(weight, 4).tolist() == [0, 1, 2, 3]
    assert weighted_sample(weight, 0).tolist() == []
    assert weighted_sample(weight[:0], 0).tolist() == []


def test_weighted_sample_is_the_same_with_and_without_kernels(monkeypatch):
    outs = []
    for with_ext in {False, torch_geometric_ext.typing.WITH_EXT}:
        monkeypatch.setattr(torch_geometric_ext.typing, 'WITH_EXT', with_ext)
        generator = torch.Generator().manual_seed(12345)
        weight = torch.rand(1000, generator=generator)
        outs.append(weighted_sample(weight, 300, generator))
    assert torch.equal(outs[0], outs[-1])


def test_weighted_sample_of_half_precision(ext):
    weight = torch.tensor([0.0, 1.0, 0.0], dtype=torch.bfloat16)
    assert weighted_sample(weight, 1).tolist() == [1]


def test_weighted_sample_errors(ext):
    with pytest.raises(ValueError, match=r'in \[0, 3\] \(got 4\)'):
        weighted_sample(torch.ones(3), 4)
    with pytest.raises(ValueError, match='one-dimensional floating point'):
        weighted_sample(torch.ones(3, 1), 1)
    with pytest.raises(ValueError, match='one-dimensional floating point'):
        weighted_sample(torch.ones(3, dtype=torch.long), 1)
    for value in [-1.0, float('nan'), float('inf')]:
        with pytest.raises(ValueError, match="'weight' needs to be non-neg"):
            weighted_sample(torch.tensor([1.0, value]), 1)


@pytest.mark.parametrize(
    'func',
    [pytest.param(kernel, marks=withKernels), weighted_sample_reference],
)
@pytest.mark.parametrize('value', [float('inf'), float('nan'), 0.0, -1.0])
def test_weighted_sample_of_invalid_noise(func, value):
    # The ratio of two infinite values is a NaN, of any sign.
    for weight in [value, 1.0]:
        with pytest.raises(ValueError, match="'noise' positive, both finite"):
            func(
                torch.tensor([weight, 1.0]),
                torch.tensor([value, 1.0], dtype=torch.double),
                1,
            )


def test_weighted_sample_of_invalid_types(ext):
    op = kernel if ext else weighted_sample_reference
    weight, noise = torch.ones(6), torch.ones(6, dtype=torch.double)
    for bad in [noise.float(), noise[1:]]:
        with pytest.raises(ValueError, match="'noise' needs to be a float64"):
            op(weight, bad, 3)
    for bad in [weight.half(), weight.view(2, 3)]:
        with pytest.raises(ValueError, match="'weight' needs to be a .*float"):
            op(bad, noise.view(bad.shape), 3)


@pytest.mark.parametrize('tiny', [5e-324, 1e-310])
@pytest.mark.parametrize('size', [2, 100_000])
def test_weighted_sample_of_tiny_weights(ext, tiny, size):
    weight = torch.zeros(size, dtype=torch.double)
    weight[-1] = tiny  # The arrival overflows.
    assert weighted_sample(weight, 1).tolist() == [size - 1]


@withKernels
def test_weighted_sample_opcheck():
    args = torch.rand(10), torch.rand(10, dtype=torch.double) + 0.1, 3
    op = torch.ops.torch_geometric_ext.weighted_sample.default
    torch.library.opcheck(op, args)


@withDevice
def test_weighted_sample_device(device, ext):
    generator = torch.Generator(device).manual_seed(12345)
    weight = torch.rand(100, device=device)
    out = weighted_sample(weight, 40, generator)
    assert out.device == weight.device
    assert out.unique().numel() == 40
