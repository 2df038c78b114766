from .levelwise_conv import LevelwiseConv

__all__ = classes = [
    'LevelwiseConv',
]
