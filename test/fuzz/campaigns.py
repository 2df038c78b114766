"""Valid arguments of each operator, for `fuzz_operators.py` to damage."""

import torch
from hypothesis import strategies as st

import torch_geometric_ext.typing
from torch_geometric_ext import ops
from torch_geometric_ext.nn.dense.pattern import compress
from torch_geometric_ext.ops.block_sparse_linear import (
    _block_sparse_linear,
    _BlockSparseLinear,
    block_sparse_linear_backward_gpu,
    block_sparse_linear_backward_reference,
)
from torch_geometric_ext.ops.csr_matmul import _dot_products
from torch_geometric_ext.ops.csr_sparse_linear import (
    _backward as csr_sparse_linear_backward,
)
from torch_geometric_ext.ops.prototype_loss import (
    prototype_loss_backward_reference,
)
from torch_geometric_ext.ops.sparse_linear import (
    _sparse_linear,
    _SparseLinear,
    sparse_linear_backward_gpu,
    sparse_linear_backward_reference,
)
from torch_geometric_ext.ops.top_positions import _top_positions
from torch_geometric_ext.ops.triton_launch import has_triton
from torch_geometric_ext.ops.weighted_sample import _weighted_sample
from triton_kernels import by_triton

FLOATS = st.sampled_from([torch.float, torch.double])
SIZES = st.integers(0, 6)
GENERATORS = st.integers(0, 2**32).map(
    lambda seed: torch.Generator().manual_seed(seed)
)


def make_ptr(num_rows, num_elements, generator):
    """Row pointers of random sizes."""
    if num_rows == 0:
        return torch.zeros(1, dtype=torch.long)
    inner = torch.randint(
        num_elements + 1, (num_rows - 1,), generator=generator
    )
    ends = torch.tensor([0]), torch.tensor([num_elements])
    return torch.cat([ends[0], inner.sort().values, ends[1]])


def below(high, size, generator):
    return torch.randint(
        max(high, 1), (size if high else 0,), generator=generator
    )


@st.composite
def patterns(draw):
    """A sparse weight: its shape, dtype, values, bias and pattern."""
    generator, dtype = draw(GENERATORS), draw(FLOATS)
    size = draw(SIZES), draw(SIZES)
    density = draw(st.sampled_from([0.0, 0.3, 0.9, 1.0]))
    mask = torch.rand(size, generator=generator) < density
    index = mask.flatten().nonzero().flatten()
    values = torch.randn(index.numel(), generator=generator, dtype=dtype)
    bias = torch.randn(size[0], generator=generator, dtype=dtype)
    pattern = compress(index, size)
    return size, values, draw(st.sampled_from([bias, None])), pattern


@st.composite
def sparse_linear(draw):
    (_, in_channels), values, bias, pattern = draw(patterns())
    generator = draw(GENERATORS)
    x = torch.randn(draw(SIZES), in_channels, generator=generator)
    return [x.to(values.dtype), values, bias, *pattern]


@st.composite
def sparse_linear_backward(draw):
    x, values, bias, *pattern = draw(sparse_linear())
    grad = torch.randn(len(x), pattern[0].numel() - 1).to(x.dtype)
    needs = [draw(st.booleans()) for _ in range(3)]
    return [grad, x, values, *pattern, *needs]


