from .balanced_sampler import BalancedSampler
from .dynamic_sampler import DynamicSampler
from .epsilon_greedy_sampler import EpsilonGreedySampler
from .gder_sampler import GDeRSampler
from .info_batch_sampler import InfoBatchSampler
from .loss_based_sampler import LossBasedSampler
from .loss_sampler import LossSampler
from .neighbor_sampler import NeighborSampler
from .node_budget_batch_sampler import NodeBudgetBatchSampler
from .shared_tree_loader import SharedTreeLoader
from .soft_random_sampler import SoftRandomSampler
from .ucb_sampler import UCBSampler

__all__ = classes = [
    'BalancedSampler',
    'DynamicSampler',
    'EpsilonGreedySampler',
    'GDeRSampler',
    'InfoBatchSampler',
    'LossBasedSampler',
    'LossSampler',
    'NeighborSampler',
    'NodeBudgetBatchSampler',
    'SharedTreeLoader',
    'SoftRandomSampler',
    'UCBSampler',
]
