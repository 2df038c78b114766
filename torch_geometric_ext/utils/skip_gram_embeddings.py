from typing import Any, Tuple

import torch
from torch import Tensor


def skip_gram_embeddings(
    walks: Tensor,
    num_nodes: int,
    embedding_dim: int = 64,
    *,
    context_size: int = 5,
    num_negative_samples: int = 5,
    epochs: int = 5,
    lr: float = 0.025,
    seed: int = 0,
) -> Tensor:
    r"""Embed nodes by skip-gram with negative sampling on random walks, as in
    the `"Distributed Representations of Words and Phrases and their
    Compositionality" <https://arxiv.org/abs/1310.4546>`_ paper.

    :class:`gensim.models.Word2Vec` trains on one thread: equal arguments give
    equal embeddings. Takes :math:`O(V c d k)` time for :math:`V` visits of
    nodes, :math:`c` nodes of context, :math:`d` dimensions and :math:`k`
    negative samples.

    Args:
        walks (torch.Tensor): The nodes of each walk, of shape :math:`(R, L)`
            (int64), padded as by :func:`temporal_random_walks`.
        num_nodes (int): The number of nodes :math:`N`.
        embedding_dim (int, optional): The size of an embedding.
            (default: :obj:`64`)
        context_size (int, optional): The largest distance on a walk between a
            node and those that it predicts. (default: :obj:`5`)
        num_negative_samples (int, optional): The number of random nodes for
            each pair of nodes. (default: :obj:`5`)
        epochs (int, optional): The number of passes. (default: :obj:`5`)
        lr (float, optional): The learning rate of the first step. It decays
            linearly. (default: :obj:`0.025`)
        seed (int, optional): The seed. (default: :obj:`0`)

    Returns:
        The embeddings (float32) of shape :math:`(N, d)` on the device of
        :obj:`walks`. Nodes that share no walk with others have zeros.

    Raises:
        ImportError: If :obj:`gensim` is missing.
        ValueError: If an argument is out of its range or of the wrong shape.
    """
    _check(walks, num_nodes)
    _check_sizes(embedding_dim=embedding_dim, context_size=context_size)
    _check_sizes(num_negative_samples=num_negative_samples, epochs=epochs)
    index, x = _train(
        walks[(walks >= 0).sum(dim=1) > 1],
        num_nodes,
        sg=1,
        vector_size=embedding_dim,
        window=context_size,
        negative=num_negative_samples,
        epochs=epochs,
        alpha=lr,
        seed=seed,
    )
    out = torch.zeros(num_nodes, embedding_dim)
    out[index] = x
    return out.to(walks.device)


def _train(
    walks: Tensor, num_nodes: int, **kwargs: Any
) -> Tuple[Tensor, Tensor]:
    """Return the nodes of walks and their embeddings."""
    try:
        from gensim.models import Word2Vec
    except ImportError as e:
        raise ImportError(
            "'skip_gram_embeddings' requires 'gensim' (pip install gensim)"
        ) from e

    if walks.size(0) == 0:
        empty = torch.empty(0, dtype=torch.long)
        return empty, torch.empty(0, kwargs['vector_size'])
    names = [str(node) for node in range(num_nodes)]
    sentences = [
        [names[node] for node in walk if node >= 0] for walk in walks.tolist()
    ]
    # One worker, since the order of updates depends on the threads otherwise:
    model = Word2Vec(sentences, min_count=1, workers=1, **kwargs)
    index = torch.tensor([int(name) for name in model.wv.index_to_key])
    return index, torch.from_numpy(model.wv.vectors)


def _check(walks: Tensor, num_nodes: int) -> None:
    if walks.dim() != 2 or walks.dtype != torch.long:
        raise ValueError(
            f"'walks' of 'skip_gram_embeddings' needs to be of shape [R, L] "
            f'and type torch.int64 (got {list(walks.shape)} and '
            f'{walks.dtype})'
        )
    if walks.numel() > 0 and int(walks.max()) >= num_nodes:
        raise ValueError(
            f"'num_nodes' of 'skip_gram_embeddings' needs to be larger than "
            f"each node of 'walks' (got {num_nodes} and node "
            f'{int(walks.max())})'
        )


def _check_sizes(**sizes: int) -> None:
    for name, value in sizes.items():
        if value < 1:
            raise ValueError(
                f"'{name}' of 'skip_gram_embeddings' needs to be at least one "
                f'(got {value})'
            )
