"""A task of which only some arrays are trained; all others are given, and constant."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from pfljax.core import Params, Path, Task
from pfljax.core.params import join_params, replace_params, split_params
from pfljax.errors import UserError


def freeze(task: Task, base: Params, trainable: Callable[[Path], bool]) -> Task:
    """Returns the task whose params are the trainable arrays; every method trains these alone.

        losses'(theta, batch) = losses(theta joined with the frozen arrays of base, batch)

    Methods see no frozen array, so that it is in no state, no upload and no optimizer, and under
    `vmap` over clients there is one copy. Made while a program is traced, with `base` among its
    arguments, the arrays are no constants of the program (`engine/programs.py`).

    Args:
      task: The task of the whole model.
      base: Params of the whole model. Trainable arrays may be missing, and are then drawn by
        `task.init`; those that are present are the initial values.
      trainable: `path -> bool`, such as `task.is_adapter`.

    Raises:
      UserError: No array is trainable, the base lacks a frozen array or has one of another shape,
        or a running statistic would be frozen.

    Example:
      >>> from pfljax import models, tasks
      >>> task = tasks.classification(models.mlp((4,), 3, widths=(8,)), num_classes=3)
      >>> base = task.init(jax.random.key(0))
      >>> head_only = freeze(task, base, task.is_head)
      >>> list(head_only.init(jax.random.key(1)))
      ['head']
    """
    shapes = jax.eval_shape(task.init, jax.eval_shape(jax.random.key, 0))
    trained, others = split_params(shapes, trainable)
    if not jax.tree.leaves(trained):
        raise UserError(
            "No array of the model is trainable; select some, such as those of the head."
        )
    if jax.tree.leaves(split_params(others, task.is_statistic)[0]):
        raise UserError(
            "A frozen model may have no batch normalization, whose running statistics would be "
            "frozen; name a model without it, such as one with GroupNorm."
        )
    start, frozen = split_params(base, trainable)
    _require_same("frozen", frozen, others)
    _require_same("initial", start, split_params(trained, lambda path: _has(start, path))[0])

    def whole(params):
        return join_params(frozen, params)

    def init(key):
        # Copies, as the state of a run is donated, and the arguments of its programs are not.
        drawn = split_params(task.init(key), trainable)[0]
        return replace_params(drawn, jax.tree.map(jnp.copy, start))

    paths = [tuple(part.key for part in path) for path, _ in jax.tree.leaves_with_path(trained)]
    owners = {path[:-1] for path in paths}
    return task.of_params(whole)._replace(
        init=init, layers=tuple(path for path in task.layers if path in owners)
    )


def _has(params: Params, path: Path) -> bool:
    for name in path:
        if not isinstance(params, dict) or name not in params:
            return False
        params = params[name]
    return True


def _require_same(which: str, given: Params, wanted: Params) -> None:
    """Raises a `UserError` unless two trees have the same arrays."""

    def named(params):
        leaves = jax.tree.leaves_with_path(params)
        return {"/".join(part.key for part in path): jnp.shape(leaf) for path, leaf in leaves}

    found, expected = named(given), named(wanted)
    for name in sorted(found.keys() | expected.keys()):
        if name not in found:
            raise UserError(f"The base lacks the {which} array {name!r}; it is of another model.")
        if found[name] != expected.get(name):
            raise UserError(
                f"The {which} array {name!r} of the base has the shape {found[name]}, and that of "
                f"the model {expected.get(name)}; the base is of another model."
            )
