"""Ranks the tested items of a comparison among all items, beside the popularity of items.

    python experiments/full_ranking.py --workdir=WORKDIR

WORKDIR is the work directory of `compare.py` on a data set of the task ranking, such as
`configs/movielens_ranking.py`. For each tested item, two rankings by the personalized model after
the last round:

    sampled:  the tested item and the negative samples of its example
    full:     the tested item and all items of which the client has no example

`popularity` ranks by the number of training examples of an item at all clients, for all clients
alike. HR@10 is the fraction of tested items of which fewer than 10 others are ranked before, and
NDCG@10 the mean of 1 / log2(2 + r) with r others before, 0 from r = 10 on; equal scores count half.
Means are over tested items of the clients that take part; then mean ± standard deviation over the
seeds. Sparsity is the last value of the training metric of that name, if the method has it.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from pfljax import api
from pfljax.cli import app
from pfljax.data import FederatedDataset, Split
from pfljax.errors import UserError
from pfljax.metrics import ranking
from pfljax.report import tables

_WORKDIR = flags.DEFINE_string("workdir", None, "The work directory of a comparison.")
# Number of tested items that are ranked at once, so that one program serves all clients.
_ROWS = 64
_COLUMNS = ("HR@10, sampled", "NDCG@10, sampled", "HR@10, full", "NDCG@10, full", "sparsity")

# `(client, items [n, K]) -> [n, K]`, the scores of items for a client.
Score = Callable[[int, np.ndarray], np.ndarray]


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


def _items(dataset: FederatedDataset, split: Split, client: int) -> np.ndarray:
    """Returns `[n, 1 + K]`, the items of a client's examples in a split, the chosen ones first."""
    offset, size = split.offsets[client], split.sizes[client]
    return np.asarray(dataset.inputs[offset : offset + size, :, -1])


def popularity(dataset: FederatedDataset) -> Score:
    """Returns the score of items by the number of their training examples at all clients."""
    clients = range(dataset.num_participants)
    chosen = np.concatenate([_items(dataset, dataset.train, client)[:, 0] for client in clients])
    counts = np.bincount(chosen, minlength=dataset.vocabulary[-1]).astype(np.float32)
    return lambda client, items: counts[items]


def of_run(run: api.Run) -> Score:
    """Returns the score of items by the personalized models of a run, whose inputs are two ids."""
    dataset = run.dataset
    models = run.clients(list(range(dataset.num_participants)))

    def score(client, items):
        user = dataset.inputs[dataset.train.offsets[client], 0, 0]
        return models[client].outputs(np.stack([np.full_like(items, user), items], axis=-1))

    return score


def evaluate(dataset: FederatedDataset, score: Score) -> list[float]:
    """Returns HR@10 and NDCG@10 of the sampled rankings, and of the full ones."""
    sampled, full = [], []
    columns, count = dataset.inputs.shape[1], dataset.vocabulary[-1]
    # All items in rows as long as an example, the last of which is filled up with the item 0.
    rows = np.zeros((-(-count // columns), columns), np.int32)
    rows.flat[:count] = np.arange(count)
    for client in range(dataset.num_participants):
        tested = _items(dataset, dataset.test, client)
        if not len(tested):
            continue
        splits = (dataset.train, dataset.validation, dataset.test)
        own = np.concatenate([_items(dataset, split, client)[:, 0] for split in splits])
        sampled.append(hits_and_gains(score(client, tested)))
        of_all = np.ravel(score(client, rows))[:count]
        full.append(hits_and_gains(beside_all(of_all, own, tested[:, 0])))
    return [
        *np.concatenate(sampled, axis=1).mean(axis=1),
        *np.concatenate(full, axis=1).mean(axis=1),
    ]


def _row(name: str, seeds: list[list[float]]) -> str:
    cells = [tables.percent_over_seeds(values, 2) for values in zip(*seeds, strict=True)]
    return f"| {' | '.join([name, *cells])} |"


def main():
    if not _WORKDIR.value:
        raise UserError("Pass the work directory of a comparison with --workdir=DIR.")
    directories = sorted(
        path.parent for path in pathlib.Path(_WORKDIR.value).glob("*/seed_*/result.json")
    )
    if not directories:
        raise UserError(f"{_WORKDIR.value} has no finished run of compare.py.")
    found: dict[str, dict[str, list[float]]] = {"popularity": {}}
    for directory in directories:
        run = api.open_run(directory)
        dataset = run.dataset
        if dataset.task != "ranking":
            raise UserError(
                f"{directory} has the task {dataset.task}; full_ranking.py is for the task ranking."
            )
        seed, method = directory.name, directory.parent.name
        if seed not in found["popularity"]:
            found["popularity"][seed] = [*evaluate(dataset, popularity(dataset)), np.nan]
        last = run.per_round().iloc[-1]
        own = [*evaluate(dataset, of_run(run)), last.get("train/sparsity", np.nan)]
        found.setdefault(method, {})[seed] = own
    app.say(f"| method (%) | {' | '.join(_COLUMNS)} |\n|---|{'---:|' * len(_COLUMNS)}")
    for name, seeds in found.items():
        app.say(_row(name, list(seeds.values())))


if __name__ == "__main__":
    app.run(main)
