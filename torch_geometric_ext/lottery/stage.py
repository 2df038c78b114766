import copy
import math
import time
from dataclasses import dataclass, field
from typing import Any, Callable, Dict, List, NamedTuple, Optional

import torch
from torch import Tensor
from torch.nn import Module
from torch.optim import Optimizer

from torch_geometric_ext.lottery.edges.learned_scores import SoftEdges
from torch_geometric_ext.lottery.task import Task
from torch_geometric_ext.lottery.weights.weight_masks import (
    Weights,
    read_weights,
)
from torch_geometric_ext.sparsity import WeightScheduler


class Progress(NamedTuple):
    """What callbacks are told after each evaluation.

    Attributes:
        stage (str): What is being done, such as :obj:`"dense"`.
        epoch (int): Number of epochs done in this stage.
        num_epochs (int): Number of epochs of this stage.
        metric (float): The validation metric of now.
        best (float): The best one of this stage.
    """

    stage: str
    epoch: int
    num_epochs: int
    metric: float
    best: float


class Outcome(NamedTuple):
    """What a stage found.

    Attributes:
        metric (float): The best validation metric.
        epoch (int): The epoch it was reached in.
        seconds (float): How long the stage took.
        history (List[float]): All validation metrics.
        best (Weights): The weights of that epoch.
        last (Weights): Those of the last epoch.
        scores (torch.Tensor, optional): The scores that edges learned.
    """

    metric: float
    epoch: int
    seconds: float
    history: List[float]
    best: Weights
    last: Weights
    scores: Optional[Tensor]


@dataclass
class Stage:
    """Trains a model for some epochs, and remembers its best ones.

    Args:
        name (str): The name of the stage.
        model (torch.nn.Module): The model.
        task (Task): What to train.
        optimizer (torch.optim.Optimizer): The optimizer.
        num_epochs (int): Number of epochs.
        scheduler (WeightScheduler, optional): What moves weights.
            (default: :obj:`None`)
        edges (SoftEdges, optional): Scores of edges to learn as well.
            (default: :obj:`None`)
        evaluate_every (int, optional): Number of epochs between evaluations.
            (default: :obj:`1`)
        patience (int, optional): Number of evaluations without a better one
            after which the stage ends. (default: :obj:`None`)
    """

    name: str
    model: Module
    task: Task
    optimizer: Optimizer
    num_epochs: int
    scheduler: Optional[WeightScheduler] = None
    edges: Optional[SoftEdges] = None
    evaluate_every: int = 1
    patience: Optional[int] = None
    epoch: int = 0
    best_epoch: int = 0
    seconds: float = 0.0
    history: List[float] = field(default_factory=list)
    best: Dict[str, Any] = field(default_factory=dict)

    def run(self, callback: Callable[['Stage'], None]) -> Outcome:
        """Trains to the end, and tells after each evaluation."""
        while not self.done:
            start = time.perf_counter()
            self.train()
            self.epoch += 1
            due = self.epoch % self.evaluate_every == 0
            if due or self.epoch == self.num_epochs:
                self.evaluate()
            self.seconds += time.perf_counter() - start
            if due or self.epoch == self.num_epochs:
                callback(self)
        if self.scheduler is not None:
            self.scheduler.remove()
        return self._outcome()

    @property
    def done(self) -> bool:
        """Whether all epochs have run, or patience is at its end."""
        if self.patience is not None and self.history:
            waited = self.epoch - self.best_epoch
            if waited >= self.patience * self.evaluate_every:
                return True
        return self.epoch >= self.num_epochs

    def train(self) -> None:
        """Trains an epoch."""
        self.model.train()
        for batch in self.task.batches():
            self.optimizer.zero_grad()
            self.loss(batch).backward()
            self.optimizer.step()
            if self.scheduler is not None:
                self.scheduler.step()

    def loss(self, batch: Any) -> Tensor:
        """The loss of a mini-batch."""
        if self.edges is None:
            return self.task.loss(self.model, batch)
        return self.edges.loss(self.task.loss, self.model, batch)

    def evaluate(self) -> None:
        """Measures, and remembers what is better than before."""
        params = [x.isfinite().all() for x in self.model.parameters()]
        if not torch.stack(params).all():
            raise ValueError(
                f"the training of 'model' diverged (got parameters that are "
                f"not finite in epoch {self.epoch} of stage '{self.name}'); "
                f'check the loss, or lower the learning rate'
            )
        metric = self.task.evaluate(self.model)
        if math.isnan(metric):
            raise ValueError("'evaluate' needs to return a number (got nan)")
        if not self.history or metric > max(self.history):
            self.best_epoch = self.epoch
            self.best = copy.deepcopy(self.model.state_dict())
        self.history.append(metric)

    @property
    def progress(self) -> Progress:
        """What a callback is told."""
        return Progress(
            self.name,
            self.epoch,
            self.num_epochs,
            self.history[-1],
            max(self.history),
        )

    def state_dict(self) -> Dict[str, Any]:
        """All it takes to go on bit for bit."""
        scheduler = self.scheduler
        return {
            'name': self.name,
            'epoch': self.epoch,
            'best_epoch': self.best_epoch,
            'seconds': self.seconds,
            'history': list(self.history),
            'best': dict(self.best),
            'model': dict(self.model.state_dict()),
            'optimizer': self.optimizer.state_dict(),
            'scheduler': None if scheduler is None else scheduler.state_dict(),
            'scores': None if self.edges is None else self.edges.score.data,
            'random': random_state(),
        }

    def load_state_dict(self, state: Dict[str, Any]) -> None:
        """Goes back to where a stage was."""
        self.model.load_state_dict(state['model'])
        self.optimizer.load_state_dict(state['optimizer'])
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state['scheduler'])
        if self.edges is not None:
            self.edges.score.data.copy_(state['scores'])
        for key in ['epoch', 'best_epoch', 'seconds', 'history', 'best']:
            setattr(self, key, state[key])
        set_random_state(state['random'])

    def _outcome(self) -> Outcome:
        last = read_weights(self.model)
        self.model.load_state_dict(self.best)
        best = read_weights(self.model)
        return Outcome(
            max(self.history),
            self.best_epoch,
            self.seconds,
            self.history,
            best,
            last,
            None if self.edges is None else self.edges.score.detach().clone(),
        )


def random_state() -> List[torch.Tensor]:
    """The states of the global generators."""
    devices = torch.cuda.get_rng_state_all() if _uses_cuda() else []
    return [torch.get_rng_state(), *devices]


def set_random_state(state: List[torch.Tensor]) -> None:
    """Sets the states of the global generators."""
    torch.set_rng_state(state[0])
    if _uses_cuda():
        torch.cuda.set_rng_state_all(state[1:])


def _uses_cuda() -> bool:
    return torch.cuda.is_available() and torch.cuda.is_initialized()