@st.composite
def block_sparse_linear(draw):
    generator, dtype = draw(GENERATORS), draw(FLOATS)
    block_size = draw(st.sampled_from([8, 16, 32]))
    size = draw(st.integers(0, 40)), draw(st.integers(0, 40))
    grid = tuple(-(-x // block_size) for x in size)
    blocks = torch.rand(grid, generator=generator) < 0.5
    mask = blocks.repeat_interleave(block_size, 0)
    mask = mask.repeat_interleave(block_size, 1)[: size[0], : size[1]]
    values, x, bias = (
        torch.randn(shape, generator=generator, dtype=dtype)
        for shape in [int(mask.sum()), (draw(SIZES), size[1]), size[0]]
    )
    bias = draw(st.sampled_from([bias, None]))
    pattern = compress(blocks.flatten().nonzero().flatten(), grid)
    return [x, values, bias, *pattern, size[0], block_size]


@st.composite
def block_sparse_linear_backward(draw):
    x, values, _, *pattern, size, block_size = draw(block_sparse_linear())
    grad = torch.randn(len(x), size).to(x.dtype)
    needs = [draw(st.booleans()) for _ in range(3)]
    return [grad, x, values, *pattern, block_size, *needs]


@st.composite
def csr_rows(draw, num_columns, dtype):
    generator = draw(GENERATORS)
    num_rows = draw(SIZES)
    num_elements = draw(SIZES) if num_rows and num_columns else 0
    ptr = make_ptr(num_rows, num_elements, generator)
    index = below(num_columns, num_elements, generator)
    value = torch.randn(num_elements, generator=generator, dtype=dtype)
    if draw(st.booleans()):
        ptr, index = ptr.int(), index.int()
    return [ptr, index, value]


@st.composite
def csr_sparse_linear(draw):
    (_, in_channels), values, bias, pattern = draw(patterns())
    rows = draw(csr_rows(in_channels, values.dtype))
    return [*rows, values, bias, *pattern]


@st.composite
def csr_sparse_linear_grad(draw):
    rows, (values, _, *pattern) = (lambda x: (x[:3], x[3:]))(
        draw(csr_sparse_linear())
    )
    size = rows[0].numel() - 1, pattern[0].numel() - 1
    return [torch.randn(size).to(values.dtype), *rows, *pattern]


@st.composite
def csr_matmul(draw):
    generator, dtype = draw(GENERATORS), draw(FLOATS)
    num_rows, num_cols = draw(SIZES), draw(SIZES)
    heads, channels = draw(st.integers(1, 3)), draw(SIZES)
    num_edges = draw(SIZES) if num_rows and num_cols else 0
    row, col = (
        below(size, num_edges, generator) for size in [num_rows, num_cols]
    )
    value = torch.randn(num_edges, heads, dtype=dtype, generator=generator)
    x = torch.randn(
        num_cols, heads, channels, dtype=dtype, generator=generator
    )
    rows, cols = sort_edges(row, col, num_rows), sort_edges(col, row, num_cols)
    return [value, x, *rows, *cols]


def sort_edges(row, col, num_rows):
    row, perm = row.sort(stable=True)
    ptr = torch.searchsorted(row, torch.arange(num_rows + 1))
    return ptr, col[perm], perm


@st.composite
def dot_products(draw):
    value, x, *rows = draw(csr_matmul())
    size = rows[0].numel() - 1, *x.shape[1:]
    return [torch.randn(size).to(x.dtype), x, *rows[:3]]


@st.composite
def weighted_sample(draw):
    generator, size = draw(GENERATORS), draw(SIZES)
    weight = torch.rand(size, generator=generator).to(draw(FLOATS))
    noise = torch.rand(size, generator=generator).double() + 0.1
    return [weight, noise, draw(st.integers(0, size))]


@st.composite
def top_positions(draw):
    generator, size = draw(GENERATORS), draw(SIZES)
    score = torch.randint(-3, 4, (size,), generator=generator)
    bound = draw(st.sampled_from([None, -1.0, 0.0, 1.5, float('inf')]))
    return [score.to(draw(FLOATS)), draw(st.integers(0, 7)), bound]


def positions(high, generator):
    return (torch.rand(high, generator=generator) < 0.5).nonzero().flatten()


@st.composite
def sparse_pattern(draw):
    size = draw(SIZES), draw(SIZES)
    return [positions(size[0] * size[1], draw(GENERATORS)), *size]


@st.composite
def merge_positions(draw):
    generator = draw(GENERATORS)
    return [positions(draw(st.integers(0, 12)), generator) for _ in range(2)]


@st.composite
def missing_positions(draw):
    generator, size = draw(GENERATORS), draw(SIZES)
    index = positions(draw(st.integers(0, 12)), generator)
    return [index, below(10, size, generator).sort().values]


@st.composite
def unique_rows(draw):
    generator = draw(GENERATORS)
    x = torch.randint(3, (draw(SIZES), draw(SIZES)), generator=generator)
    dtypes = [torch.long, torch.int, torch.uint8, torch.bool]
    dtypes += [torch.half, torch.bfloat16, torch.float, torch.double]
    return [x.to(draw(st.sampled_from(dtypes))), 0]


@st.composite
def unique_trees(draw):
    generator, size = draw(GENERATORS), draw(SIZES)
    num_children = draw(st.integers(0, 12)) if size else 0
    label = below(2, size, generator)
    ptr = make_ptr(size, num_children, generator)
    child, edge = (below(4, num_children, generator) for _ in range(2))
    return [label, ptr, child, draw(st.sampled_from([edge, None])), 0]


@st.composite
def extract_trees(draw):
    generator = draw(GENERATORS)
    num_graphs, num_nodes = draw(SIZES), draw(SIZES)
    num_children = draw(st.integers(0, 12)) if num_nodes else 0
    num_trees = draw(SIZES) if num_nodes and num_graphs else 0
    return [
        below(num_graphs, draw(SIZES), generator),
        make_ptr(num_graphs, num_trees, generator),
        below(num_nodes, num_trees, generator).int(),
        make_ptr(num_nodes, num_children, generator),
        below(num_nodes, num_children, generator).int(),
        below(num_nodes, num_nodes, generator).int(),
        draw(st.integers(0, 4)),
    ]


@st.composite
def herding(draw):
    generator = draw(GENERATORS)
    num_groups, num_rows = draw(SIZES), draw(SIZES)
    num_rows = num_rows if num_groups else 0
    rows = [
        torch.randperm(6, generator=generator)[: draw(st.integers(0, 4))]
        for _ in range(num_rows)
    ]
    ptr = torch.tensor([0, *(len(x) for x in rows)]).cumsum(0)
    item = torch.cat([torch.empty(0, dtype=torch.long), *rows])
    value = torch.randint(-5, 6, (item.numel(),), generator=generator)
    groups = make_ptr(num_groups, num_rows, generator)
    if draw(st.booleans()):
        item, value = item.int(), value.int()
    num_samples = draw(st.sampled_from([None, 0, 1, 3]))
    settings = [draw(st.integers(1, 4)), num_samples, draw(st.integers(1, 4))]
    return [ptr, item, value, groups, *settings]


@st.composite
def frequent_itemsets(draw):
    rows = draw(
        st.lists(
            st.sets(st.integers(0, 5), max_size=5).map(sorted), max_size=6
        )
    )
    ptr = torch.tensor([0, *(len(x) for x in rows)]).cumsum(0)
    item = torch.tensor([i for x in rows for i in x], dtype=torch.long)
    dtype = draw(st.sampled_from([torch.long, torch.int]))
    limits = draw(st.integers(1, 3)), draw(st.integers(1, 100))
    max_size = draw(st.sampled_from([None, 1, 2]))
    return [ptr, item.to(dtype), *limits, draw(st.booleans()), max_size]


@st.composite
def prototype_loss(draw):
    # Angles between equal vectors are the square root of a rounding error.
    generator, dtype = draw(GENERATORS), torch.double
    batch, channels, hidden = (draw(SIZES) for _ in range(3))
    dim = draw(st.integers(1, 6))
    num_classes, num_prototypes = (
        draw(st.integers(2, 4)),
        draw(st.integers(1, 3)),
    )
    sizes = [(batch, channels), (hidden, channels), (dim, hidden)]
    sizes.append((num_classes, num_prototypes, dim))
    h, *weights = (
        torch.randn(size, dtype=dtype, generator=generator) for size in sizes
    )
    y = below(num_classes, batch, generator)
    return [h, y, *weights, 0.1, 1.0, 0.5, draw(st.booleans())]


@st.composite
def prototype_loss_backward(draw):
    h, y, weight1, weight2, prototypes, *scalars, _ = draw(prototype_loss())
    hidden = (h @ weight1.t()).relu()
    tensors = [
        h,
        y,
        weight1,
        weight2,
        prototypes,
        hidden,
        hidden @ weight2.t(),
    ]
    return [torch.ones((), dtype=h.dtype), *tensors, *scalars]


@st.composite
def computation_tree_ids(draw):
    generator = draw(GENERATORS)
    num_nodes, num_edges = draw(SIZES), draw(st.integers(0, 12))
    x = torch.randint(3, (num_nodes, 2), generator=generator)
    edge_index = below(num_nodes, 2 * num_edges, generator).view(2, -1)
    edge_attr = torch.randint(2, (edge_index.size(1),), generator=generator)
    edge_attr = draw(st.sampled_from([edge_attr, None]))
    return [x, edge_index, draw(st.integers(0, 3)), edge_attr]


def with_gradients(function, *positions):
    """Return outputs and gradients of the floating point ones of `args`."""

    def call(*args):
        args = list(args)
        inputs = []
        for i in positions:
            if torch.is_tensor(args[i]) and args[i].is_floating_point():
                args[i] = args[i].detach().clone().requires_grad_()
                inputs.append(args[i])
        out = function(*args)
        outputs = out if isinstance(out, tuple) else (out,)
        total = sum(
            (x.double() * (torch.arange(x.numel()) + 1.0).view_as(x)).sum()
            for x in outputs
            if x.requires_grad
        )
        if not torch.is_tensor(total):
            return outputs
        grads = torch.autograd.grad(total, inputs, allow_unused=True)
        return *outputs, *(x for x in grads if x is not None)

    return call


def as_tuple(function):
    def call(*args):
        out = function(*args)
        return tuple(out) if isinstance(out, tuple) else (out,)

    return call


def checked(function):
    def call(*args):
        return function(*args, True)

    return call


def of_csr(function):
    """Pass features as a sparse matrix."""

    def call(ptr, index, value, values, bias, rowptr, col, colptr, *args):
        x = torch.sparse_csr_tensor(
            ptr,
            index,
            value.detach(),
            (max(ptr.numel() - 1, 0), max(colptr.numel() - 1, 0)),
            check_invariants=False,
        )
        return function(x, values, bias, rowptr, col, colptr, *args)

    return call


def without_autograd(name, reference):
    """Call the kernel of an operator itself, not its autograd formula."""

    def call(*args):
        with torch.inference_mode():
            if torch_geometric_ext.typing.WITH_EXT:
                return getattr(torch.ops.torch_geometric_ext, name)(*args)
            return reference(*args)

    return call


def in_triton(function):
    """Call the Triton kernel instead of the compiled one."""

    def call(*args):
        with by_triton(torch_geometric_ext.typing.WITH_EXT):
            return function(*args)

    return call


def flat_trees(*args):
    try:
        out = ops.computation_tree_ids(*args)
    except ValueError as e:  # Its messages start with the argument.
        raise ValueError(f'computation_tree_ids: {e}') from e
    levels = [x for level in out.levels for x in level]
    return *out.ids, *out.representative, *levels


def prototype_scores(h, y, weight1, weight2, prototypes, *args):
    out = ops.prototype_loss(h, y, weight1, weight2, prototypes, *args)
    # Prototypes may be equally near, and angles amplify rounding errors.
    risk, angles, nearest = out[1].unbind(dim=1)
    num_prototypes = prototypes.size(0) * prototypes.size(1)
    return out[0], risk, angles.bfloat16(), nearest < num_prototypes


# An inactive weight times NaN or infinity is zero or NaN: the operators may
# compute sparse or dense products.
SPARSE = ('only_finite', True)

# The name of an operator, the function, valid arguments, and options.
CAMPAIGNS = [
    (
        'sparse_linear',
        with_gradients(checked(_sparse_linear), 0, 1, 2),
        sparse_linear,
        SPARSE,
    ),
    (
        'sparse_linear_backward',
        without_autograd(
            'sparse_linear_backward', sparse_linear_backward_reference
        ),
        sparse_linear_backward,
        SPARSE,
    ),
    (
        'block_sparse_linear',
        with_gradients(checked(_block_sparse_linear), 0, 1, 2),
        block_sparse_linear,
        SPARSE,
    ),
    (
        'block_sparse_linear_backward',
        without_autograd(
            'block_sparse_linear_backward',
            block_sparse_linear_backward_reference,
        ),
        block_sparse_linear_backward,
        SPARSE,
    ),
    (
        'csr_sparse_linear',
        with_gradients(of_csr(ops.csr_sparse_linear), 3, 4),
        csr_sparse_linear,
        SPARSE,
    ),
    (
        'csr_sparse_linear_backward',
        as_tuple(checked(csr_sparse_linear_backward)),
        csr_sparse_linear_grad,
        SPARSE,
    ),
    ('csr_matmul', with_gradients(ops.csr_matmul, 0, 1), csr_matmul),
    ('csr_dot_products', as_tuple(_dot_products), dot_products),
    ('weighted_sample', as_tuple(_weighted_sample), weighted_sample),
    ('top_positions', as_tuple(_top_positions), top_positions),
    ('sparse_pattern', as_tuple(ops.sparse_pattern), sparse_pattern),
    ('merge_positions', as_tuple(ops.merge_positions), merge_positions),
    ('missing_positions', as_tuple(ops.missing_positions), missing_positions),
    ('unique_rows', as_tuple(ops.unique_rows), unique_rows),
    ('unique_trees', as_tuple(ops.unique_trees), unique_trees),
    ('computation_tree_ids', flat_trees, computation_tree_ids),
    ('extract_trees', as_tuple(ops.extract_trees), extract_trees),
    ('herding', as_tuple(ops.herding), herding),
    (
        'frequent_itemsets',
        as_tuple(ops.frequent_itemsets),
        frequent_itemsets,
    ),
    (
        'prototype_loss',
        with_gradients(prototype_scores, 0, 2, 3, 4),
        prototype_loss,
        ('moderate', True),
    ),
    (
        'prototype_loss_backward',
        without_autograd(
            'prototype_loss_backward', prototype_loss_backward_reference
        ),
        prototype_loss_backward,
        ('moderate', True),
    ),
]

if has_triton():
    CAMPAIGNS += [
        (
            'sparse_linear_triton',
            in_triton(with_gradients(checked(_SparseLinear.apply), 0, 1, 2)),
            sparse_linear,
            SPARSE,
        ),
        (
            'sparse_linear_backward_triton',
            in_triton(torch.inference_mode()(sparse_linear_backward_gpu)),
            sparse_linear_backward,
            SPARSE,
        ),
        (
            'block_sparse_linear_triton',
            in_triton(
                with_gradients(checked(_BlockSparseLinear.apply), 0, 1, 2)
            ),
            block_sparse_linear,
            SPARSE,
        ),
        (
            'block_sparse_linear_backward_triton',
            in_triton(
                torch.inference_mode()(block_sparse_linear_backward_gpu)
            ),
            block_sparse_linear_backward,
            SPARSE,
        ),
    ]
