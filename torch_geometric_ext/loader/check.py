from typing import Any


def require(
    owner: Any, condition: bool, name: str, requirement: str, value: Any
) -> None:
    """Raise a :class:`ValueError` if an argument is invalid.

    Args:
        owner (Any): The object whose argument it is.
        condition (bool): Whether the argument is valid.
        name (str): The name of the argument.
        requirement (str): The requirement, after "needs to".
        value (Any): The value of the argument.
    """
    if not condition:
        raise ValueError(
            f"'{name}' of '{owner.__class__.__name__}' needs to {requirement} "
            f'(got {value})'
        )


def check_arguments(sampler: Any) -> None:
    """Check the size, the epochs and the ranks of a sampler.

    Args:
        sampler (EpochSampler): The sampler, with its arguments as
            attributes.

    Raises:
        ValueError: If an argument is out of its range.
    """
    at_least = {
        'num_epochs': 1,
        'warmup_epochs': 0,
        'anneal_epochs': 0,
    }
    size, keep_ratio = sampler.size, sampler.keep_ratio
    rank, num_replicas = sampler.rank, sampler.num_replicas
    require(sampler, size >= 1, 'dataset', 'have at least one graph', size)
    require(
        sampler, 0 < keep_ratio <= 1, 'keep_ratio', 'be in (0, 1]', keep_ratio
    )
    for name, minimum in at_least.items():
        value = getattr(sampler, name)
        require(
            sampler, value >= minimum, name, f'be at least {minimum}', value
        )
    require(
        sampler,
        0 <= rank < num_replicas,
        'rank',
        f"be in [0, {num_replicas}), as set by 'num_replicas'",
        rank,
    )


def check_class_arguments(sampler: Any) -> None:
    """Check the arguments that determine the draws of each class.

    Args:
        sampler (DynamicSampler): The sampler, with its arguments as
            attributes.

    Raises:
        ValueError: If an argument is out of its range.
    """
    minimum, balance = sampler.min_per_class, sampler.balance
    require(sampler, minimum >= 0, 'min_per_class', 'be at least 0', minimum)
    require(sampler, 0 <= balance <= 1, 'balance', 'be in [0, 1]', balance)
