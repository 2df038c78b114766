import math
from typing import (
    Any,
    Callable,
    Dict,
    List,
    NamedTuple,
    Optional,
    Tuple,
)

import torch
from torch import Tensor
from torch.nn import Module

from torch_geometric_ext.data.digest import digest
from torch_geometric_ext.lottery import imp_rounds
from torch_geometric_ext.lottery.check import warn_user
from torch_geometric_ext.lottery.clock import Clock
from torch_geometric_ext.lottery.describe import describe
from torch_geometric_ext.lottery.edges.edge_pairs import EdgePairs
from torch_geometric_ext.lottery.edges.edge_pruner import EdgePruner
from torch_geometric_ext.lottery.edges.edge_selection import prune_randomly
from torch_geometric_ext.lottery.edges.learned_scores import LearnedScores
from torch_geometric_ext.lottery.node_task import NodeTask
from torch_geometric_ext.lottery.optimizer import (
    MakeOptimizer,
    build_optimizer,
    scale_weight_decay,
)
from torch_geometric_ext.lottery.ranks import (
    from_first,
    own_seed,
    raise_together,
)
from torch_geometric_ext.lottery.settings import Settings
from torch_geometric_ext.lottery.stage import (
    DENSE,
    RETRAINED,
    SEARCH,
    Outcome,
    Stage,
    round_name,
)
from torch_geometric_ext.lottery.task import Task
from torch_geometric_ext.lottery.weights.channel_selection import Channels
from torch_geometric_ext.lottery.weights.weight_masks import (
    Masks,
    Weights,
    build_model,
)
from torch_geometric_ext.lottery.weights.weight_pruner import WeightPruner
from torch_geometric_ext.nn.named_seed import named_seed
from torch_geometric_ext.sparsity import RigL

MOVE_UNTIL = 0.75  # Fraction of the search, the default of `RigL`.


class Candidate(NamedTuple):
    """The masks of a ticket: remaining weights, and remaining edge pairs."""

    masks: Masks
    pairs: Optional[Tensor]


