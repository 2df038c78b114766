from .admm import ADMM
from .gradual_magnitude import GradualMagnitude
from .lagrangian_pruner import LagrangianPruner
from .magnitude_pruner import MagnitudePruner
from .rigl import RigL
from .set import SET
from .slr import SLR
from .topology_scheduler import TopologyScheduler
from .weight_scheduler import WeightScheduler

__all__ = classes = [
    'ADMM',
    'GradualMagnitude',
    'LagrangianPruner',
    'MagnitudePruner',
    'RigL',
    'SET',
    'SLR',
    'TopologyScheduler',
    'WeightScheduler',
]
