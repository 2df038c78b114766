from .levelwise_conv import LevelwiseConv
from .masked_gcn_conv import MaskedGCNConv

__all__ = classes = [
    'LevelwiseConv',
    'MaskedGCNConv',
]
