"""Check an installed wheel: kernels load and equal their reference.

Run it outside of the repository, whose files come first otherwise.
"""

from pathlib import Path

import torch

import torch_geometric_ext
import torch_geometric_ext.typing
from torch_geometric_ext.loader import SoftRandomSampler
from torch_geometric_ext.ops import unique_rows
from torch_geometric_ext.ops.unique_rows import unique_rows_reference

REPOSITORY = Path(__file__).parents[1]


def main() -> None:
    installed = Path(torch_geometric_ext.__file__)
    if installed.parents[1] == REPOSITORY:
        raise SystemExit(f"'{installed}' is no installed wheel")
    if not torch_geometric_ext.typing.WITH_EXT:
        raise SystemExit('the kernels do not load')

    torch.manual_seed(0)
    x = torch.randint(3, (1000, 4))
    for out, expected in zip(unique_rows(x), unique_rows_reference(x)):
        torch.testing.assert_close(out, expected, rtol=0, atol=0)

    sampler = SoftRandomSampler(100, keep_ratio=0.3, num_epochs=2)
    for epoch in [list(sampler), list(sampler)]:
        if len(set(epoch)) != 30 or not set(epoch) <= set(range(100)):
            raise SystemExit(f'the sampler drew {epoch}')
    print(f'{installed.parent} works with PyTorch {torch.__version__}')


if __name__ == '__main__':
    main()
