"""Read molecules with measured melting points from the package `chemicals`."""

from importlib.resources import files
from typing import Any, Dict, Iterator, NamedTuple

import torch
from torch import Tensor

ROOM_TEMPERATURE, HOT = 298.15, 398.15  # Kelvin: 25 and 125 °C.


class Molecule(NamedTuple):
    """A molecule and its melting point."""

    mol: Any  # An RDKit molecule.
    smiles: str
    melting_point: float  # In Kelvin.


def open_melting_points(name: str) -> Iterator[Molecule]:
    """Yield the molecules of the Open Melting Point Dataset, which
    :obj:`chemicals` lists by registry number, with their structures.
    """
    try:
        from rdkit import Chem, rdBase

        root = files('chemicals')
    except ImportError as e:
        raise ImportError(
            f"'{name}' requires 'chemicals' and 'rdkit' "
            '(pip install chemicals rdkit)'
        ) from e

    smiles: Dict[str, str] = {}
    for size in ['large', 'small']:
        path = f'chemical identifiers pubchem {size}.tsv'
        with (root / 'Identifiers' / path).open(encoding='utf-8') as f:
            for line in f:
                _, number, _, _, value, _ = line.split('\t', 5)
                smiles[number] = value
    table = root / 'Phase Change' / 'OpenNotebook Melting Points.tsv'
    with table.open(encoding='utf-8') as f, rdBase.BlockLogs():
        next(f)  # The header.
        for line in f:
            number, kelvin = line.split('\t')
            mol = Chem.MolFromSmiles(smiles.get(number, ''))
            if mol is not None and mol.GetNumAtoms() > 0:
                yield Molecule(mol, smiles[number], float(kelvin))


def melting_class(kelvin: Tensor) -> Tensor:
    """Return 0 (liquid at 25 °C), 1 (melts up to 125 °C) or 2 (above)."""
    bounds = torch.tensor([ROOM_TEMPERATURE, HOT])
    return torch.bucketize(kelvin, bounds)
