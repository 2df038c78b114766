import copy
import math

import pytest
import torch
from torch_geometric.data import Data

from torch_geometric_ext.data import IndexedDataset
from torch_geometric_ext.loader import (
    BalancedSampler,
    GDeRSampler,
    SoftRandomSampler,
)
from torch_geometric_ext.loader.history import History, plot_history
from torch_geometric_ext.nn import HypersphericalPrototypes

LABELS = torch.tensor([0] * 30 + [1] * 15 + [2] * 5)


@pytest.mark.parametrize('replacement', [False, True])
def test_history_by_brute_force(replacement):
    sampler = SoftRandomSampler(
        50,
        0.5,
        7,
        y=LABELS,
        balance=1.0,
        replacement=replacement,
        anneal_epochs=1,
    )
    expected = {
        'epoch': [],
        'num_graphs': [],
        'num_distinct': [],
        'turnover': [],
        'coverage': [],
        'per_class': [],
    }
    previous, seen = set(), set()
    for epoch in range(7):
        out = list(sampler)
        seen |= set(out)
        expected['epoch'].append(epoch)
        expected['num_graphs'].append(len(out))
        expected['num_distinct'].append(len(set(out)))
        new = len(set(out) - previous)
        expected['turnover'].append(pytest.approx(new / len(set(out))))
        expected['coverage'].append(pytest.approx(len(seen) / 50))
        labels = LABELS[out].tolist()
        expected['per_class'].append([labels.count(i) for i in range(3)])
        previous = set(out)
    assert sampler.history() == expected
    assert expected['num_graphs'] == [25] * 6 + [50]
    if replacement:
        assert expected['num_distinct'][0] < 25


def test_history_is_a_copy():
    sampler = SoftRandomSampler(10, 0.5, 3)
    list(sampler)
    assert 'per_class' not in sampler.history()
    before = copy.deepcopy(sampler.history())
    sampler.history()['epoch'].append(1)
    assert sampler.history() == before


def test_history_before_the_first_epoch():
    sampler = SoftRandomSampler(10, 0.5, 3)
    assert sampler.history() == {}
    sampler.set_epoch(2)
    assert sampler.history()['epoch'] == [2]
    sampler.set_epoch(2)  # Not planned again.
    assert sampler.history()['epoch'] == [2]


def test_unknown_classes_are_not_counted():
    history = History(4)
    none = torch.zeros(4, dtype=torch.bool)
    group = torch.tensor([-1, 0, -1, 2])
    order = torch.tensor([0, 1, 1, 3])
    drawn = torch.tensor([True, True, False, True])
    history.add(0, order, drawn, none, group, extra=1)
    history.add(1, order, drawn, none, torch.full((4,), -1))
    history.add(2, order, drawn, none, None)
    history.add(3, torch.tensor([3, 3]), drawn, none, group)
    out = history.as_dict()
    assert out['per_class'] == [None, None, None, [0, 0, 2]]
    assert out['extra'] == [1, None, None, None]  # One entry per epoch.
    assert out['num_graphs'] == [4, 4, 4, 2]
    assert out['num_distinct'] == [3] * 4
    assert out['turnover'] == [1.0] * 4 and out['coverage'] == [0.75] * 4


@pytest.mark.filterwarnings('ignore:.* got no feedback')
def test_classes_of_a_list_are_counted():
    graphs = [Data(x=torch.ones(1, 1), y=label) for label in LABELS]
    dataset = IndexedDataset(graphs)
    prototypes = HypersphericalPrototypes(4, dataset.num_classes)
    for sampler in [
        SoftRandomSampler(graphs, 0.5, 2),
        SoftRandomSampler(dataset, 0.5, 2),
        GDeRSampler(dataset, prototypes, 0.5, 2),
    ]:
        drawn = [LABELS[list(sampler)] for _ in range(2)]
        count = [y.bincount(minlength=3).tolist() for y in drawn]
        assert sampler.history()['per_class'] == count


def read_lines(figure):
    return {
        line.get_label(): line.get_ydata().tolist()
        if hasattr(line.get_ydata(), 'tolist')
        else list(line.get_ydata())
        for ax in figure.axes
        for line in ax.get_lines()
    }


@pytest.fixture
def plt():
    pytest.importorskip('matplotlib').use('Agg')
    import matplotlib.pyplot as plt

    yield plt
    plt.close('all')


def test_plot(plt):
    sampler = BalancedSampler(50, 0.3, 4, y=LABELS)
    for _ in range(4):
        list(sampler)
    figure = sampler.plot()
    history, lines = sampler.history(), read_lines(figure)
    for name in ['num_graphs', 'num_distinct', 'turnover', 'coverage']:
        assert lines[name] == history[name]
    for i in range(3):
        expected = [row[i] for row in history['per_class']]
        assert lines[f'class {i}'] == expected
    assert len(lines) == 7
    assert all(ax.get_legend() is not None for ax in figure.axes)
    assert [ax.get_ylabel() for ax in figure.axes] == [
        'Graphs',
        'Fraction',
        'Graphs per class',
    ]


def test_plot_without_classes(plt):
    for history in [{}, SoftRandomSampler(9, 0.5, 1).history()]:
        assert read_lines(plot_history(history)) == {}
    sampler = SoftRandomSampler(9, 0.5, 1)
    list(sampler)
    assert len(read_lines(sampler.plot())) == 4


def test_plot_of_classes_that_appear_late(plt):
    history = {'epoch': [0, 1, 2], 'per_class': [None, [3], [1, 2]]}
    lines = read_lines(plot_history(history))
    nan = pytest.approx(math.nan, nan_ok=True)
    assert lines == {'class 0': [nan, 3, 1], 'class 1': [nan, 0, 2]}


def test_plot_of_suspects(plt):
    torch.manual_seed(0)
    prototypes = HypersphericalPrototypes(4, 3)
    sampler = GDeRSampler(50, prototypes, 0.5, 3)
    list(sampler)
    assert read_lines(sampler.plot())['num_suspects'] == [0]
