"""Count how many small faults of a module its tests find.

    python test/mutants/run.py ops check_exact loader/draw.py --sample 50

Each mutant is the module with one fault. Mutants are drawn with a seed, and
run in a copy of the package, each in a fork of a process that has imported
PyTorch: a new process for each would take longer than most tests. A mutant is
killed if a test fails or exceeds its time. Survivors are printed in the format
of `equivalent.txt`, which lists mutants that do not count: they change no
result, or only one on CUDA or with an optional dependency.
"""

import argparse
import importlib.util
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import hypothesis
import pytest
from mutate import find_mutants
from tests import GROUPS, SLOW, find_tests

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGE = Path('torch_geometric_ext')
KNOWN = Path(__file__).with_name('equivalent.txt')
IMPORTS = ['numpy', 'scipy.optimize', 'scipy.sparse', 'torch._dynamo']
IMPORTS += ['torch_geometric.datasets', 'torch_geometric.loader']
IMPORTS += ['torch_geometric.nn', 'torch_geometric.testing']


def copy_repository(folder):
    """Mutants change a copy, which needs the kernels, too."""
    for name in [PACKAGE, 'test', 'docs', 'examples', 'benchmark']:
        skip = shutil.ignore_patterns('__pycache__', 'build', 'csrc')
        shutil.copytree(REPOSITORY / name, folder / name, ignore=skip)
    shutil.copy(REPOSITORY / 'pyproject.toml', folder)
    os.environ.update(PYTHONPATH=str(folder), OMP_NUM_THREADS='1')
    os.environ.setdefault('TEST_DATA', str(REPOSITORY.parent / 'shared/data'))
    sys.path.insert(0, str(folder))


def run_tests(tests, folder):
    """Run in a fork, up to the first failure."""
    os.setsid()
    os.chdir(folder)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1), os.dup2(null, 2)
    args = ['-x', '-q', '-p', 'no:cacheprovider', '-k', SLOW]
    args += ['--hypothesis-profile=mutants', *tests]
    os._exit(0 if pytest.main(args) == pytest.ExitCode.OK else 1)


def passes(tests, folder, timeout):
    pid = os.fork()
    if pid == 0:
        run_tests(tests, folder)
    end = time.monotonic() + timeout
    done, status = 0, 1
    try:
        while done == 0 and time.monotonic() < end:
            time.sleep(0.02)
            done, status = os.waitpid(pid, os.WNOHANG)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)  # Also what tests have started.
    if done == 0:
        os.waitpid(pid, 0)
    return done > 0 and status == 0


def draw(modules, sample, rng):
    """Draw among the mutants of all modules, and sort them by module."""
    found = []
    for module in modules:
        source = (REPOSITORY / PACKAGE / module).read_text()
        found += [(module, mutant) for mutant in find_mutants(source)]
    return sorted(rng.sample(found, min(sample, len(found))))


def run_group(name, folder, args):
    """Run the mutants of a group of modules, and print its score."""
    package = REPOSITORY / PACKAGE
    modules = [
        str(path.relative_to(package))
        for pattern in GROUPS.get(name, [name])
        for path in sorted(package.glob(pattern))
    ]
    assert modules, f"no module matches '{name}'"
    known = KNOWN.read_text().splitlines()
    counts = {'killed': 0, 'survived': 0, 'equivalent': 0}
    times = {}
    for module, mutant in draw(modules, args.sample, random.Random(args.seed)):
        path, tests = folder / PACKAGE / module, find_tests(module)
        if module not in times:
            start = time.monotonic()
            assert passes(tests, folder, 600), f'{module}: {tests} fail'
            times[module] = time.monotonic() - start
            Path(importlib.util.cache_from_source(str(path))).unlink(True)
        source = path.read_text()
        text = f'{module} :: {mutant.describe(source)}'
        path.write_text(mutant.apply(source))
        killed = not passes(tests, folder, 5 * times[module] + 10)
        path.write_text(source)
        result = 'killed' if killed else 'survived'
        if not killed and any(x.startswith(f'{text} ::') for x in known):
            result = 'equivalent'
        counts[result] += 1
        if args.verbose or result == 'survived':
            print(f'{result} :: {text} (line {mutant.line})', flush=True)
    killed, survived = counts['killed'], counts['survived']
    score = killed / max(killed + survived, 1)
    print(f'{name}: {counts}, score {score:.0%}', flush=True)
    return score


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('modules', nargs='*', default=list(GROUPS))
    parser.add_argument('--sample', type=int, default=50)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--verbose', action='store_true')
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # Clean up.
    with tempfile.TemporaryDirectory() as folder:
        copy_repository(Path(folder))
        for name in IMPORTS:
            importlib.import_module(name)
        hypothesis.settings.register_profile(
            'mutants',
            derandomize=True,
            deadline=None,
            max_examples=20,
            database=None,
        )
        for name in args.modules or GROUPS:
            run_group(name, Path(folder), args)


if __name__ == '__main__':
    main()
