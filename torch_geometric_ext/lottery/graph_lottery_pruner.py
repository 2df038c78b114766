import copy
from dataclasses import KW_ONLY, dataclass, fields
from pathlib import Path
from typing import Any, Callable, List, Optional, Sequence, Tuple, Union

import torch
from torch.nn import Module
from torch.nn.parameter import is_lazy

from torch_geometric_ext.lottery.check import (
    check_data,
    check_edges,
    check_fit,
    check_optimizer,
    check_prunable,
    warn_if_no_update,
)
from torch_geometric_ext.lottery.check_node_task import check_node_task
from torch_geometric_ext.lottery.checkpoint import Checkpoint
from torch_geometric_ext.lottery.clock import Clock
from torch_geometric_ext.lottery.describe import describe
from torch_geometric_ext.lottery.edges.edge_pairs import EdgePairs
from torch_geometric_ext.lottery.edges.prune_edges import (
    digest_edges,
    whole_graph,
)
from torch_geometric_ext.lottery.loss_macs import loss_macs
from torch_geometric_ext.lottery.node_task import NodeTask
from torch_geometric_ext.lottery.optimizer import MakeOptimizer, make_adam
from torch_geometric_ext.lottery.progress_bar import make_progress_bar
from torch_geometric_ext.lottery.ranks import (
    check_same,
    gather,
    get_rank,
    raise_together,
    share_state,
)
from torch_geometric_ext.lottery.search import MOVE_UNTIL, Candidate, Search
from torch_geometric_ext.lottery.settings import Settings
from torch_geometric_ext.lottery.stage import (
    DENSE,
    RETRAINED,
    SEARCH,
    Progress,
    Stage,
)
from torch_geometric_ext.lottery.task import (
    CustomTask,
    Evaluate,
    LossFunction,
    Task,
)
from torch_geometric_ext.lottery.ticket import Ticket
from torch_geometric_ext.lottery.weights.weight_masks import (
    clear_caches,
    weight_key,
)
from torch_geometric_ext.nn.linear_layers import Ignored, swappable_linears

Callbacks = Sequence[Callable[[Progress], None]]


