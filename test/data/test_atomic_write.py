import os
import sys
import uuid

import pytest

from torch_geometric_ext.data.atomic_write import MIN_AGE, atomic_write


def write(path, content=b'new'):
    with atomic_write(path) as file:
        file.write(content)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def make_old(path):
    time = path.stat().st_mtime - MIN_AGE - 60
    os.utime(path, (time, time))


def test_atomic_write(tmp_path):
    path = tmp_path / 'file.pt'
    path.write_bytes(b'old')
    with atomic_write(str(path)) as file:
        file.write(b'new')
        assert path.read_bytes() == b'old' and len(names(tmp_path)) == 2
    assert path.read_bytes() == b'new' and names(tmp_path) == ['file.pt']


def test_content_is_on_disk_before_the_old_file_is_gone(tmp_path, monkeypatch):
    path, sizes = tmp_path / 'file.pt', []
    path.write_bytes(b'old')

    def fsync(file):
        sizes.append(os.fstat(file).st_size)
        assert path.read_bytes() == b'old'

    monkeypatch.setattr(os, 'fsync', fsync)
    write(path, b'longer')
    assert sizes == [6] and path.read_bytes() == b'longer'


@pytest.mark.parametrize('error', [OSError, KeyboardInterrupt])
def test_failed_write_leaves_the_old_file(error, tmp_path):
    path = tmp_path / 'file.pt'
    write(path, b'old')
    with pytest.raises(error):
        with atomic_write(path) as file:
            file.write(b'half')
            raise error
    assert path.read_bytes() == b'old' and names(tmp_path) == ['file.pt']


def test_wrong_paths(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"'{tmp_path}/a' does not ex"):
        write(tmp_path / 'a' / 'file.pt')
    with pytest.raises(IsADirectoryError, match=f"'{tmp_path}' is a folder"):
        write(tmp_path)
    assert names(tmp_path) == []


def test_files_of_killed_writers_are_removed(tmp_path):
    digits = [uuid.uuid4().hex for _ in range(2)]
    old = tmp_path / f'.[file].pt.{digits[0]}'
    young = tmp_path / f'.[file].pt.{digits[1]}'
    others = [
        tmp_path / name
        for name in [
            f'.other.pt.{digits[0]}',
            f'.[file].pt.{digits[0]}.{digits[1]}',
            '.[file].pt.note',
            '[file].pt.old',
        ]
    ]
    for path in [old, young, *others]:
        path.write_bytes(b'half')
    for path in [old, *others]:
        make_old(path)
    write(tmp_path / '[file].pt')
    assert not old.exists() and young.exists()
    assert all(path.exists() for path in others)


@pytest.mark.skipif(sys.platform == 'win32', reason='No locks')
def test_files_of_live_writers_stay(tmp_path):
    path = tmp_path / 'file.pt'
    with atomic_write(path) as file:
        file.write(b'slow')
        file.flush()
        (temporary,) = tmp_path.iterdir()
        make_old(temporary)
        write(path, b'fast')
        assert path.read_bytes() == b'fast' and temporary.exists()
    assert path.read_bytes() == b'slow' and names(tmp_path) == ['file.pt']


def test_file_systems_without_locks(tmp_path, monkeypatch):
    fcntl = pytest.importorskip('fcntl')

    def fail(file, operation):
        raise OSError('no locks available')

    monkeypatch.setattr(fcntl, 'flock', fail)
    old = tmp_path / f'.file.pt.{uuid.uuid4().hex}'
    old.write_bytes(b'half')
    make_old(old)
    write(tmp_path / 'file.pt')
    assert old.exists()


@pytest.mark.skipif(not hasattr(os, 'mkfifo'), reason='Needs pipes')
def test_pipes_and_devices_stay(tmp_path):
    path = tmp_path / 'pipe'
    os.mkfifo(path)
    with pytest.raises(OSError, match="pipe' needs to be a regular file"):
        write(path)
    assert path.is_fifo() and names(tmp_path) == ['pipe']


@pytest.mark.parametrize('exists', [True, False])
def test_symbolic_links_stay(exists, tmp_path):
    folder = tmp_path / 'large_disk'
    folder.mkdir()
    if exists:
        (folder / 'file.pt').write_bytes(b'old')
    link = tmp_path / 'link.pt'
    link.symlink_to(folder / 'file.pt')
    write(link)
    assert link.is_symlink() and link.read_bytes() == b'new'
    assert names(folder) == ['file.pt'] and len(names(tmp_path)) == 2
