"""From a config to an experiment; errors are reported before anything is compiled."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import jax
import ml_collections
import numpy as np

from pfljax import core, data
from pfljax.algorithms import ALGORITHMS
from pfljax.core import Algorithm, ClientData, LocalTraining, Params, Task
from pfljax.data import FederatedDataset
from pfljax.engine import groups, mapping, programs, sampling, used_arguments
from pfljax.engine.clients.device_store import DeviceStore
from pfljax.engine.clients.host_examples import HostExamples
from pfljax.engine.clients.host_programs import HostStore
from pfljax.engine.clients.store import ClientStore, Options, Programs
from pfljax.engine.evaluate import scorer
from pfljax.engine.examples import Examples
from pfljax.errors import UserError
from pfljax.training.run import checkpoint, runtime, writers
from pfljax.training.study import (
    adapters,
    aggregation,
    architectures,
    autotune,
    config_checks,
    config_runs,
    config_values,
    optimizers,
    placement,
    pretrained,
    schedules,
    scoring,
)
from pfljax.training.study import task as task_lib
from pfljax.training.study.placement import Bounds, bounds_of


class Experiment(NamedTuple):
    """One method on one federated data set, ready to run.

    Attributes:
      config: The config of the run.
      dataset: The data set, on the host.
      examples: The examples of the data set, where the clients are kept.
      methods: The method with its task, the model and its loss; one for each architecture of
        `config.architectures`.
      make: Builds methods and tasks while programs are traced.
      inputs: Frozen or initial parameters, and numbers of the programs.
      store: Keeps the clients' private states and examples.
      programs: The programs of the run, or of vectorized runs.
      num_runs: Number of runs that the programs serve, see `training.study.vectorized`; None
        for one, whose arrays have no axis for it.
      examples_vary: Whether the examples have that axis too.
      frozen_digest: Checksum of the frozen parameters, or of those in a file with which training
        starts, which a resumed run must have too; None for none.
      uses_class_counts: Whether the method uses the number of examples of each class.
    """

    config: ml_collections.ConfigDict
    dataset: FederatedDataset
    examples: Examples | HostExamples
    methods: tuple[programs.Method, ...]
    make: programs.Make
    inputs: programs.Inputs
    store: ClientStore
    programs: Programs
    num_runs: int | None = None
    examples_vary: bool = False
    frozen_digest: str | None = None
    uses_class_counts: bool = False

    @property
    def algorithm(self) -> Algorithm:
        """The method for the task, the first one of several."""
        return self.methods[0].algorithm

    @property
    def task(self) -> Task:
        """The task, the first one of several, which all have the same metrics and score."""
        return self.methods[0].task

    def with_server_data(self, dataset: FederatedDataset) -> Experiment:
        """Returns the experiment with the server data of another data set, and its programs.

        Args:
          dataset: Of the same form.
        """
        held = mapping.replicate(placement.server_data(dataset), self.devices)
        inputs = self.inputs._replace(server_data=held)
        bound = Programs(*(program.with_fixed(inputs) for program in self.programs))
        return self._replace(inputs=inputs, programs=bound)

    @property
    def plan(self) -> sampling.CohortPlan:
        """How cohorts are sampled."""
        return self.store.options.plan

    @property
    def devices(self) -> Sequence[jax.Device]:
        """The devices of the run."""
        return self.store.options.devices

    @property
    def clients_per_chunk(self) -> int:
        """Number of clients that a device trains at once."""
        return self.store.options.clients_per_chunk


def build_dataset(config: ml_collections.ConfigDict) -> FederatedDataset:
    """Loads and partitions the config's data set."""
    settings = {**config.data}
    settings["options"] = {**config.data.options.get(config.data.name, {})}
    return data.load(**settings)


def same_form(one: FederatedDataset, other: FederatedDataset) -> bool:
    """Whether programs compiled for one data set serve another, given the bounds of both.

    Their clients may have different examples and sizes.
    """

    def form(dataset):
        arrays = (
            dataset.inputs,
            dataset.targets,
            dataset.train.sizes,
            dataset.server,
            dataset.items,
        )
        statistics = (dataset.mean, dataset.std, dataset.target_mean, dataset.target_std)
        return (
            jax.tree.map(lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype), arrays),
            jax.tree.map(lambda value: np.asarray(value).tolist(), statistics),
            (dataset.num_classes, dataset.num_unseen, dataset.task, dataset.vocabulary),
        )

    return form(one) == form(other)


