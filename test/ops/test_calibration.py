import json
import math
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from run_script import run_script

import torch_geometric_ext.ops.calibration as calibration
from torch_geometric_ext.nn import SparseLinear
from torch_geometric_ext.ops import calibrate
from torch_geometric_ext.ops.calibration_file import (
    VARIABLE,
    Choices,
    Place,
    find_place,
    read,
    write,
)
from torch_geometric_ext.ops.crossovers import (
    MARGIN,
    ROWS,
    SIZE,
    WIDTHS,
    _fill,
    find_crossovers,
    make_pattern,
    measure_crossovers,
)
from torch_geometric_ext.ops.csr_costs import measure_csr_costs
from torch_geometric_ext.ops.machine import (
    cpu_model,
    describe_machine,
    machine_slug,
)

DEFAULT, COSTS = 0.25, [9.0, 60.0, 4.0]  # Without a calibration.
OPS = torch.ops.torch_geometric_ext

# Replaces the measurement, which takes a second, by a count of its calls.
PRELUDE = """
import torch, warnings
import torch_geometric_ext.ops.calibration as calibration
from torch_geometric_ext.nn import SparseLinear
from torch_geometric_ext.ops.crossovers import SIZE
warnings.simplefilter({action!r}, UserWarning)
torch.set_num_threads(1)
calls = []
def measure(dtype, limit):
    calls.append(dtype)
    return SIZE * [{density}]
calibration.measure_crossovers = measure
calibration.measure_csr_costs = lambda dtype: [9.0, 60.0, 4.0]
lin = SparseLinear(64, 64, sparsity=0.9)
x = torch.randn(10, 64)
"""


@pytest.fixture
def start(scripts):
    """Starts a script that measures a given density."""

    def call(code, place, density=0.5, action='error'):
        prelude = PRELUDE.format(density=density, action=action)
        # A process of its own, which no data loader started:
        prelude += 'calibration._is_forked = False\n'
        code = prelude + textwrap.dedent(code)
        return scripts.apply_async(run_script, (code, {VARIABLE: str(place)}))

    return call


@pytest.fixture
def run(start):
    """Returns the words that a script prints."""

    def call(*args, **kwargs):
        return start(*args, **kwargs).get(timeout=300).split()

    return call


USE = """
lin(x)
print(len(calls), lin.crossover())
"""


def test_first_use_measures_once(kernels, tmp_path, run):
    code = """
    text = str(lin)
    assert 'dense_above=0.25' in text and not calls  # Never measures.
    with torch.no_grad():
        lin(x)
    lin(x).sum().backward()
    assert 'dense_above=0.5' in str(lin)
    lin.double()(x.double())  # Is measured on request only.
    print(*calls)
    calibration.calibrate(torch.double)
    print(calls[-1])
    """
    assert run(code, tmp_path) == ['torch.float32', 'torch.float64']
    assert len(list(tmp_path.iterdir())) == 2


def test_later_processes_read_the_file(kernels, tmp_path, run):
    folder = tmp_path / 'new' / 'folder'
    assert run(USE, folder, 0.5) == ['1', '0.5']
    assert run(USE, folder, 0.75) == ['0', '0.5']
    # The representation reads it, too, as does compiled code:
    assert 'dense_above=0.5' in ''.join(run('print(lin)', folder, 0.75))
    (path,) = folder.iterdir()
    content = json.loads(path.read_text())
    assert content['machine']['cpu'] == cpu_model()
    assert content['crossovers'] == SIZE * [0.5]


