import torch

from torch_geometric_ext.nn.first_difference import first_difference


class Scale(torch.nn.Module):
    def __init__(self, by=1.0):
        super().__init__()
        self.by = by

    def forward(self, x):
        return x * self.by


def compare(model, found, expected, align=lambda a, b: b):
    x = torch.ones(3, 2)
    return first_difference(
        model,
        lambda model: expected(model, x),
        lambda model: found(model, x),
        align,
        training=True,
    )


def call(model, x):
    return model(x)


def test_first_difference():
    model = torch.nn.Sequential(Scale(), Scale(), Scale())

    def other(model, x):
        model[1].by = 3.0
        return model(x)

    found = compare(model, other, call)
    assert found.name == '1'
    assert found.reason == "'1' (Scale) is the first to differ, by 2 (of 1)"
    assert model[1].by == 1.0  # Copies are run.
    assert not any(m._forward_hooks for m in model.modules())


def test_functions_between_layers():
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.shift = Scale(), Scale(), 0.0

        def forward(self, x):
            return self.b(self.a(x) + self.shift)

    def other(model, x):
        model.shift = 1.0
        return model(x)

    found = compare(Net(), other, call)
    assert found.name == 'b'
    assert found.reason.startswith("a function in 'forward' before 'b' (Scale")


def test_no_difference():
    model = torch.nn.Sequential(Scale(), Scale())
    assert compare(model, call, call) is None
    # Another order of layers, or tensors of other shapes, tell nothing:
    assert compare(model, lambda m, x: m[1](x), call) is None
    assert compare(model, lambda m, x: 2 * m(x[:1] * 2), call) is None
    found = compare(
        model, lambda m, x: m(x[:1] * 2), call, lambda a, b: b.expand(3, 2)
    )
    assert "before 'Sequential' differs, by 1 (of 1)" in found.reason
