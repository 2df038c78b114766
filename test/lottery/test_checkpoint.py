import pytest
import torch
from torch_geometric.nn import GCN

from searches import equal, graph, prune
from torch_geometric_ext.data.atomic_save import load_saved
from torch_geometric_ext.lottery.checkpoint import FILE


@pytest.mark.parametrize('content', ['cut', 'text', 'state', 'folder'])
def test_files_that_are_no_checkpoints(content, tmp_path):
    model, data, path = GCN(5, 8, 2, 3), graph(), tmp_path / 'search.pt'
    prune(model, data, checkpoint=path)
    match = "'checkpoint' needs to be a file of a search; remove it to start"
    if content == 'cut':
        path.write_bytes(path.read_bytes()[:-100])
        match += f" anew \\('{path}' is truncated"
    elif content == 'text':
        path.write_text(content)
    elif content == 'state':
        torch.save([1], path)
    before = None
    if content == 'folder':
        path, error = tmp_path, IsADirectoryError
        match = 'is a folder'
    else:
        before, error = path.read_bytes(), ValueError
    with pytest.raises(error, match=match):
        prune(model, data, checkpoint=path)
    assert before is None or path.read_bytes() == before


def test_folder_of_a_checkpoint_is_checked_first(tmp_path):
    path = tmp_path / 'none' / 'search.pt'
    with pytest.raises(FileNotFoundError, match="none' does not exist"):
        prune(
            GCN(5, 8, 2, 3), graph(), checkpoint=path, callbacks=[pytest.fail]
        )


class Interrupted(Exception):
    pass


def test_checkpoints_of_earlier_versions(tmp_path):
    torch.manual_seed(0)
    model, data, path = GCN(5, 64, 2, 3), graph(), tmp_path / 'search.pt'

    def interrupt(progress):
        if progress.stage == 'search' and progress.epoch == 6:
            raise Interrupted

    kwargs = dict(checkpoint=path, checkpoint_every=1, evaluate_every=2)
    with pytest.raises(Interrupted):
        prune(model, data, callbacks=[interrupt], **kwargs)
    state = load_saved(path, FILE, dict)
    keys = ['config', 'initial', 'done', 'seconds', 'round', 'candidate']
    assert list(state) == [*keys, 'channels', 'index', 'stage']
    keys = ['settings', 'names', 'model', 'modules', 'optimizer', 'data']
    assert list(state['config']) == keys
    assert state['stage']['epoch'] == 4
    # The scheduler had another name:
    state['stage']['scheduler']['policy'] = 'ChannelRigL'
    torch.save(state, path)
    stages = []
    ticket = prune(
        model, data, callbacks=[lambda x: stages.append(x)], **kwargs
    )
    assert [(x.stage, x.epoch) for x in stages[:2]] == [
        ('search', 6),
        ('search', 8),
    ]
    assert equal(ticket, prune(model, data, evaluate_every=2))
