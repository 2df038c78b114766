import pytest
import torch

from torch_geometric_ext.ops.check import check_integers, check_ptr


def test_check_integers():
    x = torch.arange(3)
    check_integers('op', 'x', x)
    check_integers('op', 'x', x, size=3)
    check_integers('op', 'x', x.int(), (torch.long, torch.int))
    for bad in [x.int(), x.double(), x.view(1, -1), x.sum()]:
        with pytest.raises(ValueError, match="op: 'x' needs to be a .* int64"):
            check_integers('op', 'x', bad)
    with pytest.raises(ValueError, match='int64 or int32 tensor'):
        check_integers('op', 'x', x.float(), (torch.long, torch.int))
    with pytest.raises(ValueError, match=r"'x' needs 2 elements \(got 3\)"):
        check_integers('op', 'x', x, size=2)


def test_check_ptr():
    for ptr in [[0], [0, 0], [0, 2, 2, 3]]:
        check_ptr('op', 'ptr', torch.tensor(ptr), ptr[-1])
    for ptr in [[], [1, 3], [0, 2], [0, 4, 3]]:
        with pytest.raises(ValueError, match="'ptr' .* ascend from 0 to 3"):
            check_ptr('op', 'ptr', torch.tensor(ptr).long(), 3)
