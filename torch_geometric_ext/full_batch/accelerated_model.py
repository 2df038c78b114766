"""A model that runs on a static graph by a plan."""

import warnings
from operator import is_not
from typing import Any, Dict, List, Optional, Tuple

import torch
from torch import Tensor
from torch.nn import Module

from torch_geometric_ext.full_batch.conv.find_static_convs import (
    find_static_convs,
)
from torch_geometric_ext.full_batch.conv.static_conv import CACHED
from torch_geometric_ext.full_batch.plan import Forward, Plan
from torch_geometric_ext.full_batch.report import Report, make_report
from torch_geometric_ext.full_batch.sparse_input import SparseInputs
from torch_geometric_ext.full_batch.static_graph import StaticGraph
from torch_geometric_ext.full_batch.subgraph import Subgraph
from torch_geometric_ext.nn.shallow_copy import Copy, replace_modules

PREFIX = 'model.'


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
            swaps = find_static_convs(
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
        out = self.run(nodes, num_hops)
        if num_hops is not None and self._reads_further(nodes, training):
            warnings.warn(
                'The model passes more messages than when it was accelerated, '
                'so that it runs on the whole graph from now on; call '
                "'accelerate' again",
                stacklevel=2,
            )
            self.plan.num_hops[training] = None
            out = self.run(nodes, None)
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

    def run(self, nodes: Optional[Tensor], num_hops: Optional[int]) -> Tensor:
        """Return the outputs of some nodes, computed on the subgraph within
        some hops, or on the whole graph.
        """
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
