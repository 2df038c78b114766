from .aggr import RootAggregation
from .check_exact import check_exact
from .conv import LevelwiseConv, MaskedGCNConv
from .dense import SparseLinear
from .norm import TreeBatchNorm
from .prototypes import HypersphericalPrototypes
from .shared_batch import shared_batch
from .sparsify import densify, sparsify
from .sparsity_summary import sparsity_summary

__all__ = [
    'HypersphericalPrototypes',
    'LevelwiseConv',
    'MaskedGCNConv',
    'RootAggregation',
    'SparseLinear',
    'TreeBatchNorm',
    'check_exact',
    'densify',
    'shared_batch',
    'sparsify',
    'sparsity_summary',
]

functions = [
    'check_exact',
    'densify',
    'shared_batch',
    'sparsify',
    'sparsity_summary',
]
classes = [name for name in __all__ if name not in functions]