@pytest.mark.parametrize(
    'content',
    [
        b'',
        b'{"version": 1',
        b'[]',
        b'null',
        b'{}',
        b'\xff\xfe\x00',
        b'{"version": 2, "crossovers": [], "machine": {}}',
        b'{"version": 1, "crossovers": [0.5], "machine": {}}',
        b'{"version": 1, "crossovers": 5, "machine": {}}',
        b'{"version": 1, "crossovers": [%b NaN], "csr_costs": [9, 60, 4]}'
        % ((SIZE - 1) * b'0.5,'),
        b'{"version": 1, "crossovers": [%b 0], "csr_costs": [9, 60, Infinity]}'
        % ((SIZE - 1) * b'0.5,'),
        b'{"version": 1, "crossovers": [1%b]}' % (400 * b'0'),
        b'[' * 100_000,
    ],
)
def test_damaged_files_are_not_read(tmp_path, content):
    place = Place(tmp_path / 'x.json', False)
    place.path.write_bytes(content)
    assert read(place, 1, torch.float) is None
    with pytest.warns(UserWarning, match='x.json'):
        assert read(Place(place.path, True), 1, torch.float) is None


def test_files_of_others_are_replaced(kernels, tmp_path, run):
    assert run(USE, tmp_path, 0.5) == ['1', '0.5']
    (path,) = tmp_path.iterdir()
    content = json.loads(path.read_text())
    content['machine']['cpu'] = 'another'
    path.write_text(json.dumps(content))
    assert run(USE, tmp_path, 0.75) == ['1', '0.75']
    path.write_bytes(b'damaged')
    assert run(USE, tmp_path, 0.25) == ['1', '0.25']
    assert json.loads(path.read_text())['crossovers'] == SIZE * [0.25]


def test_folders_that_cannot_be_written(kernels, tmp_path, run):
    path = tmp_path / 'file'
    path.touch()  # A folder within it cannot exist.
    assert run(USE, path / 'folder', 0.5) == ['1', '0.5']


def test_users_without_a_home(monkeypatch):
    monkeypatch.delenv(VARIABLE)
    monkeypatch.delenv('XDG_CACHE_HOME', raising=False)
    # As in containers with an arbitrary user:
    monkeypatch.setattr(os.path, 'expanduser', lambda path: path)
    key = (1, torch.float)
    place = find_place(*key)
    choices = Choices(SIZE * [0.5], COSTS)
    for replace in [False, True]:
        assert not write(place, choices, *key, replace=replace)
    assert read(place, *key) is None
    assert not Path('~').exists()


def test_concurrent_processes_agree(kernels, tmp_path, start):
    code = """
    import time
    measure = calibration.measure_crossovers
    def slow(*args):
        time.sleep(1)  # Both processes measure.
        return measure(*args)
    calibration.measure_crossovers = slow
    lin(x)
    print(len(calls), lin.crossover())
    """
    processes = [start(code, tmp_path, x) for x in [0.25, 0.5, 0.75]]
    outs = [x.get(timeout=300).split() for x in processes]
    assert len({out[1] for out in outs}) == 1
    (path,) = tmp_path.iterdir()  # No temporary file stays.
    crossovers = json.loads(path.read_text())['crossovers']
    assert crossovers == SIZE * [float(outs[0][1])]


def test_busy_machines(kernels, tmp_path, run):
    code = """
    calibration.MAX_SECONDS = 0  # All measurements take too long.
    lin(x)
    print(len(calls), lin.crossover())
    """
    assert run(code, tmp_path, 0.5) == ['1', '0.5']
    assert not list(tmp_path.iterdir())  # The next process measures again.


def test_explicit_file(kernels, tmp_path, run):
    path = tmp_path / 'node.json'
    code = 'print(calibration.calibrate().path)'
    assert run(code, path, action='ignore') == [str(path)]
    # It holds for all machines, numbers of threads and dtypes:
    content = json.loads(path.read_text())
    content['machine'] = {}
    path.write_text(json.dumps(content))
    code = """
    torch.set_num_threads(3)
    lin.double()(x.double())
    lin.float()(x)
    print(len(calls), lin.crossover())
    """
    assert run(code, path, 0.75, 'ignore') == ['0', '0.5']


@pytest.mark.parametrize('content', [None, '{}'])
def test_explicit_file_that_is_invalid(kernels, tmp_path, run, content):
    path = tmp_path / 'node.json'
    if content is not None:
        path.write_text(content)
    code = """
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter('always')
        torch.set_num_threads(2)
        lin(x)
        lin(x)
        print(lin.crossover(), len(calls), len(found))
        assert 'node.json' in str(found[0].message)
    """
    assert run(code, path, action='ignore') == [str(DEFAULT), '0', '1']


