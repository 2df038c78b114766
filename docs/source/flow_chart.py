"""Draw the flow chart of `doors.rst` as an inline SVG with links.

Text and lines have the color of the page, so that the chart is readable in
dark mode.
"""

from typing import List, Tuple

PAGE = 'generated/torch_geometric_ext'
# The question in two or three lines, and the answers with their pages:
STEPS: List[Tuple[List[str], List[Tuple[str, str]]]] = [
    (
        [
            'Many graphs, 2–3 layers,',
            'discrete features, mini-',
            'batches of 128 or more?',
        ],
        [
            ('ShareComputationTrees', 'transforms.ShareComputationTrees'),
            ('SharedTreeLoader', 'loader.SharedTreeLoader'),
        ],
    ),
    (
        ['Many graphs: unequal', 'classes, or broken', 'features?'],
        [('GDeRSampler', 'loader.GDeRSampler')],
    ),
    (
        ['Many graphs to store, to', 'ship, or to train', 'many models on?'],
        [('MirageCondense', 'transforms.MirageCondense')],
    ),
    (
        ['Wide layers: thousands of', 'input features, or little', 'memory?'],
        [('sparsify', 'nn.sparsify'), ('RigL', 'sparsity.RigL')],
    ),
    (
        ['A trained model that', 'has too many weights?'],
        [
            ('MagnitudePruner', 'sparsity.MagnitudePruner'),
            ('ADMM', 'sparsity.ADMM'),
            ('SLR', 'sparsity.SLR'),
        ],
    ),
    (
        ['Full batches of a graph', 'that stays the same?'],
        [('accelerate', 'full_batch.accelerate')],
    ),
    (
        [
            'A small model and a small',
            'graph, as accurate as',
            'the dense model?',
        ],
        [('GraphLotteryPruner', 'lottery.GraphLotteryPruner')],
    ),
]

# Sizes are pixels of a narrow screen:
WIDTH, HEIGHT, GAP, LINE = 364, 60, 22, 16
QUESTION, ANSWER = 174, 152  # Widths of boxes.


def draw_text(lines: List[str], x: float, y: float) -> str:
    """Return centered lines of text."""
    top = y - LINE * (len(lines) - 1) / 2 + 4
    return ''.join(
        f'<text x="{x}" y="{top + LINE * i:g}">{line}</text>'
        for i, line in enumerate(lines)
    )


def draw_step(top: int, question: List[str], answers: list) -> str:
    """Return a question, its answers, and the arrows to them."""
    center, left = QUESTION / 2, WIDTH - ANSWER
    middle, bottom = top + HEIGHT // 2, top + HEIGHT
    links = [
        f'<a href="{PAGE}.{page}.html">{name}</a>' for name, page in answers
    ]
    return '\n'.join(
        [
            f'<rect x="1" y="{top}" width="{QUESTION}" height="{HEIGHT}" '
            f'rx="4"/>',
            draw_text(question, center, middle),
            f'<path d="M{QUESTION + 1} {middle}H{left - 2}" class="arrow"/>',
            f'<text x="{(QUESTION + left) / 2}" y="{middle - 6}">yes</text>',
            f'<rect x="{left}" y="{top}" width="{ANSWER - 1}" '
            f'height="{HEIGHT}" rx="30" class="answer"/>',
            draw_text(links, WIDTH - ANSWER / 2, middle),
            f'<path d="M{center} {bottom}v{GAP - 2}" class="arrow"/>',
            f'<text x="{center + 14}" y="{bottom + 14}">no</text>',
        ]
    )


def draw_flow_chart() -> str:
    """Return the directive that shows the chart."""
    step = HEIGHT + GAP
    end = step * len(STEPS) + 1
    lines = [
        f'<svg class="flow-chart" viewBox="0 0 {WIDTH} {end + 26}" role="img" '
        f'aria-label="Questions that lead to a component">',
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" '
        'markerWidth="8" markerHeight="8" orient="auto">'
        '<path d="M0 0L8 4L0 8z"/></marker></defs>',
        *(draw_step(step * i + 1, *x) for i, x in enumerate(STEPS)),
        draw_text(['PyTorch Geometric as it is'], QUESTION / 2, end + 10),
        '</svg>',
    ]
    html = '\n'.join(lines).replace('\n', '\n   ')
    return f'.. raw:: html\n\n   {html}\n'
