"""Run any model faster on a static graph, with equal results."""

from typing import Callable, List, Optional, Tuple

from torch import Tensor
from torch.nn import Module
from torch.nn.parameter import is_lazy

from torch_geometric_ext.full_batch.accelerated_model import AcceleratedModel
from torch_geometric_ext.full_batch.call_model import call_model
from torch_geometric_ext.full_batch.plan import (
    Forward,
    Plan,
    find_plan,
    verify_plan,
)
from torch_geometric_ext.full_batch.static_graph import StaticGraph


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

    Any model is allowed. Call the result with the nodes whose outputs are
    needed, as a mask or as indices:

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

    :meth:`AcceleratedModel.report` lists the optimizations in use, and why
    others are not.

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

    .. rubric:: Details

    The accelerated model

    * computes only the receptive field of the requested outputs (a mask or
      indices),
    * aggregates features, normalizes edges and adds self-loops once,
    * skips zeros in products with sparse features,
    * transforms before it aggregates where a layer has fewer outputs than
      inputs, or where sparse features take fewer multiplications that way,
      and
    * aggregates by sparse matrix products, without a message for each edge,
      in :class:`~torch_geometric.nn.conv.GCNConv`,
      :class:`~torch_geometric.nn.conv.GCN2Conv`,
      :class:`~torch_geometric.nn.conv.GINConv`,
      :class:`~torch_geometric.nn.conv.SAGEConv`,
      :class:`~torch_geometric.nn.conv.GraphConv`,
      :class:`~torch_geometric.nn.conv.GATConv`,
      :class:`~torch_geometric.nn.conv.GATv2Conv` and
      :class:`~torch_geometric.nn.conv.APPNP`.

    An equivalence check on a small random graph in double precision, and a
    second one on the graph itself, find out which of these optimizations are
    exact. The others are not used: a model that normalizes over all nodes
    runs on the whole graph, for example.

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
        verify_plan(model, graph, plan, run_on)
    return AcceleratedModel(model, graph, plan, forward)


def _run_on(forward: Forward) -> Callable[..., Tensor]:
    def run_on(
        model: Module,
        graph: StaticGraph,
        plan: Plan,
        nodes: Optional[Tensor],
        calls: Optional[List[Tuple[str, str]]] = None,
    ) -> Tensor:
        out = AcceleratedModel(model, graph, plan, forward, calls)
        return out.run(nodes, plan.num_hops[model.training])

    return run_on
