"""Write measurements as JSON lines.

A file holds blocks: a line of metadata (command, date, versions, processor,
threads, seeds), then one line for each row. Each run appends a block. The
docs draw their figures from these files.
"""

import argparse
import datetime
import json
import sys
from pathlib import Path
from typing import Any, Dict, Optional, Sequence

import torch
import torch_geometric

import torch_geometric_ext
from torch_geometric_ext.ops.machine import cpu_model

PATHS = {'--root': 'DATA'}  # Options that are paths of this machine.

_path: Optional[Path] = None


def add_argument(parser: argparse.ArgumentParser) -> None:
    """Add the option that names the file."""
    text = 'a file to which JSON lines are appended'
    parser.add_argument('--output', type=Path, help=text)


def start(
    path: Optional[Path], seeds: Optional[Sequence[int]] = None, **more: Any
) -> None:
    """Begin a block. Without a path, rows are not written."""
    global _path
    _path = path
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(**describe(seeds), **more)


def write(**row: Any) -> None:
    """Append a row."""
    if _path is not None:
        with _path.open('a') as file:
            print(json.dumps(row, ensure_ascii=False), file=file)


def describe(seeds: Optional[Sequence[int]]) -> Dict[str, Any]:
    """Return the metadata of this run."""
    return {
        'command': clean_command(sys.orig_argv),
        'date': datetime.date.today().isoformat(),
        'versions': {
            'torch': torch.__version__,
            'torch_geometric': torch_geometric.__version__,
            'torch_geometric_ext': torch_geometric_ext.__version__,
        },
        'processor': cpu_model(),
        'threads': torch.get_num_threads(),
        'seeds': None if seeds is None else list(seeds),
    }


def clean_command(argv: Sequence[str]) -> str:
    """Return a command line without paths of this machine."""
    words, rest = ['python'], iter(argv[1:])
    for word in rest:
        if word == '--output':
            next(rest)
        elif word in PATHS:
            next(rest)
            words += [word, PATHS[word]]
        else:
            words.append(word)
    return ' '.join(words)
