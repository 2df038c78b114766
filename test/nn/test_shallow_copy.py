from torch import nn

from torch_geometric_ext.nn.shallow_copy import (
    replace_modules,
    shallow_copy,
    with_child,
)


def make_model():
    return nn.Sequential(
        nn.Sequential(nn.Linear(3, 4), nn.ReLU()), nn.Linear(4, 2)
    )


def test_shallow_copy():
    module = nn.Linear(3, 4)
    out = shallow_copy(module)
    assert type(out) is nn.Linear and out.weight is module.weight
    out.weight.data.zero_()
    assert not module.weight.any()
    out.scale = 2
    assert not hasattr(module, 'scale')
    assert isinstance(shallow_copy(module, nn.Bilinear), nn.Bilinear)


def test_with_child():
    model, child = make_model(), nn.Tanh()
    out = with_child(model, '0.1', child)
    assert out[0][1] is child and type(model[0][1]) is nn.ReLU
    assert out[0][0] is model[0][0] and out[1] is model[1]


def test_replace_modules():
    model = make_model()
    swap = nn.Linear(3, 4)
    out, copies = replace_modules(model, {model[0][0]: swap})
    assert out[0][0] is swap and model[0][0] is not swap
    assert out[1] is model[1] and out[0][1] is model[0][1]
    assert [pair.module for pair in copies] == [model[0][0], model, model[0]]
    assert copies[1].own == copies[2].own == {'_modules'}
    out, copies = replace_modules(model, {})
    assert out is model and copies == []
    out, copies = replace_modules(swap, {swap: model})
    assert out is model


def test_modules_that_contain_each_other():
    first, second = nn.Sequential(nn.ReLU()), nn.Sequential(nn.Tanh())
    first.append(second)
    second.append(first)
    out, _ = replace_modules(first, {second[0]: nn.Sigmoid()})
    assert type(out[1][0]) is nn.Sigmoid and type(second[0]) is nn.Tanh


def test_pull_and_push():
    model = make_model()
    swap = shallow_copy(model[0][0])
    vars(swap)['name'] = 'swap'
    out, copies = replace_modules(model, {model[0][0]: swap})
    model.eval()
    model.scale, model[0][0].scale = 2, 3
    for pair in copies:
        pair.pull()
    assert (out.scale, out[0][0].scale) == (2, 3)
    assert not out.training and not out[0].training
    out.scale, out[0][0].name, out[0][0].count = 4, 'other', 1
    for pair in copies:
        pair.push()
    assert (model.scale, model[0][0].count) == (4, 1)
    assert not hasattr(model[0][0], 'name')
    assert out[0][0] is swap and model[0][0] is not swap
