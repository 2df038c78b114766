from .gradual_magnitude import GradualMagnitude
from .rigl import RigL
from .set import SET
from .topology_scheduler import TopologyScheduler
from .weight_scheduler import WeightScheduler

__all__ = classes = [
    'GradualMagnitude',
    'RigL',
    'SET',
    'TopologyScheduler',
    'WeightScheduler',
]
