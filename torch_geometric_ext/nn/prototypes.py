from typing import Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Linear, Parameter

from torch_geometric_ext.nn.virtual_classes import virtual_class_loss
from torch_geometric_ext.ops.prototype_loss import prototype_loss


class HypersphericalPrototypes(torch.nn.Module):
    r"""Trainable class prototypes on the unit sphere from the `"GDeR:
    Safeguarding Efficiency, Balancing, and Robustness via Prototypical Graph
    Pruning" <https://arxiv.org/abs/2410.13761>`_ paper.

    The module returns a loss, which attracts graph embeddings to the
    prototypes of their class, and three scores of each graph.

    Args:
        in_channels (int): Size of the graph embeddings :math:`E`.
        num_classes (int): Number of classes :math:`C`, or of virtual classes
            if there are no labels, at least two.
        num_prototypes (int, optional): Number of prototypes :math:`K` of each
            class. (default: :obj:`2`)
        embedding_dim (int, optional): Size :math:`D` of projected embeddings
            and of the hidden layer of the projector. (default: :obj:`32`)
        temperature (float, optional): The temperature :math:`\tau`. Losses
            and gradients are finite for :obj:`1e-3` and above.
            (default: :obj:`0.1`)
        compactness_weight (float, optional): The weight :math:`\lambda_1` of
            :math:`\mathcal{L}_{\textrm{comp}}`. (default: :obj:`0.1`)
        separation_weight (float, optional): The weight :math:`\lambda_2` of
            :math:`\mathcal{L}_{\textrm{sepa}}`. (default: :obj:`0.1`)
        num_balance_steps (int, optional): Number of Sinkhorn steps that
            balance virtual classes in mini-batches of at least :math:`C`
            graphs. (default: :obj:`3`)

    Raises:
        ValueError: If an argument is out of its range.

    Shapes:
        - **input:** embeddings :math:`(B, E)`, labels :math:`(B)` (optional)
        - **output:** loss :math:`()`, scores :math:`(B, 3)`

    .. code-block:: python

        >>> _ = torch.manual_seed(12345)
        >>> prototypes = HypersphericalPrototypes(16, num_classes=3)
        >>> h, y = torch.randn(4, 16), torch.tensor([0, 1, 2, 1])
        >>> loss, scores = prototypes(h, y)
        >>> loss.backward()
        >>> scores.shape
        torch.Size([4, 3])

    .. rubric:: Details

    The module projects the embedding :math:`\mathbf{h}_i` of each graph to
    :math:`\mathbf{z}_i = g(\mathbf{h}_i) / {\| g(\mathbf{h}_i) \|}_2`. The
    projector :math:`g` is an MLP of two linear layers without biases and a
    ReLU. Each of :math:`C` classes has :math:`K` prototypes
    :math:`\mathbf{p}^c_k` of unit norm.

    Two losses train prototypes, projector and encoder jointly. The
    compactness loss attracts graphs to the prototypes of their class
    (Eq. (6)),

    .. math::
        \mathcal{L}_{\textrm{comp}} = - \frac{1}{B} \sum_i \log
        \frac{\sum_k \exp(\mathbf{p}^{y_i}_k \cdot \mathbf{z}_i / \tau)}
        {\sum_c \sum_k \exp(\mathbf{p}^c_k \cdot \mathbf{z}_i / \tau)},

    and the separation loss repels prototypes of different classes (Eq. (7)),

    .. math::
        \mathcal{L}_{\textrm{sepa}} = \frac{1}{CK} \sum_{c, k} \log
        \frac{1}{(C - 1) K} \sum_{j \neq c} \sum_l
        \exp(\mathbf{p}^c_k \cdot \mathbf{p}^j_l / \tau).

    Without labels, each graph belongs to the virtual class

    .. math::
        \tilde{y}_i = \underset{c}{\operatorname{argmax}} \sum_k
        \exp(\mathbf{p}^c_k \cdot \mathbf{z}_i / \tau)

    (Eq. (15)), and the prototypical contrastive loss attracts it to the
    prototype :math:`\mathbf{p}_{s_i}` to which it is assigned (Eq. (16)),

    .. math::
        \mathcal{L}_{\textrm{comp}} = - \frac{1}{B} \sum_i \log
        \frac{\exp(\mathbf{p}_{s_i} \cdot \mathbf{z}_i / \phi_{s_i})}
        {\sum_j \exp(\mathbf{p}_j \cdot \mathbf{z}_i / \phi_j)}.

    The concentration :math:`\phi_j` is the one of `"Prototypical Contrastive
    Learning of Unsupervised Representations"
    <https://arxiv.org/abs/2005.04966>`_ (PCL). It is small for a prototype
    whose graphs are close to it.

    The module also returns three scores of each graph: its outlier risk
    (Eq. (8)), its unfamiliarity (Eq. (9)),

    .. math::
        \omega^{\textrm{risk}}_i = \max_k\,
        (\mathbf{z}_i - \mathbf{p}^{y_i}_k)^{\top} \Sigma_{y_i}^{-1}
        (\mathbf{z}_i - \mathbf{p}^{y_i}_k), \qquad
        \omega^{\textrm{unfam}}_i =
        \frac{\sum_k \angle(\mathbf{p}^{y_i}_k, \mathbf{z}_i)}
        {\sum_{c \neq y_i} \sum_k \angle(\mathbf{p}^c_k, \mathbf{z}_i)},

    and its nearest prototype, which
    :class:`~torch_geometric_ext.loader.GDeRSampler` needs for Eq. (10).

    .. note::
        Deviations from the paper:
        Equations (6) and (7) follow the text of the paper. The printed
        Eq. (6) repeats :math:`y_i` in its denominator, and the printed
        Eq. (7) has :math:`\mathbf{z}_i` in place of a prototype.
        Prototypes are normalized in each forward pass instead of after each
        optimizer step.
        :math:`\Sigma_c` is the mean of the covariance of the :math:`K`
        prototypes, which is singular for :math:`K \leq D`, and of
        :math:`\mathbf{I} / D`, the covariance of the uniform distribution on
        the sphere.

    .. note::
        Deviations without labels:
        With :math:`s_i` the nearest prototype, as in Eq. (16), all graphs
        gather in a few virtual classes
        (:obj:`benchmark/loader/virtual_classes.py`). Hence :math:`s_i` is the
        nearest prototype of the class of a balanced assignment of the
        mini-batch, by Sinkhorn steps as in `"Unsupervised Learning of Visual
        Features by Contrasting Cluster Assignments"
        <https://arxiv.org/abs/2006.09882>`_. Scores use the class of
        Eq. (15). :obj:`num_balance_steps=0` restores the nearest prototype.
        PCL clusters the data set once per epoch, and this module estimates
        concentrations within the mini-batch. They are limited to
        :math:`[\tau / 2, 2 \tau]`, and have no gradient.

    .. note::
        Defaults are values of the paper's grids. On MUTAG and DHFR (ten
        splits, :obj:`keep_ratio=0.3`), :math:`\tau \in \{0.02, 0.1, 0.5\}`,
        :math:`\lambda_1 \in \{0.01, 0.1, 0.5\}` and :math:`\lambda_2 \in
        \{0.01, 0.1\}` give equal accuracy within the standard error.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        num_prototypes: int = 2,
        embedding_dim: int = 32,
        temperature: float = 0.1,
        compactness_weight: float = 0.1,
        separation_weight: float = 0.1,
        num_balance_steps: int = 3,
    ) -> None:
        name = self.__class__.__name__
        at_least = dict(
            in_channels=(in_channels, 1),
            num_classes=(num_classes, 2),
            num_prototypes=(num_prototypes, 1),
            embedding_dim=(embedding_dim, 2),
            num_balance_steps=(num_balance_steps, 0),
        )
        for key, (value, minimum) in at_least.items():
            if value < minimum:
                raise ValueError(
                    f"'{key}' of '{name}' needs to be at least {minimum} "
                    f'(got {value})'
                )
        if not temperature > 0:
            raise ValueError(
                f"'temperature' of '{name}' needs to be positive "
                f'(got {temperature})'
            )
        super().__init__()
        self.in_channels = in_channels
        self.num_classes = num_classes
        self.num_prototypes = num_prototypes
        self.embedding_dim = embedding_dim
        self.temperature = temperature
        self.compactness_weight = compactness_weight
        self.separation_weight = separation_weight
        self.num_balance_steps = num_balance_steps

        self.lin1 = Linear(in_channels, embedding_dim, bias=False)
        self.lin2 = Linear(embedding_dim, embedding_dim, bias=False)
        self.prototypes = Parameter(
            torch.empty(num_classes, num_prototypes, embedding_dim)
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        r"""Reset all learnable parameters.

        Prototypes are drawn uniformly from the unit sphere.
        """
        self.lin1.reset_parameters()
        self.lin2.reset_parameters()
        with torch.no_grad():
            direction = torch.randn_like(self.prototypes)
            self.prototypes.copy_(F.normalize(direction, dim=-1))

    def forward(
        self,
        h: Tensor,
        y: Optional[Tensor] = None,
        *,
        nearest_only: bool = False,
    ) -> Tuple[Tensor, Tensor]:
        r"""Compute the loss and the scores of a mini-batch.

        Args:
            h (torch.Tensor): The graph embeddings of shape :math:`(B, E)` and
                of any floating point type. They are cast to the type of the
                parameters, also under autocast. Parameters of half precision
                are cast to single precision.
            y (torch.Tensor, optional): The labels of shape :math:`(B)`
                (int64). Classes may be missing in the mini-batch. If
                :obj:`None`, graphs belong to virtual classes.
                (default: :obj:`None`)
            nearest_only (bool, optional): If set to :obj:`True`, outlier risk
                and unfamiliarity are zero instead of computed.
                (default: :obj:`False`)

        Returns:
            The scalar loss, which sums both losses times their weights, and
            the scores of shape :math:`(B, 3)`, without gradient: outlier risk,
            unfamiliarity and the index :math:`cK + k` of the nearest
            prototype.

        Raises:
            ValueError: If the shape of an input is wrong, or a label is
                outside :math:`[0, C)` (checked on CPU, and not under
                transforms of :mod:`torch.func`).
            TypeError: If :obj:`y` is not of type :obj:`torch.int64`.
        """
        if h.dim() != 2 or h.size(1) != self.in_channels:
            raise ValueError(
                f"'h' of '{self.__class__.__name__}' needs to be of shape "
                f"[batch_size, {self.in_channels}], as set by 'in_channels' "
                f'(got {list(h.shape)})'
            )
        weight1: Tensor = self.lin1.weight
        weight2: Tensor = self.lin2.weight
        prototypes: Tensor = self.prototypes
        dtype = prototypes.dtype
        if dtype in (torch.half, torch.bfloat16):
            dtype = torch.float
            weight1, weight2 = weight1.float(), weight2.float()
            prototypes = prototypes.float()
        if h.dtype != dtype:
            h = h.to(dtype)
        options = (
            self.temperature,
            self.compactness_weight,
            self.separation_weight,
        )
        if y is None:
            steps = self.num_balance_steps
            weights = (weight1, weight2, prototypes)
            return virtual_class_loss(
                h, *weights, *options, steps, nearest_only
            )
        self._check_labels(h, y)
        return prototype_loss(
            h, y, weight1, weight2, prototypes, *options, nearest_only
        )

    def _check_labels(self, h: Tensor, y: Tensor) -> None:
        name = self.__class__.__name__
        if y.dtype != torch.int64:
            raise TypeError(
                f"'y' of '{name}' needs to hold class labels of type "
                f'torch.int64 (got {y.dtype})'
            )
        if y.dim() != 1 or y.size(0) != h.size(0):
            raise ValueError(
                f"'y' of '{name}' needs to be of shape [{h.size(0)}], one "
                f'label for each graph (got {list(y.shape)})'
            )

    def __repr__(self) -> str:
        return (
            f'{self.__class__.__name__}({self.in_channels}, '
            f'num_classes={self.num_classes}, '
            f'num_prototypes={self.num_prototypes}, '
            f'embedding_dim={self.embedding_dim})'
        )
