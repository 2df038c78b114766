"""Arguments of a lottery search, with their defaults and checks."""

from dataclasses import dataclass, field, fields
from numbers import Integral, Real
from typing import Any, Callable, List, Optional

METHODS = ['fast', 'imp', 'one_shot', 'random']
EDGE_SCORES = ['degree', 'learned', 'random']

# Chosen by `benchmark/lottery/lottery.py`. Dense weights overfit a few labels
# if edges alone are pruned, and train on predictions only.
DISTILL = 0.8
DISTILL_DENSE = 1.0


def is_integer(value: Any) -> bool:
    """Return whether a value is an integer, of any library, and no bool."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def _argument(
    default: Any,
    expected: str,
    cast: Callable[[Any], Any],
    is_valid: Callable[[Any], bool],
) -> Any:
    """Return a field that is checked, then cast to a type that files hold."""
    metadata = {'expected': expected, 'cast': cast, 'is_valid': is_valid}
    return field(default=default, metadata=metadata)


def _number(
    default: Optional[float], expected: str, is_valid: Callable[[Any], bool]
) -> Any:
    return _argument(
        default,
        f'a number {expected}',
        float,
        lambda x: isinstance(x, Real) and is_valid(x),
    )


def _count(default: Optional[int]) -> Any:
    return _argument(
        default, 'a positive integer', int, lambda x: is_integer(x) and x > 0
    )


def _choice(default: str, choices: List[str]) -> Any:
    return _argument(default, f'one of {choices}', str, choices.__contains__)


@dataclass(kw_only=True, eq=False)
class Settings:
    """Arguments of :class:`~torch_geometric_ext.lottery.GraphLotteryPruner`
    that define a search, together with the model and the data.

    The pruner inherits these fields: a new argument is one more field.
    """

    weight_sparsity: float = _number(0.0, 'in [0, 1)', lambda x: 0 <= x < 1)
    edge_sparsity: float = _number(0.0, 'in [0, 1)', lambda x: 0 <= x < 1)
    method: str = _choice('fast', METHODS)
    edge_score: str = _choice('degree', EDGE_SCORES)
    seed: int = _argument(
        0,
        'an integer of 64 bits',
        int,
        lambda x: is_integer(x) and -(2**63) <= x < 2**64,
    )
    pretrain_epochs: int = _count(60)
    search_epochs: int = _count(100)
    retrain_epochs: int = _count(100)
    update_every: int = _count(5)
    drop_fraction: float = _number(0.5, 'in (0, 1]', lambda x: 0 < x <= 1)
    distill: Optional[float] = _number(
        None, 'in [0, 1]', lambda x: 0 <= x <= 1
    )
    evaluate_every: int = _count(2)
    patience: Optional[int] = _count(None)

    def __post_init__(self) -> None:
        for argument in fields(self):
            value = getattr(self, argument.name)
            if not argument.metadata or value is argument.default is None:
                continue
            if not argument.metadata['is_valid'](value):
                raise ValueError(
                    f"'{argument.name}' of 'GraphLotteryPruner' needs to be "
                    f'{argument.metadata["expected"]} (got {value!r})'
                )
            setattr(self, argument.name, argument.metadata['cast'](value))
        if self.weight_sparsity == self.edge_sparsity == 0:
            raise ValueError(
                "'weight_sparsity' or 'edge_sparsity' of 'GraphLotteryPruner' "
                'needs to be above zero (got zero for both)'
            )
        if self.distill is None:
            sparse = self.weight_sparsity > 0
            self.distill = DISTILL if sparse else DISTILL_DENSE
