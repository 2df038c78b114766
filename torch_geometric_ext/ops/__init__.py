from .block_sparse_linear import (
    block_sparse_linear,
    block_sparse_linear_crossover,
)
from .calibration import calibrate
from .computation_tree_ids import computation_tree_ids
from .csr_matmul import csr_matmul
from .csr_sparse_linear import csr_sparse_linear
from .extract_trees import extract_trees
from .frequent_itemsets import frequent_itemsets
from .herding import herding
from .merge_positions import merge_positions, missing_positions
from .prototype_loss import prototype_loss
from .sparse_linear import sparse_linear, sparse_linear_crossover
from .sparse_pattern import sparse_pattern
from .top_positions import top_positions
from .unique_rows import unique_rows
from .unique_trees import unique_trees
from .weighted_sample import weighted_sample

__all__ = functions = [
    'block_sparse_linear',
    'block_sparse_linear_crossover',
    'calibrate',
    'computation_tree_ids',
    'csr_matmul',
    'csr_sparse_linear',
    'extract_trees',
    'frequent_itemsets',
    'herding',
    'merge_positions',
    'missing_positions',
    'prototype_loss',
    'sparse_linear',
    'sparse_linear_crossover',
    'sparse_pattern',
    'top_positions',
    'unique_rows',
    'unique_trees',
    'weighted_sample',
]
