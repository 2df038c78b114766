"""Damage files of every kind, and kill their writers.

Prints a line for each campaign. A damaged file that loads as something else
than what was saved counts as silently wrong.

    cd test && python -m fuzz.fuzz_files --cases 2000 --kills 300
"""

import argparse
import os
import random
import signal
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, NamedTuple, Optional

import torch
from torch_geometric.nn import GCN

from searches import graph, prune
from torch_geometric_ext.data import SharedTrees
from torch_geometric_ext.data.digest import digest
from torch_geometric_ext.lottery import Ticket
from torch_geometric_ext.transforms import (
    MirageCondense,
    ShareComputationTrees,
)
from torch_geometric_ext.transforms.mirage.cache import load_condensed
from torch_geometric_ext.transforms.mirage.condense_trees import condensed_dict

OUTCOMES = ['refused', 'loaded equal', 'SILENTLY WRONG', 'other exception']


class Kind(NamedTuple):
    """A kind of file: functions that write one, and that load it as a digest
    of its content.
    """

    write: Callable[[Path], Any]
    load: Callable[[Path], str]


def make_ticket() -> Ticket:
    torch.manual_seed(0)
    return prune(GCN(5, 16, 2, 3), graph())


def load_ticket(path: Path) -> str:
    return digest(vars(Ticket.load(path)))


def write_old_ticket(path: Path) -> None:
    """Write a file without a header, as version 0.1 did."""
    ticket = make_ticket()
    state = {'version': 1, **vars(ticket), 'macs': list(ticket.macs)}
    torch.save(state, path)


def make_graphs() -> list:
    graphs = [graph(seed=seed) for seed in range(8)]
    for data in graphs:
        data.x, data.y = data.y.view(-1, 1).float(), data.y[:1]
        del data.train_mask, data.val_mask
    for i, data in enumerate(graphs):
        data.y = torch.tensor([i % 2])
    return graphs


def write_trees(path: Path) -> None:
    ShareComputationTrees(2)(make_graphs()).save(path)


def load_trees(path: Path) -> str:
    return digest(SharedTrees.load(path).to_dict())


def write_old_trees(path: Path) -> None:
    torch.save(ShareComputationTrees(2)(make_graphs()).to_dict(), path)


def resume(path: Path) -> str:
    """Run a search, or return its ticket from the file of its end."""
    torch.manual_seed(0)
    ticket = prune(GCN(5, 8, 2, 3), graph(), checkpoint=path)
    return digest({**vars(ticket), 'seconds': None})


def write_condensed(path: Path) -> None:
    with tempfile.TemporaryDirectory() as root:
        MirageCondense(2, num_graphs=4)(make_graphs(), root)
        (cached,) = Path(root).iterdir()
        path.write_bytes(cached.read_bytes())


def load_cache(path: Path) -> str:
    out, report = load_condensed(path)
    return digest(condensed_dict(out), report)


KINDS: Dict[str, Kind] = {
    'ticket': Kind(lambda path: make_ticket().save(path), load_ticket),
    'final ticket': Kind(
        lambda path: make_ticket().save(path, weights='final'), load_ticket
    ),
    'shared trees': Kind(write_trees, load_trees),
    'checkpoint': Kind(resume, resume),
    'condensed': Kind(write_condensed, load_cache),
    'ticket of 0.1': Kind(write_old_ticket, load_ticket),
    'shared trees of 0.1': Kind(write_old_trees, load_trees),
}


