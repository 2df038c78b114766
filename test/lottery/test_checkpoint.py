import pickle

import pytest
import torch

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
