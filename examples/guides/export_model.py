"""Export pruned models for servers without this package.

pip install --no-build-isolation '.[export]'  # From a clone, for ONNX only.
"""

from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from torch_geometric import seed_everything
from torch_geometric.data import Data
from torch_geometric.nn import GCN

from torch_geometric_ext.datasets import DigitsKNN
from torch_geometric_ext.nn import densify, sparsify
from torch_geometric_ext.utils import GraphLotteryPruner

ROOT, FOLDER = '.data/DigitsKNN', Path('.data/export')


def make_model() -> GCN:
    return GCN(64, 256, 3, 10)


def train_sparse(data: Data) -> torch.nn.Module:
    """Train sparse weights, and return an ordinary GCN with zeros."""
    model = sparsify(make_model(), sparsity=0.95)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(20):
        optimizer.zero_grad()
        out = model(data.x, data.edge_index)[data.train_mask]
        F.cross_entropy(out, data.y[data.train_mask]).backward()
        optimizer.step()
    return densify(model.eval())


def search_narrow(data: Data) -> torch.nn.Module:
    """Prune channels and edges, and return an ordinary, narrow GCN."""
    model = make_model()
    pruner = GraphLotteryPruner(
        model,
        weight_sparsity=0.95,
        edge_sparsity=0.2,
        pretrain_epochs=20,
        search_epochs=20,
        retrain_epochs=20,
    )
    narrow, pruned = pruner.fit(data).apply(model, data, narrow=True)
    torch.save(pruned.edge_index, FOLDER / 'edge_index.pt')
    print(f'{model.hidden_channels} -> {narrow.hidden_channels} channels')
    print(f'{data.num_edges} -> {pruned.num_edges} edges')
    return narrow


def export(name: str, model: torch.nn.Module) -> None:
    """Write a file for PyTorch, and one for other runtimes."""
    # Files store the example, hence it holds no data.
    example = torch.zeros(3, 64), torch.tensor([[0, 1], [1, 2]])
    nodes, edges = torch.export.Dim('nodes'), torch.export.Dim('edges')
    program = torch.export.export(
        model, example, dynamic_shapes=[{0: nodes}, {1: edges}]
    )
    path = FOLDER / f'{name}.pt2'
    torch.export.save(program, path)
    print(f'{path.name}: {path.stat().st_size / 1000:.0f} kB')
    if find_spec('onnx') and find_spec('onnxscript'):
        path = path.with_suffix('.onnx')
        torch.onnx.export(program, f=path, external_data=False, verbose=False)


def main() -> None:
    seed_everything(0)
    FOLDER.mkdir(parents=True, exist_ok=True)
    data = DigitsKNN(ROOT)[0]
    part = data.subgraph(torch.arange(500))  # For a test of the server.
    models = {
        'untrained': make_model().eval(),
        'densified': train_sparse(data),
        'narrow': search_narrow(data),
    }
    for name, model in models.items():
        export(name, model)
        with torch.no_grad():
            out = model(part.x, part.edge_index)
        case = {'x': part.x, 'edge_index': part.edge_index, 'out': out}
        torch.save(case, FOLDER / f'{name}_case.pt')


if __name__ == '__main__':
    main()
