from dataclasses import asdict
from typing import Any, Dict, List

from torch.nn import Module

from torch_geometric_ext.lottery.optimizer import (
    MakeOptimizer,
    build_optimizer,
)
from torch_geometric_ext.lottery.settings import Settings


def describe(
    model: Module,
    names: List[str],
    optimizer: MakeOptimizer,
    settings: Settings,
) -> Dict[str, Any]:
    """Return a description that tells searches apart, but for their data.

    Args:
        model (torch.nn.Module): The dense model.
        names (List[str]): The layers to prune.
        optimizer (Callable): A function of parameters that returns an
            optimizer.
        settings (Settings): All other arguments.
    """
    built = build_optimizer(optimizer, model)
    options = [
        {key: value for key, value in group.items() if key != 'params'}
        for group in built.param_groups
    ]
    state = model.state_dict()
    return {
        'settings': asdict(settings),
        'names': names,
        'model': {key: list(x.shape) for key, x in state.items()},
        'modules': [type(x).__name__ for x in model.modules()],
        'optimizer': [type(built).__name__, repr(options)],
    }
