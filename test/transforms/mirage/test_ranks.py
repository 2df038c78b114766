import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch_geometric.data import Data

from torch_geometric_ext.transforms import (
    MirageCondense,
    ShareComputationTrees,
)
from torch_geometric_ext.transforms.mirage.cache import (
    load_condensed,
    save_condensed,
    to_state,
)


def make_graphs(num_graphs=40, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        Data(
            x=torch.randint(2, (4, 1), generator=generator),
            edge_index=torch.randint(4, (2, 5), generator=generator),
            y=torch.tensor([i % 2]),
        )
        for i in range(num_graphs)
    ]


SETTINGS = [
    dict(num_graphs=9),
    dict(ratio=0.5, share=True),
    dict(num_graphs=5, selection='random', seed=3),
    dict(min_support=0.3, selection='patterns'),
]


def run_rank(path):
    rank, graphs = dist.get_rank(), make_graphs()
    for i, settings in enumerate(SETTINGS):
        condense = MirageCondense(2, distributed=True, **settings)
        out = condense(graphs)
        save_condensed(out, condense.report(), Path(path, f'{i}_{rank}.pt'))
    _check_cache(path, graphs)
    _check_errors(graphs)


def _check_cache(path, graphs):
    condense = MirageCondense(2, num_graphs=9, distributed=True)
    root = Path(path, 'cache')
    first = condense(graphs, root)
    seconds = condense.report().seconds
    again = condense(graphs, root)
    assert condense.report().seconds == seconds  # Nothing was computed.
    assert torch.equal(again.x, first.x)
    assert len(list(root.iterdir())) == 1


def _check_errors(graphs):
    rank = dist.get_rank()
    condense = MirageCondense(2, num_graphs=9 + rank, distributed=True)
    with pytest.raises(ValueError, match="'num_graphs' .* 9 on rank 0 and 10"):
        condense(graphs)
    condense = MirageCondense(2, num_graphs=9, distributed=True)
    with pytest.raises(ValueError, match=r"'len\(dataset\)' .* same on all r"):
        condense(graphs[rank:])
    with pytest.raises(
        ValueError, match="'dataset' of 'MirageCondense' needs"
    ):
        condense(make_graphs(seed=rank))
    # The first rank alone selects, but all ranks raise its error:
    condense = MirageCondense(2, num_bytes=8, distributed=True)
    with pytest.raises(ValueError, match="'num_bytes' .* is too small"):
        condense(graphs)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # Few graphs share little.
        shared = ShareComputationTrees(2)(graphs)
    condense = MirageCondense(2, num_graphs=9, distributed=True)
    assert len(condense(shared)) == 9


def test_ranks_condense_as_one(run_ranks, tmp_path):
    run_ranks(__file__)
    for i, settings in enumerate(SETTINGS):
        condense = MirageCondense(2, **settings)
        expected = to_state(condense(make_graphs()), condense.report())
        for rank in range(2):
            out, report = load_condensed(tmp_path / f'{i}_{rank}.pt')
            assert report.classes == condense.report().classes
            _assert_equal(
                to_state(out, report)['tensors'], expected['tensors']
            )


def _assert_equal(out, expected):
    if isinstance(expected, dict):
        assert out.keys() == expected.keys()
        for key in expected:
            _assert_equal(out[key], expected[key])
    elif isinstance(expected, list):
        assert len(out) == len(expected)
        for x, y in zip(out, expected):
            _assert_equal(x, y)
    elif isinstance(expected, torch.Tensor):
        assert torch.equal(out, expected)
    else:
        assert out == expected


def test_distributed_needs_a_process_group():
    with pytest.raises(ValueError, match="'distributed' .* process group"):
        MirageCondense(2, num_graphs=2, distributed=True)
