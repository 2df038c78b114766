"""Measure training steps on sparse features, such as bags of words.

A step is the forward pass, the backward pass and Adam, of a GCN with two
layers on the full graph, whose edges are a matrix in CSR format and normalized
once. Each combination of a weight and a format of the
features runs in turn, in one process:

* dense weights and dense features,
* dense weights and features in CSR format, by hand: the product and the
  gradient are those of PyTorch, and the transposed features are kept as a
  second CSR matrix ("whole") or as one for each 2,048 rows ("blocks"),
* a narrow dense GCN with as many weights as the sparse ones, and CSR features
  in blocks,
* `SparseLinear` with dense features, and with features in CSR format,
* RigL with features in CSR format. An update every 100 steps is included.

Prints the median CPU time of a step in milliseconds, and how many times as
fast it is as the faster step with dense weights and CSR features.

Then prints the CPU time of a product alone (forward and backward, the fastest
of some runs) over densities of features and sparsities of weights, which is
the base of the choice between them: zeros of weights are skipped
(`sparse_linear`), zeros of features (`CSR x dense`), or both
(`csr_sparse_linear`).
"""

import argparse
import statistics
import time
import warnings
from typing import Any, Callable, Dict, List, Tuple, Type

import torch
import torch.nn.functional as F
import torch_geometric.transforms as T
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.datasets import Coauthor, Planetoid
from torch_geometric.nn import GCN

from torch_geometric_ext.full_batch.sparse_input import SparseInput
from torch_geometric_ext.nn import SparseLinear, sparsify
from torch_geometric_ext.ops.machine import cpu_model
from torch_geometric_ext.sparsity import RigL

SIZES = [(2708, 1433, 16), (2708, 1433, 512), (19717, 500, 64)]
SIZES += [(19717, 500, 512), (8000, 4000, 256)]
UPDATE_EVERY = 100  # The default of the schedulers.


class WholeProduct(torch.autograd.Function):
    """Multiply by the features, and by their transpose for the gradient."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, x: Tensor, x_t: Tensor) -> Tensor:
        ctx.x_t = x_t
        return x @ weight

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return ctx.x_t @ grad, None, None


class HandLinear(torch.nn.Module):
    """A dense layer whose input is always the features of a graph."""

    def __init__(self, linear: Any, inputs: SparseInput, whole: bool) -> None:
        super().__init__()
        self.weight, self.inputs, self.whole = linear.weight, inputs, whole
        self.x_t = inputs.x.t().contiguous().to_sparse_csr()

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight.t()
        if self.whole:
            out: Tensor = WholeProduct.apply(
                weight, self.inputs.rows, self.x_t
            )
            return out
        return self.inputs.matmul(weight)


class Step:
    """A training step of a model, timed at each call."""

    def __init__(self, model: GCN, x: Tensor, data: Data) -> None:
        self.model, self.x, self.data = model, x, data
        self.optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        self.times: List[float] = []

    def __call__(self) -> None:
        start = time.process_time()
        self.run()
        self.times.append(1000 * (time.process_time() - start))

    def run(self) -> None:
        self.optimizer.zero_grad()
        out = self.model(self.x, self.data.adj_t)
        F.cross_entropy(out, self.data.y).backward()
        self.optimizer.step()

    def median(self) -> float:
        return statistics.median(self.times[1:])  # The first one warms up.


class RigLStep(Step):
    """A step with RigL, where each second one moves weights."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.scheduler = RigL(
            self.model, self.optimizer, num_steps=1000, update_every=2
        )

    def run(self) -> None:
        super().run()
        self.scheduler.step()

    def median(self) -> float:
        update = statistics.median(self.times[1::2])
        plain = statistics.median(self.times[2::2])
        return plain + (update - plain) / UPDATE_EVERY


def build_steps(
    data: Data, hidden: int, densities: List[float], with_dense: bool
) -> Dict[str, Step]:
    inputs = SparseInput(data.x)
    num_classes = int(data.y.max()) + 1

    def gcn(hidden: int) -> GCN:
        torch.manual_seed(0)
        return GCN(data.num_features, hidden, 2, num_classes, cached=True)

    def by_hand(hidden: int, whole: bool) -> Step:
        model = gcn(hidden)
        model.convs[0].lin = HandLinear(model.convs[0].lin, inputs, whole)
        return Step(model, data.x, data)

    steps = {}
    if with_dense:
        steps['dense weights, dense features'] = Step(
            gcn(hidden), data.x, data
        )
    steps['dense weights, CSR features (whole)'] = by_hand(hidden, True)
    steps['dense weights, CSR features (blocks)'] = by_hand(hidden, False)
    for density in densities:
        name = f'{1 - density:.0%}:'
        narrow = max(round(density * hidden), 1)
        steps[f'{name} narrow, CSR features'] = by_hand(narrow, False)
        kinds: List[Tuple[str, Type[Step], Tensor]] = [
            ('SparseLinear, dense features', Step, data.x),
            ('SparseLinear, CSR features', Step, inputs.rows),
            ('RigL, CSR features', RigLStep, inputs.rows),
        ]
        for kind, cls, x in kinds:
            model = sparsify(gcn(hidden), 1 - density, 'uniform')
            steps[f'{name} {kind}'] = cls(model, x, data)
    return steps


