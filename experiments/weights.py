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

import copy
import functools
import itertools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from absl import flags

from pfljax.api.results import Run, open_run
from pfljax.api.training import fit, sweep
from pfljax.cli import app
from pfljax.core import Params, Task
from pfljax.data import FederatedDataset, precompute
from pfljax.errors import UserError
from pfljax.ops import autoencoder, diffusion, weights
from pfljax.report import tables
from pfljax.training.study import config as config_lib
from pfljax.training.study import experiment
from pfljax.training.study.task import build_task
from pfljax.training.sweep import name_of

_FRACTIONS = diffusion.signal_fractions(100, 0.001, 0.2)
# The settings of each row, six combinations of values; those of methods with learning rates.
_OF_METHODS = {
    "fedavg": {},
    "fedavg_ft": {"fine_tuning_epochs": (5, 20)},
    "pfedhn": {"rate": (0.03, 0.1)},
    "pefll": {"rate": (0.003, 0.01)},
}
_BIAS = {"rate": (0.03, 0.1), "steps": (3, 10, 30)}
_FITTED = {"size": (2, 8, 32), "steps": (10, 50)}
_RIDGE = {"size": (4, 32), "penalty": (0.1, 1.0, 10.0)}
_DIFFUSION = {"size": (2, 8, 32), "steps": (500, 2000)}
_RATE_OF_COEFFICIENTS = 0.1  # in units of their standard deviations
# The networks: the width of hidden layers, the learning rate, and steps and batches.
_HIDDEN, _RATE, _STEPS_OF_AUTOENCODER, _BATCH = 64, 0.003, 1000, 128
_NOTHING, _UNLABELLED, _LABELLED, _ALL = "nothing", "unlabelled", "labelled", "all labelled"
_COMMON, _FITTED_BIAS = "common model (fedavg)", "common model with a fitted bias"
_REFERENCES = _COMMON, _FITTED_BIAS, "fedavg_ft"


class Settings(NamedTuple):
    """Settings of the experiment.

    Attributes:
      items: Number of given items of a held-out user.
      subsets: Number of random subsets of as many items of each training user, whose means are the
        conditions that belong to the user's params.
      condition_size: Number of principal directions to which conditions are reduced.
      samples: Number of samples of a diffusion model in a mean.
    """

    items: int = 5
    subsets: int = 16
    condition_size: int = 16
    samples: int = 16


class Users(NamedTuple):
    """Examples of held-out users, whose rows have padding.

    Attributes:
      inputs: `[U, n, ...]`, as stored.
      targets: `[U, n]` int32.
      mask: `[U, n]` bool, False for padding.
    """

    inputs: np.ndarray
    targets: np.ndarray
    mask: np.ndarray

    def fraction(self, right: jax.Array) -> jax.Array:
        """Returns `[U]`, the fraction of each user's examples where `right` `[U, n]` is True."""
        return (right & self.mask).sum(axis=1) / self.mask.sum(axis=1)


def rows_of(dataset: FederatedDataset, split: str, client: int) -> np.ndarray:
    """Returns the rows of a client's examples of a split in the flat arrays."""
    of_split = getattr(dataset, split)
    return of_split.offsets[client] + np.arange(of_split.sizes[client])


def users_of(dataset: FederatedDataset, split: str, clients: Sequence[int]) -> Users:
    """Returns the examples of some clients, padded to the largest number."""
    found = [rows_of(dataset, split, client) for client in clients]
    longest = max(len(rows) for rows in found)
    mask = np.array([np.arange(longest) < len(rows) for rows in found])
    rows = np.array([np.resize(rows, longest) for rows in found])
    inputs = dataset.inputs[rows]
    inputs = inputs if dataset.items is None else dataset.items[inputs]
    return Users(inputs, dataset.targets[rows], mask)


