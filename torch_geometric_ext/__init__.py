import torch_geometric_ext.data
import torch_geometric_ext.datasets
import torch_geometric_ext.full_batch
import torch_geometric_ext.loader
import torch_geometric_ext.nn
import torch_geometric_ext.ops
import torch_geometric_ext.sparsity
import torch_geometric_ext.transforms

import torch_geometric_ext.utils  # isort: skip  # Before 'lottery'.
import torch_geometric_ext.lottery  # noqa: F401
from torch_geometric_ext.version import __version__

__all__ = [
    'data',
    'datasets',
    'full_batch',
    'loader',
    'lottery',
    'nn',
    'sparsity',
    'transforms',
    'utils',
    '__version__',
]
