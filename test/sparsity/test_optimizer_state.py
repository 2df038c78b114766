import pytest
import torch

from torch_geometric_ext.nn import SparseLinear
from torch_geometric_ext.sparsity.optimizer_state import (
    check_optimizer,
    check_state,
    move_weights,
)

OPTIMIZERS = {
    'sgd': (lambda x: torch.optim.SGD(x, 0.1), []),
    'momentum': (
        lambda x: torch.optim.SGD(x, 0.1, momentum=0.9),
        ['momentum_buffer'],
    ),
    'nesterov': (
        lambda x: torch.optim.SGD(x, 0.1, momentum=0.9, nesterov=True),
        ['momentum_buffer'],
    ),
    'adam': (torch.optim.Adam, ['exp_avg', 'exp_avg_sq']),
    'adamw': (torch.optim.AdamW, ['exp_avg', 'exp_avg_sq']),
    'amsgrad': (
        lambda x: torch.optim.Adam(x, amsgrad=True),
        ['exp_avg', 'exp_avg_sq', 'max_exp_avg_sq'],
    ),
    'rmsprop': (
        lambda x: torch.optim.RMSprop(x, momentum=0.9, centered=True),
        ['square_avg', 'momentum_buffer', 'grad_avg'],
    ),
    'adagrad': (torch.optim.Adagrad, ['sum']),
}


def dense(layer, x):
    """Scatter the values of active weights into a dense weight."""
    out = x.new_zeros(layer.out_channels * layer.in_channels)
    return out.scatter(0, layer.index, x.detach())


@pytest.mark.parametrize('name', OPTIMIZERS)
@pytest.mark.parametrize('same_size', [True, False])
def test_move_weights(name, same_size):
    torch.manual_seed(12345)
    layer = SparseLinear(12, 8, sparsity=0.5, seed=0)
    make, keys = OPTIMIZERS[name]
    optimizer = make([layer.values])
    layer(torch.randn(5, 12)).square().sum().backward()
    optimizer.step()

    state = optimizer.state[layer.values]
    tensors = [layer.values, layer.values.grad] + [state[x] for x in keys]
    expected = [dense(layer, x) for x in tensors]
    pointers = [x.data_ptr() for x in tensors]
    assert all(x.count_nonzero() > 40 for x in expected)
    count = state['step'].clone() if 'step' in state else None
    values = layer.values

    inactive = torch.arange(96)[~layer.mask.flatten()]
    num_new = 10 if same_size else 3
    kept, grown = torch.arange(10, 48), inactive[:num_new]
    index = torch.cat([layer.index[kept], grown]).sort().values
    out = move_weights(layer, optimizer, layer.index, kept, grown)

    assert torch.equal(out, index) and torch.equal(layer.index, index)
    assert layer.values is values and optimizer.state[values] is state
    mask = layer.mask.flatten()
    tensors = [layer.values, layer.values.grad] + [state[x] for x in keys]
    for x, old in zip(tensors, expected):
        assert torch.equal(dense(layer, x), old * mask)
    assert count is None or state['step'] == count
    if same_size:
        assert [x.data_ptr() for x in tensors] == pointers
    optimizer.step()
    assert values.isfinite().all()


def test_move_weights_to_none_and_back():
    layer = SparseLinear(4, 3, sparsity=0.5)
    optimizer = torch.optim.SGD(layer.parameters(), 0.1)
    nothing = torch.empty(0, dtype=torch.long)
    move_weights(layer, optimizer, layer.index, nothing, nothing)
    assert layer.values.numel() == 0 and layer.sparsity == 1
    grown = torch.tensor([2, 7])
    move_weights(layer, optimizer, nothing, nothing, grown)
    assert layer.values.tolist() == [0, 0]
    out = layer(torch.ones(2, 4))
    assert torch.equal(out, layer.bias.expand(2, 3))


def test_check_optimizer():
    layer = SparseLinear(4, 3)
    with pytest.raises(TypeError, match="'optimizer' of 'SET' .* 'dict'"):
        check_optimizer({}, 'SET')
    lbfgs = torch.optim.LBFGS(layer.parameters())
    with pytest.raises(NotImplementedError, match="'LBFGS'"):
        check_optimizer(lbfgs, 'SET')
    wrapper = torch.optim.SGD(layer.parameters(), 0.1)
    wrapper.optim = torch.optim.SGD(layer.parameters(), 0.1)
    with pytest.raises(NotImplementedError, match=r"\(got 'SGD', which wrap"):
        check_optimizer(wrapper, 'SET')


def test_check_state():
    layer = SparseLinear(4, 3, sparsity=0.5)
    optimizer = torch.optim.Adam(layer.parameters())
    check_state(optimizer, layer, 'SET')
    layer(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    check_state(optimizer, layer, 'SET')
    state = optimizer.state[layer.values]
    for x in [torch.ones(2), [torch.ones(6)]]:
        state['factor'] = x
        with pytest.raises(NotImplementedError, match=r"\[6\].* 'factor'"):
            check_state(optimizer, layer, 'SET')