def measure(name: str, data: Data, args: argparse.Namespace) -> None:
    density = float(data.x.count_nonzero()) / data.x.numel()
    print(
        f'\n{name}: {data.num_nodes} nodes, {data.num_features} features, '
        f'{density:.2%} nonzero, hidden {args.hidden}'
    )
    steps = build_steps(data, args.hidden, args.densities, not args.fast)
    for _ in range(1 + args.num_rounds):
        for step in steps.values():
            step()
    rival = min(
        step.median()
        for key, step in steps.items()
        if key.startswith('dense weights, CSR')
    )
    print(f'{"step":<40}{"ms":>8}{"ratio":>8}')
    for key, step in steps.items():
        cells = f'{step.median():8.1f}{rival / step.median():8.2f}'
        print(f'{key:<40}{cells}', flush=True)


def products(num_rounds: int) -> None:
    names = ['sparse_linear', 'CSR x dense', 'csr_sparse_linear']
    head = ''.join(f'{x:>19}' for x in names)
    print(f'\n{"rows x features x outputs":<26}features  sparsity{head}')
    for size in SIZES:
        for density in [0.01, 0.05, 0.1]:
            x = torch.rand(size[:2])
            x = x.masked_fill(torch.rand_like(x) >= density, 0)
            inputs = SparseInput(x)
            for sparsity in [0.0, 0.5, 0.8, 0.9, 0.95, 0.99]:
                layer = SparseLinear(*size[1:], bias=False, sparsity=sparsity)
                times = fastest(product_runs(layer, inputs), num_rounds)
                cells = ''.join(f'{x:19.1f}' for x in times)
                shape = ' x '.join(map(str, size))
                print(
                    f'{shape:<26}{density:>8.0%}{sparsity:>10.0%}{cells}',
                    flush=True,
                )


def product_runs(
    layer: SparseLinear, inputs: SparseInput
) -> List[Callable[[], Tensor]]:
    return [
        lambda: layer(inputs.x),
        lambda: inputs.matmul(layer.weight.t()),
        lambda: layer(inputs.rows),
    ]


def fastest(runs: List[Callable[[], Tensor]], num_rounds: int) -> List[float]:
    times: List[List[float]] = [[] for _ in runs]
    for _ in range(num_rounds):
        for i, run in enumerate(runs):
            start = time.process_time()
            run().sum().backward()
            times[i].append(1000 * (time.process_time() - start))
    return [min(x) for x in times]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--root', default='.data')
    parser.add_argument('--hidden', type=int, default=512)
    parser.add_argument('--num_rounds', type=int, default=4)
    parser.add_argument('--num_threads', type=int, default=1)
    parser.add_argument(
        '--densities', type=float, nargs='+', default=[0.1, 0.05, 0.02, 0.01]
    )
    parser.add_argument(
        '--fast', action='store_true', help='skip dense weights and features'
    )
    parser.add_argument('--only', choices=['products', 'steps'])
    args = parser.parse_args()
    warnings.simplefilter('ignore')  # PyTorch calls CSR a beta feature.
    torch.set_num_threads(args.num_threads)
    threads = f'{args.num_threads} threads'.replace('1 threads', '1 thread')
    print(f'# {cpu_model()}, {threads}, PyTorch {torch.__version__}')
    loads: Dict[str, Callable[[], Data]] = {
        'Cora': lambda: Planetoid(f'{args.root}/Planetoid', 'Cora')[0],
        'PubMed': lambda: Planetoid(f'{args.root}/Planetoid', 'PubMed')[0],
        'Physics': lambda: Coauthor(f'{args.root}/Coauthor', 'Physics')[0],
    }
    to_matrix = T.ToSparseTensor(layout=torch.sparse_csr)
    if args.only != 'products':
        for name, load in loads.items():
            measure(name, to_matrix(load()), args)
    if args.only != 'steps':
        products(args.num_rounds)


if __name__ == '__main__':
    main()
