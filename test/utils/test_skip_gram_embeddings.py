import builtins

import pytest
import torch
import torch.nn.functional as F
from torch_geometric.testing import withPackage

from torch_geometric_ext.utils import skip_gram_embeddings


def walks_in_groups(num_walks=400):
    """Return walks of ten nodes within {0, ..., 4} or within {5, ..., 9}."""
    generator = torch.Generator().manual_seed(0)
    walks = torch.randint(5, (num_walks, 10), generator=generator)
    walks[::2] += 5
    walks[::3, 6:] = -1  # Some walks end early.
    return walks


@withPackage('gensim')
def test_skip_gram_embeddings():
    walks = walks_in_groups()
    x = skip_gram_embeddings(walks, 12, embedding_dim=8, epochs=20)
    assert x.size() == (12, 8) and x.dtype == torch.float
    assert (x[10:] == 0).all()  # No walk visits these nodes.

    # Nodes are closest to nodes of their group:
    cosine = F.cosine_similarity(x[:10, None], x[None, :10], dim=-1)
    group = torch.arange(10) // 5
    same = group[:, None] == group
    inner = cosine[same & ~torch.eye(10, dtype=torch.bool)]
    assert inner.min() > cosine[~same].max()

    again = skip_gram_embeddings(walks, 12, embedding_dim=8, epochs=20)
    assert torch.equal(x, again)
    other = skip_gram_embeddings(walks, 12, embedding_dim=8, epochs=20, seed=1)
    assert not torch.equal(x, other)


@withPackage('gensim')
def test_skip_gram_embeddings_without_pairs():
    walks = torch.tensor([[3, -1], [1, -1], [-1, -1]])
    assert torch.equal(skip_gram_embeddings(walks, 4, 8), torch.zeros(4, 8))
    walks = torch.tensor([[3, -1], [1, 0]])
    x = skip_gram_embeddings(walks, 4, 8)
    assert (x != 0).any(dim=1).tolist() == [True, True, False, False]
    empty = torch.empty(0, 5, dtype=torch.long)
    assert torch.equal(skip_gram_embeddings(empty, 2, 3), torch.zeros(2, 3))


def test_skip_gram_embeddings_errors(monkeypatch):
    walks = torch.tensor([[0, 1, 5]])
    with pytest.raises(ValueError, match=r'\(got \[3\] and torch.int64\)'):
        skip_gram_embeddings(walks[0], 6)
    with pytest.raises(ValueError, match=r'\(got \[1, 3\] and torch.float32'):
        skip_gram_embeddings(walks.float(), 6)
    with pytest.raises(ValueError, match=r'\(got 5 and node 5\)'):
        skip_gram_embeddings(walks, 5)
    for name in ['embedding_dim', 'context_size', 'epochs']:
        with pytest.raises(ValueError, match=rf"'{name}' .* \(got 0\)"):
            skip_gram_embeddings(walks, 6, **{name: 0})

    load = builtins.__import__

    def fail(name, *args, **kwargs):
        if name.startswith('gensim'):
            raise ImportError
        return load(name, *args, **kwargs)

    monkeypatch.setattr(builtins, '__import__', fail)
    with pytest.raises(ImportError, match='pip install gensim'):
        skip_gram_embeddings(walks, 6)
