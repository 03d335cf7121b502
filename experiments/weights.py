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
from collections.abc import Callable, Iterator, Mapping, Sequence
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

_FRACTIONS = diffusion.signal_fractions(100, 0.001, 0.2)
# The settings of each row: {row: {name: values}}, six combinations.
_OF_METHODS = {
    "fedavg": {},
    "fedavg_ft": {"fine_tuning_epochs": (5, 20)},
    "pfedhn": {"rate": (0.01, 0.03)},
    "pefll": {"rate": (0.001, 0.003)},
}
_BIAS = {"rate": (0.03, 0.1), "steps": (3, 10, 30)}
_FITTED = {"size": (2, 8, 32), "steps": (10, 50)}
_RIDGE = {"size": (4, 32), "penalty": (0.1, 1.0, 10.0)}
_DIFFUSION = {"size": (2, 8, 32), "steps": (500, 2000)}
# The fitted rows: the rate of Adam for coefficients in units of their deviations, and the width and
# the steps of networks.
_RATE_OF_COEFFICIENTS, _HIDDEN, _STEPS_OF_AUTOENCODER, _BATCH = 0.1, 64, 1000, 128


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

    def of(self, chosen: np.ndarray) -> Users:
        """Returns some of the users."""
        return Users(*(array[chosen] for array in self))


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
      UserError: A held-out user has fewer examples.
    """
    rng = np.random.default_rng((seed, items))
    order = np.arange(len(dataset.targets))
    for client in range(dataset.num_participants, dataset.num_clients):
        rows = rows_of(dataset, "train", client)
        if len(rows) < items:
            raise UserError(
                f"A held-out client has {len(rows)} training examples, fewer than --items={items}; "
                "raise config.data.min_size."
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
    config: ml_collections.ConfigDict, dataset: FederatedDataset
) -> tuple[ml_collections.ConfigDict, FederatedDataset]:
    """Returns the config and the data set of a linear model.

    For a network other than 'logistic', the inputs are replaced by the features of a base, which
    FedAvg trains on the training users with the config's learning rate and rounds.
    """
    own = copy.deepcopy(config)
    own.model.name = "logistic"
    if config.model.name == "logistic":
        return own, dataset
    base = fit("fedavg", dataset, config=config).global_model().params
    make, frozen = build_task(config, dataset)
    features = jax.jit(functools.partial(make(frozen).features, base))
    return own, precompute(dataset, features)


class Study:
    """The linear personal params of training users, and the examples of held-out users.

    Attributes:
      given: The given items of held-out users.
      test: Their test examples.
      is_validation: `[U]` bool, which of them are validation users.
      task: The linear model and its loss.
    """

    def __init__(self, dataset: FederatedDataset, task: Task, validation: np.ndarray):
        held_out = range(dataset.num_participants, dataset.num_clients)
        self.given = users_of(dataset, "train", held_out)
        self.test = users_of(dataset, "test", held_out)
        self.is_validation, self.task = validation, task
        self._losses = jax.jit(self._losses_of)
        self._correct = jax.jit(self._correct_of)

    def _losses_of(self, params: Params, users: Users) -> jax.Array:
        def loss(params, inputs, targets):
            logits = self.task.predict(params, inputs)
            return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), targets[:, None], 1))

        return jax.vmap(loss)(params, users.inputs, users.targets)

    def _correct_of(self, params: Params, users: Users) -> jax.Array:
        logits = jax.vmap(self.task.predict)(params, users.inputs)
        right = (logits.argmax(axis=-1) == users.targets) & users.mask
        return right.sum(axis=1) / users.mask.sum(axis=1)

    def losses(self, params: Params) -> jax.Array:
        """Returns `[U]`, the mean cross-entropy of each user's params on its given items."""
        return self._losses(params, self.given)

    def accuracies(self, params: Params) -> np.ndarray:
        """Returns `[U]`, the accuracy of each user's params on its test examples."""
        return np.asarray(self._correct(params, self.test))

    def chosen(
        self, grid: Mapping[str, Sequence[Any]], score: Callable[..., np.ndarray]
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Returns the accuracies `[U]` of the best setting for validation users, and the setting.

        Args:
          grid: The values of each setting; all combinations are tried.
          score: `(**setting) -> [U]`, the accuracies of all held-out users.
        """
        tried = [(setting, score(**setting)) for setting in combinations(grid)]
        setting, found = max(tried, key=lambda pair: pair[1][self.is_validation].mean())
        return found, setting


def combinations(grid: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
    """Yields all combinations of the values of each name."""
    for values in itertools.product(*grid.values()):
        yield dict(zip(grid, values, strict=True))


def training_conditions(
    dataset: FederatedDataset, settings: Settings, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the conditions of training users, and the user of each.

    Args:
      dataset: The data set.
      settings: The number of items in a subset, and of subsets of a user.
      seed: The seed of the subsets.

    Returns:
      Conditions `[n, C]`, and users `[n]`, the numbers of clients.
    """
    rng = np.random.default_rng(seed)
    found, users = [], []
    for client in range(dataset.num_participants):
        (inputs,) = users_of(dataset, "train", [client]).inputs
        flat = np.asarray(inputs, np.float32).reshape(len(inputs), -1)
        for _ in range(settings.subsets):
            rows = rng.choice(len(flat), min(settings.items, len(flat)), replace=False)
            found.append(flat[rows].mean(axis=0))
            users.append(client)
    return np.array(found), np.array(users)


def generated(
    study: Study,
    rows: jax.Array,
    unflatten: Callable[[jax.Array], Params],
    conditions: jax.Array,
    users: np.ndarray,
    new: jax.Array,
    settings: Settings,
    seed: int,
) -> dict[str, tuple[np.ndarray, dict[str, Any]]]:
    """Returns `{row: (accuracies [U], setting)}` of params that are generated from conditions.

    Args:
      study: The held-out users.
      rows: `[N, P]`, the params of training users.
      unflatten: `[U, P] -> params`.
      conditions: `[n, C]`, conditions of training users.
      users: `[n]`, the row of `rows` that belongs to each condition.
      new: `[U, C]`, the conditions of held-out users.
      settings: The number of samples.
      seed: The seed of initial params, batches and samples.
    """
    basis = weights.pca(rows, len(rows))
    scale = weights.standardization(rows)
    standard, count, keys = scale.apply(rows), len(new), jax.random.split(jax.random.key(seed), 3)

    def ridge(size, penalty):
        first = basis.first(size)
        mapped = weights.ridge(conditions, first.project(rows)[users], penalty)
        return study.accuracies(unflatten(first.expand(mapped.apply(new))))

    @functools.cache
    def latents_in_basis(size):
        first = basis.first(size)
        return first.project(rows), first.expand

    @functools.cache
    def latents_of_autoencoder(size):
        coder = autoencoder.fit(keys[0], standard, size, _HIDDEN, 0.003, _STEPS_OF_AUTOENCODER)
        latents = autoencoder.encode(coder, standard)
        unit = weights.standardization(latents)
        return unit.apply(latents), lambda z: scale.undo(autoencoder.decode(coder, unit.undo(z)))

    @functools.cache
    def samples(latents_of, size, steps):
        """Returns `[samples, U, P]`."""
        latents, decode = latents_of(size)
        denoiser = diffusion.fit(
            keys[1],
            latents[users],
            conditions,
            _FRACTIONS,
            hidden=_HIDDEN,
            rate=0.003,
            steps=steps,
            batch_size=_BATCH,
        )
        repeated = jnp.tile(new, (settings.samples, 1))
        drawn = diffusion.sample(
            lambda x, time: diffusion.denoise(denoiser, x, time, repeated),
            keys[2],
            (len(repeated), latents.shape[1]),
            _FRACTIONS,
        )
        return decode(drawn).reshape(settings.samples, count, -1)

    found = {"ridge regression": study.chosen(_RIDGE, ridge)}
    for name, latents_of in (
        ("diffusion of coefficients", latents_in_basis),
        ("diffusion of an autoencoder's latents", latents_of_autoencoder),
    ):
        for kind, reduce in (
            ("one sample", lambda drawn: drawn[0]),
            (f"mean of {settings.samples}", lambda drawn: drawn.mean(axis=0)),
        ):

            def score(size, steps, latents_of=latents_of, reduce=reduce):
                return study.accuracies(unflatten(reduce(samples(latents_of, size, steps))))

            found[f"{name}, {kind}"] = study.chosen(_DIFFUSION, score)
    return found


def fitted(
    study: Study,
    rows: jax.Array,
    unflatten: Callable[[jax.Array], Params],
    common: jax.Array,
) -> dict[str, tuple[np.ndarray, dict[str, Any]]]:
    """Returns `{row: (accuracies [U], setting)}` of coefficients fitted to labelled items.

    Args:
      study: The held-out users.
      rows: `[N, P]`, the params of training users.
      unflatten: `[U, P] -> params`.
      common: `[P]`, the params of the common model.
    """
    count, principal = len(study.is_validation), weights.pca(rows, len(rows))
    # The directions of the biases: unit vectors of their entries.
    names = unflatten(jnp.arange(rows.shape[1])[None])
    leaves = jax.tree_util.tree_leaves_with_path(names)
    entries = [np.ravel(leaf) for path, leaf in leaves if path[-1].key == "bias"]
    units = jnp.eye(rows.shape[1])[np.concatenate(entries).astype(int)]
    of_bias = weights.Basis(common, units, jnp.ones(len(units)))

    def accuracies(basis, rate, steps):
        start = jnp.zeros((count, len(basis.std)))
        found = weights.fit_coefficients(
            lambda rows: study.losses(unflatten(rows)), basis, start, rate, steps
        )
        return study.accuracies(unflatten(basis.expand(found)))

    return {
        "common model with a fitted bias": study.chosen(
            _BIAS, lambda rate, steps: accuracies(of_bias, rate, steps)
        ),
        "fitted coefficients (Celeb Basis)": study.chosen(
            _FITTED,
            lambda size, steps: accuracies(principal.first(size), _RATE_OF_COEFFICIENTS, steps),
        ),
    }


def trained(
    config: ml_collections.ConfigDict,
    dataset: FederatedDataset,
    directory: pathlib.Path,
    rates: Sequence[float],
    seed: int,
) -> tuple[dict[str, list[Run]], dict[str, Any]]:
    """Trains the federated methods with all their settings.

    Returns:
      `{method: runs}`, and the setting of fine-tuned FedAvg that is best on the validation examples
      of training users.
    """
    runs, best = {}, {}
    for method, grid in _OF_METHODS.items():
        values = {"learning_rate": list(rates[1::2] if grid else rates), **grid}
        found = sweep(
            method, dataset, values, seeds=(seed,), config=config, workdir=directory / method
        )
        if method == "fedavg_ft":
            best = found.best
        paths = sorted((directory / method / method).glob(f"*/seed_{seed}"))
        opened = [open_run(path, dataset) for path in paths]
        runs[method] = [run for run in opened if "diverged" not in run.result]
        if not runs[method]:
            raise UserError(f"All settings of {method} diverged; lower --rates.")
    return runs, best


def setting_of(run: Run) -> str:
    """Returns the name of the setting of a run of a sweep."""
    return run.directory.parent.name


def one_seed(
    config: ml_collections.ConfigDict,
    directory: pathlib.Path,
    rates: Sequence[float],
    settings: Settings,
    seed: int,
) -> tuple[dict[str, np.ndarray], list, dict[str, Any]]:
    """Returns the accuracies of test users with one seed of the split.

    Args:
      config: The config of the study.
      directory: The directory of the runs.
      rates: Learning rates of clients.
      settings: The settings of the experiment.
      seed: The seed.

    Returns:
      `{row: [test users]}`, the identity of each test user, and `{row: setting}`.

    Raises:
      UserError: The data set is no classification, or has fewer than two held-out users.
    """
    own = config_lib.of_run(config, "fedavg", seed)
    whole = experiment.build_dataset(own)
    if whole.task != "classification" or whole.num_unseen < 2:
        raise UserError(
            f"weights.py needs a classification with two held-out users or more; {whole.name} has "
            f"the task {whole.task} and {whole.num_unseen}: set config.data.unseen_fraction."
        )
    own, whole = linear_features(own, whole)
    dataset = with_given_items(whole, settings.items, seed)
    held_out = np.arange(dataset.num_participants, dataset.num_clients)
    shuffled = np.random.default_rng(seed).permutation(len(held_out))
    is_validation = np.isin(np.arange(len(held_out)), shuffled[: len(held_out) // 2])
    make, frozen = build_task(own, dataset)
    study = Study(dataset, make(frozen), is_validation)

    runs, best = trained(own, dataset, directory, rates, seed)
    of_rows = next(
        run
        for run in runs["fedavg_ft"]
        if run.config.hparams.fedavg_ft.fine_tuning_epochs == best["fine_tuning_epochs"]
        and run.config.learning_rates.fedavg_ft == best["learning_rate"]
    )
    participants = list(range(dataset.num_participants))
    personal = [model.params for model in of_rows.clients(participants)]
    rows, unflatten = weights.flatten(jax.tree.map(lambda *leaves: jnp.stack(leaves), *personal))

    def of_held_out(run, model="personal"):
        frame = run.per_client().sort_values("client")
        return frame.loc[frame["unseen"], f"{model}_test_accuracy"].to_numpy()

    def chosen_run(method):
        return max(runs[method], key=lambda run: of_held_out(run)[is_validation].mean())

    labels = dataset.class_counts()[: dataset.num_participants].sum(axis=0)
    of_given = np.eye(dataset.num_classes)[study.given.targets].sum(axis=1)
    # Of equally frequent labels of a user, the one that is more frequent among training users.
    of_user = (of_given + labels / (labels.sum() + 1)).argmax(axis=1)

    def with_label(predicted):
        right = (study.test.targets == predicted[:, None]) & study.test.mask
        return right.sum(axis=1) / study.test.mask.sum(axis=1)

    average = chosen_run("fedavg")
    single = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], average.global_model().params)
    common = weights.flatten(single)[0][0]
    repeated = unflatten(jnp.tile(rows.mean(axis=0), (len(held_out), 1)))
    found = {
        "most frequent label": with_label(np.full(len(held_out), labels.argmax())),
        "common model (fedavg)": of_held_out(average),
        "mean of the training users' params": study.accuracies(repeated),
    }
    chosen: dict[str, Any] = {"common model (fedavg)": setting_of(average)}

    conditions, users = training_conditions(dataset, settings, seed)
    reduced = weights.pca(jnp.asarray(conditions), settings.condition_size)
    given = np.asarray(study.given.inputs, np.float32).mean(axis=1).reshape(len(held_out), -1)
    of_conditions = generated(
        study,
        rows,
        unflatten,
        reduced.project(jnp.asarray(conditions)),
        users,
        reduced.project(jnp.asarray(given)),
        settings,
        seed,
    )
    of_labels = fitted(study, rows, unflatten, common)
    found["user's most frequent given label"] = with_label(of_user)
    for name, (accuracies, setting) in {**of_conditions, **of_labels}.items():
        found[name], chosen[name] = accuracies, setting
    for method in ("fedavg_ft", "pfedhn", "pefll"):
        run = chosen_run(method)
        found[method], chosen[method] = of_held_out(run), setting_of(run)
    every = fit("fedavg_ft", whole, config=own, **best, seed=seed)
    found["fedavg_ft, all training examples"] = of_held_out(every)
    chosen["training users' params"] = setting_of(of_rows)

    names = dataset.client_names or [f"{seed}/{client}" for client in range(dataset.num_clients)]
    return (
        {name: values[~is_validation] for name, values in found.items()},
        [names[client] for client in held_out[~is_validation]],
        chosen,
    )


# What each row uses of a held-out user; of the rows that are not listed, nothing.
_UNLABELLED, _LABELLED = (
    ("ridge", "diffusion"),
    ("user's", "common model with", "fitted", "fedavg_ft", "pf", "pe"),
)


def uses(row: str, items: int) -> str:
    """Returns what a row of the table uses of a held-out user."""
    if row.endswith("all training examples"):
        return "all, labelled"
    if row.startswith(_UNLABELLED):
        return f"{items} unlabelled"
    return f"{items} labelled" if row.startswith(_LABELLED) else "nothing"


def table(scores: Mapping[str, Mapping[Any, Sequence[float]]], items: int, seed: int) -> list[str]:
    """Returns the lines of the table.

    Args:
      scores: `{row: {user: accuracies}}`, one accuracy for each seed with the user among the test
        users.
      items: Number of given items.
      seed: The seed of the bootstrap.
    """
    means = {
        row: np.array([np.mean(values) for values in of_users.values()])
        for row, of_users in scores.items()
    }
    common, mean = means["common model (fedavg)"], means["mean of the training users' params"]
    lines = [
        "| params of a held-out user | uses | accuracy | gain over the common model "
        "| gain over the mean params |",
        "|---|---|---:|---:|---:|",
    ]
    for row, values in means.items():
        gains = [tables.mean_gain(values - reference, seed) for reference in (common, mean)]
        lines.append(f"| {row} | {uses(row, items)} | {values.mean():.3f} | {' | '.join(gains)} |")
    return lines


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
    scores: dict[str, dict[Any, list[float]]] = {}
    for seed in config.seeds:
        found, users, chosen = one_seed(config, directory / f"seed_{seed}", rates, settings, seed)
        for row, values in found.items():
            for user, value in zip(users, values, strict=True):
                scores.setdefault(row, {}).setdefault(user, []).append(float(value))
        app.say(f"Settings with seed {seed}:")
        for row, setting in chosen.items():
            app.say(f"  {row}: {setting}")
    print("\n".join(table(scores, settings.items, given.seed)))


if __name__ == "__main__":
    app.run(main, define_flags)
