"""Times a round of each method of a comparison beside FedAvg's, on this machine.

    python experiments/costs.py --config=configs/pfllib.py:dirichlet \
        --config.data.dir=DIRECTORY --output=costs.md

A table in Markdown, the largest excess first. passes: what the definition of the method needs, in
gradients for each training example of a round. Such a gradient is a forward and a backward pass
through the model; a forward pass alone counts one half, as for a first layer, which dominates small
models and needs no gradient of its inputs. Work on weights (penalties, mixtures, decompositions)
counts nothing, so that `time / passes` shows what it takes. time: the median of the timed rounds,
divided by the median of as many of FedAvg's, measured just before. compile: seconds to trace and
compile the program of a round, without a cache.
"""

from __future__ import annotations

import pathlib
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np
from absl import flags

from pfljax.cli import app
from pfljax.data import FederatedDataset
from pfljax.training.study import config_checks, config_runs, experiment

_OUTPUT = flags.DEFINE_string("output", None, "The file for the table; by default it is printed.")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Timed rounds of each method.")

_FORWARD = 1 / 2


class Sizes(NamedTuple):
    """Number of clients, of all their training examples, and of the examples at the server."""

    clients: int
    train: int
    server: int


# Gradients for each training example, from a method's hyper-parameters `h` and the sizes `n` of the
# data; methods without an entry need one.
_PASSES: dict[str, Callable[[Any, Sizes], float]] = {
    "qffl": lambda h, n: 1 + _FORWARD,
    "afl": lambda h, n: 1 + _FORWARD,
    "ditto": lambda h, n: 1 + h.personal_epochs,
    "apfl": lambda h, n: 2,
    "fedrep": lambda h, n: 1 + h.head_epochs * _FORWARD,
    "pfedme": lambda h, n: h.inner_steps,
    "fedproto": lambda h, n: 1 + _FORWARD,
    "fedala": lambda h, n: 1 + h.share,
    "fedem": lambda h, n: h.learners * (1 + _FORWARD),
    "fedfomo": lambda h, n: 1 - h.validation_share + (h.models + 1) * h.validation_share * _FORWARD,
    "fedpac": lambda h, n: 1 + (h.head_epochs + 2) * _FORWARD,
    "fedkd": lambda h, n: 2,
    "fml": lambda h, n: 2,
    "fedcp": lambda h, n: 1 + _FORWARD,
    "ifca": lambda h, n: 1 + h.clusters * _FORWARD,
    "mime": lambda h, n: 3,
    "mimelite": lambda h, n: 2,
    "moon": lambda h, n: 1 + 2 * _FORWARD,
    "fedntd": lambda h, n: 1 + _FORWARD,
    "fedphp": lambda h, n: 1 + _FORWARD,
    "fedgh": lambda h, n: 1 + _FORWARD,
    "fedas": lambda h, n: 1 + 2 + _FORWARD,
    "fedpcl": lambda h, n: 1 + _FORWARD,
    "adafedprox": lambda h, n: 1 + _FORWARD,
    "pfedfda": lambda h, n: 1 + _FORWARD,
    "pflda": lambda h, n: 1 + _FORWARD,
    # The examples of the server: each client's outputs on them, and the training on these.
    "feddf": lambda h, n: (
        1
        + (n.clients * n.server * _FORWARD + h.distillation_steps * h.distillation_batch) / n.train
    ),
    "fedmd": lambda h, n: 1 + (h.digest_epochs + _FORWARD) * n.clients * n.server / n.train,
}


def passes(config: ml_collections.ConfigDict, sizes: Sizes) -> float:
    """Returns the gradients for each training example that a method's definition needs."""
    needs = _PASSES.get(config.algorithm, lambda h, n: 1)
    return needs(config.hparams[config.algorithm], sizes)


class Timed:
    """A method whose program of a round is compiled, with the state after the rounds so far."""

    def __init__(self, config: ml_collections.ConfigDict, dataset: FederatedDataset):
        self._built = experiment.build(config, dataset)
        self._state = jax.block_until_ready(
            self._built.programs.init(self._built.examples, jax.random.key(config.seed))
        )
        self._args = (self._built.examples, np.int32(config.rounds), np.int32(1))
        self._built.programs.run_rounds.compile(self._state, *self._args)
        self.compile_seconds = self._built.programs.run_rounds.compile_seconds
        self.rounds(1)

    def rounds(self, number: int) -> list[float]:
        """Returns the seconds of the next rounds."""
        seconds = []
        for _ in range(number):
            begin = time.perf_counter()
            self._state, _ = self._built.programs.run_rounds(self._state, *self._args)
            jax.block_until_ready(self._state)
            seconds.append(time.perf_counter() - begin)
        return seconds


def table(rows: list[tuple[str, float, float, float, float]]) -> str:
    """Returns the table in Markdown, the largest time for what the definition needs first."""
    out = ["| method | passes | time | time / passes | round (ms) | compile (s) |"]
    out.append("|---" + "|---:" * 5 + "|")
    for name, needed, ratio, seconds, compiling in sorted(rows, key=lambda r: -r[2] / r[1]):
        out.append(
            f"| {name} | {needed:.3g} | {ratio:.2f} | {ratio / needed:.2f} "
            f"| {1000 * seconds:.1f} | {compiling:.1f} |"
        )
    return "\n".join(out) + "\n"


def main():
    config = app.config()
    config_checks.check(config)
    jax.config.update("jax_enable_compilation_cache", False)  # so that compile times are real

    def own(name):
        found = config_runs.of_run(config, name, config.seeds[0])
        found.engine.rounds_per_call = 1
        return found

    dataset = experiment.build_dataset(own(config.algorithms[0]))
    held = 0 if dataset.server is None else len(dataset.server.targets)
    sizes = Sizes(dataset.num_clients, int(np.sum(dataset.train.sizes)), held)
    fedavg, rows = Timed(own("fedavg"), dataset), []
    for name in config.algorithms:
        timed = fedavg if name == "fedavg" else Timed(own(name), dataset)
        beside = statistics.median(fedavg.rounds(_ROUNDS.value))
        seconds = statistics.median(timed.rounds(_ROUNDS.value))
        needed = passes(own(name), sizes)
        rows.append((name, needed, seconds / beside, seconds, timed.compile_seconds))
        jax.clear_caches()
    if _OUTPUT.value:
        pathlib.Path(_OUTPUT.value).write_text(table(rows))
    app.say(table(rows))


if __name__ == "__main__":
    app.run(main, app.define_config)
