"""Linear models in closed form on the data of a regression study, beside which methods can be read.

    python experiments/closed_forms.py --config=configs/motley_school.py --config.data.dir=DIRECTORY

With inputs `x` that end in a 1, standardized as in the study, and standardized targets `y`:

    mean of all, own mean:  a constant
    pooled slopes:          argmin_w sum_k sum_i (x_ki w - y_ki)^2, the limit of FedAvg
    own slopes:             the same for each client alone, of the least norm: the limit of Local
    own intercepts:         pooled slopes, and a constant of each client's own
    ridge:                  argmin_v mean_i (x_ki v - y_ki)^2 + lam/2 ||v - w||^2 for each client,
                            with the pooled w: the limit of Ditto; lam is the best one by validation

Prints the mean squared error of the targets for training on the training examples, as mean over
clients (`config.selection.mean`), with one partition and split for each seed as in compare.py.
"""

from __future__ import annotations

from collections.abc import Callable

import ml_collections
import numpy as np

from pfljax.cli import app
from pfljax.data import FederatedDataset, Split
from pfljax.errors import UserError
from pfljax.training.study import config_checks, config_runs, experiment

_LAMBDAS = (0.02, 0.06, 0.2, 0.6, 2.0, 6.0)

Part = tuple[np.ndarray, np.ndarray]  # inputs [n, d], targets [n]
Fit = Callable[[list[Part]], list[np.ndarray]]  # the training parts -> the weights of each client


def parts(dataset: FederatedDataset, split: Split) -> list[Part]:
    """Returns the standardized inputs, with a column of ones, and targets of each client."""
    found = []
    for offset, size in zip(split.offsets, split.sizes, strict=True):
        rows = slice(offset, offset + size)
        inputs = (np.asarray(dataset.inputs[rows], float) - dataset.mean) / dataset.std
        inputs = np.concatenate([inputs.reshape(size, -1), np.ones((size, 1))], axis=1)
        targets = (np.asarray(dataset.targets[rows], float) - dataset.target_mean).ravel()
        found.append((inputs, targets / dataset.target_std))
    return found


def _pooled(train: list[Part]) -> Part:
    return tuple(np.concatenate(arrays) for arrays in zip(*train, strict=True))


def _constant(value: float, size: int) -> np.ndarray:
    return np.append(np.zeros(size - 1), value)


def mean_of_all(train: list[Part]) -> list[np.ndarray]:
    """Returns the mean of all training targets, for every client."""
    inputs, targets = _pooled(train)
    return [_constant(targets.mean(), inputs.shape[1])] * len(train)


def own_mean(train: list[Part]) -> list[np.ndarray]:
    """Returns the mean of each client's own training targets."""
    return [_constant(targets.mean(), inputs.shape[1]) for inputs, targets in train]


def pooled_slopes(train: list[Part]) -> list[np.ndarray]:
    """Returns the least squares of all clients' examples, for every client."""
    return [np.linalg.lstsq(*_pooled(train))[0]] * len(train)


def own_slopes(train: list[Part]) -> list[np.ndarray]:
    """Returns the least squares of each client's own examples, of the least norm."""
    return [np.linalg.lstsq(inputs, targets)[0] for inputs, targets in train]


def own_intercepts(train: list[Part]) -> list[np.ndarray]:
    """Returns pooled slopes with a constant of each client's own."""
    centred = [
        (inputs[:, :-1] - inputs[:, :-1].mean(axis=0), targets - targets.mean())
        for inputs, targets in train
    ]
    slopes = np.linalg.lstsq(*_pooled(centred))[0]
    return [
        np.append(slopes, np.mean(targets - inputs[:, :-1] @ slopes)) for inputs, targets in train
    ]


def ridge(lam: float) -> Fit:
    """Returns the fit of every client with a penalty on the distance to the pooled solution."""

    def fit(train):
        (common, *_), found = pooled_slopes(train), []
        for inputs, targets in train:
            gram = inputs.T @ inputs / len(targets) + lam / 2 * np.eye(inputs.shape[1])
            rest = inputs.T @ (targets - inputs @ common) / len(targets)
            found.append(common + np.linalg.solve(gram, rest))
        return found

    return fit


def score(weights: list[np.ndarray], data: list[Part], scale: float, mean: str) -> float:
    """Returns the mean over clients of the mean squared error, in the units of the targets."""
    tested = [(own, *part) for own, part in zip(weights, data, strict=True) if len(part[1])]
    errors = [np.mean((inputs @ own - targets) ** 2) for own, inputs, targets in tested]
    sizes = [len(targets) for _, _, targets in tested] if mean == "weighted" else None
    return scale**2 * float(np.average(errors, weights=sizes))


def scores(datasets: list[FederatedDataset], fit: Fit, mean: str) -> np.ndarray:
    """Returns `[seeds, 2]`, the validation and test scores of a fit."""
    found = []
    for dataset in datasets:
        weights = fit(parts(dataset, dataset.train))
        found.append(
            [
                score(weights, parts(dataset, split), dataset.target_std, mean)
                for split in (dataset.validation, dataset.test)
            ]
        )
    return np.array(found)


def _datasets(config: ml_collections.ConfigDict) -> list[FederatedDataset]:
    method = config.algorithms[0]
    found = [
        experiment.build_dataset(config_runs.of_run(config, method, seed)) for seed in config.seeds
    ]
    if any(each.task != "regression" for each in found):
        raise UserError("Closed forms are for regressions; choose a data set whose targets are.")
    return found


def main():
    config = app.config()
    config_checks.check(config)
    datasets, mean = _datasets(config), config.selection.mean
    fits = {
        each.__name__.replace("_", " "): each
        for each in (mean_of_all, own_mean, pooled_slopes, own_slopes, own_intercepts)
    }
    ridges = {lam: ridge(lam) for lam in _LAMBDAS}
    best = min(ridges, key=lambda lam: scores(datasets, ridges[lam], mean)[:, 0].mean())
    fits[f"ridge, lam {best:g}"] = ridges[best]
    app.say("| model | validation mse | test mse | of each seed |\n|---|---:|---:|---|")
    for name, fit in fits.items():
        found = scores(datasets, fit, mean)
        validation, test = found.mean(axis=0)
        each = " ".join(f"{value:.4g}" for value in found[:, 1])
        app.say(f"| {name} | {validation:.4g} | {test:.4g} | {each} |")


if __name__ == "__main__":
    app.run(main, app.define_config)