def build_local_training(
    config: ml_collections.ConfigDict, task: Task, largest: int = config_values.MOST
) -> LocalTraining:
    """Returns the config's local training of a task's models.

    Args:
      config: The config of the run.
      task: The task of the run.
      largest: The maximum number of training examples of a client, an upper bound of the batch
        size.
    """
    # Compared with None, as a swept rate is traced.
    rate = config.learning_rates[config.algorithm]
    rate = config.client_optimizer.learning_rate if rate is None else rate
    return LocalTraining(
        optimizer=optimizers.make(config.client_optimizer, learning_rate=rate),
        batch_size=min(config.batch_size, max(1, largest)),
        epochs=config.local_epochs,
        num_steps=config.local_steps,
        drop_remainder=config.drop_remainder,
        shrink_batch=config.shrink_batch,
        observe=task.observe,
        learning_rate=rate,
        **schedules.make(config),
    )


def build_algorithm(
    config: ml_collections.ConfigDict,
    task: Task,
    dataset: FederatedDataset,
    largest: int = config_values.MOST,
    networks: Mapping[str, Task] = MappingProxyType({}),
    server_data: ClientData | None = None,
) -> Algorithm:
    """Returns the config's method and aggregation, whose hyper-parameters may be traced.

    Args:
      config: The config of the run.
      task: The task of the run.
      dataset: The data set of the run, of which only shapes are used.
      largest: As in `build_local_training`.
      networks: The result of `build_networks`.
      server_data: The examples that the server holds; None for none.

    Raises:
      UserError: the method's messages cannot pass through the config's aggregators.
    """
    factory = ALGORITHMS[config.algorithm].factory
    arguments = dict(config.hparams[config.algorithm])
    for name in core.networks(factory):
        arguments[name] = networks[name] if arguments[name].name else None
    server_optimizer = optimizers.make(config.server_optimizer)
    given = {"server_optimizer": server_optimizer, "server_data": server_data}
    taken = inspect.signature(factory).parameters
    arguments |= {name: value for name, value in given.items() if name in taken}
    algorithm = factory(task, build_local_training(config, task, largest), **arguments)
    return aggregation.aggregated(config, algorithm, dataset)


