"""Write a page for each public class and function, and tables of them."""

import importlib
import inspect
from pathlib import Path
from typing import Iterable

import torch_geometric_ext

PACKAGE = torch_geometric_ext.__name__
ROOMS = [x for x in torch_geometric_ext.__all__ if not x.startswith('_')]
ROOMS += ['ops']
FOLDER = 'generated'


def list_names(room: str) -> dict:
    """Return the public objects of a subpackage by their names."""
    module = importlib.import_module(f'{PACKAGE}.{room}')
    return {name: getattr(module, name) for name in module.__all__}


def is_own(room: str, obj: object) -> bool:
    """Return whether an object is defined in a subpackage, or re-exported."""
    return obj.__module__.startswith(f'{PACKAGE}.{room}.')


def make_page(room: str, name: str, obj: object) -> str:
    """Return the page of a class or function."""
    module = f'{PACKAGE}.{room}'
    lines = [name, '=' * len(name), '']
    lines += [f'Import from :doc:`{module} </modules/{room}>`.', '']
    lines += [f'.. currentmodule:: {module}']
    if not inspect.isclass(obj):
        return '\n'.join([*lines, '', f'.. autofunction:: {name}', ''])
    lines += ['', f'.. autoclass:: {name}', '   :members:']
    if room == 'transforms':  # PyG's transforms are called.
        lines += [
            '   :special-members: __call__',
            '   :exclude-members: forward',
        ]
    if obj.__bases__ != (object,):
        lines += ['   :show-inheritance:']
    return '\n'.join([*lines, ''])


def write_pages(source: Path) -> None:
    """Write the pages of all public names, and remove others."""
    pages = {
        f'{PACKAGE}.{room}.{name}.rst': make_page(room, name, obj)
        for room in ROOMS
        for name, obj in list_names(room).items()
        if is_own(room, obj)
    }
    folder = source / FOLDER
    folder.mkdir(exist_ok=True)
    for path in folder.glob('*.rst'):
        if path.name not in pages:
            path.unlink()
    for name, page in pages.items():
        path = folder / name
        # An unchanged file is not read again.
        if not path.exists() or path.read_text() != page:
            path.write_text(page)


def make_table(room: str, *names: str) -> str:
    """Return a table of names of a subpackage with their first sentences.

    By default, it lists all public names that the subpackage defines.
    """
    if len(names) == 0:
        public = list_names(room).items()
        names = tuple(name for name, obj in public if is_own(room, obj))
    return _make_table(room, names, f'   :toctree: ../{FOLDER}')


def make_links(room: str) -> str:
    """Return a table of the names that a subpackage re-exports."""
    names = [
        f'~{PACKAGE}.{obj.__module__.split(".")[1]}.{name}'
        for name, obj in list_names(room).items()
        if not is_own(room, obj)
    ]
    return _make_table(room, names)


def _make_table(room: str, names: Iterable[str], *options: str) -> str:
    lines = [f'.. currentmodule:: {PACKAGE}.{room}', '', '.. autosummary::']
    lines += ['   :nosignatures:', *options, '']
    return '\n'.join([*lines, *(f'   {name}' for name in names), ''])