@dataclass(repr=False, eq=False)
class GraphLotteryPruner(Settings):
    r"""Search for a winning ticket: a sub-network and a sub-graph that keep
    the accuracy of the dense model, as in the `"Fast Track to Winning Tickets:
    Repowering One-Shot Pruning for Graph Neural Networks"
    <https://arxiv.org/abs/2412.07605>`_ and `"A Unified Lottery Ticket
    Hypothesis for Graph Neural Networks" <https://arxiv.org/abs/2102.06790>`_
    papers.

    .. code-block:: python

        pruner = GraphLotteryPruner(
            model, weight_sparsity=0.98, edge_sparsity=0.35
        )
        ticket = pruner.fit(data)
        small_model, small_data = ticket.apply(model, data)

    The model may hold any linear and message passing layers, and is not
    changed. Pruned edges are removed from the graph, not multiplied by zero.
    :doc:`/develop/lottery` describes the algorithm and its deviations from
    the papers.

    .. warning::
        Distilled tickets overfit the nodes seen in training: on unseen nodes
        they are less accurate than the dense model.

    Args:
        model (torch.nn.Module): The model, which may be lazy.
        weight_sparsity (float, optional): The fraction of weights of linear
            layers to prune, in :math:`[0, 1)`. Each layer keeps at least
            one. (default: :obj:`0.0`)
        edge_sparsity (float, optional): The fraction of edges to prune, in
            :math:`[0, 1)`. (default: :obj:`0.0`)
        method (str, optional): The search: :obj:`"fast"`, iterative magnitude
            pruning (:obj:`"imp"`), one-shot magnitude pruning
            (:obj:`"one_shot"`), or a random choice (:obj:`"random"`).
            (default: :obj:`"fast"`)
        ignored (Sequence[str, torch.nn.Module or type], optional): Modules
            whose linear layers stay dense: by name, by object, or by class.
            (default: :obj:`()`)
        edge_score (str, optional): The ranking of edges: by the product of
            the degrees of their nodes (:obj:`"degree"`), by scores learned
            together with the dense model (:obj:`"learned"`), or at random
            (:obj:`"random"`). Degrees suit models that sum over neighbors;
            random edges are as accurate for means and attention, and more
            accurate on unseen nodes. (default: :obj:`"degree"`)
        seed (int, optional): Seed of all random choices.
            (default: :obj:`0`)
        pretrain_epochs (int, optional): Number of epochs that train the dense
            model (:obj:`"imp"` uses :obj:`retrain_epochs` instead).
            (default: :obj:`60`)
        search_epochs (int, optional): Number of epochs in which connections
            move (:obj:`"fast"` only). (default: :obj:`100`)
        retrain_epochs (int, optional): Number of epochs that train the final
            ticket, and each round of :obj:`"imp"`. (default: :obj:`100`)
        update_every (int, optional): Number of optimizer steps between two
            updates of the connections. (default: :obj:`5`)
        drop_fraction (float, optional): The fraction of weights that move in
            the first update, in :math:`(0, 1]`. (default: :obj:`0.5`)
        distill (float, optional): The weight of the distillation loss in
            :math:`[0, 1]`; the loss on labels has the rest. By default, 0.8,
            or 1.0 if only edges are pruned, since dense weights overfit few
            labels. (default: :obj:`None`)
        optimizer (Callable, optional): A function of parameters that returns
            an optimizer; by default, :class:`torch.optim.Adam` with a
            learning rate of 0.01 and a weight decay of 0.0005. The search
            scales the decay by the square root of the density of sparse
            weights, and to zero if only edges are pruned and the dense model
            is distilled. (default: :obj:`None`)
        evaluate_every (int, optional): Number of epochs between two
            evaluations. (default: :obj:`2`)
        patience (int, optional): Number of evaluations without improvement
            that end a stage. (default: :obj:`None`)
        log (bool, optional): Whether to show a progress bar (needs
            :obj:`tqdm`); by default, if :obj:`tqdm` is installed and standard
            error is a terminal. (default: :obj:`None`)

    Raises:
        ValueError: If an argument is out of its range, there is nothing to
            prune, or :obj:`model` holds sparse layers.
        TypeError: If :obj:`model` is not a module, :obj:`optimizer` is not a
            function, or :obj:`log` is not a bool.

    Example:
        >>> from torch_geometric.datasets import FakeDataset
        >>> from torch_geometric.nn import GCN
        >>> from torch_geometric.transforms import RandomNodeSplit
        >>> _ = torch.manual_seed(0)
        >>> data = FakeDataset(1, 500, task='node', num_classes=4)[0]
        >>> data = RandomNodeSplit(num_val=100, num_test=100)(data)
        >>> model = GCN(data.num_features, 64, 2, out_channels=4)
        >>> pruner = GraphLotteryPruner(model, weight_sparsity=0.9)
        >>> pruner
        GraphLotteryPruner(GCN, weight_sparsity=0.9, edge_sparsity=0.0,
        method='fast')
        >>> ticket = pruner.fit(data)
        >>> print(f'{ticket.weight_sparsity:.2f}')
        0.90
    """

    model: Module
    _: KW_ONLY
    ignored: Sequence[Ignored] = ()
    optimizer: Optional[MakeOptimizer] = None
    log: Optional[bool] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_prunable(self.model, self.edge_sparsity)
        check_optimizer(self.optimizer)
        if self.log is not None and not isinstance(self.log, bool):
            raise TypeError(
                f"'log' of 'GraphLotteryPruner' needs to be True, False or "
                f'None (got {self.log!r})'
            )

    @property
    def settings(self) -> Settings:
        """Return the arguments of the search, other than the model."""
        names = [argument.name for argument in fields(Settings)]
        return Settings(**{name: getattr(self, name) for name in names})

    def fit(
        self,
        data: Any,
        loss_fn: Optional[LossFunction] = None,
        evaluate: Optional[Evaluate] = None,
        *,
        callbacks: Callbacks = (),
        checkpoint: Optional[Union[str, Path]] = None,
        checkpoint_every: int = 10,
    ) -> Ticket:
        r"""Search for a ticket; without :obj:`loss_fn`, for the
        classification of the nodes of :obj:`data` (see
        :doc:`/develop/lottery` for other tasks and mini-batches). Arguments
        are checked before training, and are not changed. If
        :mod:`torch.distributed` is initialized, all ranks need to call this
        method, each with a loader of its own mini-batches.

        Args:
            data (torch_geometric.data.Data or iterable): A graph with
                :obj:`x`, :obj:`edge_index`, :obj:`y`, :obj:`train_mask` and
                :obj:`val_mask`, or a loader of mini-batches whose edges are
                numbered by :obj:`e_id`.
            loss_fn (Callable, optional): Returns the loss of a model on a
                (pruned) graph or mini-batch. (default: :obj:`None`)
            evaluate (Callable, optional): Returns the validation metric, the
                higher the better, of a model on the (pruned) graph or all
                mini-batches. (default: :obj:`None`)
            callbacks (Sequence[Callable], optional): Functions to call after
                each evaluation, with a progress that holds :obj:`stage`,
                :obj:`epoch`, :obj:`num_epochs`, :obj:`metric` and
                :obj:`best`. (default: :obj:`()`)
            checkpoint (str or Path, optional): A file to resume from, if it
                exists, and to save the search to. (default: :obj:`None`)
            checkpoint_every (int, optional): Number of evaluations between
                two writes of the file. (default: :obj:`10`)

        Raises:
            ValueError: If the data is incomplete, out of range, not finite
                or on another device, the model does not return scores of all
                nodes and classes, there is nothing to prune, training
                diverges, or the checkpoint is damaged or of another search.
            FileNotFoundError: If the folder of the checkpoint does not exist.
            TypeError: If an argument is of another type.
            ImportError: If a progress bar needs :obj:`tqdm`.
            NotImplementedError: If the graph is heterogeneous, or learned
                scores do not match the edges of a layer.
        """
        clock = Clock()
        with raise_together():
            args = callbacks, checkpoint, checkpoint_every
            check_fit(loss_fn, evaluate, *args)
            task = self._task(data, loss_fn, evaluate)
        devices = []
        if torch.cuda.is_initialized():  # Seeding affects all of them.
            devices = list(range(torch.cuda.device_count()))
        with torch.enable_grad(), torch.random.fork_rng(devices):
            return self._fit(
                data, task, callbacks, checkpoint, checkpoint_every, clock
            )

    def __repr__(self) -> str:
        return (
            f'{self.__class__.__name__}({self.model.__class__.__name__}, '
            f'weight_sparsity={self.weight_sparsity}, '
            f'edge_sparsity={self.edge_sparsity}, '
            f"method='{self.method}')"
        )

    def _task(
        self,
        data: Any,
        loss_fn: Optional[LossFunction],
        evaluate: Optional[Evaluate],
    ) -> Task:
        check_data(data)
        if loss_fn is not None and evaluate is not None:
            return CustomTask(data, loss_fn, evaluate)
        check_node_task(data, self.model, self.weight_sparsity)
        return NodeTask(data)

    def _fit(
        self,
        data: Any,
        task: Task,
        callbacks: Callbacks,
        path: Optional[Union[str, Path]],
        every: int,
        clock: Clock,
    ) -> Ticket:
        template, names, pairs, edges_digest = self._parts(data, task, path)
        if self.method == 'fast' and names:
            num_steps = self.search_epochs * task.num_batches
            warn_if_no_update(num_steps, self.update_every, MOVE_UNTIL)
        bar = make_progress_bar(self.log) if get_rank() == 0 else None
        if bar is not None:
            callbacks = [*callbacks, bar.update]
        file: Optional[Checkpoint] = None

        def observe(stage: Stage) -> None:
            for callback in callbacks:
                callback(stage.progress)
            if file is not None:
                file.update()

        search = Search(
            template,
            task,
            names,
            pairs,
            self.optimizer or make_adam,
            self.settings,
            observe,
            clock,
        )
        if path is not None:
            file = Checkpoint(path, search, every)
            file.resume()
        try:
            found = search.run()
        finally:
            if bar is not None:
                bar.close()
        if file is not None:
            file.write()

        return _ticket(search, found, task, edges_digest)

    def _parts(
        self, data: Any, task: Task, path: Any
    ) -> Tuple[Module, List[str], Optional[EdgePairs], Optional[str]]:
        """Return the initialized model, the layers to prune, and the edges to
        prune with their digest, equal on all ranks.
        """
        names: List[str] = []
        with raise_together():
            model = self._template(task)
            if self.weight_sparsity > 0:
                names = list(swappable_linears(model, self.ignored).values())
            pairs, edges_digest = self._pairs(data)
        optimizer, settings = self.optimizer or make_adam, self.settings
        check_same(
            lambda: {
                **describe(model, names, optimizer, settings),
                'edges': edges_digest,
                'kind of checkpoint': path is None,
            }
        )
        share_state(model)
        return model, names, pairs, edges_digest

    def _template(self, task: Task) -> Module:
        """Return an initialized copy of the model without caches."""
        model = copy.deepcopy(self.model)
        clear_caches(model)
        if any(is_lazy(x) for x in model.parameters()):
            torch.manual_seed(self.seed)
            with torch.no_grad():
                task.initialize(model)
            clear_caches(model)
        return model

    def _pairs(self, data: Any) -> Tuple[Optional[EdgePairs], Optional[str]]:
        """Return the edges to prune, if any, and their digest."""
        if self.edge_sparsity == 0:
            return None, None
        graph = whole_graph(data)
        check_edges(graph, "'data'")
        pairs = EdgePairs(graph.edge_index, graph.num_nodes)
        if pairs.num_pairs == 0:
            raise ValueError(
                "'data' needs edges other than self-loops to prune (got none)"
            )
        return pairs, digest_edges(graph)


