"""From a config to everything a run needs; every mistake is told before anything is compiled."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from pfljax import data
from pfljax.algorithms import ALGORITHMS
from pfljax.core import Algorithm, ClientData, LocalTraining, Population, PyTree, Task
from pfljax.data import FederatedDataset
from pfljax.engine import sampling, used_arguments
from pfljax.engine.clients.host_examples import HostExamples
from pfljax.engine.clients.host_programs import HostEvaluation, HostInit, HostRounds
from pfljax.engine.clients.on_host import HostPopulation
from pfljax.engine.evaluate import build_evaluation, personal_metrics
from pfljax.engine.examples import Examples
from pfljax.engine.init import build_init
from pfljax.engine.round import build_rounds
from pfljax.errors import UserError
from pfljax.training.run import checkpoint, runtime
from pfljax.training.study import autotune, optimizers, placement
from pfljax.training.study import config as config_lib
from pfljax.training.study.task import build_task


class Experiment(NamedTuple):
    """One method on one federated data set, ready to run.

    Attributes:
      config: what it was made from.
      dataset: on the host.
      examples: the same on every device, or on the host for a population that lies there.
      task: model and loss.
      algorithm: the method.
      plan: how cohorts are chosen.
      devices: that run it.
      start: `(examples, key) -> state`.
      run_rounds: see `engine.round.build_rounds`.
      evaluate: see `engine.evaluate.build_evaluation`.
      clients_per_chunk: how many clients a device trains together.
      eval_clients_per_chunk: how many it scores together.
      population: what lies on the host; None where everything is on the devices.
      eval_ids: the clients that evaluations score, in their order; None for all.
      num_variants: how many runs the three programs stand for, see `training.together`; None for
        one, whose arrays have no axis for it.
      examples_vary: whether `examples` has that axis too.
      uses_class_counts: Whether the method reads how many examples of each class clients have.
    """

    config: ml_collections.ConfigDict
    dataset: FederatedDataset
    examples: Examples | HostExamples
    task: Task
    algorithm: Algorithm
    plan: sampling.CohortPlan
    devices: Sequence[jax.Device]
    start: Callable
    run_rounds: Callable
    evaluate: Callable
    clients_per_chunk: int
    eval_clients_per_chunk: int
    population: HostPopulation | None = None
    eval_ids: np.ndarray | None = None
    num_variants: int | None = None
    examples_vary: bool = False
    uses_class_counts: bool = False


def build_dataset(config: ml_collections.ConfigDict) -> FederatedDataset:
    """Loads and partitions the config's data set."""
    settings = {**config.data}
    settings["options"] = {**config.data.options.get(config.data.name, {})}
    return data.load(**settings)


class Bounds(NamedTuple):
    """The sizes for which programs are compiled.

    Attributes:
      train: the most training examples of a client.
      scored: the most examples of a client in a split that is scored, at least 1.
    """

    train: int
    scored: int


def bounds_of(datasets: Sequence[FederatedDataset]) -> Bounds:
    """Returns the bounds of programs that serve several data sets of the same form."""

    def largest(splits):
        return max(int(np.max(split.sizes)) for split in splits)

    scored = [split for dataset in datasets for split in (dataset.validation, dataset.test)]
    return Bounds(largest(dataset.train for dataset in datasets), max(1, largest(scored)))


def same_form(one: FederatedDataset, other: FederatedDataset) -> bool:
    """Whether programs compiled for one data set serve another, given the bounds of both.

    Their clients may have different examples, and different numbers of them.
    """

    def form(dataset):
        arrays = (dataset.inputs, dataset.targets, dataset.train.sizes)
        statistics = (dataset.mean, dataset.std, dataset.target_mean, dataset.target_std)
        return (
            jax.tree.map(lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype), arrays),
            jax.tree.map(lambda value: np.asarray(value).tolist(), statistics),
            (dataset.num_classes, dataset.num_unseen, dataset.task, dataset.vocabulary),
        )

    return form(one) == form(other)


def build_local_training(
    config: ml_collections.ConfigDict, task: Task, largest: int = config_lib.MOST
) -> LocalTraining:
    """Makes the config's local training of a task's models.

    Args:
      config: of the run.
      task: of the run.
      largest: the most training examples of a client: a larger batch would be padding.
    """
    decay = config.client_optimizer.decay
    of_method = {"learning_rate": config.learning_rates[config.algorithm]}
    return LocalTraining(
        optimizer=optimizers.make(config.client_optimizer, **of_method),
        batch_size=min(config.batch_size, max(1, largest)),
        epochs=config.local_epochs,
        drop_remainder=config.drop_remainder,
        schedule=None if decay == 1 else lambda round: jnp.power(decay, round),
        observe=task.observe,
    )


