"""Draw the figures and fill the pages of `benchmarks/` from results files.

A page `benchmarks/<name>.rst` is a Jinja template. The function `content()`
of the module `figures.<name>` returns its variables: numbers, tables and
figures, all computed from `benchmark/results/`. The overview `benchmarks.rst`
reads the variables of all pages.
"""

import re
from importlib import import_module
from pathlib import Path
from typing import Any, Dict, List

from jinja2 import Environment, StrictUndefined

from figures.records import RESULTS

STRICT = Environment(undefined=StrictUndefined)

PAGES = [
    'fewer_graphs',
    'shared_trees',
    'condensing',
    'sparse_layers',
    'sparse_training',
    'full_batch',
    'lottery',
    'scale',
]


def variables(page: str) -> Dict[str, Any]:
    """Return the variables of a page, or those of all pages by name."""
    if page == 'benchmarks':
        return {name: content(name) for name in PAGES}
    return content(page.split('/')[1])


def content(name: str) -> Dict[str, Any]:
    """Return the variables of a page, whose figures have one style."""
    page = import_module('figures.page')
    with page.plt.rc_context(page.STYLE):
        return import_module(f'figures.{name}').content()


def render(app: Any, page: str, source: List[str]) -> None:
    """Fill the template of a page."""
    if page.split('/')[0] == 'benchmarks':
        template = STRICT.from_string(source[0])
        text = template.render(variables(page))
        source[0] = re.sub(r'(?<=\d) %', '\u00a0%', text)  # Do not wrap.
        code = Path(__file__).parent.glob('*.py')
        for path in [*RESULTS.rglob('*.jsonl'), *code]:
            app.env.note_dependency(str(path))


def setup(app: Any) -> Dict[str, bool]:
    """Register the templates with Sphinx."""
    app.connect('source-read', render)
    return {'parallel_read_safe': True}
