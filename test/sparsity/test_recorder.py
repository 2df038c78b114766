import copy
import io

import torch

from torch_geometric_ext.nn import SparseLinear
from torch_geometric_ext.sparsity.recorder import Recorder


def test_recorder():
    layer = SparseLinear(8, 4)
    recorder = Recorder(layer)
    x, weight = torch.randn(2, 3, 8), torch.randn(2, 3, 4)
    (layer(x=x).relu_() * weight).sum().backward()
    expected = x.view(6, 8).clone()
    x.zero_()  # Inputs may be overwritten later.
    ((record, grad),) = recorder.pairs
    assert torch.equal(record, expected)
    mask = layer(expected) > 0
    assert torch.equal(grad, weight.view(6, 4) * mask)


def test_recorder_of_sparse_features():
    layer = SparseLinear(8, 4)
    recorder = Recorder(layer)
    x = torch.eye(8)[:5].to_sparse_csr()
    layer(x).sum().backward()
    x.values().zero_()
    ((record, grad),) = recorder.pairs
    assert record.layout == torch.sparse_csr
    assert torch.equal(record.to_dense(), torch.eye(8)[:5])
    assert torch.equal(grad, torch.ones(5, 4))


def test_recorder_ignores_other_hooks():
    layer = SparseLinear(8, 4)
    layer.register_forward_hook(lambda module, args, out: 2 * out)
    recorder = Recorder(layer)
    layer(torch.randn(5, 8)).sum().backward()
    ((_, grad),) = recorder.pairs
    assert torch.equal(grad, torch.full((5, 4), 2.0))


def test_recorder_remove():
    layer = SparseLinear(8, 4)
    recorder = Recorder(layer)
    out = layer(torch.randn(5, 8))
    out.sum().backward(retain_graph=True)
    assert len(recorder.pairs) == 1
    recorder.remove()
    out.sum().backward()  # Removes hooks of tensors, too.
    assert len(recorder.pairs) == 0 and len(layer._forward_hooks) == 0


def test_recorder_in_copies():
    layer = SparseLinear(8, 4)
    recorder = Recorder(layer)
    stream = io.BytesIO()
    torch.save(layer, stream)
    stream.seek(0)
    saved = torch.load(stream, weights_only=False)
    for other in [copy.deepcopy(layer), saved]:
        other(torch.randn(5, 8)).sum().backward()
        assert other.values.grad is not None
    assert len(recorder.pairs) == 0
