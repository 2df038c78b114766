"""Run any model faster on a static graph, with equal results."""

import inspect
import warnings
from operator import is_not
from typing import Any, Callable, Dict, List, Optional, Tuple

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.parameter import is_lazy
from torch_geometric.data import Data
from torch_geometric.nn import Sequential

from torch_geometric_ext.full_batch.cached_convs import (
    StaticEdges,
    find_fast_convs,
)
from torch_geometric_ext.full_batch.receptive_field import (
    Forward,
    Plan,
    find_plan,
    verify_plan,
)
from torch_geometric_ext.full_batch.report import Report, make_report
from torch_geometric_ext.full_batch.share_modules import Copy, replace_modules
from torch_geometric_ext.full_batch.sparse_input import SparseInputs
from torch_geometric_ext.full_batch.static_conv import CACHED
from torch_geometric_ext.full_batch.static_graph import EDGE_KEYS, StaticGraph
from torch_geometric_ext.full_batch.subgraph import Subgraph

PREFIX = 'model.'


def accelerate(
    model: Module,
    graph: StaticGraph,
    *,
    forward: Optional[Forward] = None,
    cache_aggregation: bool = True,
    verify: bool = True,
) -> 'AcceleratedModel':
    r"""Make a model faster on a static graph, with equal outputs and
    gradients.

    The result computes

    * only what the outputs that are asked for depend on, the receptive field
      of a mask or of indices,
    * the aggregation of features, the normalization of edges and self-loops
      once,
    * products of features of which few values are not zero without the zeros,
    * the transformation before the aggregation where a layer has fewer
      outputs than inputs, and
    * aggregations as sparse matrix products, without a message for each edge,
      in :class:`~torch_geometric.nn.conv.GCNConv`,
      :class:`~torch_geometric.nn.conv.GCN2Conv`,
      :class:`~torch_geometric.nn.conv.GINConv`,
      :class:`~torch_geometric.nn.conv.SAGEConv`,
      :class:`~torch_geometric.nn.conv.GraphConv`,
      :class:`~torch_geometric.nn.conv.GATConv`,
      :class:`~torch_geometric.nn.conv.GATv2Conv` and
      :class:`~torch_geometric.nn.conv.APPNP`.

    Any model is allowed. Whether it computes the same is checked with a small
    random graph in double precision, and on the graph itself. What is not
    exact is not used: a model that normalizes over all nodes runs on the
    whole graph, for example. :meth:`AcceleratedModel.report` lists what is
    used, and why something is not.

    .. code-block:: python

        graph = StaticGraph(data)
        fast = accelerate(model, graph)
        optimizer = torch.optim.Adam(model.parameters())

        fast.train()
        loss = F.cross_entropy(fast(data.train_mask), data.y[data.train_mask])
        loss.backward()
        optimizer.step()

        fast.eval()
        pred = fast(data.test_mask).argmax(dim=-1)

    .. note::
        Dropout draws other random numbers than in the model, of the same
        distribution. Hooks of inner linear layers see aggregated features
        where the aggregation is cached, and hooks of convolutions are called
        with a shallow copy of their module. An exchange of modules raises an
        error, and a mixture of modes that was not checked (such as a norm in
        evaluation mode inside of a model in training mode) runs on the whole
        graph.

        The check sees how a model behaves when it is accelerated. A model
        that reads more of the graph later on, such as after 100 calls, is
        noticed if one of the convolutions above passes more messages; any
        other change of that kind gives wrong outputs.

    Args:
        model (torch.nn.Module): The model, which returns a row for each node.
            It is not changed; its parameters are shared.
        graph (StaticGraph): The graph, on the device of the model.
        forward (Callable, optional): Calls the model,
            :obj:`forward(model, data)`, with the graph or a subgraph that has
            all attributes of nodes and edges. By default, the model is called
            with :obj:`x`, :obj:`edge_index` and, if it takes them by these
            names, :obj:`edge_weight` and :obj:`edge_attr`.
            (default: :obj:`None`)
        cache_aggregation (bool, optional): If set to :obj:`False`, aggregated
            features are not cached, which saves memory.
            (default: :obj:`True`)
        verify (bool, optional): If set to :obj:`False`, results are not
            compared with those of one forward pass on the whole graph, which
            may not fit into memory. (default: :obj:`True`)

    Raises:
        TypeError: If :obj:`model` or :obj:`graph` is something else, or the
            model is already accelerated.
        ValueError: If the model has lazy layers that are not initialized.
    """
    if not isinstance(model, Module):
        raise TypeError(
            f"'model' needs to be a 'torch.nn.Module' (got {type(model)})"
        )
    if isinstance(model, AcceleratedModel):
        raise TypeError("'model' is already accelerated")
    if not isinstance(graph, StaticGraph):
        raise TypeError(
            f"'graph' needs to be a 'StaticGraph' (got {type(graph)})"
        )
    lazy = [name for name, x in model.named_parameters() if is_lazy(x)]
    if lazy:
        raise ValueError(
            f"'model' needs to be initialized; run one forward pass first "
            f'(got lazy parameters {lazy})'
        )
    forward = call_model if forward is None else forward
    run_on = _run_on(forward)
    plan = find_plan(model, graph, forward, run_on, cache_aggregation)
    if verify:
        verify_plan(model, graph, plan, forward, run_on)
    return AcceleratedModel(model, graph, plan, forward)


