import math
from typing import Any, Dict, Optional, Union

import torch
import torch_geometric.nn
from torch import Tensor
from torch.nn.parameter import Parameter, is_lazy

from torch_geometric_ext.nn.dense.block_grid import check_block_size
from torch_geometric_ext.nn.dense.check_weights import check_materialized
from torch_geometric_ext.nn.dense.pattern import (
    Pattern,
    check_size,
    compress,
)
from torch_geometric_ext.nn.dense.sparse_parameters import SparseParameters
from torch_geometric_ext.ops.block_sparse_linear import (
    block_sparse_linear,
    block_sparse_linear_crossover,
)
from torch_geometric_ext.ops.csr_sparse_linear import csr_sparse_linear
from torch_geometric_ext.ops.gpu_choice import gpu_crossover
from torch_geometric_ext.ops.sparse_linear import (
    sparse_linear,
    sparse_linear_crossover,
)

INITIALIZERS = [None, 'glorot', 'kaiming_uniform', 'uniform']

DenseLinear = Union[torch.nn.Linear, torch_geometric.nn.Linear]


class SparseLinear(SparseParameters):
    r"""Apply a linear transformation with a sparse weight matrix.

    .. math::
        \mathbf{x}^{\prime} = \mathbf{x} \mathbf{W}^{\top} + \mathbf{b}

    Only the *active* weights, a fraction of :obj:`1 - sparsity` of
    :math:`\mathbf{W}`, are stored. All others are zero. The forward pass, the
    backward pass, the gradient and the state of the optimizer cover the
    active weights only.

    The layer is a drop-in replacement for :class:`torch.nn.Linear` and
    :class:`torch_geometric.nn.Linear`. It also loads their state, and keeps
    its pattern. The positions of its active weights are drawn uniformly.
    Schedulers such as :class:`~torch_geometric_ext.sparsity.RigL` move them
    during training.

    Args:
        in_channels (int): Size of each input sample, or :obj:`-1` to derive
            it from the first input.
        out_channels (int): Size of each output sample.
        bias (bool, optional): If set to :obj:`False`, the layer will not
            learn an additive bias. (default: :obj:`True`)
        sparsity (float, optional): Fraction of inactive weights, in
            :math:`[0, 1)`. The number of active weights is rounded to the
            nearest integer. (default: :obj:`0.9`)
        seed (int, optional): Seed of the pattern. If set to :obj:`None`, the
            global generator of PyTorch draws the pattern. Initial values are
            always drawn by the global generator. (default: :obj:`None`)
        weight_initializer (str, optional): The initializer of the weights, as
            in :class:`torch_geometric.nn.Linear` (:obj:`"glorot"`,
            :obj:`"uniform"`, :obj:`"kaiming_uniform"` or :obj:`None`). Its
            bounds count active weights only. (default: :obj:`None`)
        bias_initializer (str, optional): The initializer of the bias, as in
            :class:`torch_geometric.nn.Linear` (:obj:`"zeros"` or
            :obj:`None`). (default: :obj:`None`)
        block_size (int, optional): The size :math:`B` of blocks of weights
            that are active or not as a whole (:obj:`1`, :obj:`8`, :obj:`16`
            or :obj:`32`). Blocks fill vector registers, hence are faster than
            single weights, at a lower accuracy for the same sparsity. The
            sparsity is rounded to whole blocks, and rows of blocks draw equal
            numbers of blocks, up to one. Blocks at the last outputs and
            inputs are cut. (default: :obj:`1`)

    Attributes:
        values (torch.nn.Parameter): The active weights in row-major order, of
            shape :math:`(\textrm{nnz})`.
        bias (torch.nn.Parameter): The bias of shape :math:`(O)`, or
            :obj:`None`.

    Raises:
        ValueError: If an argument is out of its range.

    Shapes:
        - **input:** features :math:`(*, I)`, or :math:`(N, I)` in CSR format
          (:obj:`torch.float` or :obj:`torch.double`)
        - **output:** features :math:`(*, O)`

    Example:
        >>> lin = SparseLinear(512, 256, sparsity=0.9)
        >>> lin.values.shape
        torch.Size([13107])
        >>> lin(torch.randn(100, 512)).shape
        torch.Size([100, 256])
        >>> SparseLinear(512, 256, sparsity=0.9, block_size=16)
        SparseLinear(512, 256, bias=True, sparsity=0.9004, block_size=16, ...)

    .. rubric:: Details

    .. note::
        The layer computes a dense product if that was measured to be faster,
        and under transforms of :mod:`torch.func` and forward-mode autograd.
        The representation of the layer names the density above which this is
        the case for large mini-batches, :obj:`dense_above` (see
        :meth:`crossover`). On a GPU, all products are dense until
        :func:`~torch_geometric_ext.ops.calibrate` measured it.

    .. note::
        Pass sparse features, such as bags of words, in CSR format
        (:obj:`x.to_sparse_csr()`, once before training). The layer then
        skips the zeros of both, but computes no gradient of the features, and
        supports no transform. :func:`torch.compile` runs it eagerly. Layers of
        blocks need dense features.

    .. note::
        :class:`~torch.nn.parallel.DistributedDataParallel` broadcasts all
        buffers, including the pattern, in each forward pass. Set
        :obj:`broadcast_buffers=False` to avoid that: all ranks have equal
        patterns after its construction.

    The layer takes :math:`O(\textrm{nnz} + I + O)` memory. An active weight
    takes four bytes for its value in single precision and twelve bytes for
    its position in CSR and CSC format. With blocks, a block takes twelve bytes
    for its position.
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
        block_size: int = 1,
    ) -> None:
        if in_channels < -1 or out_channels < 0:
            raise ValueError(
                f"'in_channels' of 'SparseLinear' needs to be at least -1, "
                f"and 'out_channels' at least 0 (got {in_channels} and "
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
        check_block_size('SparseLinear', block_size)
        size = (in_channels, out_channels)
        super().__init__(*size, sparsity, seed, block_size)
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
        block_size: int = 1,
    ) -> 'SparseLinear':
        r"""Prune a dense layer to a sparse layer.

        At most one of :obj:`mask`, :obj:`sparsity` and :obj:`index` selects
        the active weights. By default, all weights other than zero are
        active.

        Args:
            linear (torch.nn.Linear or torch_geometric.nn.Linear): The
                initialized dense layer.
            mask (torch.Tensor, optional): Boolean mask of shape
                :math:`(O, I)`, :obj:`True` for active weights.
                (default: :obj:`None`)
            sparsity (float, optional): Fraction of weights to prune by
                magnitude, in :math:`[0, 1)`. (default: :obj:`None`)
            index (torch.Tensor, optional): Ascending positions of the active
                weights in the flattened weight (int64).
                (default: :obj:`None`)
            block_size (int, optional): The size of blocks. :obj:`mask` and
                :obj:`index` need to select whole blocks, and :obj:`sparsity`
                prunes the blocks of the smallest norm, divided by the square
                root of their number of weights. (default: :obj:`1`)

        Raises:
            ValueError: If an argument is out of its range, or
                :obj:`linear` is not initialized or on the meta device.
        """
        weight = linear.weight
        check_materialized('linear', {str(linear): weight})
        out = cls(
            -1,
            weight.size(0),
            bias=linear.bias is not None,
            sparsity=0.0 if sparsity is None else sparsity,
            weight_initializer=getattr(linear, 'weight_initializer', None),
            bias_initializer=getattr(linear, 'bias_initializer', None),
            block_size=block_size,
        )
        out._materialize(weight.size(1))  # Skips drawing a pattern.
        out = out.to(weight.device, weight.dtype)
        out.dense_class = type(linear)
        flat = weight.detach().flatten()
        selection = (mask, sparsity, index)
        index = out.grid.select(weight.detach(), *selection)
        out.set_weights(index, flat[index])
        out.values.requires_grad_(weight.requires_grad)
        if out.bias is not None:
            out.bias.data.copy_(linear.bias)
            out.bias.requires_grad_(linear.bias.requires_grad)
        return out.train(linear.training)

    def to_dense(self) -> DenseLinear:
        """Return the equivalent dense layer.

        It is of the class that :meth:`from_dense` converted, or a
        :class:`torch_geometric.nn.Linear` by default.

        Raises:
            ValueError: If the layer is not initialized.
        """
        kwargs: Dict[str, Any] = dict(bias=self.bias is not None)
        if not issubclass(self.dense_class, torch.nn.Linear):
            kwargs['weight_initializer'] = self.weight_initializer
            kwargs['bias_initializer'] = self.bias_initializer
        size = self._size()
        shape = (self.in_channels, self.out_channels)
        with torch.device('meta'):  # Skips drawing initial values.
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

    def reset_parameters(self) -> None:
        """Draw new values and a new bias. The pattern does not change."""
        if is_lazy(self.values):
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
        """Draw a new pattern of the same sparsity, new values and a new bias.

        Args:
            seed (int, optional): Seed of the pattern. If set to :obj:`None`,
                the global generator of PyTorch draws the pattern.
                (default: :obj:`None`)
        """
        self._size()
        # A drawn pattern tells the number of blocks, cut ones or not:
        num_blocks = self.col.numel()
        if num_blocks == 0:
            num_blocks = round((1 - self.sparsity) * self.grid.num_blocks)
        check_size(num_blocks, self.grid.shape)
        generator = None
        if seed is not None:
            generator = torch.Generator('cpu').manual_seed(seed)
        blocks = self.grid.draw(num_blocks, generator)
        num_weights = int(self.grid.count_weights(blocks).sum())
        pattern = compress(blocks.to(self.col.device), self.grid.shape)
        self._set_pattern(pattern, self.values.new_zeros(num_weights))
        self.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        """Apply the transformation.

        Args:
            x (torch.Tensor): The input features, of shape :math:`(*, I)` and
                of the type of the weights (or under autocast).

        Returns:
            The output features, of shape :math:`(*, O)`.

        Raises:
            ValueError: If :obj:`x` is of the wrong size, type or layout.
            NotImplementedError: If :obj:`x` in CSR format needs a gradient
                or meets a transform of :mod:`torch.func`.
        """
        return self.multiply(x, self.bias)

    def multiply(self, x: Tensor, bias: Optional[Tensor] = None) -> Tensor:
        """Apply the transformation with another bias, or none.

        See :meth:`forward`.
        """
        buffers: Any = self._buffers  # Faster than attributes of a module.
        pattern = [buffers[name] for name in Pattern._fields]
        # The pattern was checked when it was set.
        args: Any = (x, self.values, bias, *pattern)
        is_dense = x.layout == torch.strided
        if self.block_size == 1:
            product = sparse_linear if is_dense else csr_sparse_linear
            return product(*args, False)
        if not is_dense:
            raise ValueError(
                f"'x' of 'SparseLinear' needs to be dense if 'block_size' is "
                f"greater than one (got {x.layout}). Call 'x.to_dense()', or "
                f"set 'block_size=1' to skip the zeros of both"
            )
        return block_sparse_linear(*args, *self.grid, False)

    def crossover(self, num_rows: int = 4096) -> float:
        """Return the density above which the forward pass computes a dense
        product on this machine, or on the GPU of the layer (see
        :func:`~torch_geometric_ext.ops.calibrate`). Never measures.

        Args:
            num_rows (int, optional): The number of input samples.
                (default: :obj:`4096`)
        """
        size = (max(self.in_channels, 1), self.out_channels)
        if self.values.is_cuda:
            gpu = (self.values.device, self.values.dtype)
            return gpu_crossover(*gpu, num_rows, *size, self.block_size)
        if self.block_size > 1:
            return block_sparse_linear_crossover()
        return sparse_linear_crossover(num_rows, *size)

    def extra_repr(self) -> str:  # noqa: D102
        size = self.block_size
        blocks = f'block_size={size}, ' if size > 1 else ''
        return (
            f'{self.in_channels}, {self.out_channels}, '
            f'bias={self.bias is not None}, sparsity={self.sparsity:.4g}, '
            f'{blocks}dense_above={self.crossover():.2g}'
        )

    def _bound(self, scheme: str) -> Tensor:
        """Return the bounds of uniform initial values."""
        degree = self.grid.fan_in(self.rowptr, self.col)
        if scheme == 'glorot':
            fans = self.in_channels + self.out_channels
            fan = fans * (1 - self.sparsity)
            return self.values.new_tensor(math.sqrt(6 / max(fan, 1)))
        bound = degree.to(self.values.dtype).clamp(min=1).rsqrt()
        size = self.values.numel()
        return bound.repeat_interleave(degree, output_size=size)
