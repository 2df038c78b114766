import copy
from dataclasses import dataclass
from typing import Any, Dict, Iterable, Iterator, List, Optional, Set, Tuple

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.parameter import UninitializedParameter
from torch.optim import Optimizer
from torch.utils._pytree import tree_leaves

from torch_geometric_ext.nn import SparseLinear
from torch_geometric_ext.utils.mac_counter import MACCounter, unfused


@dataclass(frozen=True)
class LayerMACs:
    """Multiply-adds and parameters of a layer, without its sub-layers.

    Attributes:
        name (str): The path of the layer in the model.
        kind (str): The name of its class.
        forward (int): Multiply-adds of the forward pass, over all calls.
        training (int): Multiply-adds of a training step, over all calls.
        num_parameters (int): Number of parameters.
    """

    name: str
    kind: str
    forward: int
    training: int
    num_parameters: int

    def row(self) -> List[str]:
        """Return the cells of a row in a table."""
        numbers = (self.forward, self.training, self.num_parameters)
        name = f'{self.name} ({self.kind})'.lstrip()
        return [name, *[f'{x:,}' for x in numbers]]


@dataclass(frozen=True)
class MACs:
    """Multiply-adds and memory of a model, as counted by :func:`count_macs`.

    Attributes:
        layers (Tuple[LayerMACs, ...]): All layers with multiply-adds or
            parameters.
        forward (int): Multiply-adds of the forward pass.
        training (int): Multiply-adds of a training step.
        num_parameters (int): Number of parameters.
        parameter_bytes (int): Bytes of the parameters.
        index_bytes (int): Bytes of the patterns of sparse layers.
        optimizer_bytes (int): Bytes of the state of the optimizer.
    """

    layers: Tuple[LayerMACs, ...]
    parameter_bytes: int
    index_bytes: int
    optimizer_bytes: int

    @property
    def forward(self) -> int:
        """Return the multiply-adds of the forward pass."""
        return sum(layer.forward for layer in self.layers)

    @property
    def training(self) -> int:
        """Return the multiply-adds of a training step."""
        return sum(layer.training for layer in self.layers)

    @property
    def num_parameters(self) -> int:
        """Return the number of parameters."""
        return sum(layer.num_parameters for layer in self.layers)

    def __str__(self) -> str:
        header = ['Layer', 'Forward MACs', 'Training MACs', 'Parameters']
        rows = [header, *[layer.row() for layer in self.layers]]
        total = (self.forward, self.training, self.num_parameters)
        rows.append(['Total', *[f'{x:,}' for x in total]])
        widths = [max(map(len, column)) for column in zip(*rows)]
        lines = []
        for name, *numbers in rows:
            cells = [x.rjust(width) for x, width in zip(numbers, widths[1:])]
            lines.append('  '.join([name.ljust(widths[0]), *cells]))
        lines.append(
            f'Bytes: {self.parameter_bytes:,} parameters, '
            f'{self.index_bytes:,} indices, {self.optimizer_bytes:,} optimizer'
        )
        return '\n'.join(lines)


