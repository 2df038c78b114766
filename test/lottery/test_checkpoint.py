import pickle

import pytest
import torch
from torch_geometric.nn import GCN

from searches import equal, graph, prune
from torch_geometric_ext.lottery.checkpoint import load_state


def test_load_state(tmp_path):
    path = tmp_path / 'state.pt'
    torch.save({'x': torch.ones(2)}, path)
    assert load_state(path)['x'].tolist() == [1, 1]
    content = path.read_bytes()
    for other in [b'', b'text', content[:-50], pickle.dumps({'x': 1})]:
        path.write_bytes(other)
        assert load_state(path) == {}
    for value in [[1], torch.nn.Linear(2, 2)]:
        torch.save(value, path)
        assert load_state(path) == {}
    with pytest.raises(FileNotFoundError):
        load_state(tmp_path / 'none.pt')


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
    state = torch.load(path, weights_only=True)
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
