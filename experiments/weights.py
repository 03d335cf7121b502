"""Weights as data: personal params of held-out users, generated from a few unlabelled items.

    python experiments/weights.py --config=configs/weights.py:popquorn --workdir=WORKDIR \\
        --config.data.dir=DIRECTORY

Of the held-out clients of the config (`config.data.unseen_fraction`), half are validation users,
with which all settings are chosen, and half are test users, who are scored once. Both have the same
few given items (`--items`), and are scored on their test examples. The personal params are those of
a linear model, of the inputs, or of the features of a base that FedAvg trains on the training users
where the config's model is another one. The rows of the table:

    nothing:     the most frequent label, the common model (FedAvg), the mean of the training users'
                 personal params
    unlabelled:  the condition of a user is the mean of the inputs of its given items. Ridge
                 regression from it to the coefficients of the params in a basis, the principal
                 directions of the training users' params; a diffusion model of these coefficients,
                 or of the latent vectors of an autoencoder (DiffLoRA), one sample or the mean of
                 several
    labelled:    with the labels of the given items: the user's most frequent label, a bias fitted
                 to the common model, coefficients in the basis fitted by descent (Celeb Basis),
                 fine-tuned FedAvg, pFedHN, PeFLL
    all:         fine-tuned FedAvg with all training examples of the user

The training users' params are those of fine-tuned FedAvg with the setting that is best on their
validation examples. Every row but the first ones has six settings (`--rates` for learning rates of
clients: all six for FedAvg, every second one beside two values of another setting), and the one
with the best mean accuracy of the validation users is used. Prints a table in Markdown: means over
test users, a user counting once with the mean over seeds, and gains with the 95 % interval of a
paired bootstrap over users.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from absl import flags
from held_out import generation
from held_out.generation import Row, Settings
from held_out.given_items import linear_features, with_given_items

from pfljax.api.results import Run, open_run
from pfljax.api.training import fit, sweep
from pfljax.cli import app
from pfljax.data import FederatedDataset
from pfljax.errors import UserError
from pfljax.ops import weights
from pfljax.report import tables
from pfljax.training.study import config_runs, experiment
from pfljax.training.study.task import build_task
from pfljax.training.sweep import name_of

# The settings of methods with learning rates, six combinations of values with those of the rates.
_OF_METHODS = {
    "fedavg": {},
    "fedavg_ft": {"fine_tuning_epochs": (5, 20)},
    "pfedhn": {"rate": (0.03, 0.1)},
    "pefll": {"rate": (0.003, 0.01)},
}
_COMMON = "common model (fedavg)"
_REFERENCES = _COMMON, generation.FITTED_BIAS, "fedavg_ft"


def trained(
    config: ml_collections.ConfigDict,
    dataset: FederatedDataset,
    directory: pathlib.Path,
    rates: Sequence[float],
) -> tuple[dict[str, list[Run]], dict[str, Any]]:
    """Trains the federated methods with all their settings.

    Returns:
      `{method: runs}`, and the setting of fine-tuned FedAvg that is best on the validation examples
      of training users.

    Raises:
      UserError: All runs of a method diverged.
    """
    runs, best = {}, {}
    for method, grid in _OF_METHODS.items():
        values = {"learning_rate": rates[1::2] if grid else rates, **grid}
        own = directory / method
        found = sweep(method, dataset, values, seeds=(config.seed,), config=config, workdir=own)
        best[method] = found.best
        names = {"learning_rate": f"learning_rates.{method}"}  # as the sweep names its directories
        settings = [
            {names.get(key, key): value for key, value in setting.items()}
            for setting in generation.combinations(values)
        ]
        paths = [own / method / name_of(setting) / f"seed_{config.seed}" for setting in settings]
        opened = [open_run(path, dataset) for path in paths]
        runs[method] = [run for run in opened if "diverged" not in run.result]
        if not runs[method]:
            raise UserError(f"All settings of {method} diverged; pass smaller --rates.")
    return runs, best["fedavg_ft"]


def of_held_out(run: Run) -> np.ndarray:
    """Returns `[U]`, the test accuracies of held-out users in the order of their numbers."""
    frame = run.per_client().sort_values("client")
    return frame.loc[frame["unseen"], "personal_test_accuracy"].to_numpy()


def one_seed(
    config: ml_collections.ConfigDict,
    directory: pathlib.Path,
    rates: Sequence[float],
    settings: Settings,
) -> tuple[dict[str, Row], list[str]]:
    """Returns the rows of the table for the test users of one seed, and who they are.

    Args:
      config: The config of a run with that seed.
      directory: The directory of the runs.
      rates: Learning rates of clients.
      settings: The settings of the experiment.

    Raises:
      UserError: The data set is no classification, or has fewer than two held-out users.
    """
    whole, seed = experiment.build_dataset(config), config.seed
    if whole.task != "classification" or whole.num_unseen < 2:
        raise UserError(
            f"weights.py needs a classification with two held-out users or more; {whole.name} has "
            f"the task {whole.task} and {whole.num_unseen}: set config.data.unseen_fraction."
        )
    config, whole = linear_features(config, whole, directory / "base")
    dataset = with_given_items(whole, settings.items, seed)
    runs, best = trained(config, dataset, directory, rates)
    make, frozen = build_task(config, dataset)

    count = dataset.num_unseen
    shuffled = np.random.default_rng(seed).permutation(count)
    is_validation = np.isin(np.arange(count), shuffled[: count // 2])

    def chosen(method, uses=generation.LABELLED):
        run = max(runs[method], key=lambda run: of_held_out(run)[is_validation].mean())
        return run, Row(uses, of_held_out(run), run.directory.parent.name)

    of_training = fit("fedavg_ft", whole, config=config, workdir=directory / "all", **best)
    own = [model.params for model in of_training.clients(range(dataset.num_participants))]
    study = generation.Study(
        dataset, make(frozen), is_validation, jax.tree.map(lambda *one: jnp.stack(one), *own)
    )
    average, of_average = chosen("fedavg", generation.NOTHING)
    common, _ = weights.flatten(jax.tree.map(lambda x: x[None], average.global_model().params))
    mean = jnp.tile(study.basis.mean, (count, 1))
    labels = generation.of_labels(dataset, study)
    conditions = generation.conditions_of(dataset, settings, seed)
    found = {
        "most frequent label": labels["most frequent label"],
        _COMMON: of_average,
        "mean of the training users' params": Row(generation.NOTHING, study.accuracies(mean)),
        **generation.generated(study, *conditions, settings.samples, seed),
        **labels,
        **generation.fitted(study, common[0]),
        **{method: chosen(method)[1] for method in ("fedavg_ft", "pfedhn", "pefll")},
        "fedavg_ft with all training examples": Row(generation.ALL, of_held_out(of_training), best),
    }
    names = dataset.client_names or [f"{seed}/{client}" for client in range(dataset.num_clients)]
    tested = np.flatnonzero(~is_validation)
    scored = {name: row._replace(accuracies=row.accuracies[tested]) for name, row in found.items()}
    return scored, [names[dataset.num_participants + number] for number in tested]


def table(seeds: Sequence[tuple[Mapping[str, Row], Sequence[str]]], seed: int) -> list[str]:
    """Returns the lines of the table.

    Args:
      seeds: The results of `one_seed`.
      seed: The seed of the bootstrap.
    """
    first, _ = seeds[0]
    means = {}
    for name in first:
        of_users: dict[str, list[float]] = {}
        for of_seed, users in seeds:
            for user, value in zip(users, of_seed[name].accuracies, strict=True):
                of_users.setdefault(user, []).append(float(value))
        means[name] = np.array([np.mean(values) for values in of_users.values()])
    lines = [
        "| params of a held-out user | uses | accuracy | gain over the common model "
        "| over a fitted bias | over fine-tuning |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for name, values in means.items():
        gains = [tables.mean_gain(values - means[other], seed) for other in _REFERENCES]
        cells = [name, first[name].uses, f"{values.mean():.3f}", *gains]
        lines.append(f"| {' | '.join(cells)} |")
    return [f"{len(values)} test users in {len(seeds)} splits", "", *lines]


def define_flags() -> None:
    """Defines the flags of this script."""
    app.define_study()
    flags.DEFINE_list(
        "rates", ["0.03", "0.06", "0.1", "0.2", "0.3", "0.6"], "Six learning rates of clients."
    )
    for name, value in Settings()._asdict().items():
        flags.DEFINE_integer(name, value, f"The setting {name}, see Settings.", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "The seed of the bootstrap.", lower_bound=0)


def main() -> None:
    """Runs the script."""
    config, directory = app.study()
    given = flags.FLAGS
    settings = Settings(**{name: given[name].value for name in Settings._fields})
    try:
        rates = [float(rate) for rate in given.rates]
    except ValueError as error:
        raise UserError(f"--rates={','.join(given.rates)} are no numbers ({error}).") from error
    if len(rates) != 6:
        raise UserError(f"--rates has {len(rates)} learning rates; pass six, separated by commas.")
    found = []
    for seed in config.seeds:
        own = config_runs.of_run(config, "fedavg", seed)
        found.append(one_seed(own, directory / f"seed_{seed}", rates, settings))
        for name, row in found[-1][0].items():
            if row.setting is not None:
                app.say(f"seed {seed}, {name}: {row.setting}")
    print("\n".join(table(found, given.seed)))


if __name__ == "__main__":
    app.run(main, define_flags)
