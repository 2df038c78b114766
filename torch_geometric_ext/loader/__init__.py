from .dynamic_sampler import DynamicSampler
from .gder_sampler import GDeRSampler
from .soft_random_sampler import SoftRandomSampler

__all__ = classes = [
    'DynamicSampler',
    'GDeRSampler',
    'SoftRandomSampler',
]
