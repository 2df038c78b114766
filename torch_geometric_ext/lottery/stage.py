import copy
import math
import time
from dataclasses import dataclass, field
from typing import Any, Callable, Dict, List, NamedTuple, Optional

import torch
from torch import Tensor
from torch.nn import Module
from torch.optim import Optimizer

from torch_geometric_ext.lottery.edges.learned_scores import LearnedScores
from torch_geometric_ext.lottery.ranks import (
    average_buffers,
    average_gradients,
    in_step,
    mean,
)
from torch_geometric_ext.lottery.task import Task
from torch_geometric_ext.lottery.weights.weight_masks import (
    Weights,
    read_weights,
)
from torch_geometric_ext.sparsity import WeightScheduler

# Names of stages in tickets, checkpoints and progress:
DENSE = 'dense'
SEARCH = 'search'
RETRAINED = 'retrained'


def round_name(number: int) -> str:
    """Return the name of a round of iterative pruning, counted from one."""
    return f'round {number}'


class Progress(NamedTuple):
    """The progress of a search, passed to callbacks after each evaluation.

    Attributes:
        stage (str): The name of the stage, such as :obj:`"dense"`.
        epoch (int): Number of finished epochs of the stage.
        num_epochs (int): Number of all epochs of the stage.
        metric (float): The current validation metric.
        best (float): The best validation metric of the stage.
    """

    stage: str
    epoch: int
    num_epochs: int
    metric: float
    best: float


class Outcome(NamedTuple):
    """The result of a stage.

    Attributes:
        metric (float): The best validation metric.
        epoch (int): The epoch with that metric.
        seconds (float): The duration of the stage.
        history (List[float]): All validation metrics.
        best (Weights): The weights after that epoch.
        last (Weights): The weights after the last epoch.
        scores (torch.Tensor, optional): The learned scores of edge pairs.
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
    """Train a model for some epochs and keep its best weights.

    Args:
        name (str): The name of the stage.
        model (torch.nn.Module): The model.
        task (Task): The loss and the validation metric.
        optimizer (torch.optim.Optimizer): The optimizer.
        num_epochs (int): Number of epochs.
        scheduler (WeightScheduler, optional): The scheduler that moves
            connections. (default: :obj:`None`)
        scores (LearnedScores, optional): Scores of edges to train with the
            model. (default: :obj:`None`)
        evaluate_every (int, optional): Number of epochs between two
            evaluations. (default: :obj:`1`)
        patience (int, optional): Number of evaluations without improvement
            that end the stage. (default: :obj:`None`)
    """

    name: str
    model: Module
    task: Task
    optimizer: Optimizer
    num_epochs: int
    scheduler: Optional[WeightScheduler] = None
    scores: Optional[LearnedScores] = None
    evaluate_every: int = 1
    patience: Optional[int] = None
    epoch: int = 0
    best_epoch: int = 0
    seconds: float = 0.0
    history: List[float] = field(default_factory=list)
    best: Dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.scores is not None:
            group = {'params': [self.scores.score], 'weight_decay': 0.0}
            self.optimizer.add_param_group(group)

    def run(self, callback: Callable[['Stage'], None]) -> Outcome:
        """Train all epochs and call a function after each evaluation."""
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
        """Return whether all epochs have run or patience has run out."""
        if self.patience is not None and self.history:
            waited = self.epoch - self.best_epoch
            if waited >= self.patience * self.evaluate_every:
                return True
        return self.epoch >= self.num_epochs

    def train(self) -> None:
        """Train one epoch, on all ranks in step."""
        self.model.train()
        self.task.start_epoch(self.epoch)
        for batch in in_step(self.task.batches()):
            self.optimizer.zero_grad()
            if batch is not None:
                self.loss(batch).backward()
            average_gradients(self.optimizer, batch is not None)
            self.optimizer.step()
            if self.scheduler is not None:
                self.scheduler.step()

    def loss(self, batch: Any) -> Tensor:
        """Return the loss of a mini-batch."""
        if self.scores is None:
            return self._task_loss(self.model, batch)
        return self.scores.loss(self._task_loss, self.model, batch)

    def evaluate(self) -> None:
        """Record the validation metric, and the state if it improved."""
        params = [x.isfinite().all() for x in self.model.parameters()]
        if not torch.stack(params).all():
            raise ValueError(
                f"the training of 'model' diverged (got parameters that are "
                f"not finite in epoch {self.epoch} of stage '{self.name}'); "
                f'check the loss, or lower the learning rate'
            )
        average_buffers(self.model)
        metric = mean(self.task.evaluate(self.model))
        if math.isnan(metric):
            raise ValueError("'evaluate' needs to return a number (got nan)")
        if not self.history or metric > max(self.history):
            self.best_epoch = self.epoch
            self.best = copy.deepcopy(self.model.state_dict())
        self.history.append(metric)

    @property
    def progress(self) -> Progress:
        """Return the progress to report."""
        return Progress(
            self.name,
            self.epoch,
            self.num_epochs,
            self.history[-1],
            max(self.history),
        )

    def state_dict(self) -> Dict[str, Any]:
        """Return the state that resumes the stage bit for bit."""
        scheduler, scores = self.scheduler, self.scores
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
            'scores': None if scores is None else scores.score.data,
            'random': random_state(),
        }

    def load_state_dict(self, state: Dict[str, Any]) -> None:
        """Load a state, and that of the global random generators."""
        self.model.load_state_dict(state['model'])
        self.optimizer.load_state_dict(state['optimizer'])
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state['scheduler'])
        if self.scores is not None:
            self.scores.score.data.copy_(state['scores'])
        for key in ['epoch', 'best_epoch', 'seconds', 'history', 'best']:
            setattr(self, key, state[key])
        set_random_state(state['random'])

    def _task_loss(self, model: Module, batch: Any) -> Tensor:
        loss = self.task.loss(model, batch)
        is_number = isinstance(loss, Tensor) and loss.numel() == 1
        if not is_number or not loss.requires_grad:
            got = repr(loss)
            if isinstance(loss, Tensor):
                got = f'shape {list(loss.shape)}, '
                got += f'requires_grad={loss.requires_grad}'
            raise ValueError(
                f'the loss needs to be a tensor of one number that depends on '
                f"the parameters of 'model'; check 'loss_fn', or whether "
                f"'model' detaches its outputs (got {got})"
            )
        return loss

    def _outcome(self) -> Outcome:
        last = read_weights(self.model)
        self.model.load_state_dict(self.best)
        best = read_weights(self.model)
        scores = self.scores
        return Outcome(
            max(self.history),
            self.best_epoch,
            self.seconds,
            self.history,
            best,
            last,
            None if scores is None else scores.score.detach().clone(),
        )


def random_state() -> List[torch.Tensor]:
    """Return the states of the global random generators."""
    devices = torch.cuda.get_rng_state_all() if _uses_cuda() else []
    return [torch.get_rng_state(), *devices]


def set_random_state(state: List[torch.Tensor]) -> None:
    """Set the states of the global random generators."""
    torch.set_rng_state(state[0])
    if _uses_cuda():
        torch.cuda.set_rng_state_all(state[1:])


def _uses_cuda() -> bool:
    return torch.cuda.is_available() and torch.cuda.is_initialized()