class AcceleratedModel(Module):
    r"""Run a model on a static graph, as :func:`accelerate` returns it.

    The wrapped model, :obj:`model`, is the only inner module: parameters,
    buffers, training mode, hooks and the keys of :meth:`state_dict` are its
    own.
    """

    _runner: Module
    _copies: List[Copy]
    _modules_then: List[Module]
    _calls: List[Tuple[str, str]]

    def __init__(
        self,
        model: Module,
        graph: StaticGraph,
        plan: Plan,
        forward: Forward,
        calls: Optional[List[Tuple[str, str]]] = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.graph = graph
        self.plan = plan
        self.call = forward
        self._calls = [] if calls is None else calls
        self._modules_then = list(model.modules())
        swaps: Dict[Module, Module] = {}
        if plan.fast_convs:
            swaps = find_fast_convs(
                model, graph, plan.cache_aggregation, self._calls
            )
        runner, self._copies = replace_modules(model, swaps)
        # A module that is registered would list parameters twice:
        vars(self)['_runner'] = runner
        self.register_state_dict_post_hook(_remove_prefix)
        self.register_load_state_dict_pre_hook(_add_prefix)

    def forward(self, nodes: Optional[Tensor] = None) -> Tensor:
        r"""Return the outputs of some nodes.

        Args:
            nodes (torch.Tensor, optional): A mask (bool, of shape
                :math:`(|\mathcal{V}|)`), indices (int64, in any order, with
                repetitions if need be), or :obj:`None` for all nodes.
                (default: :obj:`None`)

        Shapes:
            - **output:** a row for each node, in the order of indices

        Raises:
            ValueError: If :obj:`nodes` is neither, or the model does not
                return a row for each node.
            IndexError: If an index is out of range (checked on CPU only).
            RuntimeError: If features or edges were changed in place, or
                modules of the model were exchanged.
        """
        self._check(nodes)
        self.graph.check_unchanged()
        self._check_modules()
        training = self.model.training
        num_hops = self.plan.num_hops[training]
        if self.plan.modes[training] != self._modes():
            num_hops = None
        out = self._run(nodes, num_hops)
        if num_hops is not None and self._reads_further(nodes, training):
            warnings.warn(
                'The model passes more messages than when it was accelerated, '
                'so that it runs on the whole graph from now on; call '
                "'accelerate' again",
                stacklevel=2,
            )
            self.plan.num_hops[training] = None
            out = self._run(nodes, None)
        return out

    def select(
        self, nodes: Optional[Tensor], training: Optional[bool] = None
    ) -> Subgraph:
        """Return the subgraph that the outputs of some nodes depend on.

        Args:
            nodes (torch.Tensor, optional): As of :meth:`forward`.
            training (bool, optional): The mode.
                (default: the mode of the model)
        """
        training = self.model.training if training is None else training
        return self.graph.select(nodes, self.plan.num_hops[training]).subgraph

    def report(self) -> Report:
        """Return what is used to run faster, and why something is not."""
        return make_report(self.model, self.graph, self.plan)

    def extra_repr(self) -> str:  # noqa: D102
        return f'graph={self.graph}'

    def _run(self, nodes: Optional[Tensor], num_hops: Optional[int]) -> Tensor:
        subgraph, rows = self.graph.select(nodes, num_hops)
        self._calls.clear()
        for pair in self._copies:
            pair.pull()
        if subgraph.inputs:
            with SparseInputs(subgraph.inputs):
                out = self.call(self._runner, subgraph.data)
        else:
            out = self.call(self._runner, subgraph.data)
        for pair in self._copies:
            pair.push()
        num_nodes = subgraph.data.num_nodes
        if not isinstance(out, Tensor) or out.shape[:1] != (num_nodes,):
            raise ValueError(
                f"'model' needs to return one tensor with a row for each of "
                f'{num_nodes} nodes (got '
                f'{list(out.shape) if isinstance(out, Tensor) else type(out)})'
            )
        return out if rows is None else out.index_select(0, rows)

    def _reads_further(self, nodes: Optional[Tensor], training: bool) -> bool:
        """Return whether the model passed more messages in a subgraph than
        its receptive field allows for.
        """
        num_hops = self.plan.num_hops[training]
        if self.graph.select(nodes, num_hops).subgraph.nodes is None:
            return False
        num_messages = sum(way != CACHED for _, way in self._calls)
        return num_messages > self.plan.num_messages[training]

    def _modes(self) -> List[bool]:
        return [module.training for module in self._modules_then]

    def _check_modules(self) -> None:
        modules = list(self.model.modules())
        then = self._modules_then
        if len(modules) != len(then) or any(map(is_not, modules, then)):
            raise RuntimeError(
                "modules of 'model' were added, removed or exchanged after it "
                "was accelerated; call 'accelerate' again"
            )

    def _check(self, nodes: Any) -> None:
        num_nodes = self.graph.num_nodes
        if nodes is None:
            return
        if not isinstance(nodes, Tensor) or nodes.dim() != 1:
            raise ValueError(
                f"'nodes' needs to be a mask or a vector of indices (got "
                f'{list(nodes.shape) if isinstance(nodes, Tensor) else nodes})'
            )
        if nodes.dtype == torch.bool:
            if nodes.numel() != num_nodes:
                raise ValueError(
                    f"'nodes' needs to be a mask of {num_nodes} nodes (got "
                    f'{nodes.numel()})'
                )
        elif nodes.dtype != torch.long:
            raise ValueError(
                f"'nodes' needs to be of torch.bool or torch.int64 (got "
                f'{nodes.dtype})'
            )
        elif nodes.device.type == 'cpu' and nodes.numel() > 0:
            low, high = nodes.aminmax()
            if low < 0 or high >= num_nodes:
                raise IndexError(
                    f"'nodes' needs to be in [0, {num_nodes}) (got "
                    f'{int(low)} to {int(high)})'
                )


def call_model(model: Module, data: Data) -> Tensor:
    """Call a model with the features and edges of a graph, and with the edge
    weights and edge features that it takes.
    """
    out: Tensor = model(data.x, data.edge_index, **edge_kwargs(model, data))
    return out


def edge_kwargs(model: Module, data: Data) -> Dict[str, Any]:
    """Return the edge weights and edge features that a model takes."""
    accepted = list(inspect.signature(model.forward).parameters)
    if isinstance(model, StaticEdges):
        accepted = list(model.signature.parameters)
    if isinstance(model, Sequential):  # Its signature is an attribute.
        accepted = list(model.signature.param_dict)
    return {
        key: data[key]
        for key in EDGE_KEYS
        if key in accepted and data.get(key) is not None
    }


def _run_on(forward: Forward) -> Callable[..., Tensor]:
    def run_on(
        model: Module,
        graph: StaticGraph,
        plan: Plan,
        nodes: Optional[Tensor],
        calls: Optional[List[Tuple[str, str]]] = None,
    ) -> Tensor:
        out = AcceleratedModel(model, graph, plan, forward, calls)
        return out._run(nodes, plan.num_hops[model.training])

    return run_on


def _remove_prefix(
    module: Module, state: Dict[str, Any], prefix: str, *args: Any
) -> None:
    """Let a checkpoint have the keys of the model that is wrapped."""
    _rename(state, prefix + PREFIX, prefix)


def _add_prefix(
    module: Module, state: Dict[str, Any], prefix: str, *args: Any
) -> None:
    _rename(state, prefix, prefix + PREFIX)


def _rename(state: Dict[str, Any], old: str, new: str) -> None:
    for key in [key for key in state if key.startswith(old)]:
        state[new + key[len(old) :]] = state.pop(key)
