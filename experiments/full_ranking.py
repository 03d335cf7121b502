"""Ranks the tested items of comparisons among all items, beside the popularity of items.

    python experiments/full_ranking.py --workdir=WORKDIR [--split=validation] [--against=METHOD]

WORKDIR is the work directory of `compare.py` on a data set of the task ranking or recommendation,
such as `configs/movielens_ranking.py`, or the directory of several of them on the same items, such
as those of `configs/unimp.py`, whose methods are then named SUBDIRECTORY/METHOD. For each tested
item, two rankings by the personalized model after the last round:

    sampled:  the tested item and the negative samples of its example
    full:     the tested item and all items of which the client has no example

`popularity` ranks by the number of training examples of an item at all clients, for all clients
alike. HR@10 is the fraction of tested items of which fewer than 10 others are ranked before, and
NDCG@10 the mean of 1 / log2(2 + r) with r others before, 0 from r = 10 on; equal scores count half.
Means are over tested items of the clients that take part; then mean ± standard deviation over the
seeds. Sparsity is the last value of the training metric of that name, if the method has it.

With `--split=validation`, the validation items are ranked in place of the tested ones, which then
are items like all others. `--against` adds the gain in NDCG@10 of the full ranking over a method or
over `popularity`, with the 95 % interval of a paired bootstrap over clients, of means over seeds.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from pfljax import api
from pfljax.cli import app
from pfljax.data import FederatedDataset, Split
from pfljax.errors import UserError
from pfljax.metrics import bootstrap, ranking
from pfljax.report import tables

_WORKDIR = flags.DEFINE_string("workdir", None, "The work directory of one or several comparisons.")
_SPLIT = flags.DEFINE_enum("split", "test", ["test", "validation"], "The split that is ranked.")
_AGAINST = flags.DEFINE_string("against", "", "The method over which gains are computed.")
# Number of tested items that are ranked at once, so that one program serves all clients.
_ROWS = 64
_COLUMNS = ("HR@10, sampled", "NDCG@10, sampled", "HR@10, full", "NDCG@10, full", "sparsity")
_POPULARITY = "popularity"
_TASKS = ("ranking", "recommendation")

# `(client, rows [n], items [n, K]) -> [n, K]`, a client's scores of items, in place of those of the
# examples in these rows of the data set.
Score = Callable[[int, np.ndarray, np.ndarray], np.ndarray]


class Ranked(NamedTuple):
    """The rankings of the tested items of the clients that have some.

    Attributes:
      sums: `[clients, 4]`, sums over a client's tested items of the first four columns.
      counts: `[clients]`, the number of tested items.
      tested: `[items]`, the tested items of all clients.
    """

    sums: np.ndarray
    counts: np.ndarray
    tested: np.ndarray

    @property
    def means(self) -> np.ndarray:
        """`[4]`, the means over all tested items."""
        return self.sums.sum(axis=0) / self.counts.sum()


@jax.jit
def _hits_and_gains(scores: jax.Array) -> jax.Array:
    ahead = ranking.num_ahead(scores)
    return jnp.stack([ranking.hits(ahead), ranking.gains(ahead)])


def hits_and_gains(scores: np.ndarray) -> np.ndarray:
    """Returns `[2, n]`, the hit and the gain of each ranking of `[n, 1 + K]`, chosen item first."""
    found = []
    for begin in range(0, len(scores), _ROWS):
        block = scores[begin : begin + _ROWS]
        filled = np.resize(block, (_ROWS, block.shape[1]))
        found.append(np.asarray(_hits_and_gains(filled))[:, : len(block)])
    return np.concatenate(found, axis=1)


def beside_all(scores: np.ndarray, own: np.ndarray, tested: np.ndarray) -> np.ndarray:
    """Returns `[n, 1 + items]`, the scores of the tested items and, after each, those of others.

    Args:
      scores: `[items]`, the scores of all items.
      own: Ids of the items of which the client has examples, which are ranked last.
      tested: `[n]`, ids of the tested items.
    """
    others = scores.copy()
    others[own] = -np.inf
    return np.concatenate([scores[tested][:, None], np.tile(others, (len(tested), 1))], axis=1)


class Choices:
    """The items to choose from in the examples of a data set, numbered from 0.

    Attributes:
      count: Number of items.
      has_history: Whether scores depend on the example, and not only on the client.
    """

    def __init__(self, dataset: FederatedDataset):
        self._dataset = dataset
        self.has_history = dataset.task == "recommendation"
        self.count = dataset.vocabulary[-1]
        if self.has_history:
            if dataset.items is None:
                raise UserError(
                    f"{dataset.name} has no items apart from its examples, which a full ranking "
                    "needs; pass runs on a data set with items, such as movielens."
                )
            ids = dataset.items[:, 0]
            unrated = np.flatnonzero((ids > 0) & (dataset.items[:, 1] == 0))
            # The items without a rating, in the order of their ids, which start at 1.
            self._unrated = dataset.items[unrated[np.argsort(ids[unrated])]]
            self.count = len(self._unrated)
            first = dataset.items[dataset.inputs[0]]
            self._slots = int(np.sum((first[:, 0] > 0) & (first[:, 1] == 0)))

    def of(self, rows: np.ndarray) -> np.ndarray:
        """Returns `[n, 1 + K]`, the items of examples, the chosen ones first."""
        inputs = np.asarray(self._dataset.inputs[rows])
        if self.has_history:
            return self._dataset.items[inputs[:, : self._slots], 0] - 1
        return inputs[:, :, -1]

    def replaced(self, rows: np.ndarray, items: np.ndarray) -> np.ndarray:
        """Returns the inputs of examples `rows` `[n]` with other items `[n, 1 + K]`."""
        if self.has_history:
            examples = self._dataset.items[self._dataset.inputs[rows]]
            examples[:, : self._slots] = self._unrated[items]
            return examples
        users = self._dataset.inputs[rows, 0, 0][:, None]
        return np.stack([np.broadcast_to(users, items.shape), items], axis=-1)


def _rows(split: Split, client: int) -> np.ndarray:
    return split.offsets[client] + np.arange(split.sizes[client])


def popularity(dataset: FederatedDataset) -> Score:
    """Returns the score of items by the number of their training examples at all clients."""
    clients, items = range(dataset.num_participants), Choices(dataset)
    rows = np.concatenate([_rows(dataset.train, client) for client in clients])
    chosen = items.of(rows)[:, 0]
    counts = np.bincount(chosen, minlength=items.count).astype(np.float32)
    return lambda client, rows, items: counts[items]


def of_run(run: api.Run) -> Score:
    """Returns the score of items by the personalized models of a run."""
    models = run.clients(list(range(run.dataset.num_participants)))
    choices = Choices(run.dataset)

    def score(client, rows, items):
        outputs = models[client].outputs(choices.replaced(rows, items))
        return outputs[:, : items.shape[1]]

    return score


def evaluate(dataset: FederatedDataset, score: Score, split: str = "test") -> Ranked:
    """Returns HR@10 and NDCG@10 of the sampled rankings and of the full ones, for each client.

    Args:
      dataset: The data set.
      score: The scores to rank by.
      split: 'test' or 'validation'.
    """
    choices, sums, counts, all_tested = Choices(dataset), [], [], []
    columns = choices.of(np.zeros(1, int)).shape[1]
    # All items in rows as long as an example, the last of which is filled up with the item 0.
    filled = np.zeros((-(-choices.count // columns), columns), np.int32)
    filled.flat[: choices.count] = np.arange(choices.count)
    known = ("train", "validation", "test")[: 3 if split == "test" else 2]
    for client in range(dataset.num_participants):
        rows = _rows(getattr(dataset, split), client)
        if not len(rows):
            continue
        tested = choices.of(rows)
        parts = [_rows(getattr(dataset, part), client) for part in known]
        own = choices.of(np.concatenate(parts))[:, 0]
        full = []
        for block in rows[:, None] if choices.has_history else [rows]:
            of_all = score(client, np.full(len(filled), block[0]), filled).ravel()
            chosen = choices.of(block)[:, 0]
            full.append(hits_and_gains(beside_all(of_all[: choices.count], own, chosen)))
        sampled = hits_and_gains(score(client, rows, tested))
        sums.append([*sampled.sum(axis=1), *np.concatenate(full, axis=1).sum(axis=1)])
        counts.append(len(rows))
        all_tested.append(tested[:, 0])
    if not counts:
        raise UserError(f"No client has examples of the split {split}: set --split=test.")
    return Ranked(np.array(sums), np.array(counts), np.concatenate(all_tested))


def gain(seeds: list[Ranked], others: list[Ranked]) -> str:
    """Returns the mean gain in NDCG@10 of the full ranking in percent, with its 95 % interval.

    Args:
      seeds: The rankings of a method with each seed.
      others: Those of the method over which it gains.

    Raises:
      UserError: The rankings are of different items.
    """
    first = others[0]
    if not all(np.array_equal(each.tested, first.tested) for each in (*seeds, *others)):
        raise UserError(
            "--against needs runs that test the same items with all seeds; compare with "
            "--config.seeds_vary=training and the same data."
        )
    mean, reference = (
        np.mean([each.sums[:, 3] for each in runs], axis=0) for runs in (seeds, others)
    )
    difference = 100 * (mean - reference)
    low, high = bootstrap.interval_of_ratio(difference, first.counts)
    return f"{difference.sum() / first.counts.sum():+.2f} [{low:+.2f}, {high:+.2f}]"


def _row(name: str, seeds: list[tuple[Ranked, float]]) -> list[str]:
    values = zip(*([*ranked.means, sparsity] for ranked, sparsity in seeds), strict=True)
    return [name, *(tables.percent_over_seeds(column, 2) for column in values)]


def main():
    if not _WORKDIR.value:
        raise UserError("Pass the work directory of a comparison with --workdir=DIR.")
    root = pathlib.Path(_WORKDIR.value)
    directories = sorted(path.parent for path in root.rglob("seed_*/result.json"))
    if not directories:
        raise UserError(f"{root} has no finished run of compare.py.")
    names = [str(directory.parent.relative_to(root)) for directory in directories]
    if _AGAINST.value and _AGAINST.value not in (_POPULARITY, *names):
        known = ", ".join((_POPULARITY, *dict.fromkeys(names)))
        raise UserError(f"--against={_AGAINST.value} is no method of {root}; it has {known}.")
    found: dict[str, dict[str, tuple[Ranked, float]]] = {_POPULARITY: {}}
    for directory, method in zip(directories, names, strict=True):
        run = api.open_run(directory)
        dataset = run.dataset
        if dataset.task not in _TASKS:
            raise UserError(
                f"{directory} has the task {dataset.task}; full_ranking.py is for the tasks "
                f"{' and '.join(_TASKS)}."
            )
        seed = directory.name
        if seed not in found[_POPULARITY]:
            ranked = evaluate(dataset, popularity(dataset), _SPLIT.value)
            found[_POPULARITY][seed] = ranked, np.nan
        last = run.per_round().iloc[-1]
        ranked = evaluate(dataset, of_run(run), _SPLIT.value)
        if not np.array_equal(ranked.tested, found[_POPULARITY][seed][0].tested):
            raise UserError(
                f"{directory} has other {_SPLIT.value} items than the runs before it; pass the "
                "directory of comparisons on the same data and split."
            )
        found.setdefault(method, {})[seed] = ranked, last.get("train/sparsity", np.nan)
    columns, against = list(_COLUMNS), found.get(_AGAINST.value)
    if against is not None:
        columns.append(f"gain over {_AGAINST.value}")
    app.say(f"| method (%) | {' | '.join(columns)} |\n|---|{'---:|' * len(columns)}")
    for name, seeds in found.items():
        cells = _row(name, list(seeds.values()))
        if against is not None:
            both = [seed for seed in seeds if seed in against]
            runs, others = ([of[seed][0] for seed in both] for of in (seeds, against))
            cells.append(gain(runs, others) if both and seeds is not against else "")
        app.say(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    app.run(main)
