"""Describe the machine that this process runs on."""

import platform
import re
from functools import lru_cache
from pathlib import Path
from typing import Any, Dict

import torch

CPUINFO = Path('/proc/cpuinfo')
CACHES = Path('/sys/devices/system/cpu/cpu0/cache')
# Instruction sets that products of matrices use, as Linux names them.
FLAGS = ['avx2', 'avx512f', 'avx512_bf16', 'amx_tile', 'asimd', 'sve']


def describe_machine() -> Dict[str, Any]:
    """Return the processor, its caches and instruction sets, the number of
    threads, and the version of PyTorch.

    Benchmarks print it beside their results.
    """
    info = _read_cpuinfo()
    flags = info.get('flags', info.get('Features', '')).split()
    return {
        'cpu': cpu_model(),
        'caches': _read_caches(),
        'capability': torch.backends.cpu.get_cpu_capability(),
        'instruction_sets': [flag for flag in FLAGS if flag in flags],
        'num_threads': torch.get_num_threads(),
        'torch': torch.__version__,
    }


@lru_cache(maxsize=1)
def cpu_model() -> str:
    """Return the name of the processor, with its family, model and stepping
    where the system tells them: virtual machines shorten names, such as
    :obj:`"AMD EPYC"`.
    """
    info = _read_cpuinfo()
    keys = ['cpu family', 'model', 'stepping']
    numbers = [f'{key} {info[key]}' for key in keys if key in info]
    name = info.get('model name') or info.get('CPU part')
    name = name or platform.processor() or platform.machine()
    return ', '.join([name, *numbers])


def machine_slug() -> str:
    """Return the name of the processor as a name of a file."""
    name = re.sub(r'\((R|TM)\)|CPU|@.*?GHz|stepping \w+', '', cpu_model())
    return re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-')


def _read_cpuinfo() -> Dict[str, str]:
    """Return what Linux tells about the first processor."""
    try:
        text = CPUINFO.read_text(errors='replace')
    except OSError:  # Other systems.
        return {}
    pairs = (line.partition(':') for line in text.split('\n\n')[0].split('\n'))
    return {key.strip(): value.strip() for key, _, value in pairs}


def _read_caches() -> Dict[str, str]:
    """Return the size of each cache for data of the first processor."""
    caches = {}
    try:
        for folder in sorted(CACHES.glob('index*')):
            level, kind, size = (
                (folder / name).read_text().strip()
                for name in ['level', 'type', 'size']
            )
            if kind != 'Instruction':
                caches[f'L{level}'] = size
    except OSError:  # Some virtual machines do not tell.
        pass
    return caches
