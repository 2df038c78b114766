import math
from typing import Any, Dict, Optional, Union

import torch
import torch_geometric.nn
from torch import Tensor
from torch.nn.parameter import Parameter, UninitializedParameter

from torch_geometric_ext.nn.dense.pattern import (
    check_index,
    check_size,
    compress,
    flatten,
    random_index,
)
from torch_geometric_ext.nn.dense.sparse_parameters import (
    SparseParameters,
    is_lazy,
)
from torch_geometric_ext.ops.sparse_linear import (
    sparse_linear,
    sparse_linear_crossover,
)

MAX_DENSE = 2**28  # Elements.
INITIALIZERS = [None, 'glorot', 'kaiming_uniform', 'uniform']

DenseLinear = Union[torch.nn.Linear, torch_geometric.nn.Linear]


class SparseLinear(SparseParameters):
    r"""Applies a linear transformation whose weights exist only in part.

    .. math::
        \mathbf{x}^{\prime} = \mathbf{x} \mathbf{W}^{\top} + \mathbf{b}

    Only a given share of the weights :math:`\mathbf{W}` exists: in memory, in
    the products of the forward and the backward pass, in the gradient and in
    the state of the optimizer.

    A drop-in for :class:`torch.nn.Linear` and
    :class:`torch_geometric.nn.Linear`. The weights that exist are drawn
    uniformly; :class:`~torch_geometric_ext.sparsity.RigL` and its kin move
    them while training.

    .. note::
        On a batch for which a dense product is faster, the operator computes
        a dense product. When printed, the layer tells above which density
        that happens, on a large batch.

    .. note::
        :class:`~torch.nn.parallel.DistributedDataParallel` sends all buffers
        in each forward pass, and with them the places of the weights. They
        are equal on all ranks from its construction on: set
        :obj:`broadcast_buffers=False`.

    Args:
        in_channels (int): Size of each input sample, or :obj:`-1` to derive
            it from the first input.
        out_channels (int): Size of each output sample.
        bias (bool, optional): If set to :obj:`False`, the layer will not
            learn an additive bias. (default: :obj:`True`)
        sparsity (float, optional): The share of weights that do not exist, in
            :math:`[0, 1)`. Their number is rounded to the nearest integer.
            (default: :obj:`0.9`)
        seed (int, optional): Seed of the pattern. By default, it is drawn by
            the global generator of PyTorch, as initial values always are.
            (default: :obj:`None`)
        weight_initializer (str, optional): As in
            :class:`torch_geometric.nn.Linear`, with bounds for the number of
            weights that really come in (and out, for :obj:`"glorot"`).
            (default: :obj:`None`)
        bias_initializer (str, optional): As in
            :class:`torch_geometric.nn.Linear`. (default: :obj:`None`)

    Attributes:
        values (torch.nn.Parameter): The weights that exist, row by row.
        bias (torch.nn.Parameter): The bias, or :obj:`None`.

    Raises:
        ValueError: If an argument is out of its range.

    Shapes:
        - **input:** features :math:`(*, I)`
        - **output:** features :math:`(*, O)`

    Memory is :math:`O(\textrm{nnz} + I + O)`: four bytes for each value, and
    twelve for its place in compressed rows and columns.

    Example:
        >>> lin = SparseLinear(512, 256, sparsity=0.9)
        >>> lin.values.shape
        torch.Size([13107])
        >>> lin(torch.randn(100, 512)).shape
        torch.Size([100, 256])
    """

    bias: Optional[Parameter]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        bias: bool = True,
        *,
        sparsity: float = 0.9,
        seed: Optional[int] = None,
        weight_initializer: Optional[str] = None,
        bias_initializer: Optional[str] = None,
    ) -> None:
        if in_channels < -1 or out_channels < 0:
            raise ValueError(
                f"'in_channels' and 'out_channels' of 'SparseLinear' must not "
                f'be negative, but for -1 inputs (got {in_channels} and '
                f'{out_channels})'
            )
        if not 0 <= sparsity < 1:
            raise ValueError(
                f"'sparsity' of 'SparseLinear' needs to be in [0, 1) "
                f'(got {sparsity})'
            )
        if weight_initializer not in INITIALIZERS:
            raise ValueError(
                f"'weight_initializer' of 'SparseLinear' needs to be one of "
                f'{INITIALIZERS} (got {weight_initializer!r})'
            )
        if bias_initializer not in [None, 'zeros']:
            raise ValueError(
                f"'bias_initializer' of 'SparseLinear' needs to be None or "
                f"'zeros' (got {bias_initializer!r})"
            )
        super().__init__(in_channels, out_channels, sparsity, seed)
        self.weight_initializer = weight_initializer
        self.bias_initializer = bias_initializer
        self.dense_class: type = torch_geometric.nn.Linear
        if bias:
            self.bias = Parameter(torch.empty(out_channels))
        else:
            self.register_parameter('bias', None)
        if in_channels >= 0:
            self.reset_mask(seed)

    @classmethod
    def from_dense(
        cls,
        linear: DenseLinear,
        mask: Optional[Tensor] = None,
        sparsity: Optional[float] = None,
        index: Optional[Tensor] = None,
    ) -> 'SparseLinear':
        r"""Copies the weights of a dense layer that a mask, their magnitude or
        their positions select; without any, all that are not zero.

        Args:
            linear (torch.nn.Linear or torch_geometric.nn.Linear): The dense
                layer, initialized.
            mask (torch.Tensor, optional): The weights to keep (bool, of the
                shape of :obj:`linear.weight`). (default: :obj:`None`)
            sparsity (float, optional): The share of weights to leave out,
                smallest magnitudes first. (default: :obj:`None`)
            index (torch.Tensor, optional): The positions to keep in the flat
                weight, ascending (int64). (default: :obj:`None`)
        """
        weight = linear.weight
        if isinstance(weight, UninitializedParameter):
            raise ValueError(
                f"'linear' needs to be initialized; run one forward pass of "
                f'the model first (got {linear})'
            )
        if sum(x is not None for x in [mask, sparsity, index]) > 1:
            raise ValueError(
                "'mask', 'sparsity' and 'index' exclude one another"
            )
        if mask is not None and (
            mask.dtype != torch.bool or mask.shape != weight.shape
        ):
            raise ValueError(
                f"'mask' needs to be of torch.bool and of shape "
                f'{list(weight.shape)} (got {mask.dtype} and '
                f'{list(mask.shape)})'
            )
        out = cls(
            -1,
            weight.size(0),
            bias=linear.bias is not None,
            sparsity=0.0 if sparsity is None else sparsity,
            weight_initializer=getattr(linear, 'weight_initializer', None),
            bias_initializer=getattr(linear, 'bias_initializer', None),
        )
        out._materialize(weight.size(1))  # Without a pattern: it is known.
        out = out.to(weight.device, weight.dtype)
        out.dense_class = type(linear)
        flat = weight.detach().flatten()
        if sparsity is not None:
            size = round((1 - sparsity) * flat.numel())
            index = flat.abs().topk(size, sorted=False).indices.sort().values
        elif index is not None:
            check_index(index, flat.numel())
        else:
            keep = flat != 0 if mask is None else mask.flatten()
            index = keep.nonzero().flatten()
        out.set_weights(index, flat[index])
        out.values.requires_grad_(weight.requires_grad)
        if out.bias is not None:
            out.bias.data.copy_(linear.bias)
            out.bias.requires_grad_(linear.bias.requires_grad)
        return out.train(linear.training)

    def to_dense(self) -> DenseLinear:
        """Returns an ordinary layer of equal outputs, of the class that
        :meth:`from_dense` was given.
        """
        kwargs: Dict[str, Any] = dict(bias=self.bias is not None)
        if not issubclass(self.dense_class, torch.nn.Linear):
            kwargs['weight_initializer'] = self.weight_initializer
            kwargs['bias_initializer'] = self.bias_initializer
        size = self._size()
        shape = (self.in_channels, self.out_channels)
        with torch.device('meta'):  # Draws no numbers to be thrown away.
            out = self.dense_class(*shape, **kwargs)
        values = self.values.detach()
        weight = values.new_zeros(size)
        weight[self.index] = values
        weight = weight.view(self.out_channels, self.in_channels)
        out.weight = Parameter(weight, self.values.requires_grad)
        if self.bias is not None:
            bias = self.bias.detach().clone()
            out.bias = Parameter(bias, self.bias.requires_grad)
        return out.train(self.training)

    @property
    def sparsity(self) -> float:
        """The share of weights that do not exist."""
        return self._sparsity

    @property
    def index(self) -> Tensor:
        """The ascending positions of the weights in the flat, dense weight
        (int64).
        """
        self._size()
        return flatten(self.rowptr, self.col, self.in_channels)

    @property
    def mask(self) -> Tensor:
        """Which weights exist, as a dense mask of shape :math:`(O, I)`."""
        size = self._dense_size('mask')
        mask = torch.zeros(size, dtype=torch.bool, device=self.col.device)
        mask[self.index] = True
        return mask.view(self.out_channels, self.in_channels)

    @property
    def weight(self) -> Tensor:
        """A dense, differentiable view of the weights, of shape
        :math:`(O, I)`.
        """
        size = self._dense_size('weight')
        out = self.values.new_zeros(size).scatter(0, self.index, self.values)
        return out.view(self.out_channels, self.in_channels)

    @torch.no_grad()
    def set_weights(self, index: Tensor, values: Tensor) -> None:
        """Replaces the weights that exist. Tensors are overwritten in place
        if their number stays.

        Args:
            index (torch.Tensor): Their positions in the flat, dense weight,
                ascending (int64).
            values (torch.Tensor): Their values.
        """
        check_index(index, self._size())
        if index.shape != values.shape:
            raise ValueError(
                f"'index' and 'values' need to be vectors of one length (got "
                f'{list(index.shape)} and {list(values.shape)})'
            )
        pattern = compress(index, (self.out_channels, self.in_channels))
        self._replace(pattern, values)

    def reset_parameters(self) -> None:
        """Draws new values and biases; the pattern stays."""
        if is_lazy(self):
            return
        scheme = self.weight_initializer or 'kaiming_uniform'
        with torch.no_grad():
            self.values.uniform_(-1, 1).mul_(self._bound(scheme))
            if self.bias is None:
                return
            bound = 0.0
            if self.in_channels > 0 and self.bias_initializer != 'zeros':
                bound = 1 / math.sqrt(self.in_channels)
            self.bias.uniform_(-bound, bound)

    @torch.no_grad()
    def reset_mask(self, seed: Optional[int] = None) -> None:
        """Draws a new pattern of the same sparsity, and new values.

        Args:
            seed (int, optional): Seed of the pattern. By default, the global
                generator draws it. (default: :obj:`None`)
        """
        numel, size = self._size(), (self.out_channels, self.in_channels)
        num_weights = round((1 - self.sparsity) * numel)
        check_size(num_weights, size)
        generator = None
        if seed is not None:
            generator = torch.Generator('cpu').manual_seed(seed)
        index = random_index(numel, num_weights, generator)
        pattern = compress(index.to(self.col.device), size)
        self._replace(pattern, self.values.new_zeros(num_weights))
        self.reset_parameters()

    @property
    def in_features(self) -> int:
        """The number of inputs, as :class:`torch.nn.Linear` names it."""
        return self.in_channels

    @property
    def out_features(self) -> int:
        """The number of outputs, as :class:`torch.nn.Linear` names it."""
        return self.out_channels

    def forward(self, x: Tensor) -> Tensor:
        """Applies the transformation.

        Args:
            x (torch.Tensor): The input features.
        """
        buffers: Any = self._buffers  # Attributes are slow.
        return sparse_linear(
            x,
            self.values,
            self.bias,
            buffers['rowptr'],
            buffers['col'],
            buffers['colptr'],
            buffers['row'],
            buffers['perm'],
        )

    def crossover(self, num_rows: int = 4096) -> float:
        """The density above which the forward pass computes a dense product,
        as measured on one machine.

        Args:
            num_rows (int, optional): The number of input samples.
                (default: :obj:`4096`)
        """
        size = (max(self.in_channels, 1), self.out_channels)
        return sparse_linear_crossover(num_rows, *size)

    def extra_repr(self) -> str:  # noqa: D102
        return (
            f'{self.in_channels}, {self.out_channels}, '
            f'bias={self.bias is not None}, sparsity={self.sparsity:.4g}, '
            f'dense_above={self.crossover():.2g}'
        )

    def _bound(self, scheme: str) -> Tensor:
        """Bounds of uniform values by the weights that really come in."""
        degree = self.rowptr.diff()
        if scheme == 'glorot':
            fans = self.in_channels + self.out_channels
            fan = fans * (1 - self.sparsity)
            return self.values.new_tensor(math.sqrt(6 / max(fan, 1)))
        bound = degree.to(self.values.dtype).clamp(min=1).rsqrt()
        size = self.values.numel()
        return bound.repeat_interleave(degree, output_size=size)

    def _dense_size(self, name: str) -> int:
        size = self._size()
        if size > MAX_DENSE:
            raise ValueError(
                f"'{name}' of 'SparseLinear' is a dense matrix of at most "
                f"{MAX_DENSE:,} elements (got {size:,}); 'to_dense()' gives "
                f'a dense layer of any size'
            )
        return size
