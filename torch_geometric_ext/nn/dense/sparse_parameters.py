from abc import abstractmethod
from typing import Any, Callable, Dict, List, Mapping, Optional, Union

import torch
from torch import Tensor
from torch.nn.parameter import (
    Parameter,
    UninitializedParameter,
    is_lazy,
)

from torch_geometric_ext.nn.dense.block_grid import BlockGrid
from torch_geometric_ext.nn.dense.check_weights import check_materialized
from torch_geometric_ext.nn.dense.pattern import (
    Pattern,
    check_index,
)
from torch_geometric_ext.ops.calibration import load_calibration

# The largest dense matrix, in elements, that attributes build. A choice: one
# GiB in single precision, which a debugger should not allocate unasked.
MAX_DENSE = 2**28
# The buffers in checkpoints; `row` and `perm` are recomputed from them:
STORED = ['rowptr', 'col', 'colptr']


class SparseParameters(torch.nn.Module):
    """Base class of :class:`~torch_geometric_ext.nn.SparseLinear` that holds
    its values and pattern, including lazy initialization and checkpoints.
    """

    block_size: int = 1  # Of modules that were pickled without it.
    values: Union[Parameter, UninitializedParameter]
    rowptr: Tensor
    col: Tensor
    colptr: Tensor
    row: Tensor
    perm: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        sparsity: float,
        seed: Optional[int],
        block_size: int,
    ) -> None:
        super().__init__()
        for dtype in [torch.float, torch.bfloat16]:
            load_calibration(dtype)  # Compiled code does not read files.
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.block_size = block_size
        self.seed = seed
        self._sparsity = sparsity
        for name in Pattern._fields:
            x = torch.empty(0, dtype=torch.int32)
            self.register_buffer(name, x, persistent=name in STORED)
        if in_channels >= 0:
            self.values = Parameter(torch.empty(0))
        else:
            self._make_lazy()

    @abstractmethod
    def reset_mask(self, seed: Optional[int] = None) -> None:
        """Draw a new pattern and new values."""

    @property
    def grid(self) -> BlockGrid:
        """Return the grid of blocks of the weight."""
        return BlockGrid(
            (self.out_channels, self.in_channels), self.block_size
        )

    @property
    def in_features(self) -> int:
        """Return :obj:`in_channels`, as in :class:`torch.nn.Linear`."""
        return self.in_channels

    @property
    def out_features(self) -> int:
        """Return :obj:`out_channels`, as in :class:`torch.nn.Linear`."""
        return self.out_channels

    @property
    def sparsity(self) -> float:
        """Return the fraction of inactive weights."""
        return self._sparsity

    @property
    def index(self) -> Tensor:
        """Return the ascending positions of the active weights in the
        flattened weight, of shape :math:`(nnz)` (int64).
        """
        self._size()
        return self.grid.flatten(self.rowptr, self.col, self.values.numel())

    @property
    def mask(self) -> Tensor:
        """Return the dense boolean mask of shape :math:`(O, I)`, :obj:`True`
        for active weights.
        """
        size = self._dense_size('mask')
        mask = torch.zeros(size, dtype=torch.bool, device=self.col.device)
        mask[self.index] = True
        return mask.view(self.out_channels, self.in_channels)

    @property
    def weight(self) -> Tensor:
        """Return the weight as a dense matrix of shape :math:`(O, I)`.

        Gradients propagate to :obj:`values`.
        """
        size = self._dense_size('weight')
        out = self.values.new_zeros(size).scatter(0, self.index, self.values)
        return out.view(self.out_channels, self.in_channels)

    @torch.no_grad()
    def set_weights(self, index: Tensor, values: Tensor) -> None:
        r"""Replace the active weights.

        If their number does not change, tensors are overwritten in-place.

        Args:
            index (torch.Tensor): Ascending positions of the active weights in
                the flattened weight, of shape :math:`(\textrm{nnz})` (int64).
            values (torch.Tensor): Their values, of shape
                :math:`(\textrm{nnz})`.

        Raises:
            ValueError: If a tensor is of the wrong shape or type, or
                positions do not ascend within the weight.
        """
        check_index(index, self._size())
        if index.shape != values.shape:
            raise ValueError(
                f"'index' and 'values' need to be vectors of one length (got "
                f'{list(index.shape)} and {list(values.shape)})'
            )
        self._set_pattern(self.grid.compress(index), values)

    def _dense_size(self, name: str) -> int:
        size = self._size()
        if size > MAX_DENSE:
            raise ValueError(
                f"'{name}' of 'SparseLinear' needs to have at most "
                f"{MAX_DENSE:,} elements (got {size:,}). Call 'to_dense()', "
                f'which has no limit'
            )
        return size

    def _size(self) -> int:
        if is_lazy(self.values):
            raise ValueError(
                f"'SparseLinear' needs to be initialized; run one forward "
                f'pass first (got {self})'
            )
        return self.in_channels * self.out_channels

    def _set_pattern(self, pattern: Pattern, values: Tensor) -> None:
        for name, x in pattern._asdict().items():
            self._set_tensor(name, x)
        self._set_tensor('values', values.to(self.values))
        size = self.in_channels * self.out_channels
        if size > 0:
            self._sparsity = 1 - values.numel() / size

    def _set_tensor(self, name: str, x: Tensor) -> None:
        tensor = getattr(self, name)
        if tensor.shape == x.shape:
            tensor.copy_(x)
        else:  # Resize in place: optimizers hold references to parameters.
            tensor.grad = None
            if tensor.requires_grad:
                # Autograd keeps the gradient accumulator, with the old shape,
                # while a loss is alive. A change of dtype makes it drop it:
                wide = tensor.dtype == torch.double
                other = torch.float if wide else torch.double
                tensor.data = torch.empty(0, dtype=other, device=x.device)
            tensor.data = x.to(tensor.device, copy=True)

    def _make_lazy(self, **kwargs: Any) -> None:
        self.in_channels = -1
        self.values = UninitializedParameter(**kwargs)
        self._hook = self.register_forward_pre_hook(
            self._initialize, with_kwargs=True
        )

    def _materialize(self, in_channels: int) -> None:
        self.in_channels = in_channels
        assert isinstance(self.values, UninitializedParameter)
        self.values.materialize((0,))
        self._hook.remove()
        del self._hook

    def _initialize(
        self, module: torch.nn.Module, args: Any, kwargs: Any
    ) -> None:
        x = args[0] if args else kwargs['x']
        # Do not create inference tensors if the first pass is in inference
        # mode: they cannot be trained later.
        with torch.inference_mode(self.col.is_inference()):
            self._materialize(x.size(-1))
            self.reset_mask(self.seed)

    def _apply(
        self, fn: Callable[[Tensor], Tensor], recurse: bool = True
    ) -> 'SparseParameters':
        was_meta = self.col.is_meta
        super()._apply(fn, recurse)
        # `to_empty()` fills the pattern with arbitrary numbers:
        if was_meta and not self.col.is_meta and not is_lazy(self.values):
            self.reset_mask(self.seed)
        return self

    def _save_to_state_dict(
        self, destination: Any, prefix: str, keep_vars: bool
    ) -> None:
        if not is_lazy(self.values):
            super()._save_to_state_dict(destination, prefix, keep_vars)
            return
        destination[f'{prefix}values'] = self.values
        for name in ['bias', *STORED]:
            x = getattr(self, name)
            if x is not None:
                destination[f'{prefix}{name}'] = x if keep_vars else x.detach()

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, local_metadata: Any, *args: Any
    ) -> None:
        error = self._find_mismatch(state_dict, prefix)
        if error is None:
            assign = local_metadata.get('assign_to_params_buffers', False)
            try:
                state_dict = self._load_layout(state_dict, prefix, assign)
            except ValueError as e:
                error = f'{prefix[:-1]}: {e}'
        if error is not None:  # Leaves the layer as it was.
            args[-1].append(error)
            return
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, *args
        )

    def _find_mismatch(
        self, state_dict: Mapping[str, Any], prefix: str
    ) -> Optional[str]:
        """Return the error of PyTorch if a dense weight or a bias is of
        another shape.
        """
        shapes: Dict[str, List[int]] = {}
        if f'{prefix}values' not in state_dict:
            shapes['weight'] = [self.out_channels, self.in_channels]
        if getattr(self, 'bias', None) is not None:
            shapes['bias'] = [self.out_channels]
        for name, shape in shapes.items():
            x = state_dict.get(f'{prefix}{name}')
            if not isinstance(x, Tensor) or is_lazy(x):
                continue
            if is_lazy(self.values) and name == 'weight' and x.dim() == 2:
                shape = [self.out_channels, x.size(1)]
            if list(x.shape) != shape:
                return (
                    f'size mismatch for {prefix}{name}: copying a param with '
                    f'shape {x.shape} from checkpoint, the shape in current '
                    f'model is {torch.Size(shape)}.'
                )
        return None

    def _load_layout(
        self, state_dict: Mapping[str, Any], prefix: str, assign: bool
    ) -> Mapping[str, Any]:
        """Adopt the pattern of a checkpoint, or select the active weights of
        a dense one.

        Returns:
            The checkpoint as one of a sparse layer.
        """
        names = ['values', *STORED]
        tensors: List[Any] = [state_dict.get(f'{prefix}{x}') for x in names]
        weight = state_dict.get(f'{prefix}weight')
        if isinstance(tensors[0], UninitializedParameter):
            self._uninitialize()
        elif all(x is not None for x in tensors):
            self._load_pattern(assign, *tensors)
        elif isinstance(weight, Tensor) and all(x is None for x in tensors):
            state = self._select_active(weight)
            added = {f'{prefix}{name}': x for name, x in state.items()}
            state_dict = {**state_dict, **added}
            del state_dict[f'{prefix}weight']
        return state_dict

    def _select_active(self, weight: Tensor) -> Dict[str, Tensor]:
        """Return the state of the layer with the values of a dense weight."""
        check_materialized('weight', {'weight': weight})
        check_materialized('values', {'values': self.col})
        if weight.layout != torch.strided:
            raise ValueError(
                f"'weight' needs to be a dense tensor (got {weight.layout})"
            )
        if is_lazy(self.values):
            self._materialize(weight.size(1))
            self.reset_mask(self.seed)
        values = weight.detach().flatten()[self.index.to(weight.device)]
        return {'values': values, **{x: getattr(self, x) for x in STORED}}

    def _uninitialize(self) -> None:
        """Make the layer lazy again, as the one of the checkpoint."""
        if is_lazy(self.values):
            return
        for name in Pattern._fields:
            self._set_tensor(name, self.col.new_empty(0))
        device, dtype = self.values.device, self.values.dtype
        self._make_lazy(device=device, dtype=dtype)

    @torch.no_grad()
    def _load_pattern(
        self,
        assign: bool,
        values: Tensor,
        rowptr: Tensor,
        col: Tensor,
        colptr: Tensor,
    ) -> None:
        """Check the pattern of a checkpoint, then load it."""
        lazy = is_lazy(self.values)
        if lazy and self.block_size > 1:  # The last block may be cut.
            raise ValueError(
                "'in_channels' of 'SparseLinear' needs to be known to load "
                'blocks; run one forward pass first (got -1)'
            )
        size = colptr.numel() - 1 if lazy else self.in_channels
        grid = BlockGrid((self.out_channels, size), self.block_size)
        pattern = grid.complete(values, rowptr, col, colptr)
        if lazy:
            self._materialize(size)
        self._set_pattern(pattern, values)
        if assign:  # PyTorch assigns the stored buffers only.
            self.row, self.perm = pattern.row, pattern.perm
