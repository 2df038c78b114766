from typing import Any, Dict, Optional, Tuple

import torch
from torch import Tensor
from torch.compiler import is_compiling
from torch_geometric.nn import GCNConv
from torch_geometric.nn.conv.gcn_conv import gcn_norm
from torch_geometric.typing import Adj, OptTensor
from torch_geometric.utils import (
    add_remaining_self_loops,
    is_torch_sparse_tensor,
)

from torch_geometric_ext.nn.conv.self_loops import weigh_self_loops
from torch_geometric_ext.nn.dense import SparseLinear
from torch_geometric_ext.nn.multiply import (
    aggregates_first,
    can_multiply,
)
from torch_geometric_ext.ops.csr_product import CSRPair

# Sizes from which sorting the edges in each call is faster than messages, with
# a margin (benchmark/nn/propagation.py). The forward pass alone gains less.
MIN_CHANNELS = 32
MIN_MESSAGES = {True: 1 << 20, False: 1 << 22}  # By whether gradients follow.

Graph = Tuple[Tensor, OptTensor]


class MaskedGCNConv(GCNConv):
    r"""The graph convolutional operator from the `"Semi-supervised
    Classification with Graph Convolutional Networks"
    <https://arxiv.org/abs/1609.02907>`_ paper, with sparse weights and masked
    edges.

    .. math::
        \mathbf{X}^{\prime} = \hat{\mathbf{D}}^{-1/2}
        \left( \mathbf{M}_{\mathcal{E}} \odot \hat{\mathbf{A}} \right)
        \hat{\mathbf{D}}^{-1/2} \mathbf{X}
        \left( \mathbf{M}_{\Theta} \odot \mathbf{\Theta} \right),

    with the weight mask :math:`\mathbf{M}_{\Theta}` and the edge mask
    :math:`\mathbf{M}_{\mathcal{E}}`. Pruned weights are not stored (see
    :class:`~torch_geometric_ext.nn.SparseLinear`). Messages along pruned edges
    are not computed.

    The layer is a drop-in replacement for
    :class:`torch_geometric.nn.conv.GCNConv`, and equal to it for
    :obj:`sparsity=0` and without an edge mask.

    Args:
        in_channels (int): Size of each input sample, or :obj:`-1` to derive
            the size from the first input(s) to the forward method.
        out_channels (int): Size of each output sample.
        improved (bool, optional): If set to :obj:`True`, the layer computes
            :math:`\hat{\mathbf{A}}` as :math:`\mathbf{A} + 2\mathbf{I}`.
            (default: :obj:`False`)
        cached (bool, optional): If set to :obj:`True`, the layer will cache
            the normalization of the graph on first execution, and will use
            the cached version for further executions.
            (default: :obj:`False`)
        add_self_loops (bool, optional): If set to :obj:`False`, will not add
            self-loops to the input graph. By default, self-loops will be
            added in case :obj:`normalize` is set to :obj:`True`, and not
            added otherwise. (default: :obj:`None`)
        normalize (bool, optional): Whether to add self-loops and compute
            symmetric normalization coefficients on-the-fly.
            (default: :obj:`True`)
        bias (bool, optional): If set to :obj:`False`, the layer will not
            learn an additive bias. (default: :obj:`True`)
        sparsity (float, optional): Fraction of inactive weights, in
            :math:`[0, 1)`. (default: :obj:`0.9`)
        seed (int, optional): Seed of the weight mask. If set to :obj:`None`,
            the global generator of PyTorch draws the weight mask.
            (default: :obj:`None`)
        block_size (int, optional): The size of blocks of weights that are
            active or not as a whole (see
            :class:`~torch_geometric_ext.nn.SparseLinear`). Blocks need dense
            features. (default: :obj:`1`)
        normalize_masked (bool, optional): If set to :obj:`False`, pruned
            edges count in the normalization of the remaining edges.
            (default: :obj:`True`)
        **kwargs (optional): Additional arguments of
            :class:`torch_geometric.nn.conv.MessagePassing`.

    Raises:
        ValueError: If an argument is out of its range.

    Shapes:
        - **input:**
          node features :math:`(|\mathcal{V}|, F_{in})`, dense or in CSR
          format,
          edge indices :math:`(2, |\mathcal{E}|)`
          or sparse matrix :math:`(|\mathcal{V}|, |\mathcal{V}|)`,
          edge weights :math:`(|\mathcal{E}|)` *(optional)*,
          edge mask :math:`(|\mathcal{E}|)` *(optional)*
        - **output:** node features :math:`(|\mathcal{V}|, F_{out})`

    Example:
        >>> conv = MaskedGCNConv(16, 32, sparsity=0.9)
        >>> x = torch.randn(3, 16)
        >>> edge_index = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])
        >>> edge_mask = torch.tensor([True, True, True, False])
        >>> out = conv(x, edge_index, edge_mask=edge_mask)
        >>> torch.allclose(out, conv(x, edge_index[:, :3]))
        True

    .. rubric:: Details

    .. note::
        The edge mask never prunes self-loops that the layer adds.
        With :obj:`normalize_masked=True`, the output equals the output on the
        subgraph of the remaining edges.
        With :obj:`normalize_masked=False`, the degrees
        :math:`\hat{\mathbf{D}}` count all edges, and the edge mask does not
        prune self-loops of the input graph if :obj:`add_self_loops` is set.

    .. note::
        With :obj:`cached=True`, the normalized masked graph is cached, and
        its sparse matrix in both directions: forward and backward pass are
        sparse products that write no messages. The cache is valid as long as
        :obj:`edge_mask` is the same, unmodified tensor. Otherwise, the call
        renews it from its own edges. Masked graphs are not cached under
        :func:`torch.compile` and for masks created in inference mode.
        On CPU, large graphs that are not cached are sorted in each call, and
        propagate by sparse products, too.

    .. note::
        The layer passes messages, as
        :class:`~torch_geometric.nn.conv.GCNConv` does, if hooks, an explainer
        or a subclass may read them, if edge weights need gradients, for other
        aggregations than sum and mean, in half precision, and under
        :func:`torch.compile` and :mod:`torch.func`.

    .. note::
        On CUDA, masking edges synchronizes with the host. If the mask never
        changes, cache the graph or mask it once before training.
    """

    _cached_edge_index: Optional[Graph]
    _cached_edge_mask: Optional[Tuple[Tensor, int]]
    # The edges that a matrix stands for, and the matrix:
    _cached_matrix: Optional[Tuple[Graph, CSRPair]] = None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        improved: bool = False,
        cached: bool = False,
        add_self_loops: Optional[bool] = None,
        normalize: bool = True,
        bias: bool = True,
        *,
        sparsity: float = 0.9,
        seed: Optional[int] = None,
        block_size: int = 1,
        normalize_masked: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            -1,  # Makes `lin` lazy, so that no dense weight is allocated.
            out_channels,
            improved=improved,
            cached=cached,
            add_self_loops=add_self_loops,
            normalize=normalize,
            bias=bias,
            **kwargs,
        )
        self.in_channels = in_channels
        self.normalize_masked = normalize_masked
        self.lin = SparseLinear(
            in_channels,
            out_channels,
            bias=False,
            sparsity=sparsity,
            seed=seed,
            weight_initializer='glorot',
            block_size=block_size,
        )

    def reset_parameters(self) -> None:
        """Draw new parameters and clear the cache. The weight mask does not
        change.
        """
        super().reset_parameters()
        self._cached_edge_mask = self._cached_matrix = None

    def __getstate__(self) -> Dict[str, Any]:
        """Leave out the cached matrix, which a copy makes anew."""
        return {**vars(self), '_cached_matrix': None}

    def forward(
        self,
        x: Tensor,
        edge_index: Adj,
        edge_weight: OptTensor = None,
        edge_mask: OptTensor = None,
    ) -> Tensor:
        r"""Run the forward pass.

        Args:
            x (torch.Tensor): The node features of shape
                :math:`(|\mathcal{V}|, F_{in})`.
            edge_index (torch.Tensor or SparseTensor): The edge indices, or a
                sparse adjacency matrix.
            edge_weight (torch.Tensor, optional): The edge weights of shape
                :math:`(|\mathcal{E}|)`. (default: :obj:`None`)
            edge_mask (torch.Tensor, optional): The boolean mask of shape
                :math:`(|\mathcal{E}|)`, :obj:`True` for remaining edges. Not
                supported for sparse matrices. (default: :obj:`None`)

        Raises:
            ValueError: If :obj:`edge_mask` is of the wrong type or shape, or
                given with a sparse matrix.
        """
        if isinstance(x, (tuple, list)) or not (
            edge_mask is not None or isinstance(edge_index, Tensor)
        ):
            return super().forward(x, edge_index, edge_weight)
        graph = self._graph(edge_index, edge_weight, edge_mask, x)
        if self._multiplies(graph, x):
            out = self._multiply(graph, x)
        else:
            x, (edge_index, edge_weight) = self.lin(x), graph
            # propagate_type: (x: Tensor, edge_weight: OptTensor)
            out = self.propagate(edge_index, x=x, edge_weight=edge_weight)
        return out if self.bias is None else out + self.bias

    def _graph(
        self,
        edge_index: Tensor,
        edge_weight: OptTensor,
        edge_mask: OptTensor,
        x: Tensor,
    ) -> Graph:
        """Return the edges to propagate along, from the cache if it is
        valid.
        """
        graph, old = self._cached_edge_index, self._cached_edge_mask
        key, args = None, (edge_index, edge_weight, edge_mask, x)
        if not (self.cached and self.normalize):
            return self._masked_graph(*args)
        if edge_mask is not None:
            # Tensors have a version counter in eager mode only:
            if is_compiling() or edge_mask.is_inference():
                return self._masked_graph(*args)
            key = edge_mask, edge_mask._version
        if (
            graph is None
            or graph[0].device != x.device
            or (old is None) != (key is None)
            or (old and key and (old[0] is not key[0] or old[1] != key[1]))
        ):
            graph = self._masked_graph(*args)
            self._cached_edge_index, self._cached_edge_mask = graph, key
        return graph

    def _multiplies(self, graph: Graph, x: Tensor) -> bool:
        """Return whether to propagate by a product with a matrix."""
        weight = graph[1]
        return (
            not is_compiling()
            and type(self) is MaskedGCNConv
            and weight is not None  # Of sparse matrices, which multiply.
            and (graph is self._cached_edge_index or self._pays_once(weight))
            and can_multiply(self, x, weight)
        )

    def _pays_once(self, weight: Tensor) -> bool:
        """Return whether to make a matrix for a single product."""
        num_messages = weight.numel() * self.out_channels
        return (
            weight.is_cpu  # Waits for other devices.
            and self.out_channels >= MIN_CHANNELS
            and num_messages >= MIN_MESSAGES[torch.is_grad_enabled()]
        )

    def _multiply(self, graph: Graph, x: Tensor) -> Tensor:
        """Propagate by a sparse matrix and multiply by the weights."""
        dtype = torch.promote_types(graph[1].dtype, x.dtype)
        matrix = self._matrix(graph, dtype, x.size(0))
        if aggregates_first(self.lin, x, self.out_channels):
            return self.lin(matrix.matmul(x))
        return matrix.matmul(self.lin(x).to(dtype))

    def _matrix(
        self, graph: Graph, dtype: torch.dtype, num_nodes: int
    ) -> CSRPair:
        """Return the matrix of a graph, from the cache if it is valid."""
        if graph is not self._cached_edge_index:
            return self._make_matrix(*graph, dtype, num_nodes)
        cache = self._cached_matrix
        if (
            cache is None
            or cache[0] is not graph
            or cache[1].matrix.dtype != dtype
            or cache[1].matrix.size(0) != num_nodes
        ):
            cache = graph, self._make_matrix(*graph, dtype, num_nodes)
            self._cached_matrix = cache
        return cache[1]

    def _make_matrix(
        self,
        edge_index: Tensor,
        weight: OptTensor,
        dtype: torch.dtype,
        num_nodes: int,
    ) -> CSRPair:
        source, target = edge_index[0], edge_index[1]
        if self.flow == 'target_to_source':
            source, target = target, source
        weight = weight.to(dtype)
        if self.aggr == 'mean':
            degree = torch.bincount(target, minlength=num_nodes)
            weight = weight / degree[target].to(dtype)
        return CSRPair.from_edges(source, target, weight, num_nodes)

    def _masked_graph(
        self,
        edge_index: Tensor,
        edge_weight: OptTensor,
        edge_mask: OptTensor,
        x: Tensor,
    ) -> Graph:
        """Return the remaining edges, normalized if :obj:`normalize`."""
        if edge_mask is None:
            graph = edge_index, edge_weight
            return self._norm(*graph, x) if self.normalize else graph
        self._check_mask(edge_index, edge_mask)
        if self.normalize_masked or not self.normalize:
            graph = _select(edge_index, edge_weight, edge_mask)
            return self._norm(*graph, x) if self.normalize else graph
        if self.add_self_loops:  # Adds them in the order of `gcn_norm`.
            edge_mask = add_remaining_self_loops(
                edge_index,
                edge_mask | (edge_index[0] == edge_index[1]),
                fill_value=True,
                num_nodes=x.size(self.node_dim),
            )[1]
        graph = self._norm(edge_index, edge_weight, x, keep_order=True)
        return _select(*graph, edge_mask)

    def _norm(
        self,
        edge_index: Tensor,
        edge_weight: OptTensor,
        x: Tensor,
        keep_order: bool = False,
    ) -> Graph:
        num_nodes: int = x.size(self.node_dim)  # type: ignore[assignment]
        loops = self.add_self_loops
        graph = edge_index, edge_weight
        # Self-loops of weight zero change no sum:
        if (
            loops
            and self.aggr in ['add', 'sum']
            and not (x.is_cpu or keep_order or self.explain)
        ):
            fill_value = 2.0 if self.improved else 1.0
            graph = weigh_self_loops(*graph, fill_value, num_nodes, x.dtype)
            loops = False
        args = (num_nodes, self.improved, loops, self.flow, x.dtype)
        return gcn_norm(*graph, *args)

    def _check_mask(self, edge_index: Adj, edge_mask: Tensor) -> None:
        name = self.__class__.__name__
        if not isinstance(edge_index, Tensor) or is_torch_sparse_tensor(
            edge_index
        ):
            raise ValueError(
                f"'edge_mask' of '{name}' is not supported for sparse "
                f'matrices (got {edge_index.__class__.__name__}). Pass edge '
                f"indices as 'edge_index'"
            )
        size = [edge_index.size(1)]
        if edge_mask.dtype != torch.bool or list(edge_mask.shape) != size:
            raise ValueError(
                f"'edge_mask' of '{name}' needs to be of type torch.bool and "
                f'of shape {size} (got {edge_mask.dtype} and '
                f'{list(edge_mask.shape)})'
            )

    def __repr__(self) -> str:
        sparsity = getattr(self.lin, 'sparsity', 0.0)  # Dense if densified.
        return (
            f'{self.__class__.__name__}({self.in_channels}, '
            f'{self.out_channels}, sparsity={sparsity:.4g})'
        )


def _select(
    edge_index: Tensor, edge_weight: OptTensor, edge_mask: Tensor
) -> Graph:
    if edge_weight is not None:
        edge_weight = edge_weight[edge_mask]
    return edge_index[:, edge_mask], edge_weight
