import copy
from pathlib import Path
from typing import Any, Callable, Iterable, List, Optional, Sequence, Union

import torch
from torch.nn import Module
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer
from torch_geometric.data import Data

from torch_geometric_ext.lottery.checkpoint import Checkpoint
from torch_geometric_ext.lottery.edges.edge_pairs import EdgePairs
from torch_geometric_ext.lottery.edges.prune_edges import (
    digest_edges,
    whole_graph,
)
from torch_geometric_ext.lottery.loss_macs import loss_macs
from torch_geometric_ext.lottery.node_task import (
    NodeTask,
    check_node_task,
)
from torch_geometric_ext.lottery.progress_bar import ProgressBar
from torch_geometric_ext.lottery.search import Candidate, Search
from torch_geometric_ext.lottery.settings import (
    Settings,
    check_model,
    check_settings,
)
from torch_geometric_ext.lottery.stage import Progress, Stage
from torch_geometric_ext.lottery.task import (
    CustomTask,
    Evaluate,
    LossFunction,
    Task,
    check_data,
)
from torch_geometric_ext.lottery.ticket import Ticket
from torch_geometric_ext.lottery.weights.weight_masks import (
    clear_caches,
    weight_key,
)
from torch_geometric_ext.nn.linear_layers import Ignored, swappable_linears

TRAINED = ['retrained', 'search']


