"""Parameters of a model in a file: one array for each path, such as `body/Dense_0/kernel`.

A file is in the format of its name: `.safetensors`, or else NumPy's npz. The file of a client's
model (`ClientModel.save`) can be read too: its arrays are those below `params/`.
"""

from __future__ import annotations

import pathlib
import zipfile
from collections.abc import Callable, Container, Iterable

import numpy as np
import safetensors
import safetensors.numpy
from flax.traverse_util import flatten_dict, unflatten_dict

from pfljax.core import Params
from pfljax.errors import UserError

_SAFETENSORS = ".safetensors"
_OF_MODEL = "params/"
# What NumPy and safetensors raise for other formats, damaged files and dtypes that NumPy lacks.
_UNREADABLE = (
    *(OSError, ValueError, EOFError, KeyError, TypeError),
    *(zipfile.BadZipFile, safetensors.SafetensorError),
)


def save(path: pathlib.Path, params: Params) -> None:
    """Writes parameters to a file.

    Args:
      path: The file, whose name ends in `.safetensors` or `.npz`.
      params: A nested dict of arrays.
    """
    # safetensors writes the memory of an array, and so transposed ones in another order.
    flat = flatten_dict(params, sep="/")
    arrays = {name: np.asarray(x, order="C") for name, x in flat.items()}
    if path.suffix == _SAFETENSORS:
        safetensors.numpy.save_file(arrays, path)
    else:
        np.savez(path, **arrays)


def read(path: pathlib.Path, wanted: Container[str]) -> tuple[dict[str, np.ndarray], list[str]]:
    """Returns the arrays of a file whose names are wanted, and the other names, sorted.

    Raises:
      UserError: the file cannot be read.
    """
    try:
        return _read(path, wanted)
    except _UNREADABLE as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise UserError(
            f"{path} cannot be read as parameters ({reason}); write it with "
            "pfljax.models.params_file.save."
        ) from error


def _read(path: pathlib.Path, wanted: Container[str]) -> tuple[dict[str, np.ndarray], list[str]]:
    if path.suffix == _SAFETENSORS:
        with path.open("rb"), safetensors.safe_open(path, framework="numpy") as file:
            return _choose(file.keys(), file.get_tensor, wanted)
    with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
        return _choose(file.files, file.__getitem__, wanted)


def _choose(
    names: Iterable[str], read: Callable[[str], np.ndarray], wanted: Container[str]
) -> tuple[dict[str, np.ndarray], list[str]]:
    in_file = {name: name for name in names}
    if any(name.startswith(_OF_MODEL) for name in in_file):  # beside its frozen arrays
        in_file = {
            name.removeprefix(_OF_MODEL): name for name in in_file if name.startswith(_OF_MODEL)
        }
    found = {name: read(own) for name, own in in_file.items() if name in wanted}
    return found, sorted(in_file.keys() - found.keys())


def load(path: pathlib.Path, like: Params) -> Params:
    """Reads parameters that `save` wrote, or another program in the same form.

    Args:
      path: The file.
      like: The parameters of the model, or their shapes.

    Returns:
      NumPy arrays in the structure and the dtypes of `like`.

    Raises:
      UserError: the file cannot be read, or holds the parameters of another model.
    """
    wanted = flatten_dict(like, sep="/")
    found, others = read(path, wanted)
    if missing := sorted(set(wanted) - set(found)):
        raise UserError(f"{path} has no array {missing[0]!r}; it is of another model.")
    if others:
        raise UserError(f"{path} has an array {others[0]!r} that the model has not.")
    for name, array in found.items():
        if array.shape != wanted[name].shape:
            raise UserError(
                f"{path} has an array {name!r} of shape {array.shape}, and the model's is of shape "
                f"{wanted[name].shape}; it is of another model."
            )
        if not np.all(np.isfinite(array)):
            raise UserError(f"{path} has an array {name!r} with values that are not finite.")
    arrays = {name: array.astype(wanted[name].dtype) for name, array in found.items()}
    return unflatten_dict(arrays, sep="/")
