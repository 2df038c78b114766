"""Compare each operator with its reference, on valid and on hostile inputs.

    cd test && python -m fuzz.fuzz_operators --minutes 2

Both have to return equal outputs and gradients, or both have to raise an
error, and an error of a kernel has to name the operator. The script prints the
number of cases, how many of them were refused, and the smallest failing
example.
"""

import argparse
import faulthandler
import os
import sys
import time
import traceback
from unittest.mock import patch

import hypothesis
import torch

# PyG imports Triton, which then reads whether to interpret kernels.
os.environ['TRITON_INTERPRET'] = str(int(not torch.cuda.is_available()))

import torch_geometric_ext.typing
from fuzz.campaigns import CAMPAIGNS
from fuzz.hostile import is_plain, mutated

ERRORS = (ValueError, IndexError, TypeError, RuntimeError)


def run(function, args, with_ext):
    with patch.object(torch_geometric_ext.typing, 'WITH_EXT', with_ext):
        try:
            return function(*args)
        except ERRORS as e:  # `NotImplementedError` is a `RuntimeError`.
            return e


def compare(name, function, args, only_finite=False):
    """Raise an :class:`AssertionError` if the kernel and the reference differ.
    Return whether they refused the arguments.
    """
    kept = [x.clone() if is_plain(x) else x for x in args]
    out = run(function, args, True)
    for x, y in zip(args, kept):
        assert not is_plain(x) or equal(x, y), 'an argument was modified'
    refused = isinstance(out, Exception)
    if any(torch.is_tensor(x) and not is_plain(x) for x in args):
        return refused  # PyTorch decides on other layouts and devices.
    name = name.removesuffix('_triton').removesuffix('_backward')
    assert not refused or name in str(out), f'an error without name: {out!r}'
    expected = run(function, args, False)
    if refused or isinstance(expected, Exception):
        assert refused, f'only the reference: {expected!r}'
        assert isinstance(expected, Exception), f'only the kernel: {out!r}'
        return True
    for x, y in zip(out, expected):
        if only_finite:
            finite = x.isfinite() & y.isfinite()
            x, y = (z.masked_fill(~finite, 0) for z in (x, y))
        assert equal(x, y), f'{x} differs from {y}'
    return False


def equal(x, y):
    if not isinstance(x, torch.Tensor):
        return x == y
    if x.shape != y.shape or x.dtype != y.dtype:
        return False
    if not x.is_floating_point() and not x.is_complex():
        return torch.equal(x, y)
    # The terms of a sum may cancel, hence scale by the largest output.
    tolerance = {torch.double: 1e-9, torch.float: 1e-4}.get(x.dtype, 0.05)
    finite = y.detach()[y.isfinite()]
    scale = finite.abs().max().item() if finite.numel() > 0 else 0.0
    return torch.allclose(
        x,
        y,
        rtol=tolerance,
        atol=tolerance * max(scale, 1),
        equal_nan=True,
    )


class Campaign:
    """Cases of one operator, counted."""

    def __init__(
        self, name, function, arguments, moderate=False, only_finite=False
    ):
        self.name, self.function = name, function
        self.arguments = arguments().flatmap(lambda x: mutated(x, moderate))
        self.only_finite = only_finite
        self.num_cases = self.num_refused = self.num_failures = 0

    def check(self, args):
        self.num_cases += 1
        self.num_refused += compare(
            self.name, self.function, args, self.only_finite
        )

    def run_for(self, seconds, seed):
        """Return whether all cases hold, in about as many seconds."""
        end = time.monotonic() + seconds
        settings = hypothesis.settings(
            max_examples=200,
            deadline=None,
            database=None,
            report_multiple_bugs=False,
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        while time.monotonic() < end:
            test = hypothesis.given(self.arguments)(self.check)
            try:
                hypothesis.seed(seed)(settings(test))()
            except Exception:
                self.num_failures += 1
                traceback.print_exc()
                return False
            seed += 1
        return True


def main():
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        '--minutes', type=float, default=2, help='time for all campaigns'
    )
    parser.add_argument('--seed', type=int, default=0, help='first seed')
    parser.add_argument('--only', help='part of the name of an operator')
    args = parser.parse_args()
    faulthandler.enable()
    torch.set_num_threads(2)
    if not torch_geometric_ext.typing.WITH_EXT:
        sys.exit('The kernels are not installed, hence nothing to compare')

    chosen = [x for x in CAMPAIGNS if not args.only or args.only in x[0]]
    print(f'{"operator":>35}  {"cases":>8}  {"refused":>8}  {"failures":>8}')
    campaigns = []
    for entry in chosen:
        campaign = Campaign(*entry[:3], **dict(entry[3:]))
        campaign.run_for(60 * args.minutes / len(chosen), args.seed)
        campaigns.append(campaign)
        print(row(campaign.name, campaign), flush=True)
    print(row('all', *campaigns))
    sys.exit(any(x.num_failures for x in campaigns))


def row(name, *campaigns):
    cases, refused, failures = (
        sum(getattr(x, key) for x in campaigns)
        for key in ['num_cases', 'num_refused', 'num_failures']
    )
    return f'{name:>35}  {cases:8,}  {refused:8,}  {failures:8,}'


if __name__ == '__main__':
    main()
