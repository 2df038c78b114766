from pathlib import Path
from typing import Any, Dict, Union

from torch_geometric_ext.data.atomic_save import (
    FileKind,
    atomic_save,
    load_saved,
)
from torch_geometric_ext.data.atomic_write import check_target
from torch_geometric_ext.lottery.search import Search

FILE = FileKind('Checkpoint', 1)


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
        atomic_save(state, self.path, FILE)

    def resume(self) -> None:
        """Load the state of the search if the file exists.

        Raises:
            FileNotFoundError: If the folder of the file does not exist.
            ValueError: If the file is damaged or of another search.
        """
        check_target(self.path)
        if not self.path.exists():
            return
        try:
            state = load_saved(self.path, FILE, dict, 'cpu')
        except ValueError as error:
            raise ValueError(
                f"'checkpoint' needs to be a file of a search; remove it to "
                f'start anew ({error})'
            ) from error
        if state.pop('config', None) != self.config:
            raise ValueError(
                f"'checkpoint' needs to be of a search with the same "
                f'arguments, model, optimizer and data; remove it to start '
                f"anew (got '{self.path}')"
            )
        self.search.load_state_dict(_migrated(state))


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