@torch.inference_mode(False)
@torch.enable_grad()
def count_macs(
    model: Module,
    *inputs: Any,
    optimizer: Optional[Optimizer] = None,
    **kwargs: Any,
) -> MACs:
    r"""Count the multiply-adds (MACs) of a model on given inputs, and the
    memory of its training.

    Args:
        model (torch.nn.Module): The model, compiled or not. It needs to
            support :func:`copy.deepcopy`.
        *inputs (Any): The inputs of the model.
        optimizer (torch.optim.Optimizer, optional): The optimizer whose state
            is measured. If its state is empty, a copy takes a step first. If
            set to :obj:`None`, the state of Adam is assumed.
            (default: :obj:`None`)
        **kwargs (Any): The keyword arguments of the model.

    Returns:
        An object that prints as a table, with the attributes :obj:`forward`
        and :obj:`training` (MACs), :obj:`num_parameters`,
        :obj:`parameter_bytes`, :obj:`index_bytes` (patterns of sparse layers),
        :obj:`optimizer_bytes` and :obj:`layers`. Each layer has :obj:`name`,
        :obj:`kind`, :obj:`forward`, :obj:`training` and
        :obj:`num_parameters`, without sub-layers and over all calls.

    Raises:
        TypeError: If :obj:`model` is not a module or :obj:`optimizer` is not
            an optimizer.

    .. code-block:: python

        >>> from torch_geometric.nn import GCN
        >>> model = GCN(16, 32, num_layers=2, out_channels=4)
        >>> x, edge_index = torch.randn(3, 16), torch.tensor([[0, 1], [1, 2]])
        >>> print(count_macs(model, x, edge_index))
        Layer                 Forward MACs  Training MACs  Parameters
        convs.0 (GCNConv)              160            320          32
        convs.0.lin (Linear)         1,536          3,072         512
        convs.1 (GCNConv)               20             40           4
        convs.1.lin (Linear)           384          1,152         128
        Total                        2,100          4,584         676
        Bytes: 2,704 parameters, 0 indices, 5,408 optimizer

    .. rubric:: Details

    In the forward pass, the following MACs count:

    * **Products** of matrices, convolutions and attention. A dense layer takes
      :math:`N \cdot I \cdot O` MACs on :math:`N` rows. A
      :class:`~torch_geometric_ext.nn.SparseLinear` takes
      :math:`N \cdot \textrm{nnz}` MACs, even if it runs a dense product. On
      features in CSR format, it takes one MAC for each pair of a nonzero
      feature and an active weight of that feature.
    * **Messages** that :class:`~torch_geometric.nn.conv.MessagePassing`
      aggregates, with one MAC per channel, weighted or not. Self-loops that
      a layer adds count, dropped edges do not.
    * **Elementwise products that are summed**, such as
      :math:`\mathbf{a}^{\top} \mathbf{x}` in the attention of
      :class:`~torch_geometric.nn.conv.GATConv`.

    Biases, activations, normalization (also of edges), softmax and readout do
    not count. In a training step, a product :math:`\mathbf{A} \mathbf{B}`
    or message counts once for the forward pass and once for each factor that
    requires a gradient. A layer thus counts three times in general, and twice
    on input features.

    .. note::
        A copy of :obj:`model` runs one forward pass with gradients, in its
        current mode (training or evaluation). The model, its caches and hooks,
        and the states of random generators do not change. Custom operators
        do not count, except for
        :class:`~torch_geometric_ext.nn.SparseLinear`.
    """
    if not isinstance(model, Module):
        raise TypeError(
            f"'model' needs to be a 'torch.nn.Module' (got {type(model)})"
        )
    if optimizer is not None and not isinstance(optimizer, Optimizer):
        raise TypeError(
            f"'optimizer' needs to be a 'torch.optim.Optimizer' "
            f'(got {type(optimizer)})'
        )
    model = _copy(getattr(model, '_orig_mod', model))
    counter = MACCounter(model)
    tensors = [*model.parameters(), *model.buffers()]
    devices = list({x.device for x in tensors if x.is_cuda})
    with torch.random.fork_rng(devices), unfused(), counter:
        model(*inputs, **kwargs)

    params = _own_parameters(model)
    flat = [x for own in params.values() for x in own]
    sparse = [x for x in model.modules() if isinstance(x, SparseLinear)]
    if optimizer is None:
        state = 2 * _num_bytes(x for x in flat if x.requires_grad)
    else:
        state = _num_bytes(_optimizer_state(optimizer))
    return MACs(
        layers=tuple(_layers(model, counter, params)),
        parameter_bytes=_num_bytes(flat),
        index_bytes=_num_bytes(x for lin in sparse for x in lin.buffers()),
        optimizer_bytes=state,
    )


def _layers(
    model: Module, counter: MACCounter, params: Dict[Module, List[Tensor]]
) -> Iterator[LayerMACs]:
    for name, module in model.named_modules():
        if params[module] or counter.forward[module] > 0:
            yield LayerMACs(
                name=name.replace('._orig_mod', ''),  # If it is compiled.
                kind=module.__class__.__name__,
                forward=counter.forward[module],
                training=counter.training[module],
                num_parameters=sum(x.numel() for x in params[module]),
            )


def _own_parameters(model: Module) -> Dict[Module, List[Tensor]]:
    """Return the parameters of each module without its sub-modules.

    Shared parameters belong to the first module. Lazy ones are excluded.
    """
    out: Dict[Module, List[Tensor]] = {}
    seen: Set[Tensor] = set()
    for module in model.modules():
        out[module] = [
            x
            for x in module.parameters(recurse=False)
            if x not in seen and not isinstance(x, UninitializedParameter)
        ]
        seen.update(out[module])
    return out


def _copy(model: Module) -> Module:
    """Return a deep copy that shares cached sparse matrices, which PyTorch
    cannot copy.
    """
    memo = {
        id(x): x
        for module in model.modules()
        for x in tree_leaves(vars(module))
        if isinstance(x, Tensor) and x.layout != torch.strided
    }
    return copy.deepcopy(model, memo)


def _optimizer_state(optimizer: Optimizer) -> List[Tensor]:
    """Return all tensors in the state of an optimizer after a step."""
    if not optimizer.state:
        optimizer = copy.deepcopy(optimizer)
        for group in optimizer.param_groups:
            for x in group['params']:
                x.grad = torch.zeros_like(x) if x.requires_grad else None
        optimizer.step()
    leaves = tree_leaves(list(optimizer.state.values()))
    return [x for x in leaves if isinstance(x, Tensor)]


def _num_bytes(tensors: Iterable[Tensor]) -> int:
    return sum(x.nbytes for x in tensors)
