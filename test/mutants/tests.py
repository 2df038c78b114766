"""List the tests of each module that has mutants."""

from pathlib import Path

TEST = Path(__file__).parents[1]
GROUPS = {
    'ops': ['ops/*.py'],
    'loader': ['loader/*.py'],
    'data': ['data/*.py'],
    'check_exact': [
        'nn/check_exact.py',
        'nn/compare_on_trees.py',
        'nn/find_call.py',
        'nn/first_difference.py',
        'nn/random_trees.py',
    ],
}
# These take seconds, or start processes that import PyTorch:
SLOW = 'not (deterministic or memory or other_machines or rank)'
# The tests of `room/module.py` are `test/room/test_module*.py`, and:
MORE = {
    'data/atomic_save.py': ['data/test_shared_trees.py'],
    'data/merge_trees.py': ['transforms/test_share_computation_trees.py'],
    'data/shared_tree_batch.py': [
        'loader/test_shared_tree_loader.py',
        'nn/test_shared_batch.py',
    ],
    'data/shared_trees.py': ['transforms/test_share_computation_trees.py'],
    'data/storage.py': ['data/test_trees_to_graphs.py'],
    'data/tree_bytes.py': ['transforms/mirage/test_budget.py'],
    'data/tree_gcn_norm.py': ['nn/test_exact_sharing.py'],
    'loader/batch_report.py': ['loader/test_shared_tree_loader.py'],
    'loader/check.py': [
        'loader/test_dynamic_sampler.py',
        'loader/test_feedback.py',
        'loader/test_loss_based_sampler.py',
    ],
    'loader/check_gder.py': [
        'loader/test_gder_sampler.py',
        'loader/test_gder_sampler_feedback.py',
    ],
    'loader/class_groups.py': [
        'loader/test_draw.py',
        'loader/test_balanced_sampler.py',
        'loader/test_dynamic_sampler.py',
    ],
    'loader/draw.py': ['loader/test_dynamic_sampler.py'],
    'loader/dynamic_sampler.py': ['loader/test_resume.py'],
    'loader/epoch_sampler.py': [
        'loader/test_dynamic_sampler.py',
        'loader/test_resume.py',
        'loader/test_loops.py',
    ],
    'loader/feedback.py': ['loader/test_gder_sampler_feedback.py'],
    'loader/history.py': ['loader/test_dynamic_sampler.py'],
    'loader/info_batch_sampler.py': ['loader/test_loss_based_sampler.py'],
    'loader/loss_sampler.py': ['loader/test_loss_based_sampler.py'],
    'loader/node_budget_batch_sampler.py': ['loader/test_resume.py'],
    'loader/sampler_state.py': ['loader/test_resume.py'],
    'loader/ucb_sampler.py': ['loader/test_loss_based_sampler.py'],
    'nn/check_exact.py': ['nn/test_exact_sharing.py'],
    'nn/compare_on_trees.py': ['nn/test_check_exact.py'],
    'nn/find_call.py': ['nn/test_check_exact.py'],
    'nn/first_difference.py': ['nn/test_check_exact.py'],
    'nn/random_trees.py': ['nn/test_check_exact.py'],
    'ops/check.py': [
        'ops/test_computation_tree_ids.py',
        'ops/test_csr_matmul.py',
        'ops/test_sparse_linear.py',
    ],
    'ops/check_state_dict.py': [
        'loader/test_sampler_state.py',
        'sparsity/test_states.py',
    ],
    'ops/ragged.py': [
        'ops/test_extract_trees.py',
        'ops/test_unique_trees.py',
        'ops/test_frequent_itemsets.py',
        'ops/test_herding.py',
    ],
    'ops/tree_union.py': ['ops/test_extract_trees.py'],
}


def find_tests(module):
    """Return the test files of a module, its own first."""
    path = Path(module)
    own = (TEST / path.parent).glob(f'test_{path.stem}*.py')
    names = [str(x.relative_to(TEST)) for x in sorted(own)]
    more = [x for x in MORE.get(module, []) if x not in names]
    return [f'test/{name}' for name in names + more]
