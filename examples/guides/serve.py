"""Serve exported models with PyTorch or ONNX Runtime alone."""

import argparse
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Callable

import torch
from torch import Tensor

FOLDER = Path('.data/export')

Predict = Callable[[Tensor, Tensor], Tensor]


def load_pt2(path: Path) -> Predict:
    """Load a model once, and return a function for each request."""
    model = torch.export.load(path).module()

    def predict(x: Tensor, edge_index: Tensor) -> Tensor:
        with torch.inference_mode():
            return model(x, edge_index)

    return predict


def load_onnx(path: Path) -> Predict:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options)

    def predict(x: Tensor, edge_index: Tensor) -> Tensor:
        inputs = {'x': x.numpy(), 'edge_index': edge_index.numpy()}
        return torch.from_numpy(session.run(None, inputs)[0])

    return predict


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        '--threads',
        type=int,
        default=1,
        help='threads of each request (default: %(default)s)',
    )
    torch.set_num_threads(parser.parse_args().threads)
    loaders = {'.pt2': load_pt2}
    if find_spec('onnxruntime'):
        loaders['.onnx'] = load_onnx
    for path in sorted(FOLDER.iterdir()):
        if path.suffix in loaders:
            predict = loaders[path.suffix](path)
            case = torch.load(path.with_name(f'{path.stem}_case.pt'))
            out = predict(case['x'], case['edge_index'])
            error = float((out - case['out']).abs().max())
            print(f'{path.name}: {list(out.shape)}, error {error:.0e}')
    packages = [x for x in sys.modules if x.startswith('torch_geometric')]
    print(f'Imported packages of PyG: {packages}')


if __name__ == '__main__':
    main()
