"""Prompts of two towers on classes with and without examples: local, base and new classes.

    python experiments/base_to_novel.py [--rates=0.1,1] [--seeds=3] [--rounds=20]

A stand-in for experiments with CLIP, whose weights are not needed: a small `two_tower` is trained
on a public split of the digits, in which every class has examples and one id as its name. It is
frozen then. Five clients have other images, turned by 0, 20, 40, 60 and 80 degrees, of three of the
six base classes 0 to 5, and train prompts with the names of the base classes only. All are tested
on the same images of all classes, turned as their own:

    local:  the client's classes, among their names
    base:   the other base classes, among their names
    new:    the classes 6 to 9, of which no client has an example, among their names

Prints a table in Markdown: accuracies as means over clients and seeds, and the harmonic mean of the
three. The first row is the frozen model without prompts. Each learning rate has a row, and none is
selected.
"""

from __future__ import annotations

import functools
import pathlib
import tempfile
from collections.abc import Sequence

import jax
import numpy as np
import optax
from absl import flags
from scipy import ndimage

from pfljax.api.training import fit
from pfljax.cli import app
from pfljax.core import Params
from pfljax.data.arrays import from_arrays
from pfljax.data.sources import load_digits
from pfljax.models import MODELS, Model, adapters, params_file

_RATES = flags.DEFINE_list("rates", ["0.1", "1"], "Learning rates of the clients.")
_SEEDS = flags.DEFINE_integer("seeds", 3, "Number of seeds.")
_ROUNDS = flags.DEFINE_integer("rounds", 20, "Number of rounds.")
_STEPS = flags.DEFINE_integer("public_steps", 1500, "Number of steps on the public split.")

_ANGLES = (0, 20, 40, 60, 80)
_CLASSES, _BASE, _OWN = 10, tuple(range(6)), 3
_NEW = tuple(range(len(_BASE), _CLASSES))
_PUBLIC, _TEST = 800, 500  # images; the others are the clients'
_LENGTH = 4
_METHODS = {
    "local": {},
    "fedavg": {},
    "fedpgp, mu=0": {"mu": 0.0},
    "fedpgp": {},
}


def settings(classes: Sequence[int]) -> dict:
    """Returns the arguments of a `two_tower` for some of the classes, named by their ids."""
    names = tuple((0, 1 + label, 1 + _CLASSES) for label in classes)
    size = {"patch": 2, "width": 32, "heads": 2, "features": 32, "name_vocabulary": _CLASSES + 2}
    return {**size, "names": names}


def model_of(classes: Sequence[int]) -> Model:
    """Returns the two towers for some of the classes, with params of the same form for all."""
    return MODELS["two_tower"]((8, 8, 1), len(classes), **settings(classes))


def classes_of(client: int) -> tuple[int, ...]:
    """Returns the base classes of a client: each class has clients with different angles."""
    return tuple(sorted((client + step) % len(_BASE) for step in range(_OWN)))


def train_public(inputs: np.ndarray, labels: np.ndarray, steps: int, seed: int) -> Params:
    """Returns the params of the two towers after training on the public split.

    Args:
      inputs: `[n, 8, 8, 1]`.
      labels: `[n]`, all classes.
      steps: Number of steps of Adam, with batches of 64.
      seed: The seed of initial params and batches.
    """
    model, optimizer = model_of(range(_CLASSES)), optax.adam(0.002)
    params = model.init(jax.random.key(seed))

    @jax.jit
    def step(params, state, batch, targets):
        def loss(params):
            logits = model.head(params, model.features(params, batch))
            return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()

        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    state, draw = optimizer.init(params), np.random.default_rng(seed)
    for _ in range(steps):
        rows = draw.integers(0, len(labels), 64)
        params, state = step(params, state, inputs[rows], labels[rows])
    return params


def turn(images: np.ndarray, angle: float) -> np.ndarray:
    """Returns images `[n, 8, 8, 1]` turned by an angle in degrees."""
    return ndimage.rotate(images, angle, axes=(2, 1), reshape=False, order=1, mode="nearest")


