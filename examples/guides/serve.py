"""Serve exported models with PyTorch or ONNX Runtime alone."""

import sys
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

FOLDER = Path('.data/export')


def run_pt2(path: Path, x: Tensor, edge_index: Tensor) -> Tensor:
    model = torch.export.load(path).module()
    with torch.no_grad():
        return model(x, edge_index)


def run_onnx(path: Path, x: Tensor, edge_index: Tensor) -> Tensor:
    import onnxruntime

    session = onnxruntime.InferenceSession(path)
    inputs = {'x': x.numpy(), 'edge_index': edge_index.numpy()}
    return torch.from_numpy(session.run(None, inputs)[0])


def main() -> None:
    runtimes = {'.pt2': run_pt2}
    if find_spec('onnxruntime'):
        runtimes['.onnx'] = run_onnx
    for path in sorted(FOLDER.iterdir()):
        if path.suffix in runtimes:
            case = torch.load(path.with_name(f'{path.stem}_case.pt'))
            expected = case.pop('out')
            out = runtimes[path.suffix](path, **case)
            error = float((out - expected).abs().max())
            print(f'{path.name}: {list(out.shape)}, error {error:.0e}')
    packages = [x for x in sys.modules if x.startswith('torch_geometric')]
    print(f'Imported packages of PyG: {packages}')


if __name__ == '__main__':
    main()
