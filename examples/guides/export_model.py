"""Export pruned models for servers without this package.

pip install 'torch_geometric_ext[export]'  # For ONNX only.
"""

from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from torch_geometric import seed_everything
from torch_geometric.data import Data
from torch_geometric.nn import GCN, GraphSAGE

from torch_geometric_ext.datasets import DigitsKNN
from torch_geometric_ext.nn import densify, sparsify
from torch_geometric_ext.utils import GraphLotteryPruner

ROOT, FOLDER = '.data/DigitsKNN', Path('.data/export')


def train_sparse(data: Data) -> torch.nn.Module:
    """Train sparse weights, and return an ordinary GraphSAGE."""
    model = sparsify(GraphSAGE(64, 64, 2, 10), sparsity=0.8)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(20):
        optimizer.zero_grad()
        out = model(data.x, data.edge_index)[data.train_mask]
        F.cross_entropy(out, data.y[data.train_mask]).backward()
        optimizer.step()
    return densify(model.eval())


def search_narrow(data: Data) -> torch.nn.Module:
    """Prune the channels of a GCN, and return an ordinary, narrow GCN."""
    model = GCN(64, 256, 2, 10)
    pruner = GraphLotteryPruner(
        model,
        weight_sparsity=0.95,
        pretrain_epochs=20,
        search_epochs=20,
        retrain_epochs=20,
    )
    narrow, _ = pruner.fit(data).apply(model, narrow=True)
    print(f'{model.hidden_channels} -> {narrow.hidden_channels} channels')
    return narrow


def export(name: str, model: torch.nn.Module, data: Data) -> None:
    """Write a file for PyTorch, and one for other runtimes."""
    example = data.x, data.edge_index
    nodes, edges = torch.export.Dim('nodes'), torch.export.Dim('edges')
    program = torch.export.export(
        model, example, dynamic_shapes=[{0: nodes}, {1: edges}]
    )
    torch.export.save(program, FOLDER / f'{name}.pt2')
    if find_spec('onnx') and find_spec('onnxscript'):
        path = FOLDER / f'{name}.onnx'
        torch.onnx.export(program, f=path, external_data=False, verbose=False)


def main() -> None:
    seed_everything(0)
    FOLDER.mkdir(parents=True, exist_ok=True)
    data = DigitsKNN(ROOT)[0]
    for name, model in [
        ('sage', train_sparse(data)),
        ('gcn', search_narrow(data)),
    ]:
        export(name, model, data)
        # A smaller graph, for a test of the server:
        part = data.subgraph(torch.arange(500))
        with torch.no_grad():
            out = model(part.x, part.edge_index)
        case = {'x': part.x, 'edge_index': part.edge_index, 'out': out}
        torch.save(case, FOLDER / f'{name}_case.pt')


if __name__ == '__main__':
    main()
