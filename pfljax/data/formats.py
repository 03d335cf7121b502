"""Federated data sets on disk: directories in PFLlib's layout, and pfljax's own `.npz` file.

PFLlib's layout is a directory with `train/ID.npz` and `test/ID.npz` for each client, ID counted
from 0, and beside them perhaps a `config.json`. Each file has one key, `data`, a pickled
dictionary `{"x": float32 [n, ...], "y": int64 [n]}` of normalized values, images channels first.

pfljax's own file has these keys, all of them plain arrays; `N` clients, counts are int32:

    name                                     [] str
    inputs                                   [num_examples, ...] any numbers, as stored
    targets                                  [num_examples] int32 labels
    train_offsets, train_sizes               [N] int32, the client's first training row, how many
    validation_offsets, validation_sizes     [N] int32, right after them; a size may be 0
    test_offsets, test_sizes                 [N] int32, right after those
    num_classes, num_unseen                  [] int32; the last num_unseen clients never train
    mean, std                                [] float64, (inputs - mean) / std is what models see
"""

from __future__ import annotations

import json
import pickle
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from pfljax.data import checks
from pfljax.data.dataset import FederatedDataset, Split
from pfljax.data.sources import Examples
from pfljax.data.split import ClientRows, generator, lay_out, split_train
from pfljax.errors import UserError

_SPLITS = ("train", "validation", "test")
_DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, ValueError, NotImplementedError)


def load_pfllib(
    path: str, *, validation_fraction: float, unseen_fraction: float, seed: int
) -> FederatedDataset:
    """Returns the clients of a directory in PFLlib's layout, with their given test examples.

    Args:
      path: the directory that holds `train` and `test`.
      validation_fraction: the part of each client's training examples used to select models.
      unseen_fraction: the part of the clients that never train, in [0, 1).
      seed: decides which examples and clients these are.

    Returns:
      The federated data set; its inputs are float32, images `[n, height, width, channels]`.

    Raises:
      UserError: a file is absent, damaged, unsafe or inconsistent.
    """
    checks.fraction("validation_fraction", validation_fraction)
    root = _given(path, "a directory in PFLlib's layout")
    config = _read_config(root / "config.json")
    num_clients = _count_clients(root, config)
    rng = generator(seed)
    inputs, targets, clients, num_examples = [], [], [], 0
    for client in range(num_clients):
        parts = {}
        for split in ("train", "test"):
            file = root / split / f"{client}.npz"
            split_inputs, split_targets = _read_pfllib_client(file)
            if inputs and split_inputs.shape[1:] != inputs[0].shape[1:]:
                raise UserError(
                    f"{file} holds examples of shape {split_inputs.shape[1:]} where client 0 has "
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
    if labels.max() >= num_classes:
        raise UserError(
            f"{root} holds the label {labels.max()} but its config.json promises {num_classes} "
            "classes: correct num_classes there."
        )
    examples = Examples(root.resolve().name, np.concatenate(inputs), labels, num_classes)
    return lay_out(examples, clients, unseen_fraction=unseen_fraction, rng=rng)


def save_npz(path: str, dataset: FederatedDataset) -> None:
    """Writes a federated data set as one compressed file that `load_npz` reads back exactly.

    Args:
      path: the file to write, its name used as it is; an existing one is replaced.
      dataset: what to write.

    Raises:
      UserError: the file cannot be written.
    """
    arrays: dict[str, Any] = {
        "name": np.array(dataset.name, dtype=str),
        "inputs": dataset.inputs,
        "targets": dataset.targets,
        "num_classes": np.int32(dataset.num_classes),
        "num_unseen": np.int32(dataset.num_unseen),
        "mean": np.float64(dataset.mean),
        "std": np.float64(dataset.std),
    }
    for split in _SPLITS:
        arrays[f"{split}_offsets"], arrays[f"{split}_sizes"] = getattr(dataset, split)
    try:
        # An open file keeps NumPy from adding a suffix to the name the user gave.
        with _given(path, "a file to write").open("wb") as file:
            np.savez_compressed(file, **arrays)
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror}): choose a file in an existing directory."
        ) from error