def _ticket(
    search: Search, found: Candidate, task: Task, edges_digest: Optional[str]
) -> Ticket:
    edge_mask, small = None, task
    if search.edges is not None and found.pairs is not None:
        edge_mask = search.edges.pairs.edge_mask(found.pairs)
        small = task.pruned(edge_mask)
    outcomes, weights = search.outcomes, search.weights
    # Both stages train the weights of the ticket:
    final = max(
        (outcomes[x] for x in [RETRAINED, SEARCH] if x in outcomes),
        key=lambda outcome: outcome.metric,
    ).best
    seed = search.settings.seed
    macs = (
        _first_macs(search.template, task, seed),
        _first_macs(weights.build(final), small, seed),
    )
    macs = gather(macs)[0]  # Ranks count other mini-batches.
    return Ticket(
        weight_masks={
            weight_key(name): mask for name, mask in found.masks.items()
        },
        edge_mask=edge_mask,
        initial_state=weights.initial,
        final_state=final.state,
        metrics={key: x.metric for key, x in outcomes.items()},
        history={key: x.history for key, x in outcomes.items()},
        seconds=search.clock.seconds(),
        macs=macs,
        dense_state=outcomes[DENSE].best.state,
        narrow_index=weights.index,
        edges_digest=edges_digest,
    )


def _first_macs(model: Module, task: Task, seed: int) -> int:
    torch.manual_seed(seed)  # The same mini-batch for each model.
    batch = next(iter(task.batches()))
    return loss_macs(model, task.loss, batch, task.by_shapes)
