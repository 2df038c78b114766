import pytest

import torch_geometric_ext.typing


@pytest.fixture(params=[True, False], ids=['kernels', 'reference'])
def ext(request, monkeypatch):
    """Runs a test with the compiled operators and with the reference ones."""
    if request.param and not torch_geometric_ext.typing.WITH_EXT:
        pytest.skip('the kernels are not installed')
    monkeypatch.setattr(torch_geometric_ext.typing, 'WITH_EXT', request.param)
    return request.param


@pytest.fixture
def kernels():
    """Skips a test where the compiled operators are not installed."""
    if not torch_geometric_ext.typing.WITH_EXT:
        pytest.skip('the kernels are not installed')
    return torch_geometric_ext.typing
