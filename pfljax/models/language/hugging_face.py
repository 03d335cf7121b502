"""The names and the layout of arrays in Hugging Face's transformers, for GPT-2, BERT and T5."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import jax
import numpy as np
from flax.traverse_util import unflatten_dict

from pfljax.core import Params, Path
from pfljax.errors import UserError
from pfljax.models.model import Model

_WEIGHTS = ("kernel", "embedding", "table", "scale")  # all of them are named 'weight' there


class Format(NamedTuple):
    """How a network's arrays are named there.

    Attributes:
      body: The name of the module that is our body; '' if its modules are at the top.
      head: The name of the module that is our head.
      transposed: Whether matrices are `[out, in]`.
    """

    body: str
    head: str
    transposed: bool

    def module(self, path: Path) -> str:
        """Returns the name of a module by its path in our params."""
        first = self.head if path[0] == "head" else self.body
        return ".".join(name for name in (first, *path[1:]) if name)

    def array(self, path: Path) -> str:
        """Returns the name of an array by its path in our params."""
        name = "weight" if path[-1] in _WEIGHTS else path[-1]
        return f"{self.module(path[:-1])}.{name}"

    def convert(self, path: Path, array: np.ndarray) -> np.ndarray:
        """Returns an array in the layout of the other library; twice, it is the same again."""
        return array.T if path[-1] == "kernel" and self.transposed else array


FORMATS: dict[str, Format] = {
    "gpt2": Format("transformer", "lm_head", transposed=False),
    "bert": Format("bert", "classifier", transposed=True),
    "t5": Format("", "lm_head", transposed=True),
}


def import_params(model: Model, format: Format, arrays: Mapping[str, np.ndarray]) -> Params:
    """Returns params of a network from arrays with the names of transformers.

    Args:
      model: The network, such as `gpt2`.
      format: Its entry in `FORMATS`.
      arrays: The arrays by their names, such as a `state_dict` or a file of safetensors; others
        than those of the network are left out.

    Raises:
      UserError: An array is missing, or has another shape.
    """
    paths = jax.tree.leaves_with_path(jax.eval_shape(model.init, jax.random.key(0)))
    wanted = {tuple(part.key for part in path): leaf for path, leaf in paths}
    found = {}
    for path, leaf in wanted.items():
        name = format.array(path)
        if name not in arrays:
            raise UserError(f"The arrays have no {name!r}, which the network needs.")
        array = format.convert(path, np.asarray(arrays[name]))
        if array.shape != leaf.shape:
            raise UserError(
                f"The array {name!r} gives the shape {array.shape}, and the network's is "
                f"{leaf.shape}; set the sizes of the network to those of the weights."
            )
        found[path] = array.astype(leaf.dtype)
    return unflatten_dict(found)
