"""Runs `run_rank` of a test file as one rank of `torch.distributed`."""

import os
import sys
from importlib import import_module
from pathlib import Path

import torch
import torch.distributed as dist


def run_rank(env, script, *args):
    os.environ.update(env)
    sys.path.insert(0, str(Path(script).parent))
    module = import_module(Path(script).stem)
    dist.init_process_group('gloo')
    torch.set_num_threads(1)
    module.run_rank(*args)
    # An error on one rank only would make the other one wait for ever:
    dist.barrier()
    # By now, models in `DistributedDataParallel` are gone with the variables
    # of `run_rank`. One that outlives its process group may hang: it holds the
    # GIL while it waits for a thread that waits for the GIL.
    dist.destroy_process_group()
