"""Assert the rules of the package's layout, by parsing its source."""

import ast
import re
from pathlib import Path
from typing import Dict, Iterator, List, Set, Tuple

import pytest
import torch

REPOSITORY = Path(__file__).parents[1]
PACKAGE = 'torch_geometric_ext'
SCRIPTS = ['benchmark', 'docs/tutorials', 'examples']

# Each room, and the rooms or modules that it may import. All import `typing`
# and `version`.
ALLOWED = {
    '': ['*'],
    'data': ['ops'],
    'datasets': ['data'],
    'full_batch': ['data', 'nn', 'ops'],
    'loader': ['data', 'nn.prototypes', 'ops'],
    'lottery': [
        'data',
        'full_batch',
        'nn',
        'ops',
        'sparsity',
        'utils.mac_counter',
        'utils.macs',
    ],
    'nn': ['ops'],
    'ops': [],
    'sparsity': ['nn', 'ops'],
    'transforms': ['data', 'ops'],
    'typing': [],
    'utils': ['nn', 'ops'],
    'version': [],
}
# `utils` re-exports the lottery:
EXCEPTIONS = {('utils', 'lottery')}


MAX_LINES = 400  # Of a module.
MAX_FUNCTION_LINES = 60  # Of a function, with its docstring.
MAX_LONG_FUNCTIONS = 0.01  # Fraction of functions that may be longer.
VAGUE_OPENERS = ['all', 'how', 'it', 'that', 'those', 'what', 'where']
VAGUE_OPENERS += ['whether', 'which']
# Private names of PyTorch and of named tuples may be used:
FOREIGN = {*dir(torch.Tensor), *vars(torch.nn.Module())}
FOREIGN |= {'_asdict', '_field_defaults', '_fields', '_make', '_replace'}
FOREIGN |= {'_C', '_are_functorch_transforms_active', '_current_level'}


def find_files(*folders: str) -> Dict[str, Path]:
    """Return all Python files of some folders by their dotted names."""
    files = {}
    for folder in folders:
        for path in sorted((REPOSITORY / folder).rglob('*.py')):
            name = path.relative_to(REPOSITORY).with_suffix('')
            parts = [x for x in name.parts if x != '__init__']
            files['.'.join(parts)] = path
    return files


def parse(*folders: str) -> Dict[str, ast.Module]:
    """Return the syntax trees of all Python files of some folders."""
    files = find_files(*folders).items()
    return {name: ast.parse(path.read_text()) for name, path in files}


def get_local(name: str) -> str:
    """Return the name of a module within the package."""
    return name[len(PACKAGE) + 1 :]


def get_room(name: str) -> str:
    """Return the top-level package or module that a module belongs to."""
    return get_local(name).split('.')[0]


MODULES = parse(PACKAGE)
PACKAGES = {
    '.'.join(path.parent.relative_to(REPOSITORY).parts)
    for path in (REPOSITORY / PACKAGE).rglob('__init__.py')
}


