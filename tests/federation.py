"""A tiny federation that tests share: nine clients of uneven size, one of them unseen."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from pfljax import core, models, tasks
from pfljax.algorithms import ALGORITHMS
from pfljax.engine import mapping, sampling
from pfljax.engine.clients.on_device import to_host
from pfljax.engine.examples import Examples
from pfljax.engine.programs import (
    Inputs,
    Make,
    always,
    evaluation_program,
    init_program,
    rounds_program,
)
from pfljax.errors import UserError
from pfljax.models import adapters, clip
from pfljax.models.attention import ImageEncoder
from pfljax.models.layers import Dense

SIZES = np.array([11, 3, 7, 1, 16, 5, 9, 4, 6])  # some smaller than a batch
NUM_CLASSES = 3
NUM_FEATURES = 5
NUM_ROUNDS = 3
# Adam divides small gradients by their size: rounding errors grow with the number of its steps, and
# with that of weights. The default rate of PeFLL is for thousands of rounds.
FEWER_STEPS = {
    "feddf": {"distillation_steps": 20},
    "pefll": {"rate": 0.003, "hidden": 10, "layers": 1, "embedding_hidden": 10},
}


def examples_of(
    inputs: np.ndarray, targets: np.ndarray, sizes: np.ndarray, *, num_classes: int, unseen: int = 0
) -> Examples:
    """Lays out rows that belong to clients in turn; every client is tested on its training rows."""
    offsets = np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.int32)
    sizes = sizes.astype(np.int32)
    counts = np.stack(
        [
            np.bincount(targets[o : o + n].astype(int), minlength=num_classes)
            for o, n in zip(offsets, sizes, strict=True)
        ]
    )
    return Examples(
        inputs=inputs,
        targets=targets,
        offsets={"train": offsets, "validation": offsets, "test": offsets},
        sizes={"train": sizes, "validation": 0 * sizes, "test": sizes},
        class_counts=counts.astype(np.int32),
        max_train_size=int(sizes.max()),
        max_eval_size=int(sizes.max()),
        num_participants=len(sizes) - unseen,
    )


@functools.cache
def examples() -> Examples:
    """The nine clients' examples on the host: each draws its labels unevenly."""
    draw = np.random.default_rng(0)
    total = int(SIZES.sum())
    targets = draw.integers(0, NUM_CLASSES, total).astype(np.int32)
    centres = draw.normal(size=(NUM_CLASSES, NUM_FEATURES))
    inputs = (centres[targets] + draw.normal(size=(total, NUM_FEATURES))).astype(np.float32)
    return examples_of(inputs, targets, SIZES, num_classes=NUM_CLASSES, unseen=1)


@functools.cache
def task(model: str = "mlp") -> core.Task:
    """A 5-4-3 MLP; 'mlp_bn' has batch normalization too."""
    network = models.MODELS[model]((NUM_FEATURES,), NUM_CLASSES, widths=(4,))
    return tasks.classification(network, num_classes=NUM_CLASSES)


class OfColumns(nn.Module):
    """Attention over the numbers of an example: `[B, d] -> [B, 4]`."""

    adapter_width: int = 0

    @nn.compact
    def __call__(self, x):
        return ImageEncoder(1, 4, 1, 2, self.adapter_width)(x[:, :, None, None])


@functools.cache
def attention_task() -> core.Task:
    """A Transformer block with adapters, whose tokens are the numbers of an example."""
    network = models.from_flax(OfColumns(3), Dense(NUM_CLASSES), (NUM_FEATURES,))
    return tasks.classification(network, num_classes=NUM_CLASSES)


@functools.cache
def prompt_task() -> core.Task:
    """A frozen Transformer block with two prompts, whose tokens are the numbers of an example."""
    network = models.from_flax(OfColumns(), Dense(NUM_CLASSES), (NUM_FEATURES,))
    adapter = adapters.prompts(network, length=2)
    frozen = adapter.freeze(network.init(jax.random.key(4)))
    return tasks.classification(adapter.model(frozen), num_classes=NUM_CLASSES)


@functools.cache
def two_tower_task() -> core.Task:
    """Frozen towers of an example and of its class, with two prompts before the class."""
    names = tuple((0, 1 + c, 1 + NUM_CLASSES) for c in range(NUM_CLASSES))
    classes = clip.ClassTower(names, 2 + NUM_CLASSES, 5, width=4, layers=1, heads=2, features=4)
    network = clip.join_towers(Dense(4), classes, (NUM_FEATURES,))
    adapter = adapters.prompts(network, length=2)
    frozen = adapter.freeze(network.init(jax.random.key(4)))
    return tasks.classification(adapter.model(frozen), num_classes=NUM_CLASSES)


@functools.cache
def server_data(seed: int = 1, size: int = 10) -> core.ClientData:
    """Examples of the server, of the form of the clients' examples."""
    draw = np.random.default_rng(seed)
    inputs = draw.normal(size=(size, NUM_FEATURES)).astype(np.float32)
    labels = draw.integers(0, NUM_CLASSES, size).astype(np.int32)
    counts = np.bincount(labels, minlength=NUM_CLASSES).astype(np.int32)
    return core.ClientData(inputs, labels, np.int32(0), np.int32(size), counts, max_size=size)


def held_by_the_server(name: str) -> dict[str, core.ClientData]:
    """The argument `server_data` of a method that needs it."""
    return {"server_data": server_data()} if "server_data" in ALGORITHMS[name].needs else {}


