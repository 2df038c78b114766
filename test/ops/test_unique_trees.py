import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import torch_geometric_ext.typing
from devices import withDevice
from torch_geometric_ext.ops import unique_trees
from torch_geometric_ext.ops.ragged import row_ptr
from torch_geometric_ext.ops.unique_trees import unique_trees_reference

withKernels = pytest.mark.skipif(
    not torch_geometric_ext.typing.WITH_EXT,
    reason='the kernels are not installed',
)


def kernel(*args):
    return torch.ops.torch_geometric_ext.unique_trees(*args)


def random_trees(size, seed, max_degree=4, edge_label=True):
    generator = torch.Generator().manual_seed(seed)

    def randint(high, *shape):
        return torch.randint(0, high, shape, generator=generator)

    ptr = row_ptr(randint(max_degree + 1, size))
    num_items = int(ptr[-1])
    return (
        randint(2, size),
        ptr,
        randint(3, num_items),
        randint(2, num_items) if edge_label else None,
    )


def keys(label, ptr, child, edge_label):
    out = []
    for i in range(label.numel()):
        part = slice(int(ptr[i]), int(ptr[i + 1]))
        children = child[part].tolist()
        edges = len(children) * [0]
        if edge_label is not None:
            edges = edge_label[part].tolist()
        items = sorted(zip(edges, children))
        out.append((int(label[i]), len(items), items))
    return out


@given(
    size=st.integers(1, 30),
    edge_label=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_unique_trees_by_brute_force(size, edge_label, seed):
    args = random_trees(size, seed, edge_label=edge_label)
    rows = keys(*args)
    distinct = sorted({str(row): row for row in rows}.values())
    out = unique_trees(*args)
    assert out.ids.tolist() == [distinct.index(row) for row in rows]
    assert out.representative.tolist() == [rows.index(row) for row in distinct]
    if not edge_label:
        assert out.edge_label.numel() == 0
        out = out._replace(edge_label=None)
    labels = args[0][out.representative]
    assert keys(labels, out.ptr, out.child, out.edge_label) == distinct


@withKernels
@given(
    size=st.integers(0, 50),
    max_degree=st.sampled_from([0, 3, 40]),
    edge_label=st.booleans(),
    known=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_unique_trees_equals_reference(
    size, max_degree, edge_label, known, seed
):
    args = random_trees(size, seed, max_degree, edge_label)
    num_known = 0
    if known:
        out = unique_trees(*args)
        num_known = out.ids.max() + 1 if size > 0 else 0
        num_known = int(num_known)
        args = (
            torch.cat([args[0][out.representative], args[0]]),
            row_ptr(torch.cat([out.ptr.diff(), args[1].diff()])),
            torch.cat([out.child, args[2]]),
            torch.cat([out.edge_label, args[3]]) if edge_label else None,
        )
    expected = unique_trees_reference(*args, num_known)
    for out, other in zip(kernel(*args, num_known), expected):
        assert torch.equal(out, other)


@withKernels
@pytest.mark.parametrize('num_threads', [1, 2, 3])
def test_unique_trees_of_large_input(num_threads):
    args = random_trees(60_000, seed=0, max_degree=12)
    expected = unique_trees_reference(*args)
    default = torch.get_num_threads()
    try:
        torch.set_num_threads(num_threads)
        for out, other in zip(kernel(*args), expected):
            assert torch.equal(out, other)
    finally:
        torch.set_num_threads(default)


def test_unique_trees_with_large_ids(ext):
    high = (1 << 31) - 1
    out = unique_trees(
        torch.tensor([high, high]),
        torch.tensor([0, 2, 4]),
        torch.tensor([high, 0, 0, high]),
        torch.tensor([high, 1, 1, high]),
    )
    assert out.ids.tolist() == [0, 0]
    assert out.child.tolist() == [0, high]
    assert out.edge_label.tolist() == [1, high]


def test_unique_trees_errors(ext):
    label, ptr = torch.tensor([0, 0]), torch.tensor([0, 1, 2])
    child = torch.tensor([1, 1])
    with pytest.raises(ValueError, match="'label' needs .* int64"):
        unique_trees(label.float(), ptr, child)
    with pytest.raises(ValueError, match=r"'ptr' needs 3 .* \(got 2\)"):
        unique_trees(label, ptr[:-1], child)
    with pytest.raises(ValueError, match=r"'edge_label' needs 2 .* \(got 1\)"):
        unique_trees(label, ptr, child, child[:1])
    for bad in [ptr - 1, torch.tensor([0, 3, 2])]:
        with pytest.raises(ValueError, match="'ptr' .* ascend from 0 to 2"):
            unique_trees(label, bad, child)
    for bad in [
        (label - 1, ptr, child),
        (label, ptr, child - 2),
        (label, ptr, child + (1 << 31)),
        (label, ptr, child, child - 2),
    ]:
        with pytest.raises(ValueError, match=r'in \[0, 2\^31\)'):
            unique_trees(*bad)
    with pytest.raises(
        ValueError, match='unique_trees: the first 2 rows need'
    ):
        unique_trees(label, ptr, child, num_known=2)


@withKernels
@pytest.mark.parametrize('edge_label', [True, False])
def test_unique_trees_opcheck(edge_label):
    args = random_trees(20, seed=0, edge_label=edge_label)
    op = torch.ops.torch_geometric_ext.unique_trees.default
    torch.library.opcheck(op, args)


@withDevice
def test_unique_trees_device(device):
    label, ptr, child, edge_label = random_trees(30, seed=0)
    expected = unique_trees(label, ptr, child, edge_label)
    args = [x.to(device) for x in (label, ptr, child, edge_label)]
    for out, other in zip(unique_trees(*args), expected):
        assert out.device == args[0].device
        assert torch.equal(out.cpu(), other)