def build_plan(config: ml_collections.ConfigDict, dataset: FederatedDataset) -> sampling.CohortPlan:
    """Checks the config's cohort against the population."""
    cohort = config.cohort
    config_values.require_known("cohort.sampling", cohort.sampling, sampling.SAMPLINGS)
    if not 0 <= cohort.size <= dataset.num_participants:
        raise UserError(
            f"config.cohort.size is {cohort.size}, but {dataset.num_participants} clients take "
            "part; lower it, raise config.data.num_clients, or use 0 for all."
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
    """Returns the ids of the evaluated clients of a config; None for all."""
    wanted, count = config.engine.eval_clients, dataset.num_clients
    if not 0 < wanted < count:
        return None
    # A stream that differs from those of the partition and the splits of this seed.
    own = np.random.default_rng(np.random.SeedSequence(config.data.seed, spawn_key=(5,)))
    chosen = own.choice(count, wanted, replace=False)
    return np.sort(chosen).astype(np.int32)


def same_choice(
    one: tuple[ml_collections.ConfigDict, FederatedDataset],
    other: tuple[ml_collections.ConfigDict, FederatedDataset],
) -> bool:
    """Whether the evaluations of two configs, with their data sets, use the same clients."""
    chosen = [choose_evaluated(*each) for each in (one, other)]
    return np.array_equal(*(np.arange(0) if ids is None else ids for ids in chosen))


def eval_batch_size(config: ml_collections.ConfigDict, bounds: Bounds) -> int:
    """Returns the batch size of evaluations, lowered so that the largest client fills its batches.

    Example:
      If the largest client has 33 examples and the config has 32, two batches of 17.
    """
    batches = -(-bounds.scored // config.engine.eval_batch_size)
    return -(-bounds.scored // batches)


def clients_without_a_step(
    config: ml_collections.ConfigDict, dataset: FederatedDataset
) -> np.ndarray:
    """Returns the ids of the participants that never train, as they do not fill a batch.

    Raises:
      UserError: No participant trains.
    """
    drops = config.drop_remainder and not config.shrink_batch
    least = config.batch_size if drops else 1
    sizes = dataset.train.sizes[: dataset.num_participants]
    if np.all(sizes < least):
        raise UserError(
            f"No client would train: config.drop_remainder drops partial batches, "
            f"config.batch_size is {config.batch_size}, and the largest client has {sizes.max()} "
            "training examples; lower config.batch_size, or set config.drop_remainder=False or "
            "config.shrink_batch."
        )
    return np.flatnonzero(sizes < least)


def check(config: ml_collections.ConfigDict) -> None:
    """Raises a `UserError` for an invalid config, before any data are read."""
    config_checks.check(config)
    aggregation.check(config)
    scoring.check(config)
    decay = config.client_optimizer.decay
    if not 0 < decay <= 1:
        raise UserError(f"config.client_optimizer.decay is {decay}; it must be in (0, 1].")
    for key in ("client_optimizer", "server_optimizer"):
        optimizers.check(config[key], key)
    schedules.check(config)
    adapters.check(config.adapter)
    pretrained.check(config)
    architectures.check(config)
    if config.keep_best and config.engine.residence != "device":
        raise UserError(
            "config.keep_best needs the clients' states in checkpoints, but "
            f"config.engine.residence={config.engine.residence!r} keeps them in files; use "
            "config.engine.residence='device', or config.keep_best=False."
        )
    for name, rate in config.learning_rates.items():
        if rate is not None:
            optimizers.require_positive(f"config.learning_rates.{name}", rate)


def build(
    config: ml_collections.ConfigDict,
    dataset: FederatedDataset | None = None,
    examples: Examples | HostExamples | None = None,
    clients_per_chunk: int | None = None,
    bounds: Bounds | None = None,
) -> Experiment:
    """Checks a config and builds its experiment.

    Args:
      config: The config, with all keys of `default_config`.
      dataset: The data set of an experiment with the same `config.data`, to load it only once, or
        the user's data set, which is validated like files.
      examples: The examples of that experiment, to store them only once; its `config.engine` must
        be the same.
      clients_per_chunk: The client batch size of a run to resume, if the config leaves the choice;
        None for a new run.
      bounds: The bounds of programs for several data sets of the same form; None for this one.

    Raises:
      UserError: The config is invalid, or the data cannot be read.
    """
    check(config)
    config = config_runs.with_files_of_seed(config)
    devices = runtime.devices(config.engine.devices)
    if dataset is None:
        dataset = build_dataset(config)
    elif isinstance(dataset, FederatedDataset):
        dataset = data.validate.federated(dataset)
    plan = build_plan(config, dataset)
    bounds = bounds or bounds_of([dataset])
    clients_without_a_step(config, dataset)
    architectures.require_clients(config, dataset)
    make, inputs = build_method(config, dataset, devices, bounds)
    methods = make(*inputs).methods
    shapes, uses_class_counts = placement.shapes(dataset, bounds.train), False
    for algorithm, task in methods:
        ALGORITHMS[config.algorithm].require_usable(
            task,
            full_participation=plan.is_full,
            has_server_data=dataset.server is not None,
            random_init=not (config.init_from or config.zero_init)
            and adapters.starts_at_random(config.adapter),
        )
        # The method is traced here, and may refuse the network before anything is compiled.
        uses_class_counts |= used_arguments.uses_class_counts(algorithm, *shapes)
        scorer(task, algorithm.predict)
        _require_statistics(config, dataset, task)
    if len(methods) > 1:
        architectures.require_common(config, methods, *shapes)
    eval_ids = choose_evaluated(config, dataset)
    _require_validation(config, dataset, eval_ids)
    shard = -(-plan.capacity // len(devices))
    if clients_per_chunk and config.engine.clients_per_chunk in config_checks.CHUNK_RULES:
        chunk = min(clients_per_chunk, shard)
    else:
        local = build_local_training(config, methods[0].task, bounds.train)
        chunk = autotune.choose(config, dataset, make, inputs, local, plan, devices)
    on_host = config.engine.residence == "host"
    scored = dataset.num_clients if eval_ids is None else len(eval_ids)
    options = Options(
        plan=plan,
        clients_per_chunk=chunk,
        eval_clients_per_chunk=chunk
        if on_host
        else autotune.by_rule(config.engine.clients_per_chunk, devices, -(-scored // len(devices))),
        eval_batch_size=eval_batch_size(config, bounds),
        rounds_per_call=config.engine.rounds_per_call,
        join=config.cohort.join,
        devices=devices,
        num_groups=len(methods),
    )
    clients: ClientStore
    if on_host:
        examples = placement.on_host(dataset, bounds) if examples is None else examples
        if uses_class_counts:
            examples = examples._replace(class_counts=dataset.class_counts)
        # One more than the checkpoints kept: the latest is written in the background.
        snapshots = checkpoint.KEPT + 1
        clients = HostStore(examples, options, eval_ids=eval_ids, snapshots=snapshots)
    else:
        if examples is None:
            examples = placement.to_devices(dataset, devices, bounds)
        examples = placement.with_class_counts(examples, dataset, devices, uses_class_counts)
        clients = DeviceStore(examples, options, eval_ids=eval_ids)
    return Experiment(
        config=config,
        dataset=dataset,
        examples=examples,
        methods=methods,
        make=make,
        inputs=inputs,
        store=clients,
        programs=clients.programs(make, inputs),
        frozen_digest=_digest(inputs.frozen),
        uses_class_counts=uses_class_counts,
    )


def _digest(frozen: Params) -> str | None:
    if not jax.tree.leaves(frozen):
        return None
    arrays = jax.tree_util.tree_leaves_with_path(frozen)
    found = checkpoint.digests({jax.tree_util.keystr(path): leaf for path, leaf in arrays})
    return writers.digest(repr(sorted(found.items())).encode())


def build_method(
    config: ml_collections.ConfigDict,
    dataset: FederatedDataset,
    devices: Sequence[jax.Device],
    bounds: Bounds,
) -> tuple[programs.Make, programs.Inputs]:
    """Returns what builds the config's methods and tasks, and the inputs of its programs.

    Args:
      config: The config of the run.
      dataset: The data set of the run.
      devices: The devices of the run, on each of which there is one copy of the inputs.
      bounds: The sizes for which programs are compiled.
    """
    built = architectures.build_tasks(config, dataset)
    networks = task_lib.build_networks(config, dataset)

    def build_one(build_task, frozen, values, server_data):
        own = with_values(config, values)
        task = build_task(frozen)
        algorithm = build_algorithm(own, task, dataset, bounds.train, networks, server_data)
        return programs.Method(algorithm, task)

    def make(frozen, values, server_data):
        if not config.architectures:
            return build_one(built[0][0], frozen, values, server_data)
        return groups.Groups(
            tuple(
                build_one(build_task, own, values, server_data)
                for (build_task, _), own in zip(built, frozen, strict=True)
            )
        )

    each = tuple(frozen for _, frozen in built)
    frozen = each if config.architectures else each[0]
    inputs = programs.Inputs(frozen, server_data=placement.server_data(dataset))
    return make, mapping.replicate(inputs, devices)


def with_values(
    config: ml_collections.ConfigDict, values: dict[str, jax.Array]
) -> ml_collections.ConfigDict:
    """Returns a copy of the config with `{key: value}`, which may be traced."""
    if not values:
        return config
    config = copy.deepcopy(config)
    with config.unlocked(), config.ignore_type():
        for key, number in values.items():
            *path, name = key.split(".")
            functools.reduce(lambda node, part: node[part], path, config)[name] = number
    return config


def _require_validation(
    config: ml_collections.ConfigDict, dataset: FederatedDataset, eval_ids: np.ndarray | None
) -> None:
    """Raises a `UserError` if the best round is kept, and no example could choose it."""
    evaluated = np.arange(dataset.num_clients) if eval_ids is None else eval_ids
    participants = evaluated[evaluated < dataset.num_participants]
    if config.keep_best and not dataset.validation.sizes[participants].sum():
        raise UserError(
            "config.keep_best chooses a round on validation examples, and the evaluated clients "
            "have none; set config.data.validation_fraction, or config.keep_best=False."
        )


def _require_statistics(
    config: ml_collections.ConfigDict, dataset: FederatedDataset, task: Task
) -> None:
    """Refuses batch normalization if every batch is a single example, which becomes zero."""
    if task.observe is None:
        return
    wanted = "batch normalization needs at least two examples to train on"
    if config.batch_size < 2:
        raise UserError(
            f"config.batch_size is {config.batch_size}, but {wanted}; raise it, or choose a model "
            "without batch normalization, such as one with GroupNorm."
        )
    if np.max(dataset.train.sizes) < 2:
        raise UserError(
            f"No client has more than one training example, but {wanted}; choose a model without "
            "it."
        )
