from dataclasses import asdict, dataclass
from typing import Any, Optional

from torch import Tensor
from torch.nn import Module
from torch_geometric.nn import MessagePassing

from torch_geometric_ext.nn import SparseLinear

METHODS = ['fast', 'imp', 'one_shot', 'random']
EDGE_SCORES = ['degree', 'learned', 'random']


@dataclass
class Settings:
    """The arguments of a search, as explained in
    :class:`~torch_geometric_ext.lottery.GraphLotteryPruner`.
    """

    weight_sparsity: float
    edge_sparsity: float
    method: str
    edge_score: str
    seed: int
    pretrain_epochs: int
    search_epochs: int
    retrain_epochs: int
    update_every: int
    drop_fraction: float
    distill: Optional[float]
    evaluate_every: int
    patience: Optional[int]


def check_settings(settings: Settings) -> None:
    """Raises if an argument is out of its range."""
    values = asdict(settings)
    for key in [
        'weight_sparsity',
        'edge_sparsity',
        'drop_fraction',
        'distill',
    ]:
        if key == 'distill' and values[key] is None:
            continue
        if not isinstance(values[key], (int, float)):
            _raise(key, 'a number', values[key])
    for key in ['weight_sparsity', 'edge_sparsity']:
        if not 0 <= values[key] < 1:
            _raise(key, 'in [0, 1)', values[key])
    if settings.weight_sparsity == settings.edge_sparsity == 0:
        raise ValueError(
            "'weight_sparsity' or 'edge_sparsity' of 'GraphLotteryPruner' "
            'needs to be above zero (got none)'
        )
    if settings.method not in METHODS:
        _raise('method', f'one of {METHODS}', settings.method)
    if settings.edge_score not in EDGE_SCORES:
        _raise('edge_score', f'one of {EDGE_SCORES}', settings.edge_score)
    for key in [
        'pretrain_epochs',
        'search_epochs',
        'retrain_epochs',
        'update_every',
        'evaluate_every',
        'patience',
    ]:
        if key == 'patience' and values[key] is None:
            continue
        if type(values[key]) is not int or values[key] < 1:
            _raise(key, 'a positive integer', values[key])
    if not 0 < settings.drop_fraction <= 1:
        _raise('drop_fraction', 'in (0, 1]', settings.drop_fraction)
    if settings.distill is not None and not 0 <= settings.distill <= 1:
        _raise('distill', 'in [0, 1]', settings.distill)


def check_model(model: Any, edge_sparsity: float) -> None:
    """Raises if a model is none, or has nothing to prune."""
    if not isinstance(model, Module):
        raise TypeError(
            f"'model' of 'GraphLotteryPruner' needs to be a "
            f"'torch.nn.Module' (got {type(model)})"
        )
    if any(isinstance(x, SparseLinear) for x in model.modules()):
        raise ValueError(
            "'model' of 'GraphLotteryPruner' needs to be dense (got a "
            "'SparseLinear'); 'densify' makes it so"
        )
    for key, value in model.state_dict().items():
        if not isinstance(value, Tensor):
            raise ValueError(
                f"the state of 'model' needs to hold tensors alone (got "
                f"{type(value)} as '{key}')"
            )
    if edge_sparsity > 0 and not any(
        isinstance(module, MessagePassing) for module in model.modules()
    ):
        raise ValueError(
            f"'model' of 'GraphLotteryPruner' needs to pass messages to "
            f"have edges pruned (got no 'MessagePassing' in "
            f"'{model.__class__.__name__}')"
        )


def _raise(key: str, expected: str, value: Any) -> None:
    raise ValueError(
        f"'{key}' of 'GraphLotteryPruner' needs to be {expected} "
        f'(got {value!r})'
    )
