"""Hostile variants of the arguments of an operator."""

import math

import torch
from hypothesis import strategies as st

INTEGERS = [-(2**63), -(2**31), -2, -1, 0, 1, 2, 2**31 - 1, 2**31, 2**63 - 1]
FLOATS = [float('nan'), float('inf'), -float('inf'), -1.0, -0.0, 0.0]
FLOATS += [5e-324, 1e-310, 1e-40, 3e38, 1e300]
SCALARS = [float('nan'), -1.0, -0.0, 0.0, 0.1, 10.0]
DTYPES = [torch.long, torch.int, torch.uint8, torch.bool, torch.half]
DTYPES += [torch.bfloat16, torch.float, torch.double, torch.cfloat]


def is_plain(x):
    """Return whether a value is a dense tensor that holds data."""
    return torch.is_tensor(x) and x.layout == torch.strided and not x.is_meta


@st.composite
def mutated(draw, args, moderate=False):
    """Replace none, one or two arguments by hostile ones. Moderate numbers do
    not amplify rounding errors.
    """
    out = list(args)
    for _ in range(draw(st.sampled_from([0, 1, 1, 1, 2]))):
        i = draw(st.integers(0, len(out) - 1))
        if is_plain(out[i]):
            out[i] = draw(hostile_tensors(out[i], moderate))
        elif isinstance(out[i], bool):
            out[i] = not out[i]
        elif isinstance(out[i], int):
            out[i] = draw(st.sampled_from(INTEGERS))
        elif isinstance(out[i], float):
            out[i] = draw(st.sampled_from(SCALARS))
    return out


@st.composite
def hostile_tensors(draw, x, moderate):
    change = draw(st.sampled_from(CHANGES))
    if moderate and change is one_value:
        change = one_moderate_value
    return change(draw, x.detach())


def one_value(draw, x):
    x = x.clone().contiguous()
    if x.numel() == 0 or x.dtype == torch.bool:
        return x
    if x.is_floating_point():
        bounds = torch.finfo(x.dtype)
        value = draw(st.sampled_from(FLOATS))
        if math.isfinite(value):
            value = min(max(value, bounds.min), bounds.max)
    elif x.is_complex():
        return x
    else:
        bounds = torch.iinfo(x.dtype)
        near = [*INTEGERS, x.numel() - 1, x.numel(), x.numel() + 1]
        value = draw(st.sampled_from(near))
        value = min(max(value, bounds.min), bounds.max)
    x.view(-1)[draw(st.integers(0, x.numel() - 1))] = value
    return x


def one_moderate_value(draw, x):
    if not x.is_floating_point() or x.numel() == 0:
        return one_value(draw, x)
    x = x.clone().contiguous()
    i = draw(st.integers(0, x.numel() - 1))
    x.view(-1)[i] = draw(st.sampled_from([*SCALARS, float('inf')]))
    return x


def swapped(draw, x):
    x = x.clone().contiguous()
    if x.numel() > 1:
        i, j = (draw(st.integers(0, x.numel() - 1)) for _ in range(2))
        flat = x.view(-1)
        flat[i], flat[j] = flat[j].clone(), flat[i].clone()
    return x


def repeated(draw, x):
    x = x.clone().contiguous()
    if x.numel() > 1:
        i, j = (draw(st.integers(0, x.numel() - 1)) for _ in range(2))
        x.view(-1)[i] = x.view(-1)[j].clone()
    return x


def shorter(draw, x):
    return x[:-1].clone() if x.dim() > 0 else x


def longer(draw, x):
    return torch.cat([x, x[-1:]]) if x.dim() > 0 and len(x) > 0 else x


def wider(draw, x):
    return torch.cat([x, x[..., -1:]], dim=-1) if x.dim() > 0 else x


def empty(draw, x):
    return x[:0].clone() if x.dim() > 0 else x


def more_dims(draw, x):
    return x.unsqueeze(draw(st.integers(0, x.dim())))


def fewer_dims(draw, x):
    return x.flatten() if x.dim() > 1 else x.sum().to(x.dtype)


def other_dtype(draw, x):
    return x.to(draw(st.sampled_from(DTYPES)))


def strided(draw, x):
    return torch.stack([x, x.new_zeros(x.shape)], dim=-1)[..., 0]


def transposed(draw, x):
    return x.t().contiguous().t() if x.dim() == 2 else x.flip(0)


def expanded(draw, x):
    return x[:1].expand_as(x) if x.dim() > 0 and len(x) > 0 else x


def on_meta(draw, x):
    return x.to('meta')


def as_sparse(draw, x):
    return x.to_sparse() if x.dim() > 0 else x


CHANGES = [one_value] * 6 + [swapped, repeated] * 2
CHANGES += [shorter, longer, wider, empty, more_dims, fewer_dims]
CHANGES += [other_dtype, strided, transposed, expanded, on_meta, as_sparse]
