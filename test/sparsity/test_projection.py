import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torch_geometric_ext.sparsity.projection import Projection


def project(weights, sparsity, distribution='uniform', granularity='element'):
    projection = Projection(
        {name: tuple(x.shape) for name, x in weights.items()},
        sparsity,
        distribution,
        granularity,
        block_size=2,
        min_fan_in=0,
        owner='Pruner',
    )
    return projection.masks(weights)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0.0, 0.25, 0.5, 0.75]))
def test_projection_is_the_closest_sparse_weight(seed, sparsity):
    weight = torch.randn(2, 4, generator=torch.Generator().manual_seed(seed))
    mask = project({'a': weight}, sparsity)['a']
    assert int(mask.sum()) == 8 * (1 - sparsity)
    own = weight.masked_fill(mask, 0.0).norm()
    for subset in itertools.combinations(range(8), int(mask.sum())):
        other = weight.flatten().clone()
        other[list(subset)] = 0.0
        assert own <= other.norm() + 1e-6


@pytest.mark.parametrize('distribution', ['uniform', 'er', 'erk', 'global'])
@pytest.mark.parametrize('sparsity', [0.3, 0.9, 0.987])
def test_number_of_weights_is_exact(distribution, sparsity):
    weights = {'a': torch.randn(31, 17), 'b': torch.randn(3, 31)}
    masks = project(weights, sparsity, distribution)
    total = sum(x.numel() for x in weights.values())
    kept = sum(int(x.sum()) for x in masks.values())
    assert kept == round((1 - sparsity) * total)


def test_global_compares_layers():
    weights = {
        'a': torch.tensor([[4.0, -3.0]]),
        'b': torch.tensor([[1.0, 2.0], [-5.0, 0.5]]),
    }
    masks = project(weights, 0.5, 'global')
    assert masks['a'].tolist() == [[True, True]]
    assert masks['b'].tolist() == [[False, False], [True, False]]


def test_global_without_remaining_weights():
    weights = {'a': torch.randn(2, 2), 'b': torch.randn(2, 2)}
    masks = project(weights, 0.99, 'global')
    assert not any(mask.any() for mask in masks.values())


@pytest.mark.parametrize('value', [0.75, np.float32(0.75), torch.tensor(0.75)])
def test_types_of_sparsity(value):
    weights = {'a': torch.randn(4, 4)}
    for sparsity in [value, {'a': value}]:
        for distribution in ['erk', 'global']:
            mask = project(weights, sparsity, distribution)['a']
            assert mask.sum() == 4


@pytest.mark.parametrize('value', [None, 'x', [0.5]])
def test_wrong_types_of_sparsity(value):
    for sparsity in [value, {'a': value}]:
        with pytest.raises(TypeError, match="'sparsity' of 'Pruner'"):
            project({'a': torch.randn(4, 4)}, sparsity)


def test_mapping_of_names_and_patterns():
    weights = {f'convs.{i}.lin': torch.randn(4, 5) for i in range(2)}
    weights['head'] = torch.randn(4, 5)
    sparsity = {'convs.1.*': 0.5, 'convs.*': 0.75}
    masks = project(weights, sparsity)
    assert {k: int(x.sum()) for k, x in masks.items()} == {
        'convs.0.lin': 5,
        'convs.1.lin': 10,  # The first pattern counts.
    }


def test_groups():
    weight = torch.tensor(
        [
            [3.0, 0.0, 0.1],
            [0.0, 3.0, 0.1],
            [1.0, 1.0, 9.0],
            [0.0, 0.0, 0.2],
        ]
    )
    rows = project({'a': weight}, 0.5, granularity='row')['a']
    assert rows.all(dim=1).tolist() == [True, False, True, False]
    assert not rows[[1, 3]].any()
    columns = project({'a': weight}, 2 / 3, granularity='column')['a']
    assert columns.all(dim=0).tolist() == [False, False, True]
    assert not columns[:, :2].any()
    # Of four blocks of 2 x 2, two of which are cut off:
    blocks = project({'a': weight}, 0.5, granularity='block')['a']
    assert (
        blocks.tolist()
        == [[True, True, False]] * 2 + [[False, False, True]] * 2
    )


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('granularity', ['row', 'column', 'block'])
def test_groups_of_half_precision(dtype, granularity):
    weight = torch.full((4, 4), 1e-5)  # Squares are zero in half precision.
    weight[2:, 2:] = 2e-5
    mask = project({'a': weight.to(dtype)}, 0.75, granularity=granularity)
    expected = project({'a': weight}, 0.75, granularity=granularity)
    assert torch.equal(mask['a'], expected['a'])


def test_blocks_larger_than_the_layer(monkeypatch):
    shapes = []
    pad = torch.nn.functional.pad

    def record(x, *args):
        shapes.append(pad(x, *args).shape)
        return pad(x, *args)

    monkeypatch.setattr('torch.nn.functional.pad', record)
    weights = {'a': torch.randn(2, 3)}
    projection = Projection(
        {'a': (2, 3)}, 0.9, 'erk', 'block', 1000, 0, 'Pruner'
    )
    assert projection.masks(weights)['a'].all()  # One block remains.
    assert shapes == [(2, 3)]  # Without padding to 1000 x 1000.


def test_values_that_are_not_finite_remain():
    weight = torch.tensor([[float('nan'), 5.0, float('inf'), 1.0]])
    mask = project({'a': weight}, 0.5)['a']
    assert mask.tolist() == [[True, False, True, False]]


@pytest.mark.parametrize(
    'options, match',
    [
        (dict(sparsity=1.0), 'sparsity'),
        (dict(sparsity=-0.1), 'sparsity'),
        (dict(sparsity=float('nan')), 'sparsity'),
        (dict(sparsity={'b': 0.5}), "got 'b'"),
        (dict(sparsity={'a': 2.0}), 'sparsity'),
        (dict(sparsity={}), 'at least one layer'),
        (dict(sparsity=0.5, distribution='x'), 'global'),
        (dict(sparsity={'a': 0.5}, distribution='x'), 'distribution'),
        (dict(sparsity=0.5, granularity='x'), 'granularity'),
        (
            dict(sparsity=0.5, distribution='global', granularity='row'),
            'distribution',
        ),
    ],
)
def test_errors(options, match):
    with pytest.raises(ValueError, match=match):
        project({'a': torch.randn(2, 2)}, **options)
