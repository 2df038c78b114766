from .dynamic_sampler import DynamicSampler
from .gder_sampler import GDeRSampler
from .node_budget_batch_sampler import NodeBudgetBatchSampler
from .shared_tree_loader import SharedTreeLoader
from .soft_random_sampler import SoftRandomSampler

__all__ = classes = [
    'DynamicSampler',
    'GDeRSampler',
    'NodeBudgetBatchSampler',
    'SharedTreeLoader',
    'SoftRandomSampler',
]
