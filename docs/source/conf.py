import datetime
import sys
import zlib
from pathlib import Path

from sphinx.application import Sphinx

import torch_geometric_ext

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from api_pages import make_links, make_table, write_pages  # noqa: E402
from flow_chart import draw_flow_chart  # noqa: E402

project = 'torch_geometric_ext'
author = 'the torch_geometric_ext authors'
copyright = f'{datetime.date.today().year}, {author}'
version = release = torch_geometric_ext.__version__

extensions = [
    'sphinx.ext.autodoc',
    'sphinx.ext.autosummary',
    'sphinx.ext.intersphinx',
    'sphinx.ext.napoleon',
    'sphinx.ext.viewcode',
    'sphinx_gallery.gen_gallery',
    'figures',
    'mathml',
]
html_theme = 'furo'
html_title = f'{project} {version}'
html_static_path = ['_static']
html_css_files = ['custom.css']
html_math_renderer = 'mathml'
add_module_names = False
autosummary_generate = False  # `write_pages` does.
autodoc_member_order = 'bysource'
autodoc_typehints = 'none'
napoleon_custom_sections = ['Shapes']

sphinx_gallery_conf = {
    'examples_dirs': '../tutorials',
    'gallery_dirs': 'tutorials',
    'within_subsection_order': 'gallery.TutorialOrder',
    'download_all_examples': False,
    'show_signature': False,
    'write_computation_times': False,
    'min_reported_time': 86_400,  # Times differ by machine.
    'reset_modules': ('matplotlib', 'gallery.silence_datasets'),
    'abort_on_example_error': True,
}

# Without network, names resolve by the short lists below.
intersphinx_timeout = 5
LINKS = {
    'python': (
        'https://docs.python.org/3',
        {
            'ImportError': 'library/exceptions.html#ImportError',
            'IndexError': 'library/exceptions.html#IndexError',
            'TypeError': 'library/exceptions.html#TypeError',
            'ValueError': 'library/exceptions.html#ValueError',
        },
    ),
    'torch': (
        'https://docs.pytorch.org/docs/stable',
        {
            'torch.Generator': 'generated/torch.Generator.html',
            'torch.Tensor': 'tensors.html',
            'torch.nn.Module': 'generated/torch.nn.Module.html',
            'torch.nn.parallel.DistributedDataParallel': (
                'generated/torch.nn.parallel.DistributedDataParallel.html'
            ),
            'torch.utils.data.Subset': 'data.html',
        },
    ),
    'torch_geometric': (
        'https://pytorch-geometric.readthedocs.io/en/latest',
        {
            'torch_geometric.data.Data': (
                'generated/torch_geometric.data.Data.html'
            ),
            'torch_geometric.data.Dataset': (
                'generated/torch_geometric.data.Dataset.html'
            ),
            'torch_geometric.loader.DataLoader': 'modules/loader.html',
        },
    ),
}


def write_inventory(name: str) -> str:
    """Writes the links of a project as an inventory, version 2."""
    lines = ''.join(
        f'{target} py:class 1 {uri} -\n'
        for target, uri in LINKS[name][1].items()
    )
    path = HERE.parent / 'build' / f'{name}.inv'
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(
        f'# Sphinx inventory version 2\n# Project: {name}\n# Version: \n'
        f'# The remainder of this file is compressed using zlib.\n'.encode()
        + zlib.compress(lines.encode())
    )
    return str(path)


intersphinx_mapping = {
    name: (url, (None, write_inventory(name)))
    for name, (url, _) in LINKS.items()
}


def exists(path: str) -> bool:
    """Return whether a file exists in the sources, as figures may not."""
    return (HERE / path).exists()


def render(app: Sphinx, name: str, source: list) -> None:
    """Fill in tables of public names, and figures that are drawn."""
    if name in ('index', 'doors') or name.startswith('modules/'):
        context = {
            'exists': exists,
            'flow_chart': draw_flow_chart,
            'links': make_links,
            'table': make_table,
        }
        source[0] = app.builder.templates.render_string(source[0], context)


def setup(app: Sphinx) -> None:
    write_pages(HERE)
    app.connect('source-read', render)