@functools.cache
def task_for(name: str) -> core.Task:
    """The first of these tasks that a method of the table takes."""
    for candidate in (task(), task("mlp_bn"), attention_task(), prompt_task(), two_tower_task()):
        try:
            ALGORITHMS[name](candidate, local_training(), **held_by_the_server(name))
        except UserError as refusal:
            reason = refusal
        else:
            return candidate
    raise reason


@functools.cache
def local_training(**changes) -> core.LocalTraining:
    """SGD, batches of 4, two epochs; a model with running statistics wants its `observe` too."""
    local = core.LocalTraining(optax.sgd(0.1), batch_size=4, epochs=2, learning_rate=0.1)
    return local._replace(**changes)


def make(name: str, **hyperparameters) -> core.Algorithm:
    """A method of the table on the tiny federation, with the task that suits it."""
    task = task_for(name)
    given = {**held_by_the_server(name), **FEWER_STEPS.get(name, {})}
    hyperparameters = {**given, **hyperparameters}
    return ALGORITHMS[name](task, local_training(observe=task.observe), **hyperparameters)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What running rounds gave, on the host; evaluations compile only where a test looks at them.

    Attributes:
      server: the last server state.
      clients: the clients' states, `[num_clients, ...]`.
      metrics: of each round.
      evaluate_untrained: gives the evaluation before the first round.
      evaluate: gives that after the last.
    """

    server: core.PyTree
    clients: core.PyTree
    metrics: dict[str, np.ndarray]
    evaluate_untrained: Callable[[], core.PyTree]
    evaluate: Callable[[], core.PyTree]

    @functools.cached_property
    def untrained_scores(self) -> core.PyTree:
        return jax.tree.map(np.asarray, self.evaluate_untrained())

    @functools.cached_property
    def scores(self) -> core.PyTree:
        return jax.tree.map(np.asarray, self.evaluate())


PLAN = sampling.CohortPlan(num_clients=8, size=5)


class Programs(NamedTuple):
    """The programs of runs that differ in their numbers, seeds and examples alone.

    Attributes:
      init: `(examples, key, inputs) -> state`.
      rounds: `(state, examples, num_rounds, rounds_now, inputs) -> (state, metrics)`.
      evaluation: `(state, examples, num_rounds, inputs) -> scores`.
      length: Number of rounds of a run.
      devices: The devices to use.
      num_groups: Number of groups of `engine.groups`; 1 without groups.
    """

    init: mapping.Program
    rounds: mapping.Program
    evaluation: mapping.Program
    length: int
    devices: list[jax.Device]
    num_groups: int = 1

    def run(self, data: Examples, inputs: Inputs = Inputs(), seed: int = 0) -> Outcome:  # noqa: B008
        """Runs the rounds and gathers everything on the host."""
        placed = mapping.replicate(data, self.devices)
        inputs = mapping.replicate(inputs, self.devices)
        length = np.int32(self.length)
        start = functools.partial(self.init, placed, jax.random.key(seed), inputs)
        state, metrics = self.rounds(start(), placed, length, length, inputs)
        return Outcome(
            server=jax.tree.map(same_on_every_device, state.server),
            clients=to_host(state, placed.num_clients, self.num_groups).clients,
            metrics=jax.tree.map(np.asarray, metrics),
            evaluate_untrained=lambda: self.evaluation(start(), placed, length, inputs),
            evaluate=lambda: self.evaluation(state, placed, length, inputs),
        )


def programs(
    make: Make,
    *,
    devices: int = 1,
    chunk: int = 1,
    plan: sampling.CohortPlan = PLAN,
    rounds: int = NUM_ROUNDS,
    join: str = "current",
    eval_ids: np.ndarray | None = None,
    num_groups: int = 1,
) -> Programs:
    """Prepares the programs of runs in the engine."""
    on = {"devices": jax.devices()[:devices]}
    chunks = {"clients_per_chunk": chunk, **on}
    return Programs(
        init_program(make, join=join, **on),
        rounds_program(make, plan, rounds_per_call=rounds, **chunks),
        evaluation_program(make, batch_size=4, eval_ids=eval_ids, **chunks),
        rounds,
        on["devices"],
        num_groups,
    )


def run(
    algorithm: core.Algorithm,
    *,
    data: Examples | None = None,
    score: core.Task | None = None,
    seed: int = 0,
    **options,
) -> Outcome:
    """Runs rounds in the engine and gathers everything on the host.

    Args:
      algorithm: The method.
      data: The examples of all clients; None for those of the tiny federation.
      score: The task that scores the clients.
      seed: The seed of the run.
      **options: Of `programs`.
    """
    made = programs(always(algorithm, score or task()), **options)
    return made.run(data or examples(), seed=seed)


def same_on_every_device(leaf: jax.Array) -> np.ndarray:
    """Returns a replicated array, having checked that all devices' copies agree bit by bit."""
    copies = [np.asarray(shard.data) for shard in leaf.addressable_shards]
    for copy in copies[1:]:
        np.testing.assert_array_equal(copies[0], copy)
    return copies[0]


def assert_close(a: core.PyTree, b: core.PyTree, tolerance: float = 2e-6) -> None:
    """Asserts that two trees of one structure hold the same numbers, to rounding."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance), a, b
    )


def differ(a: core.PyTree, b: core.PyTree, least: float = 1e-4) -> bool:
    """Whether some number differs by more than `least`."""
    gaps = jax.tree.map(lambda x, y: float(jnp.max(jnp.abs(x - y))), a, b)
    return max(jax.tree.leaves(gaps)) > least
