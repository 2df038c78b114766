"""Callback for :obj:`lightning`, an optional dependency.

Import :class:`SamplerCallback` from this module. The package does not import
it, as the import of :obj:`lightning` takes seconds.
"""

from typing import TYPE_CHECKING, Any, Dict, List, Optional

from torch_geometric_ext.loader.dynamic_sampler import DynamicSampler

if TYPE_CHECKING:
    Callback = Any
else:
    try:
        from lightning.pytorch import Callback
    except ImportError:

        class Callback:
            """Raise an error, in place of a class of :obj:`lightning`."""

            def __init__(self) -> None:
                raise ImportError(
                    f"'{self.__class__.__name__}' requires "
                    f"'lightning' (pip install lightning)"
                )


class SamplerCallback(Callback):
    r"""Callback of :class:`lightning.pytorch.Trainer` for a sampler.

    * **Checkpoints** hold the state of the sampler. A resumed training draws
      the same graphs, and continues within an epoch.
    * **Distributed training.** The sampler draws for the rank and the number
      of ranks of the trainer. Leave its arguments :obj:`num_replicas` and
      :obj:`rank` unset.
    * **Logs.** In each epoch, the callback logs the last values of
      :meth:`~torch_geometric_ext.loader.DynamicSampler.history` as
      :obj:`sampler/num_graphs`, :obj:`sampler/turnover`,
      :obj:`sampler/coverage`, :obj:`sampler/num_suspects` and so on.
    * **Checks.** The callback raises an error before training if the trainer
      does not use the sampler, or would stop epochs early because their
      lengths differ.

    The trainer itself calls
    :meth:`~torch_geometric_ext.loader.DynamicSampler.set_epoch`.
    :doc:`/guides/lightning` shows a whole training.

    .. code-block:: python

        from torch_geometric_ext.loader.lightning import SamplerCallback

        sampler = GDeRSampler(dataset, prototypes, 0.5, num_epochs=100)
        loader = DataLoader(dataset, batch_size=32, sampler=sampler)
        trainer = Trainer(
            max_epochs=100,
            callbacks=[SamplerCallback(sampler)],
            use_distributed_sampler=False,
        )
        trainer.fit(model, loader)

    The training step of :obj:`model` adds the loss of the sampler:

    .. code-block:: python

        def training_step(self, batch, batch_idx):
            h = self.encoder(batch)
            loss = F.cross_entropy(self.head(h), batch.y)
            return loss + self.sampler.update(h, batch.y, batch.graph_idx)

    Args:
        sampler (DynamicSampler): The sampler of the training loader, or of its
            batch sampler.

    Raises:
        ImportError: If :obj:`lightning` is not installed.
        TypeError: If :obj:`sampler` is of another class.
    """

    def __init__(self, sampler: DynamicSampler) -> None:
        super().__init__()
        if not isinstance(sampler, DynamicSampler):
            raise TypeError(
                f"'sampler' of '{self.__class__.__name__}' needs to be a "
                f"'DynamicSampler' (got {type(sampler)})"
            )
        self.sampler = sampler
        # Graphs of the epoch that the model was trained on, over all ranks:
        self._consumed: Optional[int] = None

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Give the sampler the rank and the number of ranks of the trainer.

        Raises:
            ValueError: If the sampler was created for other ranks.
        """
        sampler, num_replicas = self.sampler, trainer.world_size
        if stage != 'fit':
            return
        if sampler.num_replicas not in (1, num_replicas):
            raise ValueError(
                f"'sampler' of '{self.__class__.__name__}' needs to have "
                f"'num_replicas={num_replicas}', the number of ranks of the "
                f'trainer (got {sampler.num_replicas})'
            )
        sampler.num_replicas = num_replicas
        sampler.rank = trainer.global_rank
        # The trainer counts the mini-batches before a checkpoint itself:
        sampler.whole_length = True

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Let the length of the sampler count the rest of an epoch again."""
        self.sampler.whole_length = False

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Check that the trainer uses the sampler.

        Raises:
            ValueError: If it does not, or epochs of different lengths would be
                stopped early.
        """
        name, sampler = self.__class__.__name__, self.sampler
        found = _find_samplers(trainer.train_dataloader)
        if not any(other is sampler for other in found):
            names = [other.__class__.__name__ for other in found]
            raise ValueError(
                f"'sampler' of '{name}' needs to be the sampler of the "
                f'training loader (got {names}). Pass it to the loader, and '
                f"'use_distributed_sampler=False' to the trainer, which "
                f'replaces samplers otherwise'
            )
        lengths = sampler.num_epochs * sampler.steps_per_epoch(1)
        differ = lengths != sampler.total_steps(1)
        reload = trainer.reload_dataloaders_every_n_epochs
        if differ and reload != 1:
            raise ValueError(
                f"'reload_dataloaders_every_n_epochs' of 'Trainer' needs to "
                f"be one, as epochs of '{sampler.__class__.__name__}' differ "
                f'in their lengths (got {reload}). The trainer gives all '
                f'epochs the length of the first one otherwise'
            )

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Log statistics of the epoch."""
        values = {
            f'sampler/{key}': float(column[-1])
            for key, column in self.sampler.history().items()
            if key != 'epoch' and isinstance(column[-1], (int, float))
        }
        # All ranks draw the same graphs:
        self.log_dict(
            values,
            on_step=False,
            on_epoch=True,
            batch_size=1,
            rank_zero_only=True,
        )

    def on_train_batch_end(
        self,
        trainer: Any,
        pl_module: Any,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Count the graphs of the epoch."""
        if hasattr(batch, 'num_graphs'):
            num_graphs = batch.num_graphs * self.sampler.num_replicas
            last = self.sampler.num_planned
            self._consumed = min((self._consumed or 0) + num_graphs, last)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Forget the graphs of the epoch."""
        self._consumed = None

    def state_dict(self) -> Dict[str, Any]:
        """Return the state of the sampler, for checkpoints of the trainer."""
        return self.sampler.state_dict(self._consumed)

    def load_state_dict(self, state_dict: Dict[str, Any]) -> None:
        """Load the state of the sampler from a checkpoint."""
        self.sampler.load_state_dict(state_dict)
        if not state_dict['started']:
            self._consumed = state_dict.get('consumed')


def _find_samplers(loaders: Any) -> List[Any]:
    """Return the samplers of all loaders in a nested collection."""
    if isinstance(loaders, dict):
        loaders = list(loaders.values())
    if isinstance(loaders, (list, tuple)):
        return [x for loader in loaders for x in _find_samplers(loader)]
    if hasattr(loaders, 'flattened'):  # A `CombinedLoader`.
        return _find_samplers(list(loaders.flattened))
    batch_sampler = getattr(loaders, 'batch_sampler', None)
    sampler = getattr(batch_sampler, 'sampler', None)
    return [getattr(loaders, 'sampler', None) if sampler is None else sampler]
