"""Share and condense graphs whose nodes have continuous features."""

from typing import List

import torch
import torch.nn.functional as F
from rdkit import Chem
from rdkit.Chem.rdPartialCharges import ComputeGasteigerCharges
from torch_geometric import seed_everything
from torch_geometric.data import Batch, Data
from torch_geometric.nn import GIN

from torch_geometric_ext.datasets import Solubility
from torch_geometric_ext.loader import SharedTreeLoader
from torch_geometric_ext.nn import RootAggregation, shared_batch
from torch_geometric_ext.transforms import (
    Discretize,
    MirageCondense,
    ShareComputationTrees,
)

ROOT = '.data/Solubility'


def load(split: str) -> List[Data]:
    """Return molecules whose atoms have a number and a partial charge."""
    graphs = []
    for data in Solubility(ROOT, split):
        mol = Chem.MolFromSmiles(data.smiles)
        ComputeGasteigerCharges(mol)
        x = torch.tensor(
            [
                [atom.GetAtomicNum(), atom.GetDoubleProp('_GasteigerCharge')]
                for atom in mol.GetAtoms()
            ]
        )
        bonds = [
            [bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()]
            for bond in mol.GetBonds()
        ]
        edge_index = torch.tensor(bonds, dtype=torch.long).view(-1, 2).t()
        edge_index = torch.cat([edge_index, edge_index.flip(0)], dim=1)
        if x.isfinite().all():  # Charges of metals are unknown.
            graphs.append(Data(x=x, edge_index=edge_index, y=data.y))
    return graphs


def main() -> None:
    seed_everything(0)
    graphs = load('train')
    try:
        ShareComputationTrees(num_layers=2)(graphs)
    except ValueError as error:
        print(f'Without bins: {error}\n')

    print(f'{"bins":>4}{"distinct trees":>16}{"nodes per tree":>16}')
    for num_bins in [4, 8, 16]:
        discretize = Discretize('quantile', num_bins).fit(graphs)
        share = ShareComputationTrees(2, discretizer=discretize)
        ratio = share(graphs).report().node_ratio
        num_nodes = sum(data.num_nodes for data in graphs)
        print(f'{num_bins:>4}{num_nodes / ratio:>16,.0f}{ratio:>16.1f}')

    # Trees give the loss of plain graphs with the same, discretized features:
    discretize = Discretize('quantile', num_bins=8).fit(graphs)
    shared = ShareComputationTrees(2, discretizer=discretize)(graphs)
    gnn, aggr = GIN(2, 32, num_layers=2), RootAggregation()
    head = torch.nn.Linear(32, 3)
    (batch,) = SharedTreeLoader(shared, batch_size=len(shared))
    with shared_batch(batch):
        h = gnn(batch.x, batch.edge_index)
    loss = F.cross_entropy(head(aggr(h, batch)), batch.y)
    plain = Batch.from_data_list([discretize(data) for data in graphs])
    h = gnn(plain.x, plain.edge_index)
    difference = loss - F.cross_entropy(head(aggr(h, plain)), plain.y)
    print(f'\nDifference of losses: {abs(float(difference.detach())):.0e}')

    # Fit on training graphs, and apply the same bins to all other graphs:
    test_graphs = [discretize(data) for data in load('test')]
    num_values = torch.cat([x.x[:, 1] for x in test_graphs]).unique().numel()
    print(f'Charges of {len(test_graphs)} test graphs: {num_values} values')

    condense = MirageCondense(2, ratio=0.1, discretizer=discretize)
    print(f'\n{len(condense(graphs))} condensed graphs\n{condense.report()}')


if __name__ == '__main__':
    main()
