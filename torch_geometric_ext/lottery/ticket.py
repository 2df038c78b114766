import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple, Union

from torch import Tensor
from torch.nn import Module
from torch.nn.parameter import is_lazy

from torch_geometric_ext.data.atomic_save import atomic_save
from torch_geometric_ext.lottery.checkpoint import load_state
from torch_geometric_ext.lottery.edges.prune_edges import prune_edges
from torch_geometric_ext.lottery.weights.narrow_model import (
    Index,
    narrow_model,
    narrow_weights,
)
from torch_geometric_ext.lottery.weights.weight_masks import (
    Masks,
    Weights,
    build_model,
    clear_caches,
)

VERSION = 1


@dataclass(repr=False, eq=False)  # Tensors are not to be compared.
class Ticket:
    r"""A sub-network and a sub-graph, as found by
    :class:`~torch_geometric_ext.lottery.GraphLotteryPruner`.

    .. code-block:: python

        model, data = ticket.apply(model, data)
        out = model(data.x, data.edge_index)

    Attributes:
        weight_masks (Dict[str, torch.Tensor]): The weights that exist, by the
            name of their parameter (bool, of its shape). What is not named,
            exists.
        edge_mask (torch.Tensor, optional): The edges that exist (bool, of
            shape :math:`[|\mathcal{E}|]`), or :obj:`None` for all.
        initial_state (Dict[str, torch.Tensor]): The state of the dense model
            before training.
        final_state (Dict[str, torch.Tensor]): The state of the trained
            ticket, with zeros for weights that do not exist: of the search or
            of the training after it, whichever measures better.
        metrics (Dict[str, float]): The best validation metric of each stage:
            of the :obj:`"dense"` model, while connections moved
            (:obj:`"search"`, if they did), and of the :obj:`"retrained"`
            ticket.
        history (Dict[str, List[float]]): All validation metrics of these.
        seconds (Dict[str, float]): How long these took.
        macs (Tuple[int, int]): The multiply-adds of the forward pass before
            and after (sparse, and narrow if it can be), as counted by
            :func:`~torch_geometric_ext.utils.count_macs`.
        dense_state (Dict[str, torch.Tensor]): The state of the trained dense
            model, at its best validation metric: what to compare with.
        narrow_index (Dict[str, Dict[int, torch.Tensor]], optional): The
            positions that channels leave of each tensor of the state, by its
            dimensions, or :obj:`None` if the model cannot be narrowed.
            (default: :obj:`None`)
        edges_digest (str, optional): Tells the edges that were searched from
            others, and from themselves in another order.
            (default: :obj:`None`)
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
        """The share of weights that do not exist, of all layers pruned."""
        return _sparsity(list(self.weight_masks.values()))

    @property
    def edge_sparsity(self) -> float:
        """The share of edges that do not exist."""
        return _sparsity([] if self.edge_mask is None else [self.edge_mask])

    def apply(
        self,
        model: Module,
        data: Any = None,
        *,
        sparse: bool = False,
        narrow: bool = False,
        weights: str = 'retrained',
    ) -> Tuple[Module, Any]:
        r"""Returns a pruned copy of a model and of a graph. The arguments
        stay what they are. The model predicts on the whole graph, too: try
        which does better.

        Args:
            model (torch.nn.Module): The model that was searched, or another
                one of the same parameters.
            data (torch_geometric.data.Data, optional): The graph, its edges
                in the order in which they were searched, or a mini-batch with
                their global numbers :obj:`e_id`. (default: :obj:`None`)
            sparse (bool, optional): If set to :obj:`True`, pruned layers are
                :class:`~torch_geometric_ext.nn.SparseLinear`, in which other
                weights do not exist; else, ordinary layers with zeros.
                (default: :obj:`False`)
            narrow (bool, optional): If set to :obj:`True`, the model loses
                the hidden channels that no weight leads to, and computes the
                same with fewer. (default: :obj:`False`)
            weights (str, optional): The weights of the trained ticket
                (:obj:`"retrained"`), or those to train it from
                (:obj:`"initial"`). (default: :obj:`"retrained"`)

        Returns:
            The model, in evaluation mode, and the graph (:obj:`None`, if
            there was none).

        Raises:
            ValueError: If the model, the graph or :obj:`weights` does not
                fit, or the model cannot be narrowed.
        """
        states = {
            'retrained': self.final_state,
            'initial': self.initial_state,
        }
        if weights not in states:
            raise ValueError(
                f"'weights' needs to be one of {list(states)} "
                f'(got {weights!r})'
            )
        if narrow and self.narrow_index is None:
            raise ValueError(
                "'narrow' needs a ticket with channels that can leave: "
                "method 'fast' finds one for models that do not normalize "
                'over channels (got none)'
            )
        check_model(self.initial_state, model)
        model = _materialized(model, self.initial_state)
        if data is not None and self.edge_mask is not None:
            data = prune_edges(data, self.edge_mask, self.edges_digest)
        elif data is not None:
            data = copy.copy(data)
        masks = {
            key[: -len('.weight')]: mask
            for key, mask in self.weight_masks.items()
        }
        state = states[weights]
        if narrow and self.narrow_index is not None:
            model = narrow_model(model, self.narrow_index)
            both = narrow_weights(Weights(state, masks), self.narrow_index)
            state, masks = both
        model = build_model(model, Weights(state, masks if sparse else {}))
        if not sparse:
            _set_zeros(model, masks)
        return model.eval(), data

    def save(self, path: Union[str, Path]) -> None:
        """Writes the ticket to a file, which is complete or not there.

        Args:
            path (str or Path): The file.
        """
        state = {'version': VERSION, **vars(self)}
        atomic_save({**state, 'macs': list(self.macs)}, path)

    @classmethod
    def load(
        cls, path: Union[str, Path], model: Optional[Module] = None
    ) -> 'Ticket':
        """Reads a ticket from a file.

        Args:
            path (str or Path): The file.
            model (torch.nn.Module, optional): The model that the ticket needs
                to fit. (default: :obj:`None`)

        Raises:
            ValueError: If the file holds no ticket, or one of another model.
        """
        state = load_state(path)
        if state.pop('version', 0) != VERSION:
            raise ValueError(
                f"'path' needs to be a file of 'Ticket.save', version "
                f"{VERSION} (got '{path}')"
            )
        if model is not None:
            check_model(state['initial_state'], model)
        return cls(**{**state, 'macs': tuple(state['macs'])})

    def plot(self, data: Any = None) -> Any:
        """Draws the validation metric of all stages and, given the graph, the
        distribution of its degrees before and after. Needs
        :obj:`matplotlib`.

        Args:
            data (torch_geometric.data.Data, optional): The graph.
                (default: :obj:`None`)

        Returns:
            The figure.
        """
        from torch_geometric_ext.lottery.plot import plot_ticket

        return plot_ticket(self, data)

    def __repr__(self) -> str:
        rows = [
            ('weights', _kept(list(self.weight_masks.values()))),
            (
                'edges',
                _kept([] if self.edge_mask is None else [self.edge_mask]),
            ),
            ('MACs', _change(*self.macs)),
            *[(key, f'{x:.4f} validated') for key, x in self.metrics.items()],
            ('seconds', f'{sum(self.seconds.values()):.1f}'),
        ]
        lines = [f'  {key:<10}{value}' for key, value in rows]
        return '\n'.join(['Ticket(', *lines, ')'])


def check_model(state: Dict[str, Tensor], model: Module) -> None:
    """Raises if a model has other parameters than a state."""
    given = {key: list(x.shape) for key, x in state.items()}
    own = {
        key: given.get(key, []) if is_lazy(x) else list(x.shape)
        for key, x in model.state_dict().items()
    }
    if own != given:
        keys = sorted(set(own) | set(given))
        key = next(x for x in keys if own.get(x) != given.get(x))
        raise ValueError(
            f"'model' needs to have the parameters of the ticket (expected "
            f"{given.get(key)} for '{key}', got {own.get(key)})"
        )


def _set_zeros(model: Module, masks: Masks) -> None:
    for name, mask in masks.items():
        weight = model.get_submodule(name).get_parameter('weight')
        weight.data.masked_fill_(~mask.to(weight.device), 0)


def _materialized(model: Module, state: Dict[str, Tensor]) -> Module:
    """A copy whose lazy layers, if any, know their sizes."""
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


def _kept(masks: List[Tensor]) -> str:
    if not masks:
        return 'all'
    return _change(
        sum(mask.numel() for mask in masks),
        sum(int(mask.sum()) for mask in masks),
    )


def _change(before: int, after: int) -> str:
    share = 1 - after / max(before, 1)
    return f'{before:,} -> {after:,} ({share:.1%} less)'
