from pathlib import Path
from typing import Any, Dict, Union

from torch import Tensor

from torch_geometric_ext.data.atomic_save import (
    FileKind,
    atomic_save,
    load_saved,
)
from torch_geometric_ext.data.atomic_write import check_target
from torch_geometric_ext.lottery.ranks import (
    from_first,
    gather,
    get_rank,
    raise_together,
)
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
        num_ranks = len(gather(None))
        if num_ranks > 1:  # Files of one rank hold no number.
            self.config['ranks'] = num_ranks
        self._count = 0

    def update(self) -> None:
        """Count an evaluation, and write the file every few of them."""
        self._count += 1
        if self._count % self.every == 0:
            self.write()

    def write(self) -> None:
        """Write the state of the search, on the first rank."""
        state = self.search.state_dict()
        stage = state.pop('stage')
        if stage is not None:  # Other states are equal on all ranks.
            stage['random'] = gather(stage['random'])
        if get_rank() == 0:
            state = {'config': self.config, **_lists(state), 'stage': stage}
            atomic_save(state, self.path, FILE)

    def resume(self) -> None:
        """Load the state of the search if the file exists. The first rank
        reads it for all.

        Raises:
            FileNotFoundError: If the folder of the file does not exist.
            ValueError: If the file is damaged or of another search.
        """
        state: Any = None
        with raise_together():
            if get_rank() == 0:
                state = self._read()
        state = from_first(state, 'cpu')
        if state is None:
            return
        stage = state['stage']
        if stage is not None:
            stage['random'] = stage['random'][get_rank()]
        self.search.load_state_dict(state)

    def _read(self) -> Any:
        """Return the state in the file, or :obj:`None` without a file."""
        check_target(self.path)
        if not self.path.exists():
            return None
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
        return _migrated(state)


def _lists(value: Any) -> Any:
    """Return nested tuples as lists, since files hold no named tuples."""
    if isinstance(value, dict):
        return {key: _lists(x) for key, x in value.items()}
    if isinstance(value, (list, tuple)):
        return [_lists(x) for x in value]
    return value


def _migrated(state: Dict[str, Any]) -> Dict[str, Any]:
    """Convert the state in files of earlier versions."""
    stage = state['stage'] or {}
    if stage and isinstance(stage['random'][0], Tensor):  # Of one rank.
        stage['random'] = [stage['random']]
    scheduler = stage.get('scheduler')
    if scheduler is not None and scheduler['policy'] == 'ChannelRigL':
        scheduler['policy'] = 'RigL'
    return state