def load_npz(path: str) -> FederatedDataset:
    """Returns the federated data set in a file of pfljax's own layout.

    Args:
      path: a file that `save_npz` wrote, or another of the same keys.

    Returns:
      The federated data set.

    Raises:
      UserError: the file is absent, damaged or inconsistent.
    """
    file = _given(path, "an .npz file in pfljax's layout")
    keys = ["name", "inputs", "targets", "num_classes", "num_unseen", "mean", "std"]
    keys += [f"{split}_{part}" for split in _SPLITS for part in Split._fields]
    try:
        with zipfile.ZipFile(file) as archive:
            missing = set(keys) - {name.removesuffix(".npy") for name in archive.namelist()}
            if missing:
                raise _refusal(file, f"lacks {', '.join(sorted(missing))}")
        with np.load(file, allow_pickle=False) as stored:
            arrays = {key: stored[key] for key in keys}
    except OSError as error:
        raise _unreadable(file, error) from error
    except _DAMAGED as error:
        raise UserError(
            f"{file} is truncated, damaged or no .npz of plain arrays: write it again with "
            "save_npz."
        ) from error
    for key, array in arrays.items():
        _check_form(file, key, array)
    dataset = FederatedDataset(
        name=arrays["name"].item(),
        inputs=arrays["inputs"],
        targets=arrays["targets"],
        **{split: Split(arrays[f"{split}_offsets"], arrays[f"{split}_sizes"]) for split in _SPLITS},
        num_classes=arrays["num_classes"].item(),
        mean=float(arrays["mean"]),
        std=float(arrays["std"]),
        num_unseen=arrays["num_unseen"].item(),
    )
    _check_consistency(file, dataset)
    return dataset


def _given(path: str, what: str) -> Path:
    if not path:
        raise UserError(f"This data set is {what}: name it in data.dir.")
    return Path(path).expanduser()


def _unreadable(file: Path, error: OSError) -> UserError:
    return UserError(f"{file} cannot be read ({error.strerror or error}): check its path.")


def _refusal(file: Path, fault: str) -> UserError:
    return UserError(f"{file} {fault}: write it again with save_npz.")


# pfljax's own layout


def _check_form(file: Path, key: str, array: np.ndarray) -> None:
    """Refuses an array whose dtype or number of axes is not the documented one."""
    if key == "inputs":
        if array.dtype.kind not in "biuf" or array.ndim == 0:
            raise _refusal(file, f"has inputs of dtype {array.dtype} where numbers are expected")
        return
    if key == "name":
        fits, expected = array.dtype.kind == "U", "str"
    elif key in ("mean", "std"):
        fits, expected = array.dtype.kind == "f", "float64"
    else:
        fits, expected = array.dtype == np.int32, "int32"
    if not fits:
        raise _refusal(file, f"has {key} of dtype {array.dtype} where {expected} is expected")
    axes = 1 if key == "targets" or key.endswith(("_offsets", "_sizes")) else 0
    if array.ndim != axes:
        raise _refusal(file, f"has {key} with {array.ndim} axes where {axes} are expected")


def _check_consistency(file: Path, dataset: FederatedDataset) -> None:
    """Refuses a data set whose parts contradict each other."""
    num_examples, num_clients = len(dataset.inputs), dataset.num_clients
    if len(dataset.targets) != num_examples:
        raise _refusal(file, f"has {num_examples} inputs but {len(dataset.targets)} targets")
    lengths = {len(array) for name in _SPLITS for array in getattr(dataset, name)}
    if len(lengths) != 1 or num_clients == 0:
        raise _refusal(file, "has offsets and sizes that are empty or of different lengths")
    if not 0 <= dataset.num_unseen < num_clients:
        raise _refusal(file, f"has num_unseen {dataset.num_unseen} of {num_clients} clients")
    if not (np.isfinite(dataset.mean) and np.isfinite(dataset.std) and dataset.std > 0):
        raise _refusal(file, "has a mean or std that is not finite, or a std not above 0")
    _check_values(file, dataset.inputs, "write it again with save_npz")
    for name in _SPLITS:
        offsets, sizes = (array.astype(np.int64) for array in getattr(dataset, name))
        outside = (offsets < 0) | (sizes < 0) | (offsets + sizes > num_examples)
        if outside.any():
            client = int(np.argmax(outside))
            raise _refusal(
                file, f"places {name} examples of client {client} outside its {num_examples} rows"
            )
        if name != "validation" and not sizes.all():
            raise _refusal(file, f"has no {name} example for client {int(np.argmin(sizes))}")
    train, validation, test = dataset.train, dataset.validation, dataset.test
    apart = (train.offsets + train.sizes != validation.offsets) | (
        validation.offsets + validation.sizes != test.offsets
    )
    if apart.any():
        client = int(np.argmax(apart))
        raise _refusal(file, f"does not hold the rows of client {client} one after the other")
    by_row = np.argsort(train.offsets)
    if np.any((test.offsets + test.sizes)[by_row][:-1] > train.offsets[by_row][1:]):
        raise _refusal(file, "gives the same rows to two clients")
    labels = dataset.targets
    if labels.min() < 0 or labels.max() >= dataset.num_classes:
        wrong = labels.min() if labels.min() < 0 else labels.max()
        raise _refusal(file, f"has the label {wrong} but {dataset.num_classes} classes")


def _check_values(file: Path, inputs: np.ndarray, remedy: str) -> None:
    if inputs.dtype.kind == "f" and not np.isfinite(inputs).all():
        raise UserError(f"{file} has inputs that are infinite or not a number: {remedy}.")


# PFLlib's layout


