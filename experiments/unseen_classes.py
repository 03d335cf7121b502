"""Scores by which clients recognize examples of classes that no client has.

    python experiments/unseen_classes.py --config=configs/fedgmm_digits.py --workdir=WORKDIR \
        --classes=8,9

The classes are removed from the pool before it is partitioned, and FedAvg and FedGMM are trained
with each seed of the config. A client scores its own test examples, and all examples of the removed
classes, by

    fedavg, fedgmm:   the largest probability of a class
    fedgmm, density:  log p_k(z) = log sum_ab pi_kab N(z; mu_a, Sigma_a)

The AUC is the fraction of pairs in which its own example has the larger score; means over clients,
held-out ones apart, weighted by test examples, and then mean ± standard deviation over seeds.
"""

from __future__ import annotations

import pathlib

import jax
import ml_collections
import numpy as np
from absl import flags
from sklearn.metrics import roc_auc_score

from pfljax import api
from pfljax.algorithms.fedgmm import log_density
from pfljax.cli import app
from pfljax.data import SOURCES, FederatedDataset
from pfljax.data.examples import Examples
from pfljax.data.input_arrays import map_inputs
from pfljax.errors import UserError
from pfljax.report import tables
from pfljax.training import single
from pfljax.training.study import config_runs, config_values
from pfljax.training.study.task import build_task

_CLASSES = flags.DEFINE_list("classes", [], "The classes that no client has, such as 8,9.")
_METHODS = ("fedavg", "fedgmm")
_NAME = "seen_classes"


def split_classes(pool: Examples, classes: list[int]) -> tuple[Examples, np.ndarray]:
    """Returns a pool without some classes, and the inputs of these.

    Raises:
      UserError: A class has no example, or no other class has one.
    """
    if missing := set(classes) - set(pool.targets.tolist()):
        raise UserError(f"--classes has {min(missing)}, of which {pool.name} has no example.")
    here = np.isin(pool.targets, classes)
    if here.all() or not here.any():
        raise UserError("Pass some classes with --classes, such as 8,9, and leave others.")
    kept, removed = (
        map_inputs(lambda array, rows=rows: array[rows], pool.inputs) for rows in (~here, here)
    )
    owners = None if pool.owners is None else pool.owners[~here]
    return pool._replace(inputs=kept, targets=pool.targets[~here], owners=owners), removed


def auc_of_clients(
    dataset: FederatedDataset, scores: list[tuple[np.ndarray, np.ndarray]]
) -> tuple[float, float]:
    """Returns the mean AUC of the clients that take part, and of held-out ones; NaN without any.

    Args:
      dataset: The data set.
      scores: Of each client, `[n]` for its test examples and `[m]` for the removed classes.
    """
    values = [
        roc_auc_score(np.repeat([1, 0], [len(own), len(others)]), np.concatenate([own, others]))
        if len(own)
        else 0.0
        for own, others in scores
    ]
    sizes, count = dataset.test.sizes, dataset.num_participants
    return tuple(
        float(np.average(values[part], weights=sizes[part])) if sizes[part].sum() else np.nan
        for part in (slice(None, count), slice(count, None))
    )


def evaluate(run: api.Run, removed: np.ndarray) -> dict[str, tuple[float, float]]:
    """Returns the AUC of each score of a run, for clients that take part and held-out ones."""
    dataset, models = run.dataset, run.clients()
    offsets, sizes = dataset.test.offsets, dataset.test.sizes
    examples = [
        (np.asarray(dataset.inputs[offset : offset + size]), removed)
        for offset, size in zip(offsets, sizes, strict=True)
    ]

    def auc(score):
        return auc_of_clients(
            dataset,
            [
                tuple(score(model, inputs) if len(inputs) else np.zeros(0) for inputs in own)
                for model, own in zip(models, examples, strict=True)
            ],
        )

    method = run.config.algorithm
    found = {method: auc(lambda model, inputs: model.predict_proba(inputs).max(axis=1))}
    if method == "fedgmm":
        own = bool(run.config.hparams.fedgmm.encoder.name)
        make, _ = build_task(run.config, dataset, "hparams.fedgmm.encoder" if own else "model")
        features = make(()).features
        density = jax.jit(lambda params, inputs: log_density(params, features, inputs))
        found["fedgmm, density"] = auc(
            lambda model, inputs: np.asarray(density(model.params, inputs))
        )
    return found


def _row(name: str, seeds: list[tuple[float, float]]) -> str:
    cells = [tables.percent_over_seeds(values) for values in zip(*seeds, strict=True)]
    return f"| {' | '.join([name, *cells])} |"


def _run(config: ml_collections.ConfigDict, directory: pathlib.Path) -> api.Run:
    """Returns the run of a config, which is trained if it is not finished."""
    single.run(config, directory, resume=True)
    return api.open_run(directory)


def main():
    config, directory = app.study()
    if not all(name.isdecimal() for name in _CLASSES.value):
        raise UserError("Pass whole numbers with --classes, such as 8,9.")
    source = config.data.name
    config_values.require_known("data set", source, SOURCES)
    options = {**config.data.options.get(source, {})}
    pool = SOURCES[source](config.data.dir, **options)
    if pool.task != "classification":
        raise UserError(f"The data set {source} has no classes; choose a classification.")
    kept, removed = split_classes(pool, [int(name) for name in _CLASSES.value])
    api.register_dataset(lambda dir: kept, name=_NAME)
    config.data.name = _NAME
    found: dict[str, list[tuple[float, float]]] = {}
    for method in _METHODS:
        for seed in config.seeds:
            own = config_runs.of_run(config, method, seed)
            run = _run(own, directory / "unseen_classes" / method / f"seed_{seed}")
            for name, values in evaluate(run, removed).items():
                found.setdefault(name, []).append(values)
    app.say("| score | AUC (%) | held-out clients |\n|---|---:|---:|")
    for name, seeds in found.items():
        app.say(_row(name, seeds))


if __name__ == "__main__":
    app.run(main, app.define_study)
