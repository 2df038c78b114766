import os
import pickle
import re

import pytest
import torch

from torch_geometric_ext.data.atomic_save import (
    FileKind,
    atomic_save,
    file_bytes,
    load_saved,
    tensor_bytes,
)

KIND = FileKind('Weights', 2)


def load(path, kind=KIND, parse=lambda state: state):
    return load_saved(path, kind, parse)


def test_save_and_load(tmp_path):
    state = {'x': torch.arange(3), 'parts': [torch.ones(2), 'text', None]}
    path = tmp_path / 'state.pt'
    atomic_save(state, path, KIND)
    out = load(path)
    assert torch.equal(out['x'], state['x'])
    assert torch.equal(out['parts'][0], state['parts'][0])
    assert out['parts'][1:] == ['text', None]
    header, _, content = path.read_bytes().partition(b'\n')
    assert header.startswith(b'torch_geometric_ext Weights 2 00000000')
    assert file_bytes(state) == len(content)
    assert tensor_bytes(state) == 3 * 8 + 2 * 4
    assert [file.name for file in tmp_path.iterdir()] == ['state.pt']
    with pytest.raises(FileNotFoundError, match=f"'{tmp_path}/a' does not ex"):
        atomic_save(state, tmp_path / 'a' / 'state.pt', KIND)
    with pytest.raises(FileNotFoundError):
        load(tmp_path / 'missing.pt')


def test_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / 'state.pt'
    atomic_save(torch.ones(1), path, KIND)
    content = path.read_bytes()

    def fail(state, file):
        file.write(b'half')
        raise OSError('disk full')

    monkeypatch.setattr(torch, 'save', fail)
    with pytest.raises(OSError, match='disk full'):
        atomic_save(torch.zeros(1), path, KIND)
    assert path.read_bytes() == content
    assert [file.name for file in tmp_path.iterdir()] == ['state.pt']


def test_full_disk(tmp_path):
    resource = pytest.importorskip('resource')
    signal = pytest.importorskip('signal')
    path = tmp_path / 'state.pt'
    atomic_save(torch.ones(1), path, KIND)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(OSError, match='File too large'):
            atomic_save(torch.zeros(100_000), path, KIND)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert load(path).tolist() == [1]
    assert [file.name for file in tmp_path.iterdir()] == ['state.pt']


def test_views_are_saved_without_their_storage(tmp_path):
    y = torch.arange(400_000).view(4, -1)[:, 0]
    atomic_save([y], tmp_path / 'view.pt', KIND)
    atomic_save([y.clone()], tmp_path / 'copy.pt', KIND)
    sizes = [path.stat().st_size for path in tmp_path.iterdir()]
    assert max(sizes) < 10_000 and max(sizes) - min(sizes) < 100
    (out,) = load(tmp_path / 'view.pt')
    assert torch.equal(out, y)


@pytest.mark.parametrize('shape', [(), (0,), (8,), (3, 0), (3, 7), (2, 3, 4)])
def test_masks_are_saved_as_bits(shape, tmp_path):
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand(shape, generator=generator) < 0.5
    views = [mask, mask.expand(2, *shape), mask[..., None].transpose(0, -1)]
    atomic_save({'masks': views}, tmp_path / 'masks.pt', KIND)
    for out, expected in zip(load(tmp_path / 'masks.pt')['masks'], views):
        assert out.dtype == torch.bool and torch.equal(out, expected)
    large = torch.zeros(800, 1000, dtype=torch.bool)
    assert file_bytes(large) < 102_000


def test_files_that_differ(tmp_path):
    path = tmp_path / 'state.pt'
    atomic_save({'x': torch.ones(100)}, path, KIND)
    content = path.read_bytes()
    size = len(content) - content.index(b'\n') - 1
    other = bytearray(content)
    other[-300] ^= 1
    for value, error in [
        (b'', "does not hold 'Weights' (got an empty file)"),
        (b'text', "does not hold 'Weights' (got another format)"),
        (pickle.dumps(1), "does not hold 'Weights' (got another format)"),
        (content[:50], 'is damaged (its header is cut)'),
        (bytes(other), 'is damaged (its checksum differs)'),
        (content.replace(b'Weights', b'Weighty'), 'is damaged (its checksum'),
        (content.replace(b' 2 ', b' 1 ', 1), 'is damaged (its checksum'),
        (
            content[:-9],
            f'is truncated (expected {size} bytes after its header, got '
            f'{size - 9})',
        ),
        (content + b'1', f'is too long (expected {size} bytes after its'),
    ]:
        path.write_bytes(value)
        with pytest.raises(ValueError, match=re.escape(f"'{path}' {error}")):
            load(path)
    with pytest.raises(ValueError, match=f"'{tmp_path}' .*got a folder"):
        load(tmp_path)


def test_files_of_another_kind(tmp_path):
    path = tmp_path / 'state.pt'
    atomic_save({'x': torch.ones(1)}, path, KIND)
    with pytest.raises(ValueError, match=r"not hold 'A' \(got 'Weights'\)"):
        load(path, FileKind('A', 2))
    with pytest.raises(ValueError, match='of a newer version .*got layout 2 '):
        load(path, FileKind('Weights', 1))
    assert load(path, FileKind('Weights', 3))['x'].tolist() == [1]
    with pytest.raises(ValueError, match="does not hold 'Weights'"):
        load(path, parse=lambda state: state['y'])


class Code:
    """An object whose unpickling would run code."""

    def __reduce__(self):
        return os.mkdir, (self.folder,)


@pytest.mark.parametrize('header', [False, True])
def test_files_run_no_code(header, tmp_path):
    code, path = Code(), tmp_path / 'code.pt'
    code.folder = str(tmp_path / 'folder')
    if header:
        atomic_save(code, path, KIND)
    else:
        torch.save(code, path)
    with pytest.raises(ValueError, match="does not hold 'Weights'"):
        load(path)
    assert not os.path.exists(code.folder)


def test_files_without_header(tmp_path):
    path = tmp_path / 'state.pt'
    torch.save({'x': torch.full((100,), 3.0)}, path)
    content = bytearray(path.read_bytes())
    assert load(path)['x'].tolist() == 100 * [3]
    position = content.index(torch.full((9,), 3.0).numpy().tobytes())
    content[position] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match='is damaged .*of a part differs'):
        load(path)
    path.write_bytes(content[:-100])
    with pytest.raises(ValueError, match='is damaged or truncated'):
        load(path)
