import math
import warnings
from typing import (
    Any,
    Callable,
    Dict,
    Iterable,
    List,
    NamedTuple,
    Optional,
    Tuple,
)

import torch
from torch import Tensor
from torch.nn import Module
from torch.optim import Optimizer

from torch_geometric_ext.lottery.edges.edge_pairs import EdgePairs
from torch_geometric_ext.lottery.edges.edge_ranking import (
    crowded_pairs,
    random_pairs,
)
from torch_geometric_ext.lottery.edges.learned_scores import SoftEdges
from torch_geometric_ext.lottery.settings import Settings
from torch_geometric_ext.lottery.stage import Outcome, Stage
from torch_geometric_ext.lottery.task import Task
from torch_geometric_ext.lottery.weights.channel_rigl import ChannelRigL
from torch_geometric_ext.lottery.weights.channel_selection import (
    Channels,
    find_channels,
    find_num_heads,
)
from torch_geometric_ext.lottery.weights.narrow_model import (
    Index,
    find_index,
    narrow_model,
    narrow_weights,
    widen_weights,
)
from torch_geometric_ext.lottery.weights.weight_masks import (
    Masks,
    Weights,
    build_model,
    global_masks,
    random_masks,
    weight_key,
)
from torch_geometric_ext.nn.named_seed import named_seed
from torch_geometric_ext.sparsity.ranking import top_mask

IMP_WEIGHT_RATE = 0.2  # Shares of what is left that leave in a round.
IMP_EDGE_RATE = 0.05
CHANNEL_DENSITY = 0.25  # The share of their weights that is kept.
HEADS_DENSITY = 0.125  # The same, where heads share the channels.
CROWDED_SHARE = 0.35  # Of all edges. Of those left, any may leave.
STOP = 0.75  # The share of a search after which no weight moves.


class Candidate(NamedTuple):
    """What a ticket may look like: the weights and pairs that exist."""

    masks: Masks
    pairs: Optional[Tensor]


