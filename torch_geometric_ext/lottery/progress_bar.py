import sys
from typing import Any, Optional

from torch_geometric_ext.lottery.stage import Progress


class ProgressBar:
    """A progress bar for each stage.

    Args:
        tqdm (Callable): Returns a bar.
    """

    def __init__(self, tqdm: Any) -> None:
        self.tqdm = tqdm
        self.bar: Any = None
        self.stage = ''

    def update(self, progress: Progress) -> None:
        """Advance the bar, or start one for a new stage."""
        if progress.stage != self.stage:
            self.close()
            self.stage = progress.stage
            self.bar = self.tqdm(
                total=progress.num_epochs, desc=progress.stage
            )
        self.bar.update(progress.epoch - self.bar.n)
        self.bar.set_postfix(best=f'{progress.best:.4f}')

    def close(self) -> None:
        """Close the current bar."""
        if self.bar is not None:
            self.bar.close()


def make_progress_bar(log: Optional[bool]) -> Optional[ProgressBar]:
    """Return a progress bar, or :obj:`None` if none is to be shown.

    Args:
        log (bool, optional): Whether to show a bar; by default, if standard
            error is a terminal and :obj:`tqdm` is installed.

    Raises:
        ImportError: If :obj:`log` is :obj:`True` without :obj:`tqdm`.
    """
    show = log
    if log is None:  # There is no standard error without a console.
        show = sys.stderr is not None and sys.stderr.isatty()
    if not show:
        return None
    try:
        from tqdm.auto import tqdm
    except ImportError as error:
        if log is None:
            return None
        raise ImportError(
            "'log=True' of 'GraphLotteryPruner' requires 'tqdm'"
        ) from error
    return ProgressBar(tqdm)
