import pickle
import zipfile
from pathlib import Path
from typing import Any, Dict, Union

import torch

from torch_geometric_ext.data.atomic_save import atomic_save
from torch_geometric_ext.lottery.search import Search


class Checkpoint:
    """A file that an interrupted search resumes from.

    Args:
        path (str or Path): The file.
        search (Search): The search.
        every (int): Number of evaluations between two writes.
    """

    def __init__(
        self, path: Union[str, Path], search: Search, every: int
    ) -> None:
        self.path = Path(path)
        self.search = search
        self.every = every
        self.config = search.config()
        self._count = 0

    def update(self) -> None:
        """Count an evaluation, and write the file every few of them."""
        self._count += 1
        if self._count % self.every == 0:
            self.write()

    def write(self) -> None:
        """Write the state of the search."""
        state = self.search.state_dict()
        stage = state.pop('stage')
        state = {'config': self.config, **_lists(state), 'stage': stage}
        atomic_save(state, self.path)

    def resume(self) -> None:
        """Load the state of the search if the file exists.

        Raises:
            ValueError: If the file is of another search.
        """
        if not self.path.exists():
            return
        state = load_state(self.path)
        if state.pop('config', None) != self.config:
            raise ValueError(
                f"'checkpoint' needs to be of a search with the same "
                f'arguments, model, optimizer and data; remove it to start '
                f"anew (got '{self.path}')"
            )
        self.search.load_state_dict(_migrated(state))


def load_state(path: Union[str, Path]) -> Dict[str, Any]:
    """Read a file onto the CPU, and return an empty dictionary if another
    program wrote it.
    """
    with open(path, 'rb') as file:
        if not zipfile.is_zipfile(file):
            return {}
        file.seek(0)
        try:
            state = torch.load(file, map_location='cpu', weights_only=True)
        except (RuntimeError, pickle.UnpicklingError):
            return {}
    return state if isinstance(state, dict) else {}


def _lists(value: Any) -> Any:
    """Return nested tuples as lists, since files hold no named tuples."""
    if isinstance(value, dict):
        return {key: _lists(x) for key, x in value.items()}
    if isinstance(value, (list, tuple)):
        return [_lists(x) for x in value]
    return value


def _migrated(state: Dict[str, Any]) -> Dict[str, Any]:
    """Rename the scheduler in files of earlier versions."""
    scheduler = (state['stage'] or {}).get('scheduler')
    if scheduler is not None and scheduler['policy'] == 'ChannelRigL':
        scheduler['policy'] = 'RigL'
    return state
