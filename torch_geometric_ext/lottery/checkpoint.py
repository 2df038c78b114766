import pickle
import zipfile
from dataclasses import asdict
from pathlib import Path
from typing import Any, Dict, List, Optional, Union

import torch

from torch_geometric_ext.data.atomic_save import atomic_save
from torch_geometric_ext.data.digest import digest
from torch_geometric_ext.lottery.search import Candidate, Search
from torch_geometric_ext.lottery.stage import Outcome, Stage
from torch_geometric_ext.lottery.weights.channel_selection import Channels
from torch_geometric_ext.lottery.weights.weight_masks import Weights


class Checkpoint:
    """A file from which an interrupted search goes on.

    Args:
        path (str or Path): The file.
        search (Search): The search.
        every (int): Number of evaluations between writes.
    """

    def __init__(
        self, path: Union[str, Path], search: Search, every: int
    ) -> None:
        self.path = Path(path)
        self.search = search
        self.every = every
        tensors = search.task.identity()
        if search.pairs is not None:
            tensors.append(search.pairs.ends)
        self.config = {
            'settings': asdict(search.settings),
            'names': search.names,
            'model': {key: list(x.shape) for key, x in search.initial.items()},
            'modules': [
                type(module).__name__ for module in search.template.modules()
            ],
            'optimizer': _optimizer(search),
            'data': digest(tensors),
        }
        self._count = 0

    def update(self, stage: Stage) -> None:
        """Counts an evaluation, and writes if it is time to."""
        self._count += 1
        if self._count % self.every == 0:
            self.write(stage)

    def write(self, stage: Optional[Stage] = None) -> None:
        """Writes what has been done, and a stage that is not done."""
        search = self.search
        done: Dict[str, Any] = {
            key: _lists(outcome) for key, outcome in search.done.items()
        }
        state = {
            'config': self.config,
            'initial': search.initial,
            'done': done,
            'seconds': search.seconds,
            'round': search.round,
            'candidate': _lists(search.candidate),
            'channels': _lists(search.channels),
            'index': search.index,
            'stage': None if stage is None else stage.state_dict(),
        }
        atomic_save(state, self.path)

    def resume(self) -> None:
        """Goes on from the file, if there is one.

        Raises:
            ValueError: If it is of another search.
        """
        if not self.path.exists():
            return
        search = self.search
        device = next(iter(search.initial.values())).device
        state = load_state(self.path)
        if state.get('config') != self.config:
            raise ValueError(
                f"'checkpoint' needs to be of a search with the same "
                f'arguments, model, optimizer and data; remove it to start '
                f'anew (got '
                f"'{self.path}')"
            )
        search.initial = _to(state['initial'], device)
        search.template.load_state_dict(search.initial)
        for key, values in state['done'].items():
            outcome = Outcome(*_to(values, device))
            search.done[key] = outcome._replace(
                best=Weights(*outcome.best), last=Weights(*outcome.last)
            )
        search.seconds = state['seconds']
        search.round = state['round']
        search.candidate = Candidate(*_to(state['candidate'], device))
        if state['channels'] is not None:
            search.channels = Channels(*_to(state['channels'], device))
            search.index = _to(state['index'], device)
        search.pending = state['stage']


def load_state(path: Union[str, Path]) -> Dict[str, Any]:
    """Reads a file onto the CPU: nothing, if it is not one of this package."""
    with open(path, 'rb') as file:
        if not zipfile.is_zipfile(file):
            return {}
        file.seek(0)
        try:
            state = torch.load(file, map_location='cpu', weights_only=True)
        except (RuntimeError, pickle.UnpicklingError):
            return {}
    return state if isinstance(state, dict) else {}


def _optimizer(search: Search) -> List[str]:
    """Tells an optimizer from others, by its class and options."""
    optimizer = search.optimizer(search.template.parameters())
    options = [
        {key: value for key, value in group.items() if key != 'params'}
        for group in optimizer.param_groups
    ]
    return [type(optimizer).__name__, repr(options)]


def _lists(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_lists(x) for x in value]
    return value


def _to(value: Any, device: torch.device) -> Any:
    if isinstance(value, dict):
        return {key: _to(x, device) for key, x in value.items()}
    if isinstance(value, list):
        return [_to(x, device) for x in value]
    return value.to(device) if isinstance(value, torch.Tensor) else value