def with_given_items(dataset: FederatedDataset, items: int, seed: int) -> FederatedDataset:
    """Returns the data set in which held-out users have only a few training examples.

    Args:
      dataset: All training examples of held-out users.
      items: Number of training examples that each of them keeps, in random order; validation
        examples none.
      seed: The seed of the order.

    Raises:
      UserError: A held-out user has fewer training examples, or no test examples.
    """
    rng = np.random.default_rng((seed, items))
    order = np.arange(len(dataset.targets))
    for client in range(dataset.num_participants, dataset.num_clients):
        rows, tests = rows_of(dataset, "train", client), dataset.test.sizes[client]
        if len(rows) < items or not tests:
            raise UserError(
                f"A held-out client has {len(rows)} training examples and {tests} test examples; "
                f"--items={items} needs as many, and one to test: raise config.data.min_size."
            )
        order[rows] = rng.permutation(rows)
    held_out = np.arange(dataset.num_clients) >= dataset.num_participants
    sizes = np.where(held_out, items, dataset.train.sizes).astype(np.int32)
    validation = np.where(held_out, 0, dataset.validation.sizes).astype(np.int32)
    return dataset._replace(
        inputs=dataset.inputs[order],
        targets=dataset.targets[order],
        train=dataset.train._replace(sizes=sizes),
        validation=dataset.validation._replace(sizes=validation),
    )


def linear_features(
    config: ml_collections.ConfigDict, dataset: FederatedDataset, directory: pathlib.Path
) -> tuple[ml_collections.ConfigDict, FederatedDataset]:
    """Returns the config and the data set of a linear model.

    For a network other than 'logistic', the inputs are replaced by the features of a base, which
    FedAvg trains on the training users with the config's learning rate and rounds, in `directory`.
    """
    own = copy.deepcopy(config)
    own.model = ml_collections.ConfigDict({"name": "logistic"})
    if config.model.name == "logistic":
        return own, dataset
    base = fit("fedavg", dataset, config=config, workdir=directory).global_model().params
    make, frozen = build_task(config, dataset)
    features = jax.jit(functools.partial(make(frozen).features, base))
    return own, precompute(dataset, features)


