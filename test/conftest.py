import multiprocessing
import os
import shutil
import signal
import time
from pathlib import Path

import hypothesis
import pytest
import torch
import torch.distributed as dist

# PyG imports Triton, which then reads whether to interpret kernels.
os.environ['TRITON_INTERPRET'] = str(int(not torch.cuda.is_available()))

from run_rank import run_rank
from torch_geometric.datasets import TUDataset

import accelerator
import torch_geometric_ext.typing
from torch_geometric_ext.ops.triton_launch import has_triton
from triton_kernels import by_triton

# Tests choose between sparse and dense products as on any other machine, and
# leave the cache of the user alone.
os.environ['TORCH_GEOMETRIC_EXT_CALIBRATION'] = 'off'

# Whether a test is slow depends on what else the machine does.
# `TEST_PROFILE=thorough` draws more examples for tests that give no number.
hypothesis.settings.register_profile('quick', deadline=None, max_examples=40)
hypothesis.settings.register_profile(
    'thorough', deadline=None, max_examples=400
)
hypothesis.settings.load_profile(os.getenv('TEST_PROFILE', 'quick'))

# Real data sets in PyG's layout, for tests that are skipped without them.
DATA = os.getenv('TEST_DATA', Path(__file__).parents[2] / 'shared' / 'data')


@pytest.fixture(params=[True, False], ids=['kernels', 'reference'])
def ext(request, monkeypatch):
    """Runs a test with the compiled operators and with the reference ones."""
    if request.param and not torch_geometric_ext.typing.WITH_EXT:
        pytest.skip('the kernels are not installed')
    monkeypatch.setattr(torch_geometric_ext.typing, 'WITH_EXT', request.param)
    return request.param


if accelerator.is_available():
    accelerator.device()


@pytest.fixture
def device(request, monkeypatch):
    """Returns the device of a test that is decorated by `withDevice`."""
    if request.param == accelerator.NAME:
        monkeypatch.setattr(torch, 'Generator', accelerator.Generator)
        return accelerator.device()
    return torch.device(request.param)


@pytest.fixture
def kernels():
    """Skips a test where the compiled operators are not installed."""
    if not torch_geometric_ext.typing.WITH_EXT:
        pytest.skip('the kernels are not installed')
    return torch_geometric_ext.typing


@pytest.fixture
def triton_kernels():
    """Computes sparse products by Triton kernels, or skips a test."""
    if not has_triton():
        pytest.skip('Triton is not installed')
    with by_triton():
        yield


@pytest.fixture
def tu_dataset(tmp_path):
    """Loads a real data set from a copy of its raw files."""

    def load(name):
        source = Path(DATA, 'TUDataset', name, 'raw')
        if not source.exists():
            pytest.skip(f"the data set '{name}' is not there")
        shutil.copytree(source, tmp_path / name / 'raw')
        return TUDataset(str(tmp_path), name)

    return load


@pytest.fixture
def interrupts():
    """Lets Ctrl-C interrupt, which processes in the background ignore."""
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, handler)


@pytest.fixture(scope='session')
def server():
    """A server that imports the package once, and forks processes from it."""
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(['torch_geometric_ext'])
    return context


@pytest.fixture(scope='session')
def scripts(server):
    """Runs each call in a new process: an import takes four seconds."""
    with server.Pool(3, maxtasksperchild=1) as pool:
        yield pool


@pytest.fixture
def run_ranks(server, tmp_path):
    """Runs `run_rank` of a test file on two ranks."""

    def run(script):
        # Ranks meet in a store that outlives them: that of a file is removed
        # by the first rank that ends, while others still look for it.
        store = dist.TCPStore(
            'localhost', 0, wait_for_workers=False, is_master=True
        )
        env = dict(
            MASTER_ADDR='localhost',
            MASTER_PORT=str(store.port),
            TORCHELASTIC_USE_AGENT_STORE='True',
            WORLD_SIZE='2',
        )
        processes = [
            server.Process(
                target=run_rank,
                args=(dict(env, RANK=str(rank)), script, str(tmp_path)),
            )
            for rank in range(2)
        ]
        end = time.monotonic() + 600  # On a busy machine, too.
        try:
            for process in processes:
                process.start()
            while not all(process.exitcode == 0 for process in processes):
                codes = [process.exitcode for process in processes]
                assert not any(codes), f'a rank failed: {codes}'
                assert time.monotonic() < end, f'a rank hangs: {codes}'
                time.sleep(0.05)
        finally:
            for process in processes:
                process.kill()

    return run
