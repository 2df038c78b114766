import copy
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple, Union

from torch import Tensor
from torch.nn import Module
from torch.nn.parameter import is_lazy

from torch_geometric_ext.data.atomic_save import (
    FileKind,
    atomic_save,
    load_saved,
)
from torch_geometric_ext.lottery.edges.prune_edges import prune_edges
from torch_geometric_ext.lottery.weights.narrow_model import (
    Index,
    narrow_model,
    narrow_weights,
)
from torch_geometric_ext.lottery.weights.weight_masks import (
    State,
    Weights,
    build_model,
    clear_caches,
    drop_pruned,
    fill_pruned,
)

FILE = FileKind('Ticket', 2)


@dataclass(repr=False, eq=False)  # Tensors have no truth value.
class Ticket:
    r"""A sub-network and a sub-graph, the result of
    :class:`~torch_geometric_ext.lottery.GraphLotteryPruner`.

    .. code-block:: python

        model, data = ticket.apply(model, data)
        out = model(data.x, data.edge_index)

    Attributes:
        weight_masks (Dict[str, torch.Tensor]): Masks of the weights that
            remain, by the names of their parameters (:obj:`torch.bool`, of
            their shapes). All weights of other parameters remain.
        edge_mask (torch.Tensor, optional): A mask of the edges that remain
            (:obj:`torch.bool`, of shape :math:`[|\mathcal{E}|]`), or
            :obj:`None` for all edges.
        initial_state (Dict[str, torch.Tensor]): The state of the dense model
            before training. Empty if the file of the ticket holds final
            weights only.
        final_state (Dict[str, torch.Tensor]): The state of the trained
            ticket, with zeros for pruned weights: of the stage
            :obj:`"search"` or :obj:`"retrained"`, whichever has the better
            validation metric.
        metrics (Dict[str, float]): The best validation metric of each stage:
            of the :obj:`"dense"` model, of the :obj:`"search"` in which
            connections moved, if there was one, and of the
            :obj:`"retrained"` ticket.
        history (Dict[str, List[float]]): All validation metrics of each
            stage.
        seconds (Dict[str, float]): The seconds of the training and
            evaluation of each stage, of the :obj:`"setup"` of all stages
            (such as equivalence checks), of the choice of
            :obj:`"channels"`, and of all :obj:`"other"` work, such as
            callbacks and checkpoints. Their sum is the duration of the
            search. A resumed search adds the seconds of interrupted runs up
            to their last checkpoint.
        macs (Tuple[int, int]): The multiply-adds of the forward pass of the
            dense model and of the ticket (sparse, and narrow if possible), as
            counted by :func:`~torch_geometric_ext.utils.count_macs`.
        dense_state (Dict[str, torch.Tensor]): The state of the trained dense
            model at its best validation metric, to compare with. Empty if
            the file of the ticket holds final weights only.
        narrow_index (Dict[str, Dict[int, torch.Tensor]], optional): The
            positions that remain in each tensor of the state of a narrow
            model, by its dimensions, or :obj:`None` if the model cannot be
            narrowed. (default: :obj:`None`)
        edges_digest (str, optional): A digest of the edges that were
            searched, in their order. (default: :obj:`None`)
    """

    weight_masks: Dict[str, Tensor]
    edge_mask: Optional[Tensor]
    initial_state: Dict[str, Tensor]
    final_state: Dict[str, Tensor]
    metrics: Dict[str, float]
    history: Dict[str, List[float]]
    seconds: Dict[str, float]
    macs: Tuple[int, int]
    dense_state: Dict[str, Tensor]
    narrow_index: Optional[Index] = None
    edges_digest: Optional[str] = None

    @property
    def weight_sparsity(self) -> float:
        """Return the fraction of pruned weights in the pruned layers."""
        return _sparsity(list(self.weight_masks.values()))

    @property
    def edge_sparsity(self) -> float:
        """Return the fraction of pruned edges."""
        return _sparsity([] if self.edge_mask is None else [self.edge_mask])

    def apply(
        self,
        model: Module,
        data: Any = None,
        *,
        sparse: bool = False,
        narrow: bool = False,
        weights: str = 'final',
    ) -> Tuple[Module, Any]:
        r"""Return pruned copies of a model and of a graph. The pruned model
        also runs on the whole graph; compare both.

        Args:
            model (torch.nn.Module): The model that was searched, or one of
                equal parameters.
            data (torch_geometric.data.Data, optional): The graph, with its
                edges in the order of the search, or a mini-batch whose edges
                are numbered by :obj:`e_id`. (default: :obj:`None`)
            sparse (bool, optional): If set to :obj:`True`, pruned layers are
                :class:`~torch_geometric_ext.nn.SparseLinear`, which hold no
                pruned weights; else, linear layers with zeros.
                (default: :obj:`False`)
            narrow (bool, optional): If set to :obj:`True`, hidden channels
                without weights are removed, with equal outputs.
                (default: :obj:`False`)
            weights (str, optional): The weights of the trained ticket
                (:obj:`"final"`), or the weights to train it from
                (:obj:`"initial"`). (default: :obj:`"final"`)

        Returns:
            The model, in evaluation mode, and the graph, or :obj:`None` if
            there is none.

        Raises:
            ValueError: If the model, the graph or :obj:`weights` does not
                fit, the ticket holds no initial weights, or the model cannot
                be narrowed.
            TypeError: If :obj:`model` is not a module, or :obj:`data` has
                pruned edges and is no :class:`~torch_geometric.data.Data`.
        """
        state = self._state(weights)
        check_parameters(self.final_state, model)
        if data is not None and self.edge_mask is not None:
            data = prune_edges(data, self.edge_mask, self.edges_digest)
        elif data is not None:
            data = copy.copy(data)
        model = _materialized(model, self.final_state)
        return self._prune(model, state, sparse, narrow).eval(), data

    def save(self, path: Union[str, Path], *, weights: str = 'all') -> None:
        """Save the ticket to a file, either completely or not at all.

        Masks are stored as bits, and final weights without pruned ones. Of a
        model of :math:`P` bytes in single precision, of which a fraction
        :math:`s` is pruned, final weights and masks take about
        :math:`(1 - s + 1/32) P` bytes. Initial and dense weights take
        :math:`2P` more.

        Args:
            path (str or Path): The file.
            weights (str, optional): The weights to save: :obj:`"all"`, or
                :obj:`"final"`, which leaves out :obj:`initial_state` and
                :obj:`dense_state`. The final weights suffice to serve the
                ticket and to train it further, but not to train it anew.
                (default: :obj:`"all"`)

        Raises:
            FileNotFoundError: If the folder does not exist.
            ValueError: If :obj:`weights` is none of these.
        """
        if weights not in ['all', 'final']:
            raise ValueError(
                f"'weights' needs to be 'all' or 'final' (got {weights!r})"
            )
        state = {**vars(self), 'macs': list(self.macs)}
        if weights == 'final':
            state.update(initial_state={}, dense_state={})
        final_state = drop_pruned(self.final_state, self.weight_masks)
        atomic_save({**state, 'final_state': final_state}, path, FILE)

    @classmethod
    def load(
        cls, path: Union[str, Path], model: Optional[Module] = None
    ) -> 'Ticket':
        """Load a ticket from a file, onto the CPU.

        Args:
            path (str or Path): The file.
            model (torch.nn.Module, optional): A model to check that the
                ticket fits. (default: :obj:`None`)

        Raises:
            FileNotFoundError: If the file does not exist.
            ValueError: If the file holds no ticket, is damaged, or was
                written by a newer version, or if the ticket is of a model
                with other parameters.
            TypeError: If :obj:`model` is not a module.
        """
        ticket = load_saved(path, FILE, cls._from_state, 'cpu')
        if model is not None:
            check_parameters(ticket.final_state, model)
        return ticket

    @classmethod
    def _from_state(cls, state: Dict[str, Any]) -> 'Ticket':
        state.pop('version', None)  # In files of version 0.1.
        final_state = fill_pruned(state['final_state'], state['weight_masks'])
        macs = tuple(state['macs'])
        return cls(**{**state, 'final_state': final_state, 'macs': macs})

    def plot(self, data: Any = None) -> Any:
        """Plot the validation metrics of all stages and, given the graph, its
        degrees before and after pruning. Needs :obj:`matplotlib`.

        Args:
            data (torch_geometric.data.Data, optional): The graph.
                (default: :obj:`None`)

        Returns:
            The figure.
        """
        from torch_geometric_ext.lottery.plot import plot_ticket

        return plot_ticket(self, data)

    def _state(self, weights: str) -> State:
        if weights == 'retrained':
            warnings.warn(
                "weights 'retrained' of 'Ticket.apply' are deprecated, use "
                "'final' instead",
                DeprecationWarning,
                stacklevel=3,
            )
            weights = 'final'
        states = {'final': self.final_state, 'initial': self.initial_state}
        if weights not in list(states):
            raise ValueError(
                f"'weights' needs to be one of {list(states)} "
                f'(got {weights!r})'
            )
        if len(states[weights]) < len(self.final_state):
            raise ValueError(
                "'weights' needs to be 'final' for a ticket that was saved "
                f"with weights='final' (got {weights!r})"
            )
        return states[weights]

    def _prune(
        self, model: Module, state: State, sparse: bool, narrow: bool
    ) -> Module:
        masks = {
            key[: -len('.weight')]: mask
            for key, mask in self.weight_masks.items()
        }
        weights, index = Weights(state, masks), self.narrow_index
        if narrow:
            if index is None:
                raise ValueError(
                    "'narrow' needs a ticket of a model that can be narrowed: "
                    "of method 'fast', and without normalization over "
                    'channels (got none)'
                )
            model = narrow_model(model, index)
            weights = narrow_weights(weights, index)
        if sparse:
            return build_model(model, weights)
        model = build_model(model, weights._replace(masks={}))
        for name, mask in weights.masks.items():
            weight = model.get_submodule(name).get_parameter('weight')
            weight.data.masked_fill_(~mask.to(weight.device), 0)
        return model

    def __repr__(self) -> str:
        rows = [
            ('weights', _sizes(list(self.weight_masks.values()))),
            (
                'edges',
                _sizes([] if self.edge_mask is None else [self.edge_mask]),
            ),
            ('MACs', _change(*self.macs)),
            *[(key, f'{x:.4f} validated') for key, x in self.metrics.items()],
            ('seconds', _seconds(self.seconds)),
        ]
        lines = [f'  {key:<10}{value}' for key, value in rows]
        return '\n'.join(['Ticket(', *lines, ')'])


