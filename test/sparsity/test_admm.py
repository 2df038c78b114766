import torch
from torch.nn import Linear

from torch_geometric_ext.sparsity import ADMM


def set_weight(linear, rows):
    with torch.no_grad():
        linear.weight.copy_(torch.tensor(rows))


def test_hand_computed_trace():
    linear = Linear(2, 2)
    set_weight(linear, [[3.0, 1.0], [-2.0, 0.5]])
    optimizer = torch.optim.SGD(linear.parameters(), lr=0.1)
    pruner = ADMM(linear, optimizer, 0.5, 'uniform', rho=0.5, update_every=1)
    assert pruner.targets[''].tolist() == [[3.0, 0.0], [-2.0, 0.0]]
    trace = [
        # The weights, and Z and U = U + W - Z after the update.
        (
            [[3.0, 1.0], [-2.0, 0.5]],
            [[3.0, 0.0], [-2.0, 0.0]],
            [[0.0, 1.0], [0.0, 0.5]],
        ),
        (  # W + U = [[2, 2.25], [-2, 1]].
            [[2.0, 1.25], [-2.0, 0.5]],
            [[2.0, 2.25], [0.0, 0.0]],
            [[0.0, 0.0], [-2.0, 1.0]],
        ),
        (  # W + U = [[1, 1.5], [-3, 1.25]].
            [[1.0, 1.5], [-1.0, 0.25]],
            [[0.0, 1.5], [-3.0, 0.0]],
            [[1.0, 0.0], [0.0, 1.25]],
        ),
    ]
    # Among the equal magnitudes of the second step, the first one remains:
    for weight, target, scaled in trace:
        set_weight(linear, weight)
        pruner.regularize(torch.tensor(1.0))
        pruner.step()
        assert pruner.targets[''].tolist() == target
        assert (pruner.multipliers[''] / pruner.rho).tolist() == scaled


def test_converges_on_a_quadratic():
    torch.manual_seed(0)
    goal = torch.randn(6, 6)
    linear = Linear(6, 6, bias=False)
    optimizer = torch.optim.SGD(linear.parameters(), lr=0.2)
    pruner = ADMM(linear, optimizer, 0.5, 'uniform', rho=1.0, update_every=5)
    for _ in range(1000):
        optimizer.zero_grad()
        loss = (linear.weight - goal).square().sum() / 2
        pruner.regularize(loss).backward()
        optimizer.step()
        pruner.step()
    assert pruner.history()['residual'][-1] < 1e-4
    largest = goal.abs() > goal.abs().median()
    expected = goal * largest
    assert torch.allclose(pruner.finalize().weight, expected, atol=1e-4)
