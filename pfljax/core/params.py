"""Splitting params in two by the path of their arrays, and joining the parts."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from pfljax.core import tree
from pfljax.core.types import Params, Path


def split_params(params: Params, selected: Callable[[Path], bool]) -> tuple[Params, Params]:
    """Splits params into the arrays whose path is selected and the rest.

    Args:
      params: The params, a nested dict of arrays.
      selected: `path -> bool`, such as `Task.is_head`.

    Returns:
      Two nested dicts, the selected arrays and the others; empty dicts are dropped.

    Example:
      >>> split_params({'body': {'w': 1}, 'head': {'w': 2}}, lambda path: path[0] == 'head')
      ({'head': {'w': 2}}, {'body': {'w': 1}})
    """

    def cut(node, path):
        if not isinstance(node, dict):
            return (node, None) if selected(path) else (None, node)
        chosen, others = {}, {}
        for name, child in node.items():
            inside, outside = cut(child, (*path, name))
            if inside is not None:
                chosen[name] = inside
            if outside is not None:
                others[name] = outside
        return chosen or None, others or None

    chosen, others = cut(params, ())
    return chosen or {}, others or {}


def in_layers(names: Iterable[str]) -> Callable[[Path], bool]:
    """Returns `path -> bool`, whether an array belongs to one of some layers.

    Args:
      names: Names of layers, at any depth. A name without the number at its end means all layers
        of that name: 'Attention' means 'Attention_0' and 'Attention_1'.

    Example:
      >>> selected = in_layers(['Attention'])
      >>> selected(('body', 'Attention_1', 'kernel')), selected(('body', 'Dense_0', 'kernel'))
      (True, False)
    """
    listed = frozenset(names)

    def selected(path):
        return any(part in listed or part.rpartition("_")[0] in listed for part in path[:-1])

    return selected


def replace_params(params: Params, part: Params) -> Params:
    """Returns `params` with the arrays of `part` at the same paths.

    Raises:
      ValueError: `params` has no array at one of these paths.

    Example:
      >>> replace_params({'body': {'w': 1, 'mean': 2}}, {'body': {'mean': 3}})
      {'body': {'w': 1, 'mean': 3}}
    """
    replaced = dict(params)
    for name, child in part.items():
        if name not in replaced:
            raise ValueError(f"The model has no {name!r} to replace.")
        replaced[name] = replace_params(replaced[name], child) if isinstance(child, dict) else child
    return replaced


def zero_params(params: Params, selected: Callable[[Path], bool]) -> Params:
    """Returns `params` with zeros in the arrays whose path is selected.

    Args:
      params: The params, a nested dict of arrays.
      selected: `path -> bool`, such as `Task.is_statistic`.
    """
    return replace_params(params, tree.zeros_like(split_params(params, selected)[0]))


def join_params(a: Params, b: Params) -> Params:
    """Joins two parts that `split_params` made.

    Raises:
      ValueError: An array is in both parts.
    """
    joined = dict(a)
    for name, child in b.items():
        if name not in joined:
            joined[name] = child
        elif isinstance(child, dict) and isinstance(joined[name], dict):
            joined[name] = join_params(joined[name], child)
        else:
            raise ValueError(f"Both parts contain {name!r}.")
    return joined
