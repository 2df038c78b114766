from .accelerate import accelerate
from .accelerated_model import AcceleratedModel
from .report import Report
from .static_graph import StaticGraph

__all__ = ['AcceleratedModel', 'Report', 'StaticGraph', 'accelerate']

functions = ['accelerate']
classes = [name for name in __all__ if name not in functions]
