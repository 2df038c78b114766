import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import torch_geometric_ext.typing
from devices import withDevice
from torch_geometric_ext.ops import extract_trees
from torch_geometric_ext.ops.extract_trees import extract_trees_reference
from torch_geometric_ext.ops.ragged import row_ptr

withKernels = pytest.mark.skipif(
    not torch_geometric_ext.typing.WITH_EXT,
    reason='the kernels are not installed',
)


def kernel(*args):
    return torch.ops.torch_geometric_ext.extract_trees(*args)


def random_levels(seed, num_layers):
    """Random trees in levels, the highest first."""
    generator = torch.Generator().manual_seed(seed)

    def randint(low, high, *shape):
        return torch.randint(low, high, shape, generator=generator)

    sizes = randint(1, 6, num_layers + 1)
    bounds = row_ptr(sizes).tolist()
    degree = randint(0, 4, bounds[-2] if num_layers > 0 else 0)
    degree = torch.cat([degree, degree.new_zeros(int(sizes[-1]))])
    ptr, own = row_ptr(degree), torch.arange(bounds[-1])
    child = own.new_empty(int(ptr[-1]))
    for level in range(num_layers):
        below = bounds[level + 1], bounds[level + 2]
        own[bounds[level] : bounds[level + 1]] = randint(
            *below, int(sizes[level])
        )
        part = slice(int(ptr[bounds[level]]), int(ptr[bounds[level + 1]]))
        child[part] = randint(*below, part.stop - part.start)
    graph_ptr = row_ptr(randint(0, 4, 5))
    tree = randint(0, bounds[1], int(graph_ptr[-1]))
    graph_idx = randint(0, 5, int(randint(0, 6, 1)))
    return (
        graph_idx,
        graph_ptr,
        tree.int(),
        ptr,
        child.int(),
        own.int(),
        num_layers,
    )


@given(seed=st.integers(0, 10**6), num_layers=st.integers(0, 4))
def test_extract_trees_by_levels(seed, num_layers):
    args = random_levels(seed, num_layers)
    graph_idx, graph_ptr, tree, ptr, child, own, _ = args
    out = extract_trees(*args)
    assert out.node.unique().numel() == out.node.numel()
    for i, graph in enumerate(graph_idx.tolist()):
        found = out.root[out.root_ptr[i] : out.root_ptr[i + 1]]
        expected = tree[graph_ptr[graph] : graph_ptr[graph + 1]]
        assert out.node[found].tolist() == expected.tolist()
    assert torch.equal(out.node[out.root], tree[out.entry].long())

    # The children of each extracted node, in their order:
    num_inner = int(out.sizes[:-1, 0].sum())
    source, target = out.edge_index
    for position, node in enumerate(out.node.tolist()):
        is_inner = position < num_inner
        expected = child[ptr[node] : ptr[node + 1]].tolist()
        found = out.node[source[target == position]].tolist()
        assert found == (expected if is_inner else [])
        below = int(own[node]) if is_inner else node
        assert out.node[out.own[position]] == below
    assert torch.equal(out.node[source], child[out.edge].long())
    assert out.sizes.sum(dim=0).tolist() == [out.node.numel(), source.numel()]


@withKernels
@given(seed=st.integers(0, 10**6), num_layers=st.integers(0, 4))
def test_extract_trees_equals_reference(seed, num_layers):
    args = random_levels(seed, num_layers)
    for out, expected in zip(kernel(*args), extract_trees_reference(*args)):
        assert torch.equal(out, expected)


def test_children_on_the_same_level_are_not_followed(ext):
    # Nodes 0 and 1, above 2, with a self-loop each:
    out = extract_trees(
        torch.tensor([0]),
        torch.tensor([0, 2]),
        torch.tensor([0, 1]).int(),
        torch.tensor([0, 2, 4, 4]),
        torch.tensor([2, 0, 2, 1]).int(),
        torch.tensor([2, 2, 2]).int(),
        num_layers=1,
    )
    assert out.node.tolist() == [0, 1, 2]
    assert out.edge_index.tolist() == [[2, 0, 2, 1], [0, 0, 1, 1]]
    assert out.sizes.tolist() == [[2, 4], [1, 0]]


def test_extract_trees_errors(ext):
    args = list(random_levels(0, 2))
    for bad in [-1, 5]:
        args[0] = torch.tensor([0, bad])
        with pytest.raises(IndexError, match=r"'graph_idx' .* in \[0, 5\)"):
            extract_trees(*args)
        args[0] = torch.tensor([0, 1])
        extract_trees(*args)  # A failed call resets its buffer.


def test_extract_trees_checks_types(ext):
    args = random_levels(0, 2)
    names = ['graph_idx', 'graph_ptr', 'tree', 'ptr', 'child', 'own']
    for i, name in enumerate(names):
        bad = [*args[:i], args[i].float(), *args[i + 1 :]]
        with pytest.raises(ValueError, match=f"'{name}' needs to be a .* int"):
            extract_trees(*bad)


def test_extract_trees_invalid_input(ext):
    kernel = extract_trees
    if ext:
        kernel = torch.ops.torch_geometric_ext.extract_trees
    args = list(random_levels(0, 2))
    args[0] = torch.arange(5)
    for position, name in enumerate(['graph_idx', 'graph_ptr', 'tree']):
        bad = list(args)
        bad[position] = args[position].float()
        with pytest.raises(ValueError, match=f"'{name}' needs to be"):
            kernel(*bad)
    for position in [2, 4, 5]:
        for value in [-1, 1000]:
            bad = list(args)
            bad[position] = torch.full_like(args[position], value)
            with pytest.raises(IndexError, match='needs to be in'):
                kernel(*bad)
    expected = extract_trees_reference(*args)
    for out, other in zip(kernel(*args), expected):
        assert torch.equal(out, other)


@withKernels
def test_extract_trees_opcheck():
    args = random_levels(1, 2)
    op = torch.ops.torch_geometric_ext.extract_trees.default
    torch.library.opcheck(op, args)


@withDevice
def test_extract_trees_device(device):
    args = random_levels(2, 3)
    expected = extract_trees(*args)
    moved = [x.to(device) for x in args[:-1]]
    for out, other in zip(extract_trees(*moved, args[-1]), expected):
        assert out.device == moved[0].device
        assert torch.equal(out.cpu(), other)
