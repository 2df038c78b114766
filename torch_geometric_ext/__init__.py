import torch_geometric_ext.data
import torch_geometric_ext.datasets
import torch_geometric_ext.loader
import torch_geometric_ext.nn
import torch_geometric_ext.ops
import torch_geometric_ext.sparsity
import torch_geometric_ext.transforms
import torch_geometric_ext.utils  # noqa: F401

__version__ = '0.1.0'

__all__ = [
    'data',
    'datasets',
    'loader',
    'nn',
    'sparsity',
    'transforms',
    'utils',
    '__version__',
]
