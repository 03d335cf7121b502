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
from pfljax.core import Algorithm, LocalTraining, Population, Task
from pfljax.data import FederatedDataset
from pfljax.engine import sampling
from pfljax.engine.evaluate import build_evaluation
from pfljax.engine.examples import Examples
from pfljax.engine.host import HostPopulation
from pfljax.engine.host_examples import HostExamples
from pfljax.engine.host_programs import HostEvaluation, HostRounds, HostStart
from pfljax.engine.round import build_rounds
from pfljax.engine.start import build_start
from pfljax.errors import UserError
from pfljax.training import checkpoint, chunks, optimizers, placement, runtime
from pfljax.training import config as config_lib
from pfljax.training.tasks import build_task


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


def build_dataset(config: ml_collections.ConfigDict) -> FederatedDataset:
    """Loads and partitions the config's data set."""
    settings = {**config.data}
    settings["options"] = {**config.data.options.get(config.data.name, {})}
    return data.load(**settings)


def build_local_training(config: ml_collections.ConfigDict, task: Task) -> LocalTraining:
    """Makes the config's local training of a task's models."""
    decay = config.client_optimizer.decay
    of_method = {"learning_rate": config.learning_rates[config.algorithm]}
    return LocalTraining(
        optimizer=optimizers.make(config.client_optimizer, **of_method),
        batch_size=config.batch_size,
        epochs=config.local_epochs,
        drop_remainder=config.drop_remainder,
        schedule=None if decay == 1 else lambda round: jnp.power(decay, round),
        observe=task.observe,
    )


def build_algorithm(config: ml_collections.ConfigDict, task: Task) -> Algorithm:
    """Makes the config's method with its hyper-parameters, the numbers of which may be traced."""
    factory = ALGORITHMS[config.algorithm]
    arguments = dict(config.hparams[config.algorithm])
    server_optimizer = optimizers.make(config.server_optimizer)
    if "server_optimizer" in inspect.signature(factory).parameters:
        arguments["server_optimizer"] = server_optimizer
    return factory(task, build_local_training(config, task), **arguments)


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
    chosen = np.random.default_rng(config.data.seed).choice(count, wanted, replace=False)
    return np.sort(chosen).astype(np.int32)


def eval_batch_size(config: ml_collections.ConfigDict, dataset: FederatedDataset) -> int:
    """Returns how many examples are scored together: no more than clients fill, or nearly fill.

    Example:
      A client has 33 examples at most and the config says 32: two batches of 17.
    """
    splits = (dataset.validation, dataset.test)
    largest = max(1, *(int(np.max(split.sizes)) for split in splits))
    batches = -(-largest // config.engine.eval_batch_size)
    return -(-largest // batches)


def check(config: ml_collections.ConfigDict) -> None:
    """Raises a `UserError` for a config that cannot be meant, before any data is read."""
    config_lib.check(config)
    decay = config.client_optimizer.decay
    if not 0 < decay <= 1:
        raise UserError(f"config.client_optimizer.decay is {decay}; it must lie in (0, 1].")
    for key in ("client_optimizer", "server_optimizer"):
        optimizers.check(config[key], key)
    for name, rate in config.learning_rates.items():
        if rate is not None and not rate > 0:
            raise UserError(f"config.learning_rates.{name} is {rate}; it must be positive.")


def build(
    config: ml_collections.ConfigDict,
    dataset: FederatedDataset | None = None,
    examples: Examples | HostExamples | None = None,
    clients_per_chunk: int | None = None,
) -> Experiment:
    """Checks a config and makes everything a run needs.

    Args:
      config: all the keys of `default_config`.
      dataset: of an experiment with the same `config.data`, to load it only once.
      examples: of that experiment, to hold them only once; its `config.engine` must be the same.
      clients_per_chunk: with which a run began that is to go on, where the config leaves the
        choice; None for a run that begins.

    Raises:
      UserError: something in the config cannot be meant, or the data cannot be read.
    """
    check(config)
    devices = runtime.devices(config.engine.devices)
    if dataset is None:
        dataset = build_dataset(config)
    plan = build_plan(config, dataset)
    task = build_task(config, dataset)
    algorithm = build_algorithm(config, task)
    local = build_local_training(config, task)
    _require_accepted(algorithm, dataset)
    _require_statistics(config, dataset, task)
    share = -(-plan.places // len(devices))
    if clients_per_chunk and config.engine.clients_per_chunk == "auto":
        chunk = min(clients_per_chunk, share)
    else:
        chunk = chunks.choose(config, dataset, task, local, plan, devices)
    if config.engine.residence == "host":
        return _build_on_host(config, dataset, examples, plan, task, algorithm, devices, chunk)
    if examples is None:
        examples = placement.place(dataset, devices)
    owned = -(-dataset.num_clients // len(devices))
    eval_chunk = chunks.by_rule(config.engine.clients_per_chunk, devices, owned)
    return Experiment(
        config=config,
        dataset=dataset,
        examples=examples,
        task=task,
        algorithm=algorithm,
        plan=plan,
        devices=devices,
        start=build_start(algorithm, devices=devices),
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
            batch_size=eval_batch_size(config, dataset),
            clients_per_chunk=eval_chunk,
            devices=devices,
        ),
        clients_per_chunk=chunk,
        eval_clients_per_chunk=eval_chunk,
    )


def _require_accepted(algorithm: Algorithm, dataset: FederatedDataset) -> None:
    """Lets the method refuse the model, before anything is compiled."""
    count, classes = dataset.num_participants, dataset.num_classes
    sizes, counts = (
        jax.ShapeDtypeStruct(shape, np.int32) for shape in ((count,), (count, classes))
    )
    jax.eval_shape(
        algorithm.init_server, jax.eval_shape(jax.random.key, 0), Population(sizes, counts)
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


def _build_on_host(config, dataset, examples, plan, task, algorithm, devices, chunk) -> Experiment:
    """The rest of `build` for a population on the host."""
    if examples is None:
        examples = placement.keep(dataset)
    eval_ids = choose_evaluated(config, dataset)
    population = HostPopulation(
        algorithm,
        plan,
        examples,
        clients_per_chunk=chunk,
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
        start=HostStart(population),
        run_rounds=HostRounds(population),
        evaluate=HostEvaluation(
            population, task, batch_size=eval_batch_size(config, dataset), ids=eval_ids
        ),
        clients_per_chunk=chunk,
        eval_clients_per_chunk=chunk,
        population=population,
        eval_ids=eval_ids,
    )
