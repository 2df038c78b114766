from .prototype_loss import prototype_loss
from .weighted_sample import weighted_sample

__all__ = functions = [
    'prototype_loss',
    'weighted_sample',
]