def flip(content: bytes, rng: random.Random) -> bytes:
    """Flip a bit."""
    out, position = bytearray(content), rng.randrange(8 * len(content))
    out[position // 8] ^= 1 << position % 8
    return bytes(out)


def truncate(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.randrange(len(content))]


def append(content: bytes, rng: random.Random) -> bytes:
    return content + rng.randbytes(rng.randint(1, 200))


def swap(content: bytes, rng: random.Random) -> bytes:
    """Swap two blocks of equal size."""
    size = rng.choice([16, 64, 256])
    first, second = sorted(rng.sample(range(len(content) // size), 2))
    a, b = size * first, size * second
    parts = [content[:a], content[b : b + size], content[a + size : b]]
    return b''.join([*parts, content[a : a + size], content[b + size :]])


DAMAGES = [flip, truncate, append, swap]


def try_load(kind: Kind, path: Path, expected: str) -> str:
    """Return the outcome of loading a file."""
    try:
        found = kind.load(path)
    except ValueError:
        return 'refused'
    except Exception as error:
        return f'other exception {type(error).__name__}'
    return 'loaded equal' if found == expected else 'SILENTLY WRONG'


def damage(
    kind: Kind, path: Path, contents: Iterator[bytes]
) -> Dict[str, int]:
    """Count the outcomes of loading damaged contents of a file."""
    original, expected = path.read_bytes(), kind.load(path)
    counts = dict.fromkeys(OUTCOMES, 0)
    for content in contents:
        path.write_bytes(content)
        outcome = try_load(kind, path, expected)
        counts[next(x for x in OUTCOMES if outcome.startswith(x))] += 1
    path.write_bytes(original)
    return counts


def kill_writers(
    folder: Path, cases: int, rng: random.Random
) -> Dict[str, int]:
    """Kill processes that replace a file, after a random time each."""
    path = folder / 'killed.pt'
    tickets = []
    for value in [0.0, 1.0]:
        state = {'weight': torch.full((1000, 1000), value)}
        mask = {'weight': torch.ones(1000, 1000, dtype=torch.bool)}
        tickets.append(
            Ticket(mask, None, state, state, {}, {}, {}, (0, 0), state)
        )
    expected = [digest(vars(ticket)) for ticket in tickets]
    tickets[0].save(path)
    counts = dict.fromkeys(['killed in a save', 'broken', 'leftovers'], 0)
    for _ in range(cases):
        kill_writer(path, tickets, rng.uniform(0, 0.1))
        kind = Kind(path.touch, load_ticket)
        if 'loaded equal' not in [try_load(kind, path, x) for x in expected]:
            counts['broken'] += 1
        abandoned = [x for x in folder.iterdir() if x.name[0] == '.']
        counts['killed in a save'] += len(abandoned)
        for file in abandoned:  # Younger files may have a live writer.
            os.utime(file, (time.time() - 7200, time.time() - 7200))
        tickets[0].save(path)
        counts['leftovers'] += len(list(folder.glob('.*')))
    return counts


def kill_writer(path: Path, tickets: list, seconds: float) -> None:
    """Kill a process that saves tickets in turns."""
    pid = os.fork()
    if pid == 0:
        while True:
            for ticket in tickets:
                ticket.save(path)
    time.sleep(seconds)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def main(argv: Optional[list] = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        '--cases', type=int, default=2000, help='files of each campaign'
    )
    parser.add_argument(
        '--kills', type=int, default=200, help='writers to kill'
    )
    parser.add_argument('--seed', type=int, default=0, help='random seed')
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    warnings.filterwarnings('ignore', 'Trees of depth')
    failures = 0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'file.pt'
        for name, kind in KINDS.items():
            kind.write(path)
            content = path.read_bytes()
            for method in DAMAGES:
                rng = random.Random(f'{args.seed} {name} {method.__name__}')
                contents = (method(content, rng) for _ in range(args.cases))
                counts = damage(kind, path, contents)
                failures += counts['SILENTLY WRONG']
                failures += counts['other exception']
                text = ', '.join(f'{x} {key}' for key, x in counts.items())
                campaign = f'{name}, {method.__name__}'
                print(f'{campaign}: {args.cases} cases, {text}', flush=True)
            path.unlink()
        counts = kill_writers(
            Path(folder), args.kills, random.Random(args.seed)
        )
        failures += counts['broken'] + counts['leftovers']
        text = ', '.join(f'{x} {key}' for key, x in counts.items())
        print(f'killed writers: {args.kills} kills, {text}')
    sys.exit(failures > 0)


if __name__ == '__main__':
    main()