def test_tests_run_with_a_fixed_setting():
    assert find_place(1, torch.float) is None


def test_off(kernels, tmp_path, run):
    code = """
    lin(x)
    print(len(calls), lin.crossover())
    assert calibration.calibrate().path is None
    print(len(calls), lin.crossover())  # In this process only.
    """
    assert run(code, 'off', 0.5) == ['0', str(DEFAULT), '1', '0.5']


@pytest.mark.parametrize('start_method', ['fork', 'spawn'])
def test_workers_never_measure(kernels, tmp_path, start_method):
    script = tmp_path / 'script.py'
    code = f"""
class Products(torch.utils.data.Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, i):
        lin(x)
        return len(calls)

if __name__ == '__main__':
    loader = torch.utils.data.DataLoader(
        Products(), num_workers=1, multiprocessing_context={start_method!r}
    )
    assert [int(x) for x in loader] == [0, 0, 0, 0]
    print(len(calls))
    lin(x)
    print(len(calls))
    """
    script.write_text(PRELUDE.format(density=0.5, action='error') + code)
    out = subprocess.run(
        [sys.executable, script],
        env={**os.environ, VARIABLE: str(tmp_path / 'cache')},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert out.stdout.split() == ['0', '1'], out.stderr


def test_compiled_code_never_measures(kernels, tmp_path, run):
    code = """
    compiled = torch.compile(lin, fullgraph=True, backend='aot_eager')
    compiled(x).sum().backward()
    print(len(calls))
    # Choices that were made stay, until they are calibrated:
    lin(x)
    print(len(calls), lin.crossover())
    calibration.calibrate()
    print(len(calls), lin.crossover())
    """
    expected = ['0', '0', str(DEFAULT), '1', '0.5']
    assert run(code, tmp_path, 0.5) == expected
    # A file that is there is used in compiled code:
    code = """
    torch.compile(lin, fullgraph=True, backend='aot_eager')(x)
    print(len(calls), lin.crossover())
    """
    assert run(code, tmp_path, 0.75) == ['0', '0.5']


def test_transforms_and_modes_never_measure(kernels, tmp_path, run):
    code = """
    import copy
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils.flop_counter import FlopCounterMode
    torch.func.grad(lambda x: lin(x).sum())(x)
    torch.func.vmap(lin)(x)
    with torch.autograd.forward_ad.dual_level():
        lin(torch.autograd.forward_ad.make_dual(x, x))
    with FakeTensorMode(allow_non_fake_inputs=True):
        lin(torch.randn(10, 64))
        print(lin)
    copy.deepcopy(lin).to('meta')(x.to('meta'))
    with FlopCounterMode(display=False):
        lin(x)
    torch.export.export(lin, (x,), strict=False)
    with torch.no_grad():
        torch.jit.trace(lin, x, check_trace=False)
    print('calls', len(calls))
    """
    assert run(code, tmp_path)[-1] == '0'


def test_measurement_leaves_state(kernels, monkeypatch):
    monkeypatch.setenv(VARIABLE, 'off')
    before = OPS.sparse_linear_get_crossovers(3, torch.float)
    num_threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with torch.enable_grad(), torch.autocast('cpu', torch.bfloat16):
            with torch.device('meta'):
                state = torch.get_rng_state()
                report = calibrate()
                assert torch.equal(torch.get_rng_state(), state)
            assert torch.is_grad_enabled() and torch.get_num_threads() == 3
            assert torch.is_autocast_enabled('cpu')
        assert report.dtype == torch.float and report.num_threads == 3
        assert report.path is None and 0 < report.seconds
        density = OPS.sparse_linear_get_crossovers(3, torch.float)
        assert len(density) == SIZE and density != before
    finally:
        torch.set_num_threads(num_threads)


def test_interrupted_measurement_forces_nothing(kernels, monkeypatch):
    def interrupt(*args):
        OPS.sparse_linear_force_dense(True)
        raise KeyboardInterrupt

    monkeypatch.setattr(calibration, 'measure_crossovers', interrupt)
    with pytest.raises(KeyboardInterrupt):
        calibrate()
    lin = SparseLinear(2, 2, sparsity=0.5)
    lin.set_weights(torch.tensor([0]), torch.ones(1))
    out = lin(torch.tensor([[0.0, torch.inf]]))
    assert out.isfinite().all()  # A dense product multiplies zero by infinity.


def test_measured_crossovers(kernels):
    table = torch.tensor(measure_crossovers(torch.float, limit=0.0))
    assert table.numel() == SIZE
    assert ((table >= 0) & (table <= 1)).all() and table.unique().numel() > 1


def test_measured_csr_costs(kernels):
    scattered, feature, element = measure_csr_costs(torch.double)
    assert scattered > 1  # A vectorized loop takes less for each.
    assert 0 <= feature < math.inf and 0 <= element < math.inf
    OPS.sparse_linear_force_dense(None)


def test_patterns_are_valid(kernels):
    torch.manual_seed(0)
    mask = torch.rand(13, 7) < 0.4
    rowptr, col, colptr, row, perm = make_pattern(mask)
    x, values = torch.randn(5, 7), torch.randn(int(mask.sum()))
    weight = torch.zeros(13, 7)
    weight[mask] = values
    pattern = (rowptr, col, colptr, row, perm)
    out = OPS.sparse_linear(x, values, None, *pattern, True)
    torch.testing.assert_close(out, x @ weight.t())


def test_find_crossovers():
    # Sparse products at densities of 0.1 and 0.5, and dense ones:
    low = torch.tensor([0.1, 0.2, 2.0, 0.01]) / MARGIN
    high = torch.tensor([0.5, 1.0, 10.0, 0.02]) / MARGIN
    out = find_crossovers(low, high, torch.ones(4))
    assert torch.allclose(out, torch.tensor([1, 0.5, 0.05, 1]))
    # The density does not matter:
    out = find_crossovers(high, high, torch.ones(4))
    assert out.tolist() == [1, 0, 0, 1]


def test_fill():
    table = torch.full((3, len(ROWS), len(WIDTHS), len(WIDTHS)), torch.inf)
    table[:, :, :4, :4] = 0.5
    table[:, -1] = torch.inf  # Many rows.
    table[:, :, 0, 4], table[:, :, 4, 0], table[:, :, 4, 1] = 0.3, 0.4, 0.2
    table[:, :, 1, 4] = 0.6
    out = _fill(table)
    assert (out[:, -1] == out[:, -2]).all()
    assert (out[:, 0, 4, 4] == 0.2).all() and (out[:, 0, 2, 4] == 0.5).all()


@given(
    st.lists(st.floats(), max_size=3),
    st.integers(-2, 3),
    st.sampled_from([torch.float, torch.long]),
)
def test_set_crossovers_invalid(values, num_threads, dtype):
    if not calibration.torch_geometric_ext.typing.WITH_EXT:
        pytest.skip('the kernels are not installed')
    with pytest.raises(ValueError, match='sparse_linear_set_crossovers'):
        OPS.sparse_linear_set_crossovers(values, COSTS, num_threads, dtype)
    with pytest.raises(ValueError, match='sparse_linear_set_crossovers'):
        OPS.sparse_linear_set_crossovers(SIZE * [0.5], COSTS[:2], 99, dtype)
    for value in [-0.1, 1.1, float('nan'), float('inf')]:
        invalid = [*(SIZE - 1) * [0.5], value]
        with pytest.raises(ValueError, match=r'needs to be in \[0, 1\]'):
            OPS.sparse_linear_set_crossovers(invalid, COSTS, 99, dtype)
    for value in [-0.1, float('nan'), float('inf')]:
        args = (SIZE * [0.5], [9.0, value, 4.0], 99, dtype)
        with pytest.raises(ValueError, match="'costs' needs to be in"):
            OPS.sparse_linear_set_crossovers(*args)


@given(st.integers(-5, 2**40), st.integers(-5, 2**40), st.integers(-5, 2**40))
def test_crossovers_are_interpolated(num_rows, in_channels, out_channels):
    if not calibration.torch_geometric_ext.typing.WITH_EXT:
        pytest.skip('the kernels are not installed')
    before = torch.get_num_threads()
    torch.set_num_threads(5)
    try:
        # A linear function of the logarithms:
        rows = torch.tensor(ROWS).log2().view(-1, 1, 1) / 12
        ins = torch.tensor(WIDTHS).log2().view(-1, 1) / 12
        outs = torch.tensor(WIDTHS).log2() / 12
        table = (rows + 2 * ins + 3 * outs) / 6
        values = table.expand(3, -1, -1, -1).flatten().tolist()
        OPS.sparse_linear_set_crossovers(values, COSTS, 5, torch.float)
        found = OPS.sparse_linear_crossover(
            num_rows, in_channels, out_channels
        )
        sizes = torch.tensor([num_rows, in_channels, out_channels])
        sizes = sizes.clamp(torch.tensor([1, 16, 16]), torch.tensor(4096))
        expected = (sizes.log2() / 12 * torch.tensor([1, 2, 3])).sum() / 6
        assert abs(found - float(expected)) < 1e-5
    finally:
        torch.set_num_threads(before)


def test_calibrate_invalid(kernels, monkeypatch):
    with pytest.raises(ValueError, match="'dtype' of 'calibrate' needs"):
        calibrate(torch.long)
    with pytest.raises(RuntimeError, match='outside of transforms'):
        torch.func.vmap(lambda x: calibrate() and x)(torch.ones(2))
    monkeypatch.setattr(calibration.torch_geometric_ext.typing, 'WITH_EXT', 0)
    with pytest.raises(RuntimeError, match='needs the compiled kernels'):
        calibrate()


def test_write_keeps_the_first(tmp_path):
    place, key = Place(tmp_path / 'x.json', False), (1, torch.float)
    first, second = (Choices(SIZE * [x], [9, 60, 4]) for x in [0.5, 0.7])
    assert write(place, first, *key, replace=False)
    assert not write(place, second, *key, replace=False)
    assert read(place, *key) == first
    assert read(place, 2, torch.float) is None  # Another key.
    assert write(place, second, *key, replace=True)
    assert read(place, *key) == second
    assert [x.name for x in tmp_path.iterdir()] == ['x.json']


def test_find_place(monkeypatch):
    key = (1, torch.float)
    monkeypatch.setenv(VARIABLE, 'OFF')
    assert find_place(*key) is None
    monkeypatch.setenv(VARIABLE, '/some/node.json')
    assert find_place(*key) == (Path('/some/node.json'), True)
    monkeypatch.setenv(VARIABLE, '/some/folder')
    places = {
        find_place(n, dtype) for n in [1, 2] for dtype in calibration.DTYPES
    }
    assert len(places) == 6  # A file for each key.
    assert {str(place.path.parent) for place in places} == {'/some/folder'}
    monkeypatch.delenv(VARIABLE)
    monkeypatch.setenv('XDG_CACHE_HOME', '/cache')
    path = find_place(*key).path
    assert path.parent == Path('/cache/torch_geometric_ext')
    monkeypatch.delenv('XDG_CACHE_HOME')
    monkeypatch.setenv('HOME', '/home/user')
    path = find_place(*key).path
    assert path.parent == Path('/home/user/.cache/torch_geometric_ext')


def test_describe_machine():
    machine = describe_machine()
    assert machine['cpu'] == cpu_model() != ''
    assert machine['num_threads'] == torch.get_num_threads()
    assert json.loads(json.dumps(machine)) == machine
    assert machine_slug() == machine_slug().lower() != ''
    assert not set(machine_slug()) & set(' /()@,')
