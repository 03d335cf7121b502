"""Reading the files of trajectories: data, models and settings in the names of these files."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Iterator, Mapping

import federation
import jax
import jax.numpy as jnp
import numpy as np
import optax

from pfljax import core, models, tasks
from pfljax.engine.examples import Examples
from pfljax.ops import gates

Arrays = Mapping[str, np.ndarray]

THIRD_PARTY = pathlib.Path(__file__).parents[1] / "third_party"
RECENT = pathlib.Path(
    os.environ.get("PFLJAX_RECENT_TRAJECTORIES") or THIRD_PARTY / "recent_trajectories"
)


def read_recent(name: str) -> Arrays:
    """Returns the arrays of a file of the recent methods, or one that these share with PFLlib's.

    Args:
      name: The name of the file without its ending; `data` and `init` are shared.
    """
    path = RECENT / f"{name}.npz"
    if not path.exists():
        path = THIRD_PARTY / "pfllib_trajectories" / path.name
    with np.load(path) as file:
        return {key: file[key] for key in file.files}


def model_from(arrays: Arrays, prefix: str) -> core.Params:
    """Returns the params of our network, whose body is 'base' in the files."""

    def layer(name):
        return {kind: arrays[f"{prefix}{name}/{kind}"] for kind in ("kernel", "bias")}

    return {"body": {"Dense_0": layer("base")}, "head": layer("head")}


def names_of(model: core.Params) -> Iterator[tuple[str, np.ndarray]]:
    """Yields `(path in the files, array)` of each array of one of our models."""
    for name, layer in (("base", model["body"]["Dense_0"]), ("head", model["head"])):
        for kind, array in layer.items():
            yield f"{name}/{kind}", array


def examples_from(data: Arrays) -> Examples:
    """Returns the examples of all clients, with their test rows, in float64."""
    clients = sum(key.endswith("/train_x") for key in data)
    names = [f"client{k}/{split}" for split in ("train", "test") for k in range(clients)]
    inputs = np.concatenate([data[f"{name}_x"] for name in names]).astype(np.float64)
    labels = np.concatenate([data[f"{name}_y"] for name in names]).astype(np.int32)
    sizes = np.array([len(data[f"{name}_y"]) for name in names])
    whole = federation.examples_of(inputs, labels, sizes, num_classes=int(labels.max()) + 1)
    train, test = slice(clients), slice(clients, None)
    offsets, sizes = whole.offsets["train"], whole.sizes["train"]
    return dataclasses.replace(
        whole,
        offsets={"train": offsets[train], "validation": offsets[train], "test": offsets[test]},
        sizes={"train": sizes[train], "validation": 0 * sizes[train], "test": sizes[test]},
        class_counts=whole.class_counts[train],
        max_train_size=int(sizes[train].max()),
        max_eval_size=int(sizes[test].max()),
        num_participants=clients,
    )


def task_from(initial: core.Params) -> core.Task:
    """Returns the classification task of an MLP that starts with the given params."""
    inputs, width = initial["body"]["Dense_0"]["kernel"].shape
    classes = initial["head"]["kernel"].shape[1]
    network = models.mlp((inputs,), classes, widths=(width,))
    start = jax.tree.map(jnp.asarray, initial)
    return tasks.classification(network, num_classes=classes)._replace(init=lambda key: start)


def local_training(rate: float, batch_size: int, epochs: int = 1) -> core.LocalTraining:
    """Returns SGD on consecutive rows, without the last batch of an epoch if it is partial."""
    return core.LocalTraining(
        optax.sgd(rate),
        batch_size=batch_size,
        epochs=epochs,
        drop_remainder=True,
        shuffle=False,
        learning_rate=rate,
    )


def settings_of_pfedgate(theirs: Arrays) -> dict[str, object]:
    """Returns the hyper-parameters of pFedGate, given those of the file."""
    return {
        "density": theirs["sparse_factor"],
        "blocks": theirs["fine_grained_block_split"],
        "rate_factor": theirs["lr_gating"] / theirs["lr_model"],
        "released": True,
    }


def clipped_local(local: core.LocalTraining, theirs: Arrays) -> core.LocalTraining:
    """Returns local training with the clip norm of the file."""
    clip = optax.clip_by_global_norm(theirs["clip"])
    return local._replace(optimizer=optax.chain(clip, optax.sgd(theirs["lr_model"])))


def gate_from(theirs: Arrays, client: int) -> core.Params:
    """Returns a gate of pFedGate as it starts in the file, which has what is drawn at random."""
    prefix = f"init/client{client}/gate/"
    drawn = {key.removeprefix(prefix): theirs[key] for key in theirs if key.startswith(prefix)}
    layer = {kind: jnp.asarray(drawn[f"linear/{kind}"]) for kind in ("kernel", "bias")}
    inputs, outputs = layer["kernel"].shape
    gate = gates.init(jax.random.key(0), (inputs,), outputs, layer["kernel"].dtype)
    return {**gate, "linear": layer, "bn": {**gate["bn"], "bias": jnp.asarray(drawn["bn/bias"])}}


def names_of_gate(gate: core.Params) -> dict[str, jax.Array]:
    """Returns the arrays of a gate by their names in the file."""
    return {f"gate/{a}/{b}": array for a, arrays in gate.items() for b, array in arrays.items()}
