import torch
from torch import Tensor


def el2n_scores(logits: Tensor, y: Tensor) -> Tensor:
    r"""Return the EL2N score of each graph, the norm of its error, from the
    `"Deep Learning on a Data Diet: Finding Important Examples Early in
    Training" <https://arxiv.org/abs/2107.07075>`_ paper.

    .. math::
        s_i = {\lVert \textrm{softmax}(\mathbf{o}_i) - \mathbf{e}_{y_i}
        \rVert}_2

    for the logits :math:`\mathbf{o}_i` and the one-hot label
    :math:`\mathbf{e}_{y_i}`. Hard graphs have large scores. The paper takes
    logits after a few epochs, and averages over models of different seeds.

    .. code-block:: python

        >>> logits = torch.tensor([[9.0, 0.0], [0.0, 0.0], [2.0, 0.0]])
        >>> el2n_scores(logits, torch.tensor([0, 0, 1]))
        tensor([1.7450e-04, 7.0711e-01, 1.2456e+00])

    Args:
        logits (torch.Tensor): The logits of shape :math:`(N, C)`, or
            :math:`(R, N, C)` to average over :math:`R` models.
        y (torch.Tensor): The labels of shape :math:`(N)` (int64).

    Returns:
        The scores of shape :math:`(N)`, for :func:`select_graphs`.

    Raises:
        ValueError: If a shape or label is invalid.
    """
    return _mean(_error_norm('el2n_scores', logits, y))


def grand_scores(
    h: Tensor,
    logits: Tensor,
    y: Tensor,
    bias: bool = True,
) -> Tensor:
    r"""Return the GraNd score of each graph, the norm of the gradient of its
    loss, from the `"Deep Learning on a Data Diet: Finding Important Examples
    Early in Training" <https://arxiv.org/abs/2107.07075>`_ paper.

    The gradient is that of the cross entropy with respect to the last, linear
    layer, for which its norm has the closed form

    .. math::
        s_i = {\lVert \textrm{softmax}(\mathbf{o}_i) - \mathbf{e}_{y_i}
        \rVert}_2 \, \sqrt{{\lVert \mathbf{h}_i \rVert}_2^2 + 1}

    for the input :math:`\mathbf{h}_i` and the output :math:`\mathbf{o}_i` of
    that layer.

    .. note::
        The paper takes the gradient with respect to all parameters, at
        initialization. That needs one backward pass per graph.

    .. code-block:: python

        >>> h = torch.tensor([[3.0, 4.0]])
        >>> grand_scores(h, torch.zeros(1, 2), torch.tensor([0]))
        tensor([3.6056])

    Args:
        h (torch.Tensor): The inputs of the last layer, of shape
            :math:`(N, E)`, or :math:`(R, N, E)` to average over :math:`R`
            models.
        logits (torch.Tensor): The logits of shape :math:`(N, C)`, or
            :math:`(R, N, C)`.
        y (torch.Tensor): The labels of shape :math:`(N)` (int64).
        bias (bool, optional): If set to :obj:`False`, the last layer has no
            bias, and the square root has no :math:`+ 1`.
            (default: :obj:`True`)

    Returns:
        The scores of shape :math:`(N)`, for :func:`select_graphs`.

    Raises:
        ValueError: If a shape or label is invalid.
    """
    error = _error_norm('grand_scores', logits, y)
    if h.shape[:-1] != logits.shape[:-1]:
        raise ValueError(
            f"'h' of 'grand_scores' needs to have one row per row of 'logits' "
            f'(got {list(h.shape)} for {list(logits.shape)})'
        )
    square = h.detach().float().square().sum(dim=-1)
    return _mean(error * (square + float(bias)).sqrt())


def _error_norm(owner: str, logits: Tensor, y: Tensor) -> Tensor:
    if logits.dim() not in [2, 3]:
        raise ValueError(
            f"'logits' of '{owner}' needs to be of shape [N, C] or [R, N, C] "
            f'(got {list(logits.shape)})'
        )
    num_graphs, num_classes = logits.shape[-2:]
    if y.shape != (num_graphs,) or y.dtype != torch.int64:
        raise ValueError(
            f"'y' of '{owner}' needs to be of shape [{num_graphs}] and type "
            f'torch.int64 (got {list(y.shape)} and {y.dtype})'
        )
    if y.numel() > 0 and not 0 <= int(y.min()) <= int(y.max()) < num_classes:
        raise ValueError(
            f"'y' of '{owner}' needs labels in [0, {num_classes}) (got "
            f'{int(y.min())} to {int(y.max())})'
        )
    error = logits.detach().float().softmax(dim=-1)
    one_hot = torch.nn.functional.one_hot(y, num_classes)
    return (error - one_hot.to(error)).norm(dim=-1)


def _mean(score: Tensor) -> Tensor:
    return score if score.dim() == 1 else score.mean(dim=0)
