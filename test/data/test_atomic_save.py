import pytest
import torch

from torch_geometric_ext.data.atomic_save import (
    atomic_save,
    file_bytes,
    tensor_bytes,
)


def test_atomic_save(tmp_path):
    state = {'x': torch.arange(3), 'parts': [torch.ones(2), 'text']}
    path = tmp_path / 'state.pt'
    atomic_save(state, path)
    out = torch.load(path, weights_only=True)
    assert torch.equal(out['x'], state['x'])
    assert torch.equal(out['parts'][0], state['parts'][0])
    assert out['parts'][1] == 'text'
    assert file_bytes(state) == pytest.approx(path.stat().st_size, rel=0.1)
    assert tensor_bytes(state) == 3 * 8 + 2 * 4
    assert [file.name for file in tmp_path.iterdir()] == ['state.pt']
    with pytest.raises(FileNotFoundError, match=f"'{tmp_path}/a' does not ex"):
        atomic_save(state, tmp_path / 'a' / 'state.pt')


def test_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / 'state.pt'
    atomic_save(torch.ones(1), path)
    content = path.read_bytes()

    def fail(state, file):
        file.write(b'half')
        raise OSError('disk full')

    monkeypatch.setattr(torch, 'save', fail)
    with pytest.raises(OSError, match='disk full'):
        atomic_save(torch.zeros(1), path)
    assert path.read_bytes() == content
    assert [file.name for file in tmp_path.iterdir()] == ['state.pt']


def test_views_are_saved_without_their_storage(tmp_path):
    y = torch.arange(400_000).view(4, -1)[:, 0]
    atomic_save([y], tmp_path / 'view.pt')
    atomic_save([y.clone()], tmp_path / 'copy.pt')
    sizes = [path.stat().st_size for path in tmp_path.iterdir()]
    assert max(sizes) < 10_000 and max(sizes) - min(sizes) < 100
    (out,) = torch.load(tmp_path / 'view.pt', weights_only=True)
    assert torch.equal(out, y)
