from typing import Callable

import pytest
import torch

import accelerator


def get_devices() -> list:
    """Return the devices that tests run on."""
    names = ['cpu']
    if torch.cuda.is_available():
        names.append('cuda:0')
    if accelerator.is_available():
        names.append(accelerator.NAME)
    return names


def withDevice(func: Callable) -> Callable:  # As in `torch_geometric.testing`.
    """Run a test on the CPU, on a GPU if there is one, and on a pretend
    accelerator. The fixture `device` of `conftest.py` returns the device.
    """
    mark = pytest.mark.parametrize('device', get_devices(), indirect=True)
    return mark(func)