class Search:
    """Looks for a ticket in stages, each of which trains a model.

    Args:
        template (torch.nn.Module): The dense model, with initial weights.
        task (Task): What the ticket is to be good at.
        names (List[str]): The layers to prune.
        pairs (EdgePairs, optional): The edges to prune.
        optimizer (Callable): Makes an optimizer of parameters.
        settings (Settings): All else.
        observe (Callable): Is told after each evaluation.
    """

    def __init__(
        self,
        template: Module,
        task: Task,
        names: List[str],
        pairs: Optional[EdgePairs],
        optimizer: Callable[[Iterable[Any]], Optimizer],
        settings: Settings,
        observe: Callable[[Stage], None],
    ) -> None:
        self.template = template
        self.task = task
        self.names = names
        self.pairs = pairs
        self.optimizer = optimizer
        self.settings = settings
        self.observe = observe
        self.initial = {
            key: x.detach().clone() for key, x in template.state_dict().items()
        }
        weights = [self.initial[weight_key(name)] for name in names]
        self.num_weights = sum(weight.numel() for weight in weights)
        if self._num_weights() < len(names):
            raise ValueError(
                f"'weight_sparsity={settings.weight_sparsity}' leaves "
                f'{self._num_weights()} weights, but there are {len(names)} '
                f'layers that need one each; lower it, or ignore layers'
            )
        # What a checkpoint holds:
        self.done: Dict[str, Outcome] = {}
        self.round = 0
        self.candidate = Candidate({}, self._all_pairs())
        self.seconds: Dict[str, float] = {}
        self.channels: Optional[Channels] = None
        self.index: Optional[Index] = None
        self.pending: Optional[Dict[str, Any]] = None
        # What the next stage may share:
        self.pruned: Optional[Tuple[Tensor, Task]] = None

    def run(self) -> Candidate:
        """Runs what has not been done yet. The outcomes are in :obj:`done`,
        the last one as :obj:`"retrained"`.
        """
        method = self.settings.method
        epochs = self.settings.pretrain_epochs
        if method == 'imp':
            epochs = self.settings.retrain_epochs
        edges = self._soft_edges('dense')
        dense = self.stage(
            'dense', Candidate({}, self._all_pairs()), epochs, edges
        )
        if self.settings.distill:
            teacher = build_model(self.template, dense.best)
            # Dense weights learn by heart, and need to be told of all nodes:
            sampler = self._generator('targets') if self.names else None
            self.task = self.task.distilled(
                teacher, self.settings.distill, sampler
            )
            self.pruned = None
        if method == 'fast' and self.channels is None:
            self._choose_channels(dense)
        if method == 'imp':
            candidate = self._imp(dense)
        elif method == 'random':
            candidate = self._random()
        else:
            candidate = self._one_shot(dense)
        if method == 'fast' and candidate.masks:
            found = self.stage(
                'search', candidate, self.settings.search_epochs, moves=True
            )
            candidate = candidate._replace(masks=found.best.masks)
        self.stage('retrained', candidate, self.settings.retrain_epochs)
        return candidate

    def _one_shot(self, dense: Outcome) -> Candidate:
        return Candidate(
            self._masks(dense.last, self._num_weights()),
            self._keep_pairs(self._all_pairs(), self._num_pairs(), dense),
        )

    def _random(self) -> Candidate:
        masks, pairs = {}, self._all_pairs()
        generator = self._generator('random')
        if self.names:
            weights = Weights(self.initial, {})
            size = self._num_weights()
            masks = random_masks(weights, self.names, size, generator)
        if pairs is not None:
            pairs = random_pairs(pairs, self._num_pairs(), generator)
        return Candidate(masks, pairs)

    def _imp(self, outcome: Outcome) -> Candidate:
        num_rounds = max(
            _num_rounds(self.settings.weight_sparsity, IMP_WEIGHT_RATE),
            _num_rounds(self.settings.edge_sparsity, IMP_EDGE_RATE),
        )
        while self.round < num_rounds:
            number = self.round + 1
            name = f'round {number}'
            if self.round > 0:
                edges = self._soft_edges(name)
                outcome = self.stage(
                    name,
                    self.candidate,
                    self.settings.retrain_epochs,
                    edges,
                    keep=False,
                )
            left = (1 - IMP_WEIGHT_RATE) ** number
            size = max(round(left * self.num_weights), self._num_weights())
            masks = self._masks(outcome.last, size)
            pairs = self.candidate.pairs
            if pairs is not None:
                left = (1 - IMP_EDGE_RATE) ** number
                size = max(round(left * pairs.numel()), self._num_pairs())
                pairs = self._keep_pairs(pairs, size, outcome)
            self.candidate, self.round = Candidate(masks, pairs), number
        return self.candidate

    def stage(
        self,
        name: str,
        candidate: Candidate,
        num_epochs: int,
        edges: Optional[SoftEdges] = None,
        *,
        moves: bool = False,
        keep: bool = True,
    ) -> Outcome:
        """Trains a candidate from the initial weights, unless that has been
        done.
        """
        if name in self.done:
            return self.done[name]
        seed = named_seed(self.settings.seed, name)
        torch.manual_seed(seed)
        task, model = self._prepared(candidate, adds_up=edges is None)
        torch.manual_seed(seed)
        optimizer = self.optimizer(model.parameters())
        if name != 'dense':
            self._soften(optimizer, candidate.masks)
        if edges is not None:
            optimizer.add_param_group(
                {'params': [edges.score], 'weight_decay': 0.0}
            )
        every = self.settings.evaluate_every
        if not keep and self.settings.patience is None:
            every = max(every, num_epochs // 4)  # Only for progress.
        stage = Stage(
            name,
            model,
            task,
            optimizer,
            num_epochs,
            edges=edges,
            evaluate_every=every,
            patience=self.settings.patience,
        )
        if moves:
            stage.scheduler = self._scheduler(stage)
        if self.pending is not None and self.pending['name'] == name:
            stage.load_state_dict(self.pending)
        self.pending = None
        outcome = stage.run(self.observe)
        if self.index is not None and candidate.masks:
            outcome = outcome._replace(
                best=widen_weights(outcome.best, self.index, self.initial),
                last=widen_weights(outcome.last, self.index, self.initial),
            )
        self.seconds[name] = outcome.seconds
        if keep:
            self.done[name] = outcome
        return outcome

    def _prepared(
        self, candidate: Candidate, adds_up: bool
    ) -> Tuple[Task, Module]:
        """What to train, on as little of the graph as that takes."""
        task, pairs = self.task, candidate.pairs
        if pairs is not None and self.pairs is not None:
            if self.pruned is None or self.pruned[0] is not pairs:
                mask = self.pairs.edge_mask(pairs)
                self.pruned = pairs, task.pruned(mask)
            task = self.pruned[1]
        model = self.build(Weights(self.initial, candidate.masks))
        return task.accelerate(model, adds_up), model

    def build(self, weights: Weights) -> Module:
        """A model with some of the weights, and without the channels that
        left, if it can be.
        """
        if self.index is None or not weights.masks:
            return build_model(self.template, weights)
        template = narrow_model(self.template, self.index)
        return build_model(template, narrow_weights(weights, self.index))

    def _soften(self, optimizer: Optimizer, masks: Masks) -> None:
        """Lets sparse weights grow, since fewer of them need to be larger,
        and dense ones learn by heart what the edges that left had told.
        """
        if masks:
            num_kept = sum(int(mask.sum()) for mask in masks.values())
            scale = math.sqrt(num_kept / self.num_weights)
        else:
            scale = 0.0 if self.task.is_distilled else 1.0
        for group in optimizer.param_groups:
            if 'weight_decay' in group:
                group['weight_decay'] *= scale

    def _scheduler(self, stage: Stage) -> Optional[ChannelRigL]:
        num_steps = stage.num_epochs * stage.task.num_batches
        every = self.settings.update_every
        if every >= STOP * num_steps:
            warnings.warn(
                f"'search_epochs' of 'GraphLotteryPruner' are too few: no "
                f'weights will move in {num_steps} steps, since the first '
                f"ones are due after 'update_every={every}'",
                stacklevel=7,
            )
            return None
        assert self.channels is not None
        channels = self.channels
        if self.index is not None:
            channels = channels.narrow()
        return ChannelRigL(
            stage.model,
            stage.optimizer,
            channels=channels,
            num_steps=num_steps,
            update_every=every,
            drop_fraction=self.settings.drop_fraction,
            stop=STOP,
        )

    def _masks(self, weights: Weights, size: int) -> Masks:
        if len(self.names) == 0:
            return {}
        return global_masks(weights, self.names, size, self.channels)

    def _choose_channels(self, dense: Outcome) -> None:
        if len(self.names) == 0:
            return
        seed = named_seed(self.settings.seed, 'channels')
        model = build_model(self.template, dense.last)
        torch.manual_seed(seed)
        task = self.task.accelerate(model)
        heads = find_num_heads(self.template, self.names).values()
        shared = max(heads, default=1) > 1
        density = HEADS_DENSITY if shared else CHANNEL_DENSITY
        size = math.ceil(self._num_weights() / density)
        self.channels, aligned = find_channels(model, task, self.names, size)
        room = sum(aligned.num_weights(name) for name in self.names)
        if room >= self._num_weights():
            self.index = find_index(
                self.template, aligned, dense.last.state, task, seed
            )
        if self.index is not None:
            self.channels = aligned

    def _keep_pairs(
        self, mask: Optional[Tensor], size: int, outcome: Outcome
    ) -> Optional[Tensor]:
        if mask is None or self.pairs is None:
            return None
        if outcome.scores is not None:
            score = outcome.scores.abs() + 1  # What has left is below.
            return top_mask(score.masked_fill(~mask, 0), size)
        generator = self._generator(f'pairs {self.round}')
        if self.settings.edge_score == 'degree':
            first = round((1 - CROWDED_SHARE) * mask.numel())
            first = min(max(first, size), int(mask.sum()))
            mask = crowded_pairs(self.pairs, mask, first, generator)
        return random_pairs(mask, size, generator)

    def _soft_edges(self, name: str) -> Optional[SoftEdges]:
        mask = self.candidate.pairs
        if self.settings.edge_score != 'learned' or mask is None:
            return None
        if self.pairs is None:
            return None
        generator = self._generator(f'scores of {name}')
        return SoftEdges(self.pairs, mask, generator)

    def _all_pairs(self) -> Optional[Tensor]:
        if self.pairs is None:
            return None
        ends = self.pairs.ends
        return ends.new_ones(self.pairs.num_pairs, dtype=torch.bool)

    def _num_weights(self) -> int:
        return round((1 - self.settings.weight_sparsity) * self.num_weights)

    def _num_pairs(self) -> int:
        if self.pairs is None:
            return 0
        return round((1 - self.settings.edge_sparsity) * self.pairs.num_pairs)

    def _generator(self, name: str) -> torch.Generator:
        seed = named_seed(self.settings.seed, name)
        return torch.Generator().manual_seed(seed)


def _num_rounds(sparsity: float, rate: float) -> int:
    if sparsity == 0:
        return 0
    number = math.log(1 - sparsity) / math.log(1 - rate)
    return max(math.ceil(number - 1e-9), 1)