class _ArrayUnpickler(pickle.Unpickler):
    """Rebuilds NumPy arrays and plain Python values, and can call nothing else.

    The functions are handed out by reference instead of being imported by name, so that files
    written by an older or newer NumPy, whose modules have other names, are read as well.
    """

    _ALLOWED = {
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        **{
            (f"numpy.{core}.multiarray", builder.__name__): builder
            for core in ("core", "_core")
            for builder in (np.empty(0).__reduce__()[0], np.float32(0).__reduce__()[0])
        },
    }

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self._ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"{module}.{name}") from None


def _read_config(file: Path) -> dict[str, int]:
    """Returns the numbers of clients and classes that config.json names, if there are any."""
    if not file.exists():
        return {}
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise _unreadable(file, error) from error
    except ValueError as error:
        raise UserError(f"{file} is not valid JSON: correct or remove it.") from error
    if not isinstance(config, dict):
        raise UserError(f"{file} is not a JSON object: correct or remove it.")
    known = {key: config[key] for key in ("num_clients", "num_classes") if key in config}
    for key, value in known.items():
        checks.whole(f"{key} in {file}", value, 1)
    return known


def _count_clients(root: Path, config: dict[str, int]) -> int:
    """Returns the number of clients, having found a file for each in both folders."""
    present = {}
    for split in ("train", "test"):
        folder = root / split
        if not folder.is_dir():
            raise UserError(
                f"{root} has no folder {split}: name the directory that holds train and test."
            )
        present[split] = {file.stem for file in folder.glob("*.npz")}
    files = len(present["train"] | present["test"])
    num_clients = config.get("num_clients", files)
    if files == 0 or files > num_clients:
        raise UserError(
            f"{root} has files of {files} clients where {num_clients or 'at least one'} is "
            "expected: remove stale files, or correct num_clients in config.json."
        )
    for split, stems in present.items():
        for client in range(num_clients):
            if str(client) not in stems:
                raise UserError(
                    f"{root / split / f'{client}.npz'} is missing, clients being numbered from 0: "
                    "generate the directory again."
                )
    return num_clients


def _read_pfllib_client(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """Returns a client's inputs, float32 and channels last, and its int32 labels."""
    remedy = "generate the directory again"
    data = _read_pickled_dict(file)
    inputs, targets = data.get("x"), data.get("y")
    if not isinstance(inputs, np.ndarray) or not isinstance(targets, np.ndarray):
        raise UserError(f"{file} does not hold the arrays x and y: {remedy}.")
    if inputs.dtype.kind not in "biuf" or inputs.ndim < 2:
        raise UserError(
            f"{file} has an x of shape {inputs.shape} and dtype {inputs.dtype} where examples of "
            "numbers are expected: text is not supported."
        )
    if targets.dtype.kind not in "iu" or targets.shape != inputs.shape[:1]:
        raise UserError(
            f"{file} has {len(inputs)} examples but a y of shape {targets.shape} and dtype "
            f"{targets.dtype}: {remedy}."
        )
    if len(targets) == 0:
        raise UserError(f"{file} has no example, but every client needs one: {remedy}.")
    if targets.min() < 0 or targets.max() > np.iinfo(np.int32).max:
        raise UserError(f"{file} has labels below 0 or beyond all reason: {remedy}.")
    _check_values(file, inputs, remedy)
    if inputs.ndim == 4:
        inputs = np.moveaxis(inputs, 1, -1)
    return inputs.astype(np.float32), targets.astype(np.int32)


def _read_pickled_dict(file: Path) -> dict[str, Any]:
    """Returns what the key `data` of the file holds, and trusts nothing in it."""
    remedy = "generate the directory again"
    try:
        with zipfile.ZipFile(file) as archive:
            value = _unpickle_array(archive) if "data.npy" in archive.namelist() else None
    except OSError as error:
        raise _unreadable(file, error) from error
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{file} is damaged or holds other things than arrays ({error}), which could run "
            f"programs: get it from a source you trust, or {remedy}."
        ) from error
    except Exception as error:  # Bytes that are no pickle fail in nearly every way there is.
        raise UserError(f"{file} is truncated or damaged: {remedy}.") from error
    if not isinstance(value, dict):
        raise UserError(f"{file} does not hold a dictionary of x and y as data: {remedy}.")
    return value


def _unpickle_array(archive: zipfile.ZipFile) -> Any:
    """Returns the one object in data.npy, or None if it is not an array of one object."""
    with archive.open("data.npy") as member:
        version = np.lib.format.read_magic(member)
        if version == (1, 0):
            _, _, dtype = np.lib.format.read_array_header_1_0(member)
        else:
            _, _, dtype = np.lib.format.read_array_header_2_0(member)
        if dtype != np.dtype(object):
            return None
        array = _ArrayUnpickler(member).load()
    return array.item() if isinstance(array, np.ndarray) and array.size == 1 else None
