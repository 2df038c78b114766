"""Time functions on a GPU, or on a CPU to try a script."""

import argparse
import time
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Callable, Dict, List, NamedTuple, Optional

import torch

from torch_geometric_ext.ops.machine import cpu_model

MIN_ROUNDS = 3


class Run(NamedTuple):
    """A function to time, and one to call before, outside of the time."""

    function: Callable[[], Any]
    prepare: Callable[[], Any] = lambda: None


def make_parser(
    description: Optional[str], budget: float
) -> argparse.ArgumentParser:
    """Return a parser of the options that all scripts share."""
    parser = argparse.ArgumentParser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('--device', type=torch.device, default='cuda')
    parser.add_argument(
        '--budget', type=float, default=budget, help='seconds of a row'
    )
    parser.add_argument(
        '--small', action='store_true', help='small inputs, to try the script'
    )
    return parser


def start(device: torch.device) -> None:
    """Print the machine and the versions. Exit if there is no such device."""
    card = 'none, times are not comparable'
    if device.type == 'cuda':
        if not torch.cuda.is_available():
            raise SystemExit('no GPU: PyTorch finds no CUDA device')
        torch.cuda.set_device(device)
        card = torch.cuda.get_device_name(device)
    try:
        triton = version('triton')
    except PackageNotFoundError:
        triton = 'none'
    print(f'# card: {card}')
    print(f'# CPU: {cpu_model()}, {torch.get_num_threads()} thread(s)')
    print(
        f'# torch {torch.__version__}, CUDA {torch.version.cuda}, '
        f'triton {triton}, torch_geometric {version("torch_geometric")}',
        flush=True,
    )


def measure(
    runs: Dict[str, Run],
    device: torch.device,
    budget: float,
    num_calls: int = 1,
) -> Dict[str, float]:
    """Return the median milliseconds of a call of each function.

    Functions take turns until the budget is spent, at least three times after
    a first turn that does not count. Each turn calls the function several
    times in a row and waits for the device at its end, so the time includes
    that in which a GPU waits for the host.

    Args:
        runs (Dict[str, Run]): The functions.
        device (torch.device): The device that they run on.
        budget (float): The seconds to spend.
        num_calls (int, optional): The calls of a turn. (default: :obj:`1`)
    """
    times: Dict[str, List[float]] = {name: [] for name in runs}
    for run in runs.values():
        _time(run, device, 1)  # Compiles kernels, and fills caches.
    num_rounds, end = 0, time.perf_counter() + budget
    while num_rounds < MIN_ROUNDS or time.perf_counter() < end:
        for name, run in runs.items():
            times[name].append(_time(run, device, num_calls))
        num_rounds += 1
    return {k: float(torch.tensor(v).median()) for k, v in times.items()}


def _time(run: Run, device: torch.device, num_calls: int) -> float:
    run.prepare()
    if device.type != 'cuda':
        begin = time.perf_counter()
        for _ in range(num_calls):
            run.function()
        return 1000 * (time.perf_counter() - begin) / num_calls
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    first.record()
    for _ in range(num_calls):
        run.function()
    last.record()
    last.synchronize()
    return first.elapsed_time(last) / num_calls