class GraphLotteryPruner:
    r"""Finds a sub-network and a sub-graph that still do the job, as in the
    `"Fast Track to Winning Tickets: Repowering One-Shot Pruning for Graph
    Neural Networks" <https://arxiv.org/abs/2412.07605>`_ and `"A Unified
    Lottery Ticket Hypothesis for Graph Neural Networks"
    <https://arxiv.org/abs/2102.06790>`_ papers.

    .. code-block:: python

        pruner = GraphLotteryPruner(
            model, weight_sparsity=0.98, edge_sparsity=0.35
        )
        ticket = pruner.fit(data)
        small_model, small_data = ticket.apply(model, data)

    Works on any model of linear layers and
    :class:`~torch_geometric.nn.conv.MessagePassing`, which is not changed.
    What :obj:`method="fast"` does:

    1. The dense model is trained.
    2. In one shot, the hidden channels of largest weights are kept, as few as
       have room for four times the weights of the ticket (eight times where
       heads share them), but no fewer than 16: a few channels with many
       weights do more than many with few. Of their weights, those of largest
       magnitude are kept, compared over all layers, and of the edges, those
       of nodes with few others: in rounds, edges :math:`(u, v)` of the
       largest :math:`d_u d_v` leave the graph, by the degrees of what is
       left. Once 35 % of all edges have left, degrees tell little, and more
       leave at random.
    3. From their initial values on, the kept weights are trained on the
       pruned graph, while some move: the smallest leave, and the same number
       comes back, as zeros, where the gradient is largest
       (:class:`~torch_geometric_ext.sparsity.RigL`), within these channels.
    4. The weights that were kept at the best validation metric are trained
       again, from their initial values on. The ticket holds the result of
       this step or of the one before, whichever measures better.

    In steps 3 and 4, weights are those of
    :class:`~torch_geometric_ext.nn.SparseLinear`, and edges that left are not
    there, nor are channels, if the model computes the same without them
    (this is tried; it does not where it normalizes over channels): each step
    gets cheaper. Where at most 6 % of the features are not zero, such as in
    bags of words, layers that read them skip the zeros, unless they skip more
    by weights that do not exist. In all steps, layers of
    :class:`~torch_geometric.nn.conv.GINConv`,
    :class:`~torch_geometric.nn.conv.SAGEConv` and
    :class:`~torch_geometric.nn.conv.GraphConv` with fewer outputs than inputs
    multiply by their weights before they sum or average neighbors, which is
    the same.

    Where the nodes of a graph are classified, its features and edges stay as
    they are. What these layers and :class:`~torch_geometric.nn.conv.GCNConv`
    sum up of the features is then computed once (it takes as much memory as
    the features), and so are the norms of edges. A loss on few labels is
    computed on the part of the graph that it depends on, which is found by
    counting how often the model passes messages, and so is the validation
    metric. Parts have features and sums of their own. Outputs and gradients
    are the same. This is tried, too, on random graphs and once on the graph
    itself: models that look at all nodes, as those with normalization over
    nodes do, are trained on the whole graph.

    Where the nodes of a graph are classified, the share :obj:`distill` of the
    loss is the cross-entropy with the predictions of the dense model, on all
    nodes: this is what lets a graph lose edges without losing accuracy. While
    weights are sparse, predictions on 4,096 nodes at random (or on as many as
    there are training nodes, if these are more) are enough, if these nodes
    get messages from a part of the graph alone. Predictions are sharpened
    (the temperature is one half), since the best model is one of an early
    epoch.

    .. warning::
        What the dense model predicts, a ticket learns by heart of the nodes
        it sees. On new ones, it is not as good: measure on these if it is
        them that the ticket is to serve.

    The rivals: :obj:`"one_shot"` leaves the choice of channels and step 3
    out, :obj:`"random"` keeps weights and edges at random, and :obj:`"imp"`
    prunes iteratively: a fifth of the weights and a twentieth of the edges
    leave in each round, which trains from the initial weights on, until the
    target is reached. All of them train the dense model first, too.

    .. note::
        Deviations from the first paper: edges are ranked by degrees alone
        (its degree term, while it tells), and do not move: learned scores
        (:obj:`edge_score="learned"`, with its penalties) cost more and, on
        Cora, chose edges as good within the errors. Weights are ranked over
        all layers, and grow by the gradient of one step. Channels and
        distillation are not part of it. Deviations from the second one:
        weights are ranked by magnitude, not by learned masks.

    .. note::
        Pruned edges are removed from the graph, never multiplied by zero:
        normalization, means, maxima and attention are those of the pruned
        graph. In undirected graphs, both directions of an edge leave
        together. Self-loops stay.

    Args:
        model (torch.nn.Module): The model, which may be lazy.
        weight_sparsity (float, optional): The share of weights of linear
            layers to remove, in :math:`[0, 1)`. Each layer keeps at least
            one. (default: :obj:`0.0`)
        edge_sparsity (float, optional): The share of edges to remove, in
            :math:`[0, 1)`. (default: :obj:`0.0`)
        method (str, optional): :obj:`"fast"`, :obj:`"imp"`,
            :obj:`"one_shot"` or :obj:`"random"`. (default: :obj:`"fast"`)
        ignored (Sequence[str, torch.nn.Module or type], optional): Layers to
            leave dense: by name, as a module, or by class, each with all it
            contains. (default: :obj:`()`)
        edge_score (str, optional): How edges are ranked: by degrees
            (:obj:`"degree"`), by factors of their messages that are learned
            with the dense model (:obj:`"learned"`), or not at all
            (:obj:`"random"`). Degrees are mostly better where a model
            sums up neighbors; where it averages them or attends to them,
            random edges do as well, and they are better for nodes that are
            not there in the search. (default: :obj:`"degree"`)
        seed (int, optional): Seed of all that is random.
            (default: :obj:`0`)
        pretrain_epochs (int, optional): Number of epochs of step 1
            (:obj:`retrain_epochs` are taken instead by :obj:`"imp"`).
            (default: :obj:`60`)
        search_epochs (int, optional): Number of epochs of step 3.
            (default: :obj:`100`)
        retrain_epochs (int, optional): Number of epochs of step 4, and of
            each round of :obj:`"imp"`. (default: :obj:`100`)
        update_every (int, optional): Number of optimizer steps between moves.
            (default: :obj:`5`)
        drop_fraction (float, optional): The share of weights that move at
            first, in :math:`(0, 1]`. (default: :obj:`0.5`)
        distill (float, optional): The share of the loss that compares with
            the dense model, in :math:`[0, 1]`. By default, it is 0.8, and
            1.0 if edges alone are pruned: dense weights learn a few labels by
            heart, without the edges that relate them to other nodes.
            (default: :obj:`None`)
        optimizer (Callable, optional): Makes the optimizer of parameters. By
            default, :class:`torch.optim.Adam` with a learning rate of 0.01
            and a weight decay of 0.0005. While weights are sparse, their
            decay is multiplied by the square root of the share of weights
            that is kept; while edges alone are pruned, and the dense model is
            compared with, there is none. (default: :obj:`None`)
        evaluate_every (int, optional): Number of epochs between evaluations.
            (default: :obj:`2`)
        patience (int, optional): Number of evaluations without a better one
            after which a step ends. (default: :obj:`None`)
        log (bool, optional): If set to :obj:`True`, will show a progress bar.
            (default: :obj:`False`)

    Raises:
        ValueError: If an argument is out of its range, or there is nothing
            to prune, or :obj:`model` holds sparse layers.
        TypeError: If :obj:`model` is no module, or an argument of another
            type.

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

    def __init__(
        self,
        model: Module,
        *,
        weight_sparsity: float = 0.0,
        edge_sparsity: float = 0.0,
        method: str = 'fast',
        ignored: Sequence[Ignored] = (),
        edge_score: str = 'degree',
        seed: int = 0,
        pretrain_epochs: int = 60,
        search_epochs: int = 100,
        retrain_epochs: int = 100,
        update_every: int = 5,
        drop_fraction: float = 0.5,
        distill: Optional[float] = None,
        optimizer: Optional[Callable[[Iterable[Any]], Optimizer]] = None,
        evaluate_every: int = 2,
        patience: Optional[int] = None,
        log: bool = False,
    ) -> None:
        self.settings = Settings(
            weight_sparsity=weight_sparsity,
            edge_sparsity=edge_sparsity,
            method=method,
            edge_score=edge_score,
            seed=seed,
            pretrain_epochs=pretrain_epochs,
            search_epochs=search_epochs,
            retrain_epochs=retrain_epochs,
            update_every=update_every,
            drop_fraction=drop_fraction,
            distill=distill,
            evaluate_every=evaluate_every,
            patience=patience,
        )
        check_settings(self.settings)
        # Numbers of other libraries have no place in a file:
        self.settings.weight_sparsity = float(weight_sparsity)
        self.settings.edge_sparsity = float(edge_sparsity)
        if distill is None:
            self.settings.distill = 0.8 if weight_sparsity > 0 else 1.0
        check_model(model, edge_sparsity)
        if optimizer is not None and (
            isinstance(optimizer, Optimizer) or not callable(optimizer)
        ):
            raise TypeError(
                f"'optimizer' of 'GraphLotteryPruner' needs to make an "
                f"optimizer of parameters, such as 'lambda params: "
                f"torch.optim.Adam(params, lr=0.01)' (got {type(optimizer)})"
            )
        self.model = model
        self.ignored = ignored
        self.optimizer = optimizer or _adam
        self.log = log

    def fit(
        self,
        data: Any,
        loss_fn: Optional[LossFunction] = None,
        evaluate: Optional[Evaluate] = None,
        *,
        callbacks: Sequence[Callable[[Progress], None]] = (),
        checkpoint: Optional[Union[str, Path]] = None,
        checkpoint_every: int = 10,
    ) -> Ticket:
        r"""Finds a ticket.

        Without :obj:`loss_fn`, the nodes of :obj:`data` are classified:
        :obj:`y` holds their classes, and :obj:`train_mask` and
        :obj:`val_mask` say which of them to train on and to measure the
        accuracy of. The model is called with :obj:`x` and :obj:`edge_index`,
        and with :obj:`edge_weight` and :obj:`edge_attr` if it takes them.

        Args:
            data (torch_geometric.data.Data or iterable): A graph, or a loader
                of mini-batches. To prune edges of the latter, mini-batches
                need to hold the global numbers :obj:`e_id` of their edges, as
                those of :class:`~torch_geometric.loader.NeighborLoader` do,
                or as :func:`~torch_geometric_ext.lottery.number_edges` gives
                them to a list of graphs; and the loader needs to hold the
                graph as :obj:`data`, or the graphs as :obj:`dataset`. It
                samples from the whole graph, and pruned edges leave its
                mini-batches afterwards: a node may have fewer neighbors than
                were asked for.
            loss_fn (Callable, optional): Returns the loss to minimize of a
                model and a graph or mini-batch, whose pruned edges are gone.
                (default: :obj:`None`)
            evaluate (Callable, optional): Returns the validation metric (the
                higher, the better) of a model and the pruned graph, or all
                mini-batches of the loader. What else it needs, such as links
                to predict, are the function's own. Gradients are off, and
                the model is in evaluation mode. (default: :obj:`None`)
            callbacks (Sequence[Callable], optional): Are told the progress
                after each evaluation (:obj:`stage`, :obj:`epoch`,
                :obj:`num_epochs`, :obj:`metric`, :obj:`best`).
                (default: :obj:`()`)
            checkpoint (str or Path, optional): A file that holds the state of
                the search. If it is there, the search goes on from it, and
                from the initial weights that it holds, with the same result
                as without an interruption, if a loader draws from the global
                generator. (default: :obj:`None`)
            checkpoint_every (int, optional): Number of evaluations between
                writes of this file. (default: :obj:`10`)

        Raises:
            ValueError: If the graph lacks something, there is nothing to
                prune, the training diverges, or the checkpoint is of another
                search.
            TypeError: If :obj:`data` is neither a graph nor a loader.
            NotImplementedError: If the graph is heterogeneous, or a layer
                passes messages along other edges while their scores are
                learned.
        """
        if (loss_fn is None) != (evaluate is None):
            raise ValueError(
                "'loss_fn' and 'evaluate' need to be given together"
            )
        if callable(callbacks):
            raise TypeError(
                f"'callbacks' needs to be a sequence of callables (got "
                f'{type(callbacks)})'
            )
        if checkpoint_every < 1:
            raise ValueError(
                f"'checkpoint_every' needs to be at least one (got "
                f'{checkpoint_every})'
            )
        check_data(data)
        if loss_fn is None or evaluate is None:
            check_node_task(data, self.model, self.settings.weight_sparsity)
            task: Task = NodeTask(data)
        else:
            task = CustomTask(data, loss_fn, evaluate)
        devices = []
        if torch.cuda.is_initialized():  # Seeds are for all of them:
            devices = list(range(torch.cuda.device_count()))
        with torch.enable_grad(), torch.random.fork_rng(devices):
            return self._fit(
                data, task, callbacks, checkpoint, checkpoint_every
            )

    def _fit(
        self,
        data: Any,
        task: Task,
        callbacks: Sequence[Callable[[Progress], None]],
        path: Optional[Union[str, Path]],
        every: int,
    ) -> Ticket:
        settings = self.settings
        template = self._template(task)
        names: List[str] = []
        if settings.weight_sparsity > 0:
            names = list(swappable_linears(template, self.ignored).values())
        pairs, edges_digest = None, None
        if settings.edge_sparsity > 0:
            graph = whole_graph(data)
            pairs, edges_digest = _pairs(graph), digest_edges(graph)

        file: Optional[Checkpoint] = None
        bar = ProgressBar() if self.log else None

        def observe(stage: Stage) -> None:
            for callback in callbacks:
                callback(stage.progress)
            if bar is not None:
                bar.update(stage.progress)
            if file is not None:
                file.update(stage)

        search = Search(
            template, task, names, pairs, self.optimizer, settings, observe
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

        ticket = _ticket(search, found, task)
        ticket.edges_digest = edges_digest
        return ticket

    def __repr__(self) -> str:
        settings = self.settings
        return (
            f'{self.__class__.__name__}({self.model.__class__.__name__}, '
            f'weight_sparsity={settings.weight_sparsity}, '
            f'edge_sparsity={settings.edge_sparsity}, '
            f"method='{settings.method}')"
        )

    def _template(self, task: Task) -> Module:
        """A copy of the model that knows its sizes and no graph."""
        model = copy.deepcopy(self.model)
        clear_caches(model)
        if any(is_lazy(x) for x in model.parameters()):
            torch.manual_seed(self.settings.seed)
            with torch.no_grad():
                task.loss(model.eval(), task.first_batch())
            clear_caches(model)
        return model


def _pairs(graph: Data) -> EdgePairs:
    pairs = EdgePairs(graph.edge_index, graph.num_nodes)
    if pairs.num_pairs == 0:
        raise ValueError(
            "'data' needs edges that are no self-loops to prune (got none)"
        )
    return pairs


def _ticket(search: Search, found: Candidate, task: Task) -> Ticket:
    edge_mask, small = None, task
    if search.pairs is not None and found.pairs is not None:
        edge_mask = search.pairs.edge_mask(found.pairs)
        small = task.pruned(edge_mask)
    # The weights of both are trained on the same ticket:
    final = max(
        (search.done[x] for x in TRAINED if x in search.done),
        key=lambda outcome: outcome.metric,
    ).best
    seed = search.settings.seed
    return Ticket(
        weight_masks={
            weight_key(name): mask for name, mask in found.masks.items()
        },
        edge_mask=edge_mask,
        initial_state=search.initial,
        final_state=final.state,
        metrics={key: x.metric for key, x in search.done.items()},
        history={key: x.history for key, x in search.done.items()},
        seconds=search.seconds,
        macs=(
            loss_macs(search.template, task, seed),
            loss_macs(search.build(final), small, seed),
        ),
        dense_state=search.done['dense'].best.state,
        narrow_index=search.index,
    )


def _adam(params: Iterable[Any]) -> Optimizer:
    return torch.optim.Adam(params, lr=0.01, weight_decay=5e-4)