def build_algorithm(
    config: ml_collections.ConfigDict, task: Task, largest: int = config_lib.MOST
) -> Algorithm:
    """Makes the config's method with its hyper-parameters, the numbers of which may be traced.

    Args:
      config: of the run.
      task: of the run.
      largest: as in `build_local_training`.
    """
    factory = ALGORITHMS[config.algorithm]
    arguments = dict(config.hparams[config.algorithm])
    server_optimizer = optimizers.make(config.server_optimizer)
    if "server_optimizer" in inspect.signature(factory).parameters:
        arguments["server_optimizer"] = server_optimizer
    return factory(task, build_local_training(config, task, largest), **arguments)


def build_plan(config: ml_collections.ConfigDict, dataset: FederatedDataset) -> sampling.CohortPlan:
    """Checks the config's cohort against the population."""
    cohort = config.cohort
    config_lib.require_known("cohort.sampling", cohort.sampling, sampling.SAMPLINGS)
    if not 0 <= cohort.size <= dataset.num_participants:
        raise UserError(
            f"config.cohort.size is {cohort.size}, but {dataset.num_participants} clients take "
            "part; lower it, raise config.data.num_clients, or take 0 for everybody."
        )
    return sampling.CohortPlan(
        num_clients=dataset.num_participants,
        size=cohort.size or dataset.num_participants,
        sampling=cohort.sampling,
        dropout=cohort.dropout,
    )


def choose_evaluated(
    config: ml_collections.ConfigDict, dataset: FederatedDataset
) -> np.ndarray | None:
    """Returns the clients that the config's evaluations score; None for all."""
    wanted, count = config.engine.eval_clients, dataset.num_clients
    if not 0 < wanted < count:
        return None
    # A stream that neither the partition nor the splits of this seed use.
    own = np.random.default_rng(np.random.SeedSequence(config.data.seed, spawn_key=(5,)))
    chosen = own.choice(count, wanted, replace=False)
    return np.sort(chosen).astype(np.int32)


def same_choice(
    one: tuple[ml_collections.ConfigDict, FederatedDataset],
    other: tuple[ml_collections.ConfigDict, FederatedDataset],
) -> bool:
    """Whether the evaluations of two configs, with their data sets, score the same clients."""
    chosen = [choose_evaluated(*each) for each in (one, other)]
    return np.array_equal(*(np.arange(0) if ids is None else ids for ids in chosen))


