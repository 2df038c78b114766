"""Copies of modules that share parameters, buffers and hooks."""

from typing import (
    Any,
    Dict,
    List,
    Mapping,
    NamedTuple,
    Optional,
    Set,
    Tuple,
    TypeVar,
)

from torch.nn import Module

T = TypeVar('T', bound=Module)


class Copy(NamedTuple):
    """A shallow copy of a module.

    Attributes:
        copy (torch.nn.Module): The copy.
        module (torch.nn.Module): The module.
        own (Set[str]): The attributes in which they differ.
    """

    copy: Module
    module: Module
    own: Set[str]

    def pull(self) -> None:
        """Give the copy the attributes that the module has now."""
        _assign(vars(self.module), vars(self.copy), self.own)

    def push(self) -> None:
        """Give the module the attributes that the copy was assigned."""
        _assign(vars(self.copy), vars(self.module), self.own)


def shallow_copy(module: T, cls: Optional[type] = None) -> T:
    """Return a shallow copy of a module, optionally with another class.

    Later assignments do not change the original.
    """
    out: Any = object.__new__(type(module) if cls is None else cls)
    vars(out).update(vars(module))
    return out


def with_child(module: T, name: str, child: Module) -> T:
    """Return a shallow copy with another inner module, given by its path."""
    head, _, rest = name.partition('.')
    if rest:
        inner = module._modules[head]
        assert inner is not None
        child = with_child(inner, rest, child)
    out = shallow_copy(module)
    vars(out)['_modules'] = {**module._modules, head: child}
    return out


def replace_modules(
    model: Module, swaps: Mapping[Module, Module]
) -> Tuple[Module, List[Copy]]:
    """Return a model with other modules in place of some, and shallow copies
    of those that contain them.

    Returns:
        The model, and all copies.
    """
    copies: Dict[Module, Module] = dict(swaps)

    def replace(module: Module) -> Module:
        if module in copies:
            return copies[module]
        copies[module] = module  # Where modules contain each other.
        children = {
            name: None if child is None else replace(child)
            for name, child in module._modules.items()
        }
        if any(children[key] is not x for key, x in module._modules.items()):
            copies[module] = shallow_copy(module)
            vars(copies[module])['_modules'] = children
        return copies[module]

    out = replace(model)
    return out, [
        Copy(new, old, _differences(vars(new), vars(old)))
        for old, new in copies.items()
        if new is not old
    ]


def _differences(a: Dict[str, Any], b: Dict[str, Any]) -> Set[str]:
    return {key for key in a if key not in b or a[key] is not b[key]}


def _assign(
    source: Dict[str, Any], target: Dict[str, Any], own: Set[str]
) -> None:
    for key in _differences(source, target) - own:
        target[key] = source[key]
