import warnings
from typing import Any, Dict, Iterator, Mapping, Optional, Tuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.optim import Optimizer

from torch_geometric_ext.nn import SparseLinear
from torch_geometric_ext.ops.csr_sparse_linear import csr_transpose
from torch_geometric_ext.sparsity.ranking import RunningTop
from torch_geometric_ext.sparsity.recorder import Recorder
from torch_geometric_ext.sparsity.topology_scheduler import TopologyScheduler
from torch_geometric_ext.sparsity.weight_scheduler import is_distributed

# Elements of the dense gradient at a time. A choice: they stay in cache, where
# `benchmark/sparsity/topology_updates.py` reads them four times.
BLOCK_SIZE = 1 << 19
# A block of fewer rows reads all inputs to compute little. A choice.
MIN_ROWS = 64
MAX_BLOCK_SIZE = 1 << 22  # A bound on the memory that these rows take.


class RigL(TopologyScheduler):
    r"""Drop weights of small magnitude and grow weights of large gradient, as
    in the `"Rigging the Lottery: Making All Tickets Winners"
    <https://arxiv.org/abs/1911.11134>`_ paper.

    Every :obj:`update_every` steps, the weights of smallest magnitude are
    dropped, and as many grow where the dense gradient is largest:

    .. code-block:: python

        scheduler = RigL(model, optimizer, num_steps=10_000)
        for x, y in loader:
            optimizer.zero_grad()
            criterion(model(x), y).backward()
            optimizer.step()
            scheduler.step()

    Args:
        model (torch.nn.Module): The model.
        optimizer (torch.optim.Optimizer): The optimizer that trains it.
        num_steps (int): Number of optimizer steps of the whole training.
        update_every (int, optional): Number of steps :math:`\Delta T` from
            one update to the next. (default: :obj:`100`)
        drop_fraction (float, optional): The fraction :math:`\alpha` of
            weights that move in the first update, in :math:`(0, 1]`.
            (default: :obj:`0.3`)
        stop (float, optional): The fraction of the training after which no
            weight moves, in :math:`(0, 1]`: :math:`T_{\textrm{end}}` is
            :obj:`stop * num_steps`. (default: :obj:`0.75`)
        seed (int, optional): An argument of all schedulers, without effect
            here. (default: :obj:`0`)
        allowed (Mapping[str, torch.Tensor], optional): Masks of the positions
            where weights may grow (:obj:`torch.bool`, of shape
            :math:`[O, I]`), by the names of their layers. Weights of other
            layers may grow anywhere, and weights at other positions remain
            until they are dropped. (default: :obj:`None`)

    Raises:
        ValueError: If an argument is out of its range, the model holds no
            layer to train, the optimizer does not train one of them, or
            :obj:`allowed` names no layer or holds no mask of its shape.
        TypeError: If :obj:`optimizer` is no optimizer.
        NotImplementedError: If the state of the optimizer cannot follow
            single weights.
        RuntimeError: If :meth:`step` has to update, but no backward pass ran.

    Example:
        >>> from torch_geometric_ext.nn import SparseLinear
        >>> lin = SparseLinear(4, 1, bias=False, sparsity=0.5)
        >>> lin.set_weights(torch.tensor([0, 1]), torch.tensor([1.0, 2.0]))
        >>> optimizer = torch.optim.SGD(lin.parameters(), lr=0.1)
        >>> scheduler = RigL(
        ...     lin, optimizer, num_steps=4, update_every=1, drop_fraction=0.7
        ... )
        >>> lin(torch.tensor([[1.0, 1.0, 2.0, 3.0]])).sum().backward()
        >>> optimizer.step()
        >>> scheduler.step()
        >>> lin.index
        tensor([1, 3])

    .. rubric:: Details

    The dense gradient of a layer is summed over all backward passes since the
    last :meth:`step`, and all ranks:

    .. math::
        \frac{\partial \mathcal{L}}{\partial \mathbf{W}} = \sum
        {\left( \frac{\partial \mathcal{L}}{\partial \mathbf{Y}}
        \right)}^{\top} \mathbf{X}

    Among positions of equal magnitude, the first ones grow. The gradient never
    exists as a whole. In the steps that lead to an update, and only then,
    hooks on the layers keep inputs :math:`\mathbf{X}` and gradients of outputs
    :math:`\mathbf{Y}`; :meth:`step` multiplies them in blocks of rows, keeps
    the best positions so far, and frees them. Only scores above the smallest
    of these are compared any further. An update takes :math:`O(N I O)` time
    for :math:`N` inputs, and :math:`O(N (I + O) + \textrm{nnz} + I)` memory.
    Inputs in CSR format remain sparse, and the update skips their zeros.

    Layers with a :obj:`block_size` drop blocks of small norm, and grow the
    blocks whose gradients have the largest norms.

    A layer keeps the positions of its weights if no backward pass reached it,
    or if a gradient (of its output, or of a position where weights may grow)
    is NaN or infinite, as it may be under
    :class:`torch.amp.GradScaler`. Scaled gradients give the same choice, since
    only their order matters.

    .. note::
        Compiled models do not run hooks. Run the steps that lead to an update
        uncompiled, as in :obj:`(model if scheduler.pending else compiled)(x)`.

    .. note::
        Deviations from the paper: a step that leads to an update also trains
        the weights. Weights grow by the gradient before that step, and are
        dropped by their magnitudes after it. Contributions of second
        derivatives to the gradient are not recorded.
    """

    _recorders: Mapping[str, Recorder] = {}

    def __init__(
        self,
        model: torch.nn.Module,
        optimizer: Optimizer,
        *,
        num_steps: int,
        update_every: int = 100,
        drop_fraction: float = 0.3,
        stop: float = 0.75,
        seed: int = 0,
        allowed: Optional[Mapping[str, Tensor]] = None,
    ) -> None:
        self.allowed = dict(allowed or {})
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter('always')
            super().__init__(
                model,
                optimizer,
                num_steps=num_steps,
                update_every=update_every,
                drop_fraction=drop_fraction,
                stop=stop,
                seed=seed,
            )
        for warning in caught:  # Warn at the line of the caller.
            warnings.warn(warning.message, stacklevel=2)

    def _check_layers(self) -> None:
        super()._check_layers()
        name = self.__class__.__name__
        for key, mask in self.allowed.items():
            if key not in self.layers:
                raise ValueError(
                    f"'allowed' of '{name}' needs to name layers among "
                    f"{list(self.layers)} (got '{key}')"
                )
            layer = self.layers[key]
            size = [layer.out_channels, layer.in_channels]
            if (
                not isinstance(mask, Tensor)
                or mask.dtype != torch.bool
                or list(mask.shape) != size
            ):
                raise ValueError(
                    f"'allowed' of '{name}' needs to hold a mask of "
                    f"torch.bool and of shape {size} for '{key}' (got {mask})"
                )

    def _prepare(self) -> None:
        super()._prepare()
        if self.pending:
            self._recorders = {
                key: Recorder(layer) for key, layer in self.layers.items()
            }

    def __getstate__(self) -> Dict[str, Any]:
        """Leave out hooks, which a copy makes anew."""
        return {**vars(self), '_recorders': {}}

    def __setstate__(self, state: Dict[str, Any]) -> None:
        vars(self).update(state)
        self._prepare()

    def _release(self) -> None:
        for recorder in self._recorders.values():
            recorder.remove()
        self._recorders = {}

    def _update(self, step: int, layers: Dict[str, SparseLinear]) -> None:
        device = next(iter(layers.values())).values.device
        num_passes = torch.tensor(
            [len(self._recorders[key].pairs) for key in layers], device=device
        )
        if is_distributed():
            dist.all_reduce(num_passes)
        if not num_passes.any():
            raise RuntimeError(
                f"'{self.__class__.__name__}' has to update, but no backward "
                f"pass of the model ran since its last 'step()'. Call "
                f"'backward()' first, and if the model is compiled, run the "
                f"steps where 'scheduler.pending' is true uncompiled"
            )
        used = (num_passes > 0).tolist()
        names = [key for key, is_used in zip(layers, used) if is_used]
        super()._update(step, {key: layers[key] for key in names})

    def _num_positions(self, name: str) -> int:
        if name not in self.allowed:
            return super()._num_positions(name)
        index = self.layers[name].index
        mask = self.allowed[name].flatten().to(index.device)
        return int(mask.sum() + (~mask[index]).sum())

    @torch.no_grad()
    def _grow(
        self, name: str, index: Tensor, num_weights: int
    ) -> Optional[Tensor]:
        finite = self._are_gradients_finite(name)
        top, allowed = RunningTop(num_weights), self.allowed.get(name)
        if allowed is not None:
            allowed = allowed.flatten().to(index.device)
        with torch.autocast(index.device.type, enabled=False):
            for begin, score in self._scores(name):
                stop = begin + score.numel()
                if allowed is not None:
                    score.masked_fill_(~allowed[begin:stop], -1)
                # Inputs and products of finite numbers may be infinite:
                finite *= score.amax().isfinite()
                bounds = index.new_tensor([begin, stop])
                active = slice(*torch.searchsorted(index, bounds).tolist())
                score[index[active] - begin] = -1
                top.update(score, begin)
        return top.index() if finite else None

    @torch.no_grad()
    def _score_blocks(self, name: str) -> Optional[Tensor]:
        """Return the mean square of the gradient of each block."""
        finite, grid = self._are_gradients_finite(name), self.layers[name].grid
        (num_rows, num_cols), size = grid.shape, grid.block_size
        total = torch.zeros(num_rows, num_cols, device=finite.device)
        padding = num_cols * size - grid.size[1]
        with torch.autocast(finite.device.type, enabled=False):
            for begin, score in self._scores(name):
                square = F.pad(score.view(-1, grid.size[1]), (0, padding))
                square = square.square_().view(-1, num_cols, size).sum(2)
                first = begin // grid.size[1]
                row = torch.arange(len(square), device=square.device) + first
                total.index_add_(0, row // size, square.to(total.dtype))
        blocks = torch.arange(grid.num_blocks, device=total.device)
        out = total.flatten() / grid.count_weights(blocks)
        finite *= out.sum().isfinite()
        if name in self.allowed:  # A block grows where all its weights may.
            allowed = self.allowed[name].to(out.device)
            out.masked_fill_(grid.mean_square(allowed.float()) < 1, -1)
        return out if finite else None

    def _are_gradients_finite(self, name: str) -> Tensor:
        """Return one if the gradients of all outputs are finite, or zero."""
        device = self.layers[name].values.device
        finite = torch.ones((), dtype=torch.long, device=device)
        for _, grad in self._recorders[name].pairs:
            if grad.numel() > 0:  # One pass is faster than `isfinite(grad)`.
                finite *= torch.stack(grad.aminmax()).isfinite().all()
        if is_distributed():
            dist.all_reduce(finite, dist.ReduceOp.MIN)
        return finite

    def _scores(self, name: str) -> Iterator[Tuple[int, Tensor]]:
        """Yield the magnitudes of the dense gradient, block by block."""
        layer = self.layers[name]
        num_rows, num_cols = layer.out_channels, layer.in_channels
        dtype = torch.promote_types(layer.values.dtype, torch.float)
        pairs = [
            (_as_operand(x, dtype), grad.to(dtype))
            for x, grad in self._recorders[name].pairs
        ]
        min_rows = min(MIN_ROWS, MAX_BLOCK_SIZE // num_cols)
        step = min(max(BLOCK_SIZE // num_cols, min_rows, 1), num_rows)
        buffer = layer.values.new_empty((step, num_cols), dtype=dtype)
        for begin in range(0, num_rows, step):
            rows = slice(begin, min(begin + step, num_rows))
            out = buffer[: rows.stop - rows.start]
            for i, (x, grad) in enumerate(pairs):
                if x.layout == torch.strided:
                    out.addmm_(grad[:, rows].t(), x, beta=min(i, 1))
                else:
                    product = (x @ grad[:, rows]).t()
                    out = out.add_(product) if i > 0 else out.copy_(product)
            if len(pairs) == 0:  # Only other ranks used the layer.
                out.zero_()
            if is_distributed():
                dist.all_reduce(out)
            yield begin * num_cols, out.abs_().flatten()


def _as_operand(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a dense input, or the transpose of one in CSR format."""
    if x.layout == torch.strided:
        return x.to(dtype)
    values = x.values().to(dtype)
    return csr_transpose(x.crow_indices(), x.col_indices(), values, x.size(1))
