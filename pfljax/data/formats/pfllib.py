"""Directories in PFLlib's format.

Such a directory has `train/ID.npz` and `test/ID.npz` for each client, with ID counted from 0, and
optionally a `config.json`. Each file has one key, `data`, a pickled dictionary
`{"x": float32 [n, ...], "y": int64 [n]}` of normalized values, images with channels first. If `x`
contains integers in all files, these are word ids or numeric features, depending on the model.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from pfljax.data import checks, pickles, reading, validate, validate_arrays
from pfljax.data.dataset import FederatedDataset
from pfljax.data.examples import Examples
from pfljax.data.formats import refusals
from pfljax.data.split import ClientRows, generator, lay_out, split_train
from pfljax.errors import UserError

_REMEDY = "generate the directory again"


def load_pfllib(
    path: str, *, validation_fraction: float, unseen_fraction: float, seed: int
) -> FederatedDataset:
    """Returns the clients of a directory in PFLlib's format, with their given test examples.

    Args:
      path: The directory that contains `train` and `test`.
      validation_fraction: The fraction of each client's training examples that are used to select
        models.
      unseen_fraction: The fraction of held-out clients, in [0, 1).
      seed: The seed of the choice of validation examples and held-out clients.

    Returns:
      The federated data set; its inputs are float32, or integers if all files contain integers,
      images `[n, height, width, channels]`. A client without test examples is not scored.

    Raises:
      UserError: A file is missing, damaged, unsafe or inconsistent.
    """
    checks.fraction("validation_fraction", validation_fraction)
    root = refusals.given(path, "a directory in PFLlib's format")
    config = _read_config(root / "config.json")
    num_clients = _count_clients(root, config)
    rng = generator(seed)
    inputs, targets, clients, num_examples = [], [], [], 0
    for client in range(num_clients):
        parts = {}
        for split in ("train", "test"):
            file = root / split / f"{client}.npz"
            split_inputs, split_targets = _read_pfllib_client(file, may_be_empty=split == "test")
            if not len(split_targets):
                split_inputs = split_inputs[:0].reshape(0, *inputs[0].shape[1:])
            elif inputs and split_inputs.shape[1:] != inputs[0].shape[1:]:
                raise UserError(
                    f"{file} has examples of shape {split_inputs.shape[1:]}, but client 0 has "
                    f"{inputs[0].shape[1:]}: generate the directory again."
                )
            inputs.append(split_inputs)
            targets.append(split_targets)
            parts[split] = np.arange(num_examples, num_examples + len(split_targets))
            num_examples += len(split_targets)
        train = rng.permutation(parts["train"])
        labels = targets[-2][train - parts["train"][0]]
        train, validation = split_train(train, labels, validation_fraction, rng)
        clients.append(ClientRows(train, validation, parts["test"]))
    labels = np.concatenate(targets)
    num_classes = config.get("num_classes", int(labels.max()) + 1)
    if "num_classes" not in config and num_classes > len(labels):
        raise UserError(
            f"{root} has the label {labels.max()} in only {len(labels)} examples: number labels "
            "from 0 without gaps, or set num_classes in config.json."
        )
    if labels.max() >= num_classes:
        raise UserError(
            f"{root} has the label {labels.max()}, but its config.json has {num_classes} "
            "classes: correct num_classes there."
        )
    if any(each.dtype.kind == "f" for each in inputs):
        inputs = [each.astype(np.float32, copy=False) for each in inputs]
    examples = Examples(root.resolve().name, np.concatenate(inputs), labels, num_classes)
    examples = validate.examples(examples, str(root))
    return lay_out(examples, clients, unseen_fraction=unseen_fraction, rng=rng)


def _read_config(file: Path) -> dict[str, int]:
    """Returns the numbers of clients and classes in config.json, if any."""
    if not file.exists():
        return {}
    try:
        config = reading.parse_json(reading.content(file, _REMEDY).decode("utf-8"))
    except ValueError as error:
        raise UserError(f"{file} is not valid JSON: correct or remove it.") from error
    if not isinstance(config, dict):
        raise UserError(f"{file} is not a JSON object: correct or remove it.")
    known = {key: config[key] for key in ("num_clients", "num_classes") if key in config}
    for key, value in known.items():
        checks.whole(f"{key} in {file}", value, 1)
    return known


def _count_clients(root: Path, config: dict[str, int]) -> int:
    """Returns the number of clients, after checking that each has a file in both directories."""
    present = {}
    for split in ("train", "test"):
        folder = root / split
        if not folder.is_dir():
            raise UserError(
                f"{root} has no directory {split}: pass the directory that contains train and test."
            )
        present[split] = {file.stem for file in folder.glob("*.npz")}
    files = len(present["train"] | present["test"])
    num_clients = config.get("num_clients", files)
    if files == 0 or files > num_clients:
        raise UserError(
            f"{root} has files of {files} clients instead of {num_clients or 'at least one'}: "
            "remove stale files, or correct num_clients in config.json."
        )
    for split, stems in present.items():
        for client in range(num_clients):
            if str(client) not in stems:
                raise UserError(
                    f"{root / split / f'{client}.npz'} is missing (clients are numbered from 0): "
                    "generate the directory again."
                )
    return num_clients


def _read_pfllib_client(file: Path, may_be_empty: bool) -> tuple[np.ndarray, np.ndarray]:
    """Returns a client's inputs, integers or float32, channels last, and its int32 labels."""
    data = _read_pickled_dict(file)
    inputs, targets = data.get("x"), data.get("y")
    if not isinstance(inputs, np.ndarray) or not isinstance(targets, np.ndarray):
        raise UserError(f"{file} does not contain the arrays x and y: {_REMEDY}.")
    if targets.shape == (0,) and len(inputs) == 0 and may_be_empty:
        return np.zeros((0, 1), np.uint8), np.zeros(0, np.int32)
    if inputs.dtype.kind not in "biuf" or inputs.ndim < 2:
        raise UserError(
            f"{file} has an x of shape {inputs.shape} and dtype {inputs.dtype} instead of "
            "numeric examples: texts must be ids of one length."
        )
    if targets.dtype.kind not in "iu" or targets.shape != inputs.shape[:1]:
        raise UserError(
            f"{file} has {len(inputs)} examples but a y of shape {targets.shape} and dtype "
            f"{targets.dtype}: {_REMEDY}."
        )
    if len(targets) == 0:
        raise UserError(f"{file} has no examples, but every client needs one: {_REMEDY}.")
    targets = validate_arrays.labels(
        file, targets, validate_arrays.LARGEST_NUM_CLASSES, remedy=_REMEDY
    )
    validate_arrays.finite(file, inputs, remedy=_REMEDY)
    if inputs.ndim == 4:
        inputs = np.moveaxis(inputs, 1, -1)
    if inputs.dtype.kind == "f":
        inputs = inputs.astype(np.float32)
    return inputs, targets


def _read_pickled_dict(file: Path) -> dict[str, Any]:
    """Returns the content of the key `data` of a file, without trusting it."""
    value = None
    for _, content in reading.members(file, ["data.npy"], _REMEDY):
        try:
            value = _unpickle_array(content)
        except pickle.UnpicklingError as error:
            raise UserError(
                f"{file} is damaged or contains objects other than arrays ({error}), which could "
                f"execute code: get it from a source you trust, or {_REMEDY}."
            ) from error
        except Exception as error:  # Bytes that are not a pickle fail in many ways.
            raise UserError(f"{file} is truncated or damaged: {_REMEDY}.") from error
    if not isinstance(value, dict):
        raise UserError(f"{file} does not contain a dictionary of x and y as data: {_REMEDY}.")
    return value


def _unpickle_array(content: bytes) -> Any:
    """Returns the single object in data.npy, or None if it is not an array of one object."""
    *_, dtype, start = reading.npy_header(io.BytesIO(content))
    if dtype != np.dtype(object):
        return None
    array = pickles.load_arrays(content[start:])
    return array.item() if isinstance(array, np.ndarray) and array.size == 1 else None
