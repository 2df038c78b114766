import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from torch_geometric_ext.nn.dense.distribution import layer_densities

SIZES = st.lists(
    st.tuples(st.integers(1, 300), st.integers(1, 300)),
    min_size=1,
    max_size=8,
)
SPARSITY = st.floats(0, 0.999)


def num_weights(sizes, densities):
    return [round(d * i * o) for d, (i, o) in zip(densities, sizes)]


def test_uniform():
    assert layer_densities([(8, 4), (4, 2)], 0.75, 'uniform') == [0.25, 0.25]


def test_er():
    sizes = [(10, 20), (20, 30), (30, 10)]
    # 110 of 1,100 weights, in proportion to I + O = 30, 50, 40:
    out = layer_densities(sizes, 0.9, 'er', min_fan_in=0)
    assert out == pytest.approx([27.5 / 200, 55 / 1.2 / 600, 110 / 3 / 300])
    assert layer_densities(sizes, 0.9, 'erk', min_fan_in=0) == out
    assert layer_densities(sizes, 0.9, min_fan_in=0) == out


def test_dense_layers():
    # 410 weights in proportion to I + O = 200, 11, 3: the last two layers, of
    # 10 and 2 weights, are dense, and the first one gets the other weights.
    sizes = [(100, 100), (10, 1), (1, 2)]
    out = layer_densities(sizes, 1 - 410 / 10012, min_fan_in=0)
    assert out == pytest.approx([398 / 10000, 1, 1])
    # At 488 / 254 weights per unit, the last layer would have 99.9 of 100:
    sizes = [(100, 100), (1, 1), (50, 2)]
    out = layer_densities(sizes, 1 - 488 / 10101, min_fan_in=0)
    assert out == pytest.approx([387 / 10000, 1, 1])


def test_min_fan_in():
    # Without a minimum, the last layer on Cora has one weight per output:
    sizes = [(1433, 16), (16, 7)]
    out = layer_densities(sizes, 0.98, min_fan_in=0)
    assert num_weights(sizes, out) == [454, 7]
    out = layer_densities(sizes, 0.98, min_fan_in=3)
    assert num_weights(sizes, out) == [440, 21]
    out = layer_densities(sizes, 0.96)
    assert num_weights(sizes, out) == [922 - 16 * 7, 16 * 7]
    assert out[1] == 1
    # Minimums take at most half of the weights, 230 of 461, of which they
    # have 16 (layer 1) and 7 (layer 2) parts of 23:
    out = layer_densities(sizes, 0.98)
    assert num_weights(sizes, out) == [391, 70]
    # Minimums of a wide layer do not starve a layer of few outputs:
    sizes = [(500, 512), (512, 3)]
    out = layer_densities(sizes, 0.99)
    expected = layer_densities(sizes, 0.99, min_fan_in=0)
    assert num_weights(sizes, out) == num_weights(sizes, expected)
    assert num_weights(sizes, out)[1] > 800


@given(SIZES, SPARSITY, st.sampled_from(['uniform', 'er', 'erk']))
def test_number_of_weights(sizes, sparsity, distribution):
    numel = sum(i * o for i, o in sizes)
    out = layer_densities(sizes, sparsity, distribution)
    assert all(0 <= density <= 1 for density in out)
    total = sum(num_weights(sizes, out))
    assert abs(total - round((1 - sparsity) * numel)) <= len(sizes) / 2 + 0.5


@given(SIZES, SPARSITY, st.integers(0, 5), st.booleans())
def test_proportions_within_bounds(sizes, sparsity, min_fan_in, uniform):
    distribution = 'uniform' if uniform else 'er'
    numel = sum(i * o for i, o in sizes)
    floors = [0 if uniform else min(min_fan_in / i, 1) for i, _ in sizes]
    needed = sum(floor * i * o for floor, (i, o) in zip(floors, sizes))
    budget = (1 - sparsity) * numel
    assume(needed < 0.999 * budget)
    args = (sizes, sparsity, distribution)
    out = layer_densities(*args, min_fan_in=min_fan_in)
    total = sum(d * i * o for d, (i, o) in zip(out, sizes))
    assert math.isclose(total, budget, rel_tol=1e-9)
    scales = [
        density if uniform else density * i * o / (i + o)
        for density, (i, o) in zip(out, sizes)
    ]
    # Clamping raises layers at their floor and lowers dense ones:
    above = [s for s, d, floor in zip(scales, out, floors) if d > floor]
    below = [s for s, d in zip(scales, out) if d < 1]
    assert max(above, default=0) <= min(below, default=math.inf) * (1 + 1e-9)


def test_errors():
    sizes = [(8, 4), (4, 2)]
    for args, kwargs, message in [
        ((sizes, 1.0), {}, r"'sparsity' .* \[0, 1\) \(got 1.0\)"),
        ((sizes, -0.1), {}, r"'sparsity' .* \[0, 1\) \(got -0.1\)"),
        ((sizes, 0.5, 'even'), {}, r"'distribution' .* \(got 'even'\)"),
        ((sizes, 0.5), {'min_fan_in': -1}, r'at least 0 \(got -1\)'),
        (([(0, 4)], 0.5), {}, r"'sizes' .* positive \(got \[\(0, 4\)\]\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            layer_densities(*args, **kwargs)