def find_imports(
    name: str, tree: ast.Module
) -> Iterator[Tuple[str, str, str]]:
    """Yield the module, name and alias of each import of the package, also
    within functions.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split('.')[0] == PACKAGE:
                    yield alias.name, '', alias.asname or PACKAGE
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ''
            if node.level > 0:
                parts = name.split('.')
                level = node.level - (name in PACKAGES)
                parts = parts[: len(parts) - level]
                module = '.'.join([*parts, *filter(None, [module])])
            if module.split('.')[0] != PACKAGE:
                continue
            for alias in node.names:
                local = alias.asname or alias.name
                if f'{module}.{alias.name}' in MODULES:
                    yield f'{module}.{alias.name}', '', local
                else:
                    yield module, alias.name, local


IMPORTS = {
    name: {module for module, _, _ in find_imports(name, tree)} - {name}
    for name, tree in MODULES.items()
}


def test_modules_are_found() -> None:
    rooms = {get_room(name) for name in MODULES}
    assert rooms == set(ALLOWED)
    assert f'{PACKAGE}.nn.dense' in IMPORTS[f'{PACKAGE}.nn']
    assert f'{PACKAGE}.nn' in IMPORTS[f'{PACKAGE}.sparsity.rigl']


@pytest.mark.parametrize('room', list(ALLOWED))
def test_rooms_import_allowed_rooms_only(room: str) -> None:
    allowed = {*ALLOWED[room], room, 'typing', 'version'}
    known = EXCEPTIONS
    wrong = []
    for name in MODULES:
        for target in IMPORTS[name] if get_room(name) == room else []:
            if (get_local(name), get_local(target)) in known:
                continue
            if not {'*', get_room(target), get_local(target)} & allowed:
                wrong.append(f'{name} imports {target}')
    assert wrong == []


def test_no_import_cycle() -> None:
    remaining = dict(IMPORTS)
    while True:  # Remove modules that import no remaining module.
        names = set(remaining)
        leaves = {name for name in names if not remaining[name] & names}
        if not leaves:
            break
        remaining = {x: remaining[x] for x in names - leaves}
    assert sorted(remaining) == []  # Modules on or above a cycle.


def find_callers() -> Set[str]:
    """Return the modules outside of `ops` that may call an operator: they
    import one, or read whether there are kernels.
    """
    ops = {name for name in MODULES if get_room(name) == 'ops'}
    operators = {f'{PACKAGE}.typing', f'{PACKAGE}.ops.register'}
    while True:  # Add modules that import an operator.
        more = {x for x in ops - operators if IMPORTS[x] & operators}
        if not more:
            break
        operators |= more
    return {
        name
        for name in set(MODULES) - ops - {PACKAGE}
        if IMPORTS[name] & operators
    }


def find_tests(name: str) -> Set[str]:
    """Return the test file of a module. Without one, those of the modules
    that import the module.
    """
    *packages, module = get_local(name).split('.')
    path = '/'.join(['test', *packages, f'test_{module}.py'])
    if (REPOSITORY / path).exists():
        return {path}
    importers = [x for x in MODULES if name in IMPORTS[x]]
    return {path for x in importers for path in find_tests(x)}


def test_callers_of_operators_run_without_kernels() -> None:
    makefile = (REPOSITORY / 'Makefile').read_text()
    match = re.search(r'^FALLBACK_TESTS :=((?:.*\\\n)*.*)', makefile, re.M)
    assert match is not None
    listed = match[1].replace('\\', ' ').split()
    assert [x for x in listed if not (REPOSITORY / x).exists()] == []
    listed = [f'{x}/' for x in listed]

    callers = find_callers()
    assert f'{PACKAGE}.loader.paper_draw' in callers
    assert f'{PACKAGE}.loader.draw' not in callers
    missing = {
        name: sorted(find_tests(name))
        for name in callers
        if not any(
            f'{x}/'.startswith(y) for x in find_tests(name) for y in listed
        )
    }
    assert missing == {}


def test_each_kernel_is_compiled_once() -> None:
    csrc = REPOSITORY / PACKAGE / 'csrc'
    setup = (REPOSITORY / 'setup.py').read_text()
    patterns = re.findall(r"find\('(\w+/.+?\.cpp)'\)", setup)
    compiled = [path for x in patterns for path in csrc.glob(x)]
    for unit in csrc.glob('units/*.cpp'):
        names = re.findall(r'^#include "(.+\.cpp)"$', unit.read_text(), re.M)
        compiled += [(unit.parent / name).resolve() for name in names]
    assert sorted(compiled) == sorted(csrc.rglob('*.cpp'))


def is_private(name: str) -> bool:
    return name.startswith('_') and not name.startswith('__')


def find_definitions(tree: ast.Module) -> Set[str]:
    """Return the private names that a module defines: functions, classes,
    variables and attributes of `self`.
    """
    names: Set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif (
            isinstance(node, ast.Attribute)
            and isinstance(node.ctx, ast.Store)
            and is_self(node.value)
        ):
            names.add(node.attr)
    return {name for name in names if is_private(name)}


def is_self(node: ast.expr) -> bool:
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name) and node.func.id == 'super'
    return isinstance(node, ast.Name) and node.id in ['self', 'cls']


DEFINITIONS = {name: find_definitions(tree) for name, tree in MODULES.items()}


def find_private_uses(name: str, tree: ast.Module) -> Iterator[str]:
    """Yield the uses of private names of other modules of the package.

    A class may use the private names of its base classes.
    """
    origins = {}
    for module, imported, local in find_imports(name, tree):
        origins[local] = module
        private = [x for x in module.split('.') if is_private(x)]
        if private or is_private(imported):
            yield f'{name} imports {imported} of {module}'
    inherited = {name}
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            bases = [x.id for x in node.bases if isinstance(x, ast.Name)]
            inherited |= {origins[x] for x in bases if x in origins}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute) or not is_private(node.attr):
            continue
        if node.attr in FOREIGN or is_self(node.value):
            continue
        root = node.value
        while isinstance(root, ast.Attribute):
            root = root.value
        of_import = isinstance(root, ast.Name) and root.id in origins
        owners = {x for x, names in DEFINITIONS.items() if node.attr in names}
        if of_import or (owners and not owners & inherited):
            yield f'{name} uses {ast.unparse(node)} (line {node.lineno})'


def test_no_private_name_of_another_module() -> None:
    wrong: List[str] = []
    for name, tree in {**MODULES, **parse(*SCRIPTS)}.items():
        wrong += find_private_uses(name, tree)
    assert wrong == []


def test_private_uses_are_found() -> None:
    source = """
import torch_geometric_ext.nn.dense.pattern as pattern
from torch_geometric_ext.loader.dynamic_sampler import DynamicSampler
from torch_geometric_ext.loader.gder_sampler import _standardize
class Sampler(DynamicSampler):
    def update(self, data, sampler):
        return self._record, data._data, sampler._generator
def update(sampler):
    pattern._pointer, DynamicSampler._plan, sampler._enter_fused
"""
    uses = list(find_private_uses('script', ast.parse(source)))
    assert uses == [
        f'script imports _standardize of {PACKAGE}.loader.gder_sampler',
        'script uses pattern._pointer (line 9)',
        'script uses DynamicSampler._plan (line 9)',
        'script uses sampler._enter_fused (line 9)',
    ]


def test_modules_are_short() -> None:
    for name, path in find_files(PACKAGE).items():
        assert len(path.read_text().splitlines()) <= MAX_LINES, name


def test_functions_are_short() -> None:
    functions = [
        (f'{get_local(name)}.{node.name}', node)
        for name, tree in MODULES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
    ]
    long = [
        name
        for name, node in functions
        if (node.end_lineno or 0) - node.lineno >= MAX_FUNCTION_LINES
    ]
    assert len(long) <= MAX_LONG_FUNCTIONS * len(functions), long


def find_public(name: str, tree: ast.AST) -> Iterator[Tuple[str, ast.AST]]:
    """Yield a module and its public classes, methods and functions."""
    yield name, tree
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            if not node.name.startswith('_'):
                yield from find_public(f'{name}.{node.name}', node)


def test_docstrings_open_with_a_verb_or_term() -> None:
    wrong = []
    for name, tree in MODULES.items():
        for public, node in find_public(name, tree):
            docstring = ast.get_docstring(node)  # type: ignore[arg-type]
            word = f'{docstring} '.split()[0].strip(',.:').lower()
            if word in VAGUE_OPENERS:
                wrong.append(f'{public}: {docstring}')
    assert wrong == []
