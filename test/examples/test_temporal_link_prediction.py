import gzip
import runpy
import sys
from pathlib import Path

import torch
from torch_geometric.testing import withPackage

PATH = Path(__file__).parents[2] / 'examples' / 'temporal_link_prediction.py'


def write_events(root):
    """Write messages within four groups of ten nodes."""
    generator = torch.Generator().manual_seed(0)
    nodes = torch.randint(10, (4000, 2), generator=generator)
    nodes += 10 * torch.randint(4, (4000, 1), generator=generator)
    lines = [f'{i} {j} {t}\n' for t, (i, j) in enumerate(nodes.tolist())]
    folder = root / 'CollegeMsg' / 'raw'
    folder.mkdir(parents=True)
    with gzip.open(folder / 'CollegeMsg.txt.gz', 'wt') as f:
        f.writelines(lines)


@withPackage('gensim', 'sklearn')
def test_temporal_link_prediction(tmp_path, monkeypatch, capsys):
    write_events(tmp_path)
    argv = [str(PATH), f'--root={tmp_path}', '--steps=200', '--lr=0.01']
    argv += ['--embedding_dim=8', '--hidden_channels=32', '--sparsity=0.8']
    monkeypatch.setattr(sys, 'argv', argv)
    runpy.run_path(str(PATH), run_name='__main__')
    title, *rows = capsys.readouterr().out.splitlines()[-4:]
    assert len({len(row) for row in [title, *rows]}) == 1  # Aligned.
    table = {name: values for name, *values in map(str.split, rows)}
    assert list(table) == ['dense', 'pruned', 'sparse']
    # 24 x 32 + 32 weights and biases of both layers:
    assert table['dense'][0] == '833'
    assert table['pruned'][0] == table['sparse'][0] == '219'
    # A quarter of the negatives are in the group of the source, and a perfect
    # head reaches 87.5 %:
    assert all(70 < float(values[-1]) < 90 for values in table.values())