class Search:
    """Search for a ticket in stages, each of which trains a model.

    Args:
        template (torch.nn.Module): The dense model with initial weights.
        task (Task): The loss and the validation metric.
        names (List[str]): The layers to prune.
        pairs (EdgePairs, optional): The edges to prune.
        optimizer (Callable): A function of parameters that returns an
            optimizer.
        settings (Settings): All other arguments.
        observe (Callable): A function to call after each evaluation.
        clock (Clock): Measures the stages.
    """

    def __init__(
        self,
        template: Module,
        task: Task,
        names: List[str],
        pairs: Optional[EdgePairs],
        optimizer: MakeOptimizer,
        settings: Settings,
        observe: Callable[[Stage], None],
        clock: Clock,
    ) -> None:
        self.template = template
        self.task = task
        self.optimizer = optimizer
        self.settings = settings
        self.observe = observe
        self.weights = WeightPruner(template, names, settings.weight_sparsity)
        self.edges: Optional[EdgePruner] = None
        if pairs is not None:
            sparsity, score = settings.edge_sparsity, settings.edge_score
            self.edges = EdgePruner(pairs, sparsity, score)
        self.outcomes: Dict[str, Outcome] = {}
        self.clock = clock
        self.round = 0
        self.candidate = self._dense()
        self._stage: Optional[Stage] = None
        self._resumed: Dict[str, Any] = {}  # State of an interrupted stage.
        # The last pruned graph, for the next stage to share:
        self._pruned: Optional[Tuple[Tensor, Task]] = None

    def run(self) -> Candidate:
        """Run all stages that are not in :obj:`outcomes` yet."""
        settings = self.settings
        epochs = settings.pretrain_epochs
        if settings.method == 'imp':
            epochs = settings.retrain_epochs
        scores = self._learned_scores(DENSE)
        dense = self._run_stage(DENSE, self._dense(), epochs, scores)
        if settings.distill:
            teacher = build_model(self.template, dense.best)
            # Dense weights would overfit a sample of the targets:
            sparse = len(self.weights.names) > 0
            sampler = self._generator('targets') if sparse else None
            task = self.task.accelerate(teacher)
            self.task = task.distilled(teacher, settings.distill, sampler)
            self._pruned = None
        if settings.method == 'fast' and self.weights.channels is None:
            with self.clock.measure('channels'):
                self._choose_channels(dense)
        if settings.method == 'imp':
            candidate = self._imp(dense)
        elif settings.method == 'random':
            candidate = self._random()
        else:
            candidate = self._one_shot(dense)
        if settings.method == 'fast' and candidate.masks:
            found = self._run_stage(
                SEARCH, candidate, settings.search_epochs, moves=True
            )
            candidate = candidate._replace(masks=found.best.masks)
        self._run_stage(RETRAINED, candidate, settings.retrain_epochs)
        return candidate

    def config(self) -> Dict[str, Any]:
        """Return a description that tells searches apart."""
        tensors = self.task.identity()
        if self.edges is not None:
            tensors.append(self.edges.pairs.ends)
        names, settings = self.weights.names, self.settings
        return {
            **describe(self.template, names, self.optimizer, settings),
            'data': digest(tensors),
        }

    def state_dict(self) -> Dict[str, Any]:
        """Return the state that resumes the search bit for bit."""
        stage = self._stage
        unfinished = 0.0 if stage is None else stage.seconds
        return {
            'initial': self.weights.initial,
            'done': self.outcomes,
            'seconds': self.clock.seconds(unfinished),
            'round': self.round,
            'candidate': self.candidate,
            'channels': self.weights.channels,
            'index': self.weights.index,
            'stage': None if stage is None else stage.state_dict(),
        }

    def load_state_dict(self, state: Dict[str, Any]) -> None:
        """Load a state, which may be on another device and hold lists in place
        of tuples.
        """
        device = next(iter(self.weights.initial.values())).device
        self._resumed = state['stage'] or {}
        state = _to({**state, 'stage': None}, device)
        self.weights.initial = state['initial']
        self.template.load_state_dict(state['initial'])
        for key, values in state['done'].items():
            outcome = Outcome(*values)
            self.outcomes[key] = outcome._replace(
                best=Weights(*outcome.best), last=Weights(*outcome.last)
            )
        unfinished = self._resumed.get('seconds', 0.0)
        self.clock.resume(state['seconds'], unfinished)
        self.round = state['round']
        self.candidate = Candidate(*state['candidate'])
        if state['channels'] is not None:
            self.weights.channels = Channels(*state['channels'])
            self.weights.index = state['index']

    def _run_stage(
        self,
        name: str,
        candidate: Candidate,
        num_epochs: int,
        scores: Optional[LearnedScores] = None,
        *,
        moves: bool = False,
        keep: bool = True,
    ) -> Outcome:
        """Train a candidate from the initial weights on, unless
        :obj:`outcomes` holds the result.
        """
        if name in self.outcomes:
            return self.outcomes[name]
        with self.clock.measure('setup'):
            stage = self._new_stage(name, candidate, num_epochs, scores, keep)
        if moves:
            stage.scheduler = self._scheduler(stage)
        if self._resumed.get('name') == name:
            stage.load_state_dict(self._resumed)
        self._resumed = {}
        self._stage = stage
        outcome = stage.run(self.observe)
        self._stage = None
        outcome = outcome._replace(
            best=self.weights.widen(outcome.best),
            last=self.weights.widen(outcome.last),
        )
        self.clock.parts[name] = outcome.seconds
        if keep:
            self.outcomes[name] = outcome
        return outcome

    def _new_stage(
        self,
        name: str,
        candidate: Candidate,
        num_epochs: int,
        scores: Optional[LearnedScores],
        keep: bool,
    ) -> Stage:
        seed = named_seed(self.settings.seed, name)
        torch.manual_seed(seed)
        pairs: Optional[Tensor] = candidate.pairs
        if isinstance(self.task, NodeTask) and scores is None:
            # Others need numbered edges, as only pruned graphs have them:
            pairs = None if pairs is None or pairs.all() else pairs
        task = self._pruned_task(pairs)
        weights = Weights(self.weights.initial, candidate.masks)
        model = self.weights.build(weights)
        # Learned scores change the aggregated features in each step:
        task = task.accelerate(model, cache_aggregation=scores is None)
        if name == DENSE:
            with raise_together():
                task.check(model)
            fallback = task.fallback()
            if fallback is not None:
                warn_user(
                    f"'model' trains slower, with equal results, {fallback}"
                )
        torch.manual_seed(own_seed(self.settings.seed, name))
        optimizer = build_optimizer(self.optimizer, model)
        if name != DENSE:
            scale = self._decay_scale(candidate.masks)
            scale_weight_decay(optimizer, scale)
        every, patience = self.settings.evaluate_every, self.settings.patience
        if not keep and patience is None:
            every = max(every, num_epochs // 4)  # Only to report progress.
        return Stage(
            name,
            model,
            task,
            optimizer,
            num_epochs,
            scores=scores,
            evaluate_every=every,
            patience=patience,
        )

    def _pruned_task(self, pairs: Optional[Tensor]) -> Task:
        if pairs is None or self.edges is None:
            return self.task
        if self._pruned is None or self._pruned[0] is not pairs:
            mask = self.edges.pairs.edge_mask(pairs)
            self._pruned = pairs, self.task.pruned(mask)
        return self._pruned[1]

    def _decay_scale(self, masks: Masks) -> float:
        """Return the scale of the weight decay: sparse weights decay less,
        since fewer of them need to be larger, and distilled dense weights not
        at all.
        """
        if masks:
            return math.sqrt(self.weights.density(masks))
        return 0.0 if self.task.is_distilled else 1.0

    def _scheduler(self, stage: Stage) -> Optional[RigL]:
        num_steps = stage.num_epochs * stage.task.num_batches
        if self.settings.update_every >= MOVE_UNTIL * num_steps:
            return None
        return RigL(
            stage.model,
            stage.optimizer,
            num_steps=num_steps,
            update_every=self.settings.update_every,
            drop_fraction=self.settings.drop_fraction,
            stop=MOVE_UNTIL,
            allowed=self.weights.allowed(),
        )

    def _choose_channels(self, dense: Outcome) -> None:
        if len(self.weights.names) == 0:
            return
        seed = named_seed(self.settings.seed, 'channels')
        model, task = build_model(self.template, dense.last), self.task
        # Without distillation, few labels reach too few nodes to probe:
        fast = task.accelerate(model, all_nodes=not task.is_distilled)
        torch.manual_seed(seed)
        self.weights.choose_channels(
            model,
            dense.last,
            fast.loss,
            fast.first_batch(),
            task.loss,
            fast.labeled_batch(),
            seed,
        )
        # Ranks observe other mini-batches:
        chosen = self.weights.channels, self.weights.index
        device = next(iter(self.weights.initial.values())).device
        chosen = from_first(chosen, device)
        self.weights.channels, self.weights.index = chosen

    def _dense(self) -> Candidate:
        return Candidate(
            {}, None if self.edges is None else self.edges.all_pairs()
        )

    def _one_shot(self, dense: Outcome) -> Candidate:
        masks = self.weights.top_masks(dense.last, self.weights.target)
        if self.edges is None:
            return Candidate(masks, None)
        pairs, size = self.edges.all_pairs(), self.edges.target
        return Candidate(masks, self._prune_pairs(pairs, size, dense))

    def _random(self) -> Candidate:
        generator = self._generator('random')
        masks, pairs = self.weights.random_masks(generator), None
        if self.edges is not None:
            pairs = self.edges.all_pairs()
            pairs = prune_randomly(pairs, self.edges.target, generator)
        return Candidate(masks, pairs)

    def _imp(self, outcome: Outcome) -> Candidate:
        while self.round < imp_rounds.num_rounds(self.settings):
            number = self.round + 1
            if self.round > 0:
                name = round_name(number)
                outcome = self._run_stage(
                    name,
                    self.candidate,
                    self.settings.retrain_epochs,
                    self._learned_scores(name),
                    keep=False,
                )
            size = imp_rounds.num_weights(number, self.weights.num_weights)
            size = max(size, self.weights.target)
            masks = self.weights.top_masks(outcome.last, size)
            pairs = self.candidate.pairs
            if pairs is not None and self.edges is not None:
                size = imp_rounds.num_edges(number, pairs.numel())
                size = max(size, self.edges.target)
                pairs = self._prune_pairs(pairs, size, outcome)
            self.candidate, self.round = Candidate(masks, pairs), number
        return self.candidate

    def _prune_pairs(
        self, mask: Tensor, size: int, outcome: Outcome
    ) -> Tensor:
        assert self.edges is not None
        generator = self._generator(f'pairs {self.round}')
        return self.edges.prune(mask, size, outcome.scores, generator)

    def _learned_scores(self, name: str) -> Optional[LearnedScores]:
        mask = self.candidate.pairs
        if self.edges is None or mask is None:
            return None
        generator = self._generator(f'scores of {name}')
        return self.edges.learned_scores(mask, generator)

    def _generator(self, name: str) -> torch.Generator:
        seed = named_seed(self.settings.seed, name)
        return torch.Generator().manual_seed(seed)


def _to(value: Any, device: torch.device) -> Any:
    if isinstance(value, dict):
        return {key: _to(x, device) for key, x in value.items()}
    if isinstance(value, (list, tuple)):
        return [_to(x, device) for x in value]
    return value.to(device) if isinstance(value, torch.Tensor) else value