def combinations(grid: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Returns all combinations of the values of each name."""
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


class Row(NamedTuple):
    """A row of the table.

    Attributes:
      uses: What the row uses of a held-out user.
      accuracies: `[U]`, the accuracies of held-out users on their test examples.
      setting: The chosen setting; None if there is nothing to choose.
    """

    uses: str
    accuracies: np.ndarray
    setting: Any = None


class Study:
    """The held-out users, and the personal params of training users as rows of a matrix.

    Attributes:
      given: The given items of held-out users.
      test: Their test examples.
      is_validation: `[U]` bool, which of them are validation users.
      params: `[N, P]`, the params of training users.
      unflatten: `[M, P] -> params` of the linear model.
      basis: All principal directions of `params`.
    """

    def __init__(
        self, dataset: FederatedDataset, task: Task, is_validation: np.ndarray, params: Params
    ):
        held_out = range(dataset.num_participants, dataset.num_clients)
        self.given = users_of(dataset, "train", held_out)
        self.test = users_of(dataset, "test", held_out)
        self.is_validation = is_validation
        self.params, self.unflatten = weights.flatten(params)
        self.basis = weights.pca(self.params, len(self.params))
        predict = jax.vmap(task.predict)

        @jax.jit
        def losses(rows, users):
            logs = jax.nn.log_softmax(predict(self.unflatten(rows), users.inputs))
            return -jnp.mean(jnp.take_along_axis(logs, users.targets[..., None], axis=2), (1, 2))

        @jax.jit
        def correct(rows, users):
            predicted = predict(self.unflatten(rows), users.inputs).argmax(axis=-1)
            return users.fraction(predicted == users.targets)

        self._losses, self._correct = losses, correct

    def losses(self, rows: jax.Array) -> jax.Array:
        """Returns `[U]`, the mean cross-entropy on each user's given items of its row `[U, P]`."""
        return self._losses(rows, self.given)

    def accuracies(self, rows: jax.Array) -> np.ndarray:
        """Returns `[U]`, the accuracy on each user's test examples of its row `[U, P]`."""
        return np.asarray(self._correct(rows, self.test))

    def best(
        self, uses: str, grid: Mapping[str, Sequence[Any]], rows_of: Callable[..., jax.Array]
    ) -> Row:
        """Returns the row of the table with the setting that is best for validation users.

        Args:
          uses: What the row uses.
          grid: The values of each setting; all combinations are tried.
          rows_of: `(**setting) -> [U, P]`, the params of held-out users.
        """
        tried = [
            Row(uses, self.accuracies(rows_of(**setting)), setting)
            for setting in combinations(grid)
        ]
        return max(tried, key=lambda row: row.accuracies[self.is_validation].mean())


def conditions_of(
    dataset: FederatedDataset, settings: Settings, seed: int
) -> tuple[jax.Array, np.ndarray, jax.Array]:
    """Returns the conditions of all users, in units of principal directions of the training users'.

    Args:
      dataset: The data set, in which held-out users have their given items.
      settings: The number of items in a subset, of subsets of a user, and of directions.
      seed: The seed of the subsets.

    Returns:
      `[N * subsets, C]`, conditions of training users; `[N * subsets]`, the user of each; and
      `[U, C]`, the conditions of held-out users.
    """
    rng = np.random.default_rng(seed)
    count, means = dataset.num_participants, []
    for client in range(dataset.num_clients):
        (inputs,) = users_of(dataset, "train", [client]).inputs
        flat = np.asarray(inputs, np.float32).reshape(len(inputs), -1)
        size = min(settings.items, len(flat))
        for _ in range(settings.subsets if client < count else 1):
            means.append(flat[rng.choice(len(flat), size, replace=False)].mean(axis=0))
    own = jnp.asarray(np.array(means))
    known = own[: count * settings.subsets]
    basis = weights.pca(known, settings.condition_size)
    users = np.repeat(np.arange(count), settings.subsets)
    return basis.project(known), users, basis.project(own[len(known) :])


def generated(
    study: Study,
    conditions: jax.Array,
    users: np.ndarray,
    new: jax.Array,
    samples: int,
    seed: int,
) -> dict[str, Row]:
    """Returns the rows of the table whose params are generated from conditions.

    Args:
      study: The params of training users, and the held-out users.
      conditions: `[n, C]`, conditions of training users.
      users: `[n]`, the training user of each condition.
      new: `[U, C]`, the conditions of held-out users.
      samples: Number of samples of a diffusion model in a mean.
      seed: The seed of initial params, batches and samples.
    """
    scale, keys = weights.standardization(study.params), jax.random.split(jax.random.key(seed), 3)
    standard = scale.apply(study.params)

    def regressed(size, penalty):
        basis = study.basis.first(size)
        targets = basis.project(study.params)[users]
        return basis.expand(weights.ridge(conditions, targets, penalty).apply(new))

    @functools.cache
    def coefficients(size):
        basis = study.basis.first(size)
        return basis.project(study.params), basis.expand

    @functools.cache
    def latents(size):
        coder = autoencoder.fit(keys[0], standard, size, _HIDDEN, _RATE, _STEPS_OF_AUTOENCODER)
        found = autoencoder.encode(coder, standard)
        unit = weights.standardization(found)
        return unit.apply(found), lambda z: scale.undo(autoencoder.decode(coder, unit.undo(z)))

    @functools.cache
    def drawn(kind, size, steps):
        """Returns `[samples, U, P]`."""
        vectors, decode = kind(size)
        network = {"hidden": _HIDDEN, "rate": _RATE, "steps": steps, "batch_size": _BATCH}
        denoiser = diffusion.fit(keys[1], vectors[users], conditions, _FRACTIONS, **network)
        repeated = jnp.tile(new, (samples, 1))
        found = diffusion.sample(
            lambda x, time: diffusion.denoise(denoiser, x, time, repeated),
            keys[2],
            (len(repeated), vectors.shape[1]),
            _FRACTIONS,
        )
        return decode(found).reshape(samples, len(new), -1)

    def best(kind, reduce):
        return study.best(
            _UNLABELLED, _DIFFUSION, lambda size, steps: reduce(drawn(kind, size, steps))
        )

    found = {"ridge regression": study.best(_UNLABELLED, _RIDGE, regressed)}
    kinds = {"coefficients": coefficients, "an autoencoder's latents": latents}
    for name, kind in kinds.items():
        found[f"diffusion of {name}, one sample"] = best(kind, lambda rows: rows[0])
        found[f"diffusion of {name}, mean of {samples}"] = best(kind, lambda rows: rows.mean(0))
    return found


def fitted(study: Study, common: jax.Array) -> dict[str, Row]:
    """Returns the rows of the table whose coefficients are fitted to the labelled given items.

    Args:
      study: The params of training users, and the held-out users.
      common: `[P]`, the params of the common model.
    """
    # The directions of the biases: unit vectors of their entries.
    numbers = study.unflatten(jnp.arange(len(common))[None])
    leaves = jax.tree_util.tree_leaves_with_path(numbers)
    entries = [np.ravel(leaf) for path, leaf in leaves if path[-1].key == "bias"]
    units = jnp.eye(len(common))[np.concatenate(entries)]
    biases = weights.Basis(common, units, jnp.ones(len(units)))

    def descended(basis, rate, steps):
        start = jnp.zeros((len(study.is_validation), len(basis.std)))
        return basis.expand(weights.fit_coefficients(study.losses, basis, start, rate, steps))

    of_biases = functools.partial(descended, biases)
    return {
        _FITTED_BIAS: study.best(_LABELLED, _BIAS, of_biases),
        "fitted coefficients (Celeb Basis)": study.best(
            _LABELLED,
            _FITTED,
            lambda size, steps: descended(study.basis.first(size), _RATE_OF_COEFFICIENTS, steps),
        ),
    }


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
            for setting in combinations(values)
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


def of_labels(dataset: FederatedDataset, study: Study) -> dict[str, Row]:
    """Returns the rows of the most frequent labels, of training users and of given items."""
    labels = dataset.class_counts()[: dataset.num_participants].sum(axis=0)
    given = np.eye(dataset.num_classes)[study.given.targets].sum(axis=1)
    # Of equally frequent labels of a user, the one that is more frequent among training users.
    own = (given + labels / (labels.sum() + 1)).argmax(axis=1)
    common = np.full(len(own), labels.argmax())
    return {
        name: Row(uses, study.test.fraction(study.test.targets == predicted[:, None]))
        for name, uses, predicted in (
            ("most frequent label", _NOTHING, common),
            ("user's most frequent given label", _LABELLED, own),
        )
    }


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

    def chosen(method, uses=_LABELLED):
        run = max(runs[method], key=lambda run: of_held_out(run)[is_validation].mean())
        return run, Row(uses, of_held_out(run), run.directory.parent.name)

    of_training = fit("fedavg_ft", whole, config=config, workdir=directory / "all", **best)
    own = [model.params for model in of_training.clients(range(dataset.num_participants))]
    study = Study(
        dataset, make(frozen), is_validation, jax.tree.map(lambda *one: jnp.stack(one), *own)
    )
    average, of_average = chosen("fedavg", _NOTHING)
    common, _ = weights.flatten(jax.tree.map(lambda x: x[None], average.global_model().params))
    mean = jnp.tile(study.basis.mean, (count, 1))
    labels = of_labels(dataset, study)
    conditions = conditions_of(dataset, settings, seed)
    found = {
        "most frequent label": labels["most frequent label"],
        _COMMON: of_average,
        "mean of the training users' params": Row(_NOTHING, study.accuracies(mean)),
        **generated(study, *conditions, settings.samples, seed),
        **labels,
        **fitted(study, common[0]),
        **{method: chosen(method)[1] for method in ("fedavg_ft", "pfedhn", "pefll")},
        "fedavg_ft with all training examples": Row(_ALL, of_held_out(of_training), best),
    }
    names = dataset.client_names or [f"{seed}/{client}" for client in range(dataset.num_clients)]
    tested = np.flatnonzero(~is_validation)
    rows = {name: row._replace(accuracies=row.accuracies[tested]) for name, row in found.items()}
    return rows, [names[dataset.num_participants + number] for number in tested]


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
        for rows, users in seeds:
            for user, value in zip(users, rows[name].accuracies, strict=True):
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
        own = config_lib.of_run(config, "fedavg", seed)
        found.append(one_seed(own, directory / f"seed_{seed}", rates, settings))
        for name, row in found[-1][0].items():
            if row.setting is not None:
                app.say(f"seed {seed}, {name}: {row.setting}")
    print("\n".join(table(found, given.seed)))


if __name__ == "__main__":
    app.run(main, define_flags)
