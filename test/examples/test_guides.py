"""Run the scripts of the guides as a user would, from a folder of data."""

import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch_geometric.nn import GCN
from torch_geometric.testing import withPackage

import torch_geometric_ext
from torch_geometric_ext.nn import densify, sparsify
from torch_geometric_ext.sparsity import MagnitudePruner
from torch_geometric_ext.typing import WITH_EXT

REPOSITORY = Path(__file__).parents[2]
SCRIPTS = REPOSITORY / 'examples' / 'guides'
# Scripts import the package under test, with or without kernels.
PACKAGE = Path(torch_geometric_ext.__file__).parents[1]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('guides')  # Data are processed once.


@pytest.fixture
def run(folder, monkeypatch, capsys):
    """Return a function that runs a script and returns what it prints."""

    def call(name):
        path = SCRIPTS / f'{name}.py'
        monkeypatch.chdir(folder)
        monkeypatch.setattr(sys, 'argv', [str(path)])
        runpy.run_path(str(path), run_name='__main__')
        return capsys.readouterr().out

    return call


@pytest.fixture
def launch(folder):
    """Return a function that runs a script in processes of its own."""

    limit = ['timeout', '240'] if shutil.which('timeout') else []

    def call(name, *launcher):
        result = subprocess.run(
            [*limit, sys.executable, *launcher, SCRIPTS / f'{name}.py'],
            cwd=folder,
            env=dict(os.environ, PYTHONPATH=str(PACKAGE)),
            capture_output=True,
            text=True,
        )
        assert result.returncode == 0, result.stderr
        return result.stdout

    return call


@withPackage('datamol')
def test_checkpoint(run):
    out = run('checkpoint').splitlines()[-3:]
    # The resumed training takes the steps that are left:
    assert [line.split()[0] for line in out] == ['32', '19', 'Equal']
    assert out[-1] == 'Equal weights: True'


@withPackage('datamol', 'lightning')
def test_train_with_lightning(run):
    out = run('train_with_lightning').splitlines()
    # The trainer counts the steps before the checkpoint, too:
    assert [x for x in out if x.endswith(' steps')] == [
        '24 steps', '13 steps', '24 steps',
    ]  # fmt: skip
    assert out[-1] == 'Equal weights: True'


@withPackage('datamol')
def test_distributed(launch):
    losses = []
    for ranks, graphs in [(1, 512), (2, 256)]:
        launcher = ['-m', 'torch.distributed.run', '--standalone']
        out = launch('distributed', *launcher, f'--nproc-per-node={ranks}')
        epochs = [x for x in out.splitlines() if x.startswith('Epoch')]
        text = f'{graphs} graphs on each of {ranks} rank(s)'
        assert all(text in line for line in epochs)
        losses.append([float(line.split()[-1]) for line in epochs])
    assert len(losses[0]) == 3 and losses[0][2] < losses[0][0]
    assert losses[0] == pytest.approx(losses[1], abs=2e-4)


@withPackage('sklearn')
def test_export_and_serve(run, launch, folder):
    out = run('export_model')
    before, after = re.search(r'(\d+) -> (\d+) channels', out).groups()
    assert int(after) < int(before) == 256
    before, after = re.search(r'(\d+) -> (\d+) edges', out).groups()
    files = folder / '.data' / 'export'
    assert torch.load(files / 'edge_index.pt').size(1) == int(after)
    assert int(after) < int(before)

    sizes = {path.stem: path.stat().st_size for path in files.glob('*.pt2')}
    assert set(sizes) == {'untrained', 'densified', 'narrow'}
    for name, size in sizes.items():
        assert f'{name}.pt2: {size / 1000:.0f} kB' in out
    assert sizes['densified'] == pytest.approx(sizes['untrained'], rel=0.01)
    assert sizes['narrow'] < 0.6 * sizes['untrained']
    for path in files.glob('*.pt2'):  # Files store no data.
        x, edge_index = torch.export.load(path).example_inputs[0]
        assert x.size(0) == 3 and not x.any() and edge_index.size(1) == 2

    *rows, imported = launch('serve').splitlines()
    assert imported == 'Imported packages of PyG: []'
    assert {f'{name}.pt2' for name in sizes} <= {
        row.split(':')[0] for row in rows
    }
    for row in rows:
        assert '[500, 10]' in row
        assert float(row.split()[-1]) < 1e-4