@functools.cache
def _predictor(classes: tuple[int, ...], prompted: bool):
    model = model_of(classes)

    @jax.jit
    def predict(base, own, inputs):
        chosen, params = model, base
        if prompted:
            adapter = adapters.prompts(model, length=_LENGTH)
            chosen, params = adapter.model(adapter.freeze(base)), own
        return chosen.head(params, chosen.features(params, inputs)).argmax(axis=1)

    return predict


def accuracies(
    base: Params, own: Params | None, client: int, inputs: np.ndarray, labels: np.ndarray
) -> list[float]:
    """Returns the accuracies of a client's model on local, base and new classes.

    Args:
      base: The frozen params of the two towers.
      own: The client's prompts; None for the two towers without any.
      client: The number of the client.
      inputs: `[n, 8, 8, 1]`, turned as the client's.
      labels: `[n]`.
    """
    local = classes_of(client)
    found = []
    for classes in (local, tuple(c for c in _BASE if c not in local), _NEW):
        rows = np.isin(labels, classes)
        chosen = _predictor(classes, own is not None)(base, own, inputs[rows])
        found.append(float(np.mean(np.asarray(classes)[np.asarray(chosen)] == labels[rows])))
    return found


def one_seed(seed: int, rates: Sequence[float], rounds: int, steps: int) -> dict[tuple, np.ndarray]:
    """Returns `[clients, 3]` accuracies of each method and learning rate."""
    digits = load_digits()
    order = np.random.default_rng(seed).permutation(len(digits.targets))
    inputs = (np.asarray(digits.inputs, np.float32) / 16)[order]
    labels = np.asarray(digits.targets)[order]
    public, test = slice(_PUBLIC), slice(_PUBLIC, _PUBLIC + _TEST)
    base = train_public(inputs[public], labels[public], steps, seed)
    turned = [turn(inputs[test], angle) for angle in _ANGLES]
    found = {
        ("no prompts", ""): [
            accuracies(base, None, k, turned[k], labels[test]) for k in range(len(_ANGLES))
        ]
    }
    rest = np.flatnonzero(labels[_PUBLIC + _TEST :] < len(_BASE)) + _PUBLIC + _TEST
    owner = np.array(
        [
            np.random.default_rng((seed, row)).choice(
                [k for k in range(len(_ANGLES)) if labels[row] in classes_of(k)]
            )
            for row in rest
        ]
    )
    images = np.concatenate(
        [turn(inputs[rest[owner == k]], _ANGLES[k]) for k in range(len(_ANGLES))]
    )
    targets = np.concatenate([labels[rest[owner == k]] for k in range(len(_ANGLES))])
    data = from_arrays(
        images, targets, np.sort(owner), normalize=False, class_names=tuple(map(str, _BASE))
    )
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "base.safetensors"
        params_file.save(path, base)
        for title, hyperparameters in _METHODS.items():
            for rate in rates:
                run = fit(
                    title.partition(",")[0],
                    data,
                    model={"name": "two_tower", **settings(_BASE)},
                    adapter={"name": "prompts", "length": _LENGTH, "base": str(path)},
                    rounds=rounds,
                    eval_every=rounds,
                    learning_rate=rate,
                    seed=seed,
                    **hyperparameters,
                )
                found[title, f"{rate:g}"] = [
                    accuracies(base, model.params, k, turned[k], labels[test])
                    for k, model in enumerate(run.clients())
                ]
    return {key: np.array(rows) for key, rows in found.items()}


def table(seeds: list[dict[tuple, np.ndarray]]) -> str:
    """Returns the table in Markdown, of the accuracies of all seeds."""
    out = ["| method | learning rate | local (%) | base (%) | new (%) | harmonic mean (%) |"]
    out.append("|---|---|---:|---:|---:|---:|")
    for key in seeds[0]:
        means = 100 * np.mean([seed[key] for seed in seeds], axis=(0, 1))
        harmonic = 3 / np.sum(1 / np.maximum(means, 1e-9))
        cells = (*key, *(f"{value:.1f}" for value in (*means, harmonic)))
        out.append("| " + " | ".join(cells) + " |")
    return "\n".join(out)


def main():
    rates = [float(rate) for rate in _RATES.value]
    print(
        table([one_seed(seed, rates, _ROUNDS.value, _STEPS.value) for seed in range(_SEEDS.value)])
    )


if __name__ == "__main__":
    app.run(main)
