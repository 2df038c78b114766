"""Render formulas as MathML in the build, so that pages need no network."""

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.util import logging

logger = logging.getLogger(__name__)
CORRECTIONS = {
    r'\_': '_',  # Escapes in text are converted as they are.
    # Fonts without variants of a prime for formulas draw it too small.
    '<mi>&#x02032;</mi>': '<mo class="prime">&#x02032;</mo>',
}


def to_mathml(node: nodes.math | nodes.math_block, display: str) -> str:
    """Convert a formula, and correct what the converter does not."""
    formula = convert(node.astext(), display=display)
    for old, new in CORRECTIONS.items():
        formula = formula.replace(old, new)
    if '\\' in formula:
        logger.warning('unknown command: %s', node.astext(), location=node)
    return formula


def visit_math(self, node: nodes.math) -> None:
    self.body.append(to_mathml(node, 'inline'))
    raise nodes.SkipNode


def visit_displaymath(self, node: nodes.math_block) -> None:
    self.body.append(f'<div class="math">{to_mathml(node, "block")}</div>')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict:
    app.add_html_math_renderer(
        'mathml', (visit_math, None), (visit_displaymath, None)
    )
    return {'parallel_read_safe': True, 'parallel_write_safe': True}
