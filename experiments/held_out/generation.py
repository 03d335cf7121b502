"""Rows of the table of weights.py whose params are generated from items, or fitted to them."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from held_out.given_items import users_of
from pfljax.core import Params, Task
from pfljax.data import FederatedDataset
from pfljax.ops import autoencoder, diffusion, weights

NOTHING, UNLABELLED, LABELLED, ALL = "nothing", "unlabelled", "labelled", "all labelled"
FITTED_BIAS = "common model with a fitted bias"

_FRACTIONS = diffusion.signal_fractions(100, 0.001, 0.2)
# The settings of each row, six combinations of values.
_BIAS = {"rate": (0.03, 0.1), "steps": (3, 10, 30)}
_FITTED = {"size": (2, 8, 32), "steps": (10, 50)}
_RIDGE = {"size": (4, 32), "penalty": (0.1, 1.0, 10.0)}
_DIFFUSION = {"size": (2, 8, 32), "steps": (500, 2000)}
_RATE_OF_COEFFICIENTS = 0.1  # in units of their standard deviations
# The networks: the width of hidden layers, the learning rate, and steps and batches.
_HIDDEN, _RATE, _STEPS_OF_AUTOENCODER, _BATCH = 64, 0.003, 1000, 128


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
            UNLABELLED, _DIFFUSION, lambda size, steps: reduce(drawn(kind, size, steps))
        )

    found = {"ridge regression": study.best(UNLABELLED, _RIDGE, regressed)}
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
        FITTED_BIAS: study.best(LABELLED, _BIAS, of_biases),
        "fitted coefficients (Celeb Basis)": study.best(
            LABELLED,
            _FITTED,
            lambda size, steps: descended(study.basis.first(size), _RATE_OF_COEFFICIENTS, steps),
        ),
    }


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
            ("most frequent label", NOTHING, common),
            ("user's most frequent given label", LABELLED, own),
        )
    }