def eval_batch_size(config: ml_collections.ConfigDict, bounds: Bounds) -> int:
    """Returns how many examples are scored together: no more than clients fill, or nearly fill.

    Example:
      A client has 33 examples at most and the config says 32: two batches of 17.
    """
    batches = -(-bounds.scored // config.engine.eval_batch_size)
    return -(-bounds.scored // batches)


def clients_without_a_step(
    config: ml_collections.ConfigDict, dataset: FederatedDataset
) -> np.ndarray:
    """Returns the ids of the participants that train on nothing, as they do not fill a batch.

    Raises:
      UserError: that is all of them.
    """
    least = config.batch_size if config.drop_remainder else 1
    sizes = dataset.train.sizes[: dataset.num_participants]
    if np.all(sizes < least):
        raise UserError(
            f"No client would train: config.drop_remainder leaves out batches that are not full, "
            f"config.batch_size is {config.batch_size}, and the largest client has {sizes.max()} "
            "training examples; lower config.batch_size, or set config.drop_remainder=False."
        )
    return np.flatnonzero(sizes < least)


def check(config: ml_collections.ConfigDict) -> None:
    """Raises a `UserError` for a config that cannot be meant, before any data is read."""
    config_lib.check(config)
    decay = config.client_optimizer.decay
    if not 0 < decay <= 1:
        raise UserError(f"config.client_optimizer.decay is {decay}; it must lie in (0, 1].")
    for key in ("client_optimizer", "server_optimizer"):
        optimizers.check(config[key], key)
    for name, rate in config.learning_rates.items():
        if rate is not None:
            optimizers.require_rate(f"config.learning_rates.{name}", rate)


def build(
    config: ml_collections.ConfigDict,
    dataset: FederatedDataset | None = None,
    examples: Examples | HostExamples | None = None,
    clients_per_chunk: int | None = None,
    bounds: Bounds | None = None,
) -> Experiment:
    """Checks a config and makes everything a run needs.

    Args:
      config: all the keys of `default_config`.
      dataset: of an experiment with the same `config.data`, to load it only once, or one's own,
        which is checked as files are.
      examples: of that experiment, to hold them only once; its `config.engine` must be the same.
      clients_per_chunk: with which a run began that is to go on, where the config leaves the
        choice; None for a run that begins.
      bounds: of programs that are to serve other data sets of the same form too; None for this one.

    Raises:
      UserError: something in the config cannot be meant, or the data cannot be read.
    """
    check(config)
    devices = runtime.devices(config.engine.devices)
    if dataset is None:
        dataset = build_dataset(config)
    elif isinstance(dataset, FederatedDataset):
        dataset = data.validate.federated(dataset)
    plan = build_plan(config, dataset)
    task = build_task(config, dataset)
    bounds = bounds or bounds_of([dataset])
    clients_without_a_step(config, dataset)
    algorithm = build_algorithm(config, task, bounds.train)
    local = build_local_training(config, task, bounds.train)
    uses_class_counts = _uses_class_counts(algorithm, dataset, bounds)
    personal_metrics(algorithm, task)
    _require_statistics(config, dataset, task)
    share = -(-plan.capacity // len(devices))
    if clients_per_chunk and config.engine.clients_per_chunk == "auto":
        chunk = min(clients_per_chunk, share)
    else:
        chunk = autotune.choose(config, dataset, task, local, plan, devices)
    if config.engine.residence == "host":
        parts = (plan, task, algorithm, devices, chunk, bounds)
        return _build_on_host(config, dataset, examples, uses_class_counts, *parts)
    if examples is None:
        examples = placement.to_devices(dataset, devices, bounds.train)
    examples = placement.with_class_counts(examples, dataset, devices, uses_class_counts)
    eval_ids = choose_evaluated(config, dataset)
    scored = dataset.num_clients if eval_ids is None else len(eval_ids)
    eval_chunk = autotune.by_rule(
        config.engine.clients_per_chunk, devices, -(-scored // len(devices))
    )
    return Experiment(
        config=config,
        dataset=dataset,
        examples=examples,
        task=task,
        algorithm=algorithm,
        plan=plan,
        devices=devices,
        start=build_init(algorithm, join=config.cohort.join, devices=devices),
        run_rounds=build_rounds(
            algorithm,
            plan,
            clients_per_chunk=chunk,
            rounds_per_call=config.engine.rounds_per_call,
            devices=devices,
        ),
        evaluate=build_evaluation(
            algorithm,
            task,
            batch_size=eval_batch_size(config, bounds),
            clients_per_chunk=eval_chunk,
            eval_ids=eval_ids,
            devices=devices,
        ),
        clients_per_chunk=chunk,
        eval_clients_per_chunk=eval_chunk,
        eval_ids=eval_ids,
        uses_class_counts=uses_class_counts,
    )


def _uses_class_counts(algorithm: Algorithm, dataset: FederatedDataset, bounds: Bounds) -> bool:
    """Whether a method reads class counts.

    The method is traced for it, and so may refuse the network before anything is compiled.
    """

    def shape(*axes):
        return jax.ShapeDtypeStruct(axes, np.int32)

    count, classes = dataset.num_participants, dataset.num_classes
    data = ClientData(
        inputs=_shapes(dataset.inputs),
        targets=_shapes(dataset.targets),
        offset=shape(),
        size=shape(),
        class_counts=shape(classes),
        max_size=bounds.train,
    )
    population = Population(shape(count), shape(count, classes))
    return used_arguments.uses_class_counts(algorithm, population, data)


def _shapes(arrays: PyTree) -> PyTree:
    """Returns shapes and dtypes of arrays as devices hold them."""
    return jax.tree.map(
        lambda array: jax.ShapeDtypeStruct(array.shape, jax.dtypes.canonicalize_dtype(array.dtype)),
        arrays,
    )


def _require_statistics(
    config: ml_collections.ConfigDict, dataset: FederatedDataset, task: Task
) -> None:
    """Refuses batch normalization where every batch is a single example, which it sets to zero."""
    if task.observe is None:
        return
    wanted = "batch normalization needs two examples at least to train on"
    if config.batch_size < 2:
        raise UserError(
            f"config.batch_size is {config.batch_size}, and {wanted}; raise it, or name a model "
            "without batch normalization, such as one with GroupNorm."
        )
    if np.max(dataset.train.sizes) < 2:
        raise UserError(
            f"No client has more than one training example, and {wanted}; name a model without it."
        )


def _build_on_host(
    config, dataset, examples, uses_class_counts, plan, task, algorithm, devices, chunk, bounds
) -> Experiment:
    """The rest of `build` for a population on the host."""
    if examples is None:
        examples = placement.on_host(dataset)
    if uses_class_counts:
        examples = examples._replace(class_counts=dataset.class_counts)
    eval_ids = choose_evaluated(config, dataset)
    population = HostPopulation(
        algorithm,
        plan,
        examples,
        clients_per_chunk=chunk,
        join=config.cohort.join,
        # One more than the checkpoints that stay: the newest is written in the background.
        snapshots=checkpoint.KEPT + 1,
        devices=devices,
    )
    return Experiment(
        config=config,
        dataset=dataset,
        examples=examples,
        task=task,
        algorithm=algorithm,
        plan=plan,
        devices=devices,
        start=HostInit(population),
        run_rounds=HostRounds(population),
        evaluate=HostEvaluation(
            population, task, batch_size=eval_batch_size(config, bounds), ids=eval_ids
        ),
        clients_per_chunk=chunk,
        eval_clients_per_chunk=chunk,
        population=population,
        eval_ids=eval_ids,
        uses_class_counts=uses_class_counts,
    )