def test_claims_of_the_guide_to_exports():
    x, edge_index = torch.randn(5, 64), torch.tensor([[0, 1, 2], [1, 2, 4]])
    model = MagnitudePruner(GCN(64, 64, 2, 10), sparsity=0.9).finalize().eval()
    expected = model(x, edge_index)

    # Sparse weights load into a model of any sparsity:
    for sparsity in [0.5, 0.98]:
        other = sparsify(GCN(64, 64, 2, 10), sparsity).eval()
        other.load_state_dict(model.state_dict())
        assert torch.equal(other(x, edge_index), expected)

    def has_own_operators():
        program = torch.export.export(model, (x, edge_index))
        return 'torch_geometric_ext' in str(program.graph)

    # Files with sparse layers need the package, if it has kernels:
    assert has_own_operators() == WITH_EXT
    densify(model)
    assert not has_own_operators()


@withPackage('datamol')
def test_own_data(run):
    out = run('own_data')
    assert "Skip 'not a molecule'" in out
    for source in ['CSV file', 'Folder', 'List']:
        assert f'{source}: 642 graphs' in out
    error, constant = re.search(
        r'error: (.+), of a constant: (.+)', out
    ).groups()
    assert float(error) < float(constant)


@withPackage('datamol', 'sklearn')
def test_continuous_features(run):
    out = run('continuous_features').splitlines()
    assert any("'x' is continuous" in line for line in out)
    start = [line.startswith('bins') for line in out].index(True)
    ratios = [float(row.split()[-1]) for row in out[start + 1 : start + 4]]
    assert ratios == sorted(ratios, reverse=True) and ratios[-1] > 1
    (difference,) = [x for x in out if x.startswith('Difference of losses')]
    assert float(difference.split()[-1]) < 1e-4
    assert any(re.search('test graphs: [2-8] values', line) for line in out)
    (total,) = [x for x in out if x.startswith('bytes: ')]
    assert float(re.search(r'\((.+)%\)', total)[1]) <= 10


@withPackage('datamol')
def test_sampler_policy(run):
    out = run('sampler_policy').splitlines()[-3:]
    everything, drawn = (float(line.split()[-1]) for line in out[:2])
    assert drawn > 1.1 * everything
    assert out[-1] == 'Same draw from a checkpoint: True'


@withPackage('sklearn')
def test_weight_scheduler(run):
    rows = [line.split() for line in run('weight_scheduler').splitlines()]
    (name, weights, *fan_in, _), (other, others, *even, accuracy) = rows[-2:]
    assert (name, other) == ('SET', 'EvenFanIn') and weights == others
    assert int(even[-1]) - int(even[0]) < int(fan_in[-1]) - int(fan_in[0])
    assert float(accuracy) > 90


def test_add_operator(launch):
    out = launch('add_operator')
    assert ('opcheck' in out) == WITH_EXT and 'FAIL' not in out
    assert 'gradcheck: True' in out
    assert 'torch.compile: True' in out


@withPackage('sklearn')
def test_neighbor_sampling(run):
    out = run('neighbor_sampling').splitlines()
    accuracy = float(re.search('accuracy: (.+) %', out[-2])[1])
    assert accuracy > 80
    assert float(out[-1].split()[-1]) < 1e-4


def test_each_script_is_part_of_a_guide():
    pages = (REPOSITORY / 'docs' / 'source' / 'guides').glob('*.rst')
    text = ''.join(page.read_text() for page in pages)
    for path in SCRIPTS.glob('*.py'):
        assert f'examples/guides/{path.name}' in text
