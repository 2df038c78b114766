from typing import NamedTuple, Optional

from torch_geometric_ext.data import SharedTrees
from torch_geometric_ext.transforms.discretize import Discretize


class TreeSettings(NamedTuple):
    """Settings that decide which computation trees are equal."""

    num_layers: int
    gcn_norm: bool
    self_loops: str
    edge_attr: bool
    degree_labels: bool
    discretizer: Optional[Discretize]


def tree_settings(
    name: str,
    num_layers: int,
    gcn_norm: bool,
    self_loops: str,
    edge_attr: Optional[bool],
    degree_labels: bool,
    discretizer: Optional[Discretize],
) -> TreeSettings:
    """Check the arguments of the class `name`, and set those that
    :obj:`gcn_norm` implies.
    """
    if not isinstance(num_layers, int) or num_layers < 1:
        raise ValueError(
            f"'num_layers' of '{name}' needs to be a positive integer (got "
            f'{num_layers})'
        )
    if self_loops not in ['keep', 'remove']:
        raise ValueError(
            f"'self_loops' of '{name}' needs to be 'keep' or 'remove' (got "
            f"'{self_loops}')"
        )
    if gcn_norm and edge_attr:
        raise ValueError(
            f"'edge_attr' of '{name}' needs to be 'False' if 'gcn_norm' is "
            f"set: 'GCNConv' reads no edge attributes"
        )
    if gcn_norm:
        self_loops = 'remove'
    if edge_attr is None:
        edge_attr = not gcn_norm
    return TreeSettings(
        num_layers, gcn_norm, self_loops, edge_attr, degree_labels, discretizer
    )


def check_same_settings(
    shared: SharedTrees,
    settings: TreeSettings,
    name: str,
) -> None:
    """Raise an error if shared trees have another depth or other labels."""
    for key in ['num_layers', 'gcn_norm']:
        found, expected = getattr(shared, key), getattr(settings, key)
        if found != expected:
            raise ValueError(
                f"{name} needs to be made with the same '{key}' (got {found}, "
                f'expected {expected})'
            )
