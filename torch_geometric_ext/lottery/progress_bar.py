from typing import Any

from torch_geometric_ext.lottery.stage import Progress


class ProgressBar:
    """A progress bar for each stage."""

    def __init__(self) -> None:
        self.bar: Any = None
        self.stage = ''

    def update(self, progress: Progress) -> None:
        """Advance the bar, or start one for a new stage."""
        from tqdm.auto import tqdm

        if progress.stage != self.stage:
            self.close()
            self.stage = progress.stage
            self.bar = tqdm(total=progress.num_epochs, desc=progress.stage)
        self.bar.update(progress.epoch - self.bar.n)
        self.bar.set_postfix(best=f'{progress.best:.4f}')

    def close(self) -> None:
        """Close the current bar."""
        if self.bar is not None:
            self.bar.close()
