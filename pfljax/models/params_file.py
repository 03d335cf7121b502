"""Parameters of a model in a file: one array for each path, such as `body/Dense_0/kernel`."""

from __future__ import annotations

import pathlib
import zipfile

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from pfljax.core import Params
from pfljax.errors import UserError


def save(path: pathlib.Path, params: Params) -> None:
    """Writes parameters as an npz file.

    Args:
      path: The file.
      params: A nested dict of arrays.
    """
    np.savez(path, **{name: np.asarray(x) for name, x in flatten_dict(params, sep="/").items()})


def load(path: pathlib.Path, like: Params) -> Params:
    """Reads parameters that `save` wrote.

    Args:
      path: The file.
      like: The parameters of the model, or their shapes.

    Returns:
      NumPy arrays in the structure and the dtypes of `like`.

    Raises:
      UserError: the file cannot be read, or holds the parameters of another model.
    """
    wanted = flatten_dict(like, sep="/")
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            found = {name: file[name] for name in wanted if name in file.files}
            others = sorted(set(file.files) - set(wanted))
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise UserError(
            f"{path} cannot be read as parameters ({reason}); write it with "
            "pfljax.models.params_file.save."
        ) from error
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