def check_parameters(state: Dict[str, Tensor], model: Module) -> None:
    """Raise if the parameters of a model have other sizes than a state."""
    if not isinstance(model, Module):
        raise TypeError(
            f"'model' needs to be a 'torch.nn.Module' (got {type(model)})"
        )
    expected = {key: list(x.shape) for key, x in state.items()}
    sizes = {
        key: expected.get(key, []) if is_lazy(x) else list(x.shape)
        for key, x in model.state_dict().items()
    }
    if sizes != expected:
        keys = sorted(set(sizes) | set(expected))
        key = next(x for x in keys if sizes.get(x) != expected.get(x))
        raise ValueError(
            f"'model' needs to have the parameters of the ticket (expected "
            f"{expected.get(key)} for '{key}', got {sizes.get(key)})"
        )


def _materialized(model: Module, state: Dict[str, Tensor]) -> Module:
    """Return a copy of a model whose lazy layers are initialized."""
    model = copy.deepcopy(model)
    clear_caches(model)
    if any(is_lazy(x) for x in model.parameters()):
        model.load_state_dict(state)
    return model


def _sparsity(masks: List[Tensor]) -> float:
    total = sum(mask.numel() for mask in masks)
    return (
        1 - sum(int(mask.sum()) for mask in masks) / max(total, 1)
        if total
        else 0.0
    )


def _sizes(masks: List[Tensor]) -> str:
    if not masks:
        return 'all'
    return _change(
        sum(mask.numel() for mask in masks),
        sum(int(mask.sum()) for mask in masks),
    )


def _change(before: int, after: int) -> str:
    saved = 1 - after / max(before, 1)
    return f'{before:,} -> {after:,} ({saved:.1%} less)'


def _seconds(parts: Dict[str, float]) -> str:
    total = f'{sum(parts.values()):.1f}'
    names = ', '.join(f'{key} {x:.1f}' for key, x in parts.items())
    return f'{total} ({names})' if parts else total
