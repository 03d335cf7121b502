"""Trains methods: one, several with several seeds, or one with several hyper-parameters."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ml_collections

from pfljax.api import settings as settings_lib
from pfljax.api.results import Comparison, Run, Sweep, Workdir
from pfljax.data import FederatedDataset
from pfljax.errors import UserError
from pfljax.report import comparison as report
from pfljax.training import comparison, single
from pfljax.training import sweep as sweep_lib
from pfljax.training.run import locks, loop, runtime
from pfljax.training.run import workdir as workdir_lib
from pfljax.training.study import config_checks

_ONE_PARTITION = (
    "A data set that is passed has one partition: pass its name for a partition of each seed, or "
    "leave out "
)


def fit(
    method: settings_lib.Named,
    data: FederatedDataset | str | None = None,
    /,
    *,
    workdir: str | pathlib.Path | None = None,
    config: ml_collections.ConfigDict | None = None,
    progress: loop.Progress = lambda rounds, scores: None,
    **settings: Any,
) -> Run:
    """Trains one method on one federated data set.

    Args:
      method: The name of a method, or its factory, `(task, local, *, hyper-parameters)`.
      data: The data set; or the name of one, to be partitioned as the setting `data` has it, such
        as `data={'num_clients': 10, 'alpha': 0.5}`; None for the data set of the config.
      workdir: The directory of the results. A finished run in it is not repeated, an interrupted
        one is resumed, and one with other settings is refused. None for a temporary directory,
        which is removed with the result.
      config: The config to start from; None for the defaults, which are in `docs/config.md`.
      progress: Called with the number of finished rounds and the scores.
      **settings: Keys of the config, such as `rounds=100`, `seed=1`, `model='cnn'`,
        `model={'name': 'mlp', 'widths': (64,)}` or `cohort={'size': 10}`; the learning rate of the
        clients, `learning_rate=0.1`; and hyper-parameters of the method, such as `lam=0.5`.

    Returns:
      The run: its metrics, and the models of its clients.

    Raises:
      UserError: A setting is invalid, or the work directory contains another run.
      DivergedError: A state or a loss is not finite.

    Example:
      >>> import numpy as np
      >>> import pfljax
      >>> draws = np.random.default_rng(0).normal(size=(60, 2))
      >>> data = pfljax.from_arrays(draws, draws[:, 0] > 0, np.repeat(["ann", "bob", "eve"], 20))
      >>> run = pfljax.fit("ditto", data, rounds=5, learning_rate=0.1, lam=0.5)
      >>> run.per_client()["client_name"].tolist()
      ['ann', 'bob', 'eve']
    """
    runtime.start()
    name = settings_lib.name_of_method(method)
    data = settings_lib.take_data(data, settings)
    directory = Workdir(workdir)
    made = settings_lib.config_of([name], config, settings)
    with settings_lib.with_data(made, data):
        if not workdir_lib.is_finished(directory.path, made):
            single.run(made, directory.path, resume=True, add_progress=lambda name, score: progress)
    return Run(directory, made, data if isinstance(data, FederatedDataset) else None)


def compare(
    methods: Sequence[settings_lib.Named],
    data: FederatedDataset | str | None = None,
    /,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    workdir: str | pathlib.Path | None = None,
    config: ml_collections.ConfigDict | None = None,
    say: Callable[[str], None] = lambda message: None,
    **settings: Any,
) -> Comparison:
    """Trains several methods with several seeds on one federated data set.

    Args:
      methods: The names of the methods, or their factories.
      data: As for `fit`. A data set that is passed has one partition; by name, each seed has a
        partition and splits of its own, unless `seeds_vary='training'`.
      seeds: The seeds.
      workdir: As for `fit`. Finished runs are not repeated.
      config: As for `fit`.
      say: Called with messages for the user.
      **settings: As for `fit`; the hyper-parameters of a method as `hparams={'ditto': {'lam':
        0.5}}`, its own learning rate as `learning_rates={'ditto': 0.1}`.

    Returns:
      The comparison. Runs that diverge are in its `diverged`.

    Raises:
      UserError: A setting is invalid, or the work directory contains other runs.

    Example:
      >>> import pfljax
      >>> found = pfljax.compare(["local", "ditto"], "digits", seeds=(0, 1), rounds=2)
      >>> found.per_client().groupby("method").size().to_dict()
      {'ditto': 40, 'local': 40}
    """
    runtime.start()
    names = [settings_lib.name_of_method(method) for method in methods]
    if not names:
        raise UserError("Pass at least one method, such as ['local', 'fedavg', 'ditto'].")
    data = settings_lib.take_data(data, settings)
    directory = Workdir(workdir)
    one_partition = isinstance(data, FederatedDataset)
    if one_partition:
        if settings.get("seeds_vary", "training") != "training":
            raise UserError(_ONE_PARTITION + "seeds_vary.")
        settings["seeds_vary"] = "training"
    made = settings_lib.config_of(names, config, {**settings, "seeds": tuple(seeds)})
    config_checks.check(made)  # before the directory is created
    with settings_lib.with_data(made, data), locks.hold(directory.path):
        runs = comparison.prepare(made, directory.path, say=say)
        comparison.train(runs)
        written = report.write(
            made, directory.path, runs.first_dataset, changed=bool(runs.datasets)
        )
    return Comparison(directory, made, written, data if one_partition else None)


def sweep(
    method: settings_lib.Named,
    data: FederatedDataset | str | None,
    values: Mapping[str, Sequence[float]],
    /,
    *,
    seeds: Sequence[int] = (0,),
    vary_data: bool = False,
    workdir: str | pathlib.Path | None = None,
    config: ml_collections.ConfigDict | None = None,
    **settings: Any,
) -> Sweep:
    """Trains one method with all combinations of values in one program, and finds the best one.

    The best values are those with the best score on validation examples over all rounds, averaged
    over the seeds.

    Args:
      method: As for `fit`.
      data: As for `fit`.
      values: The values of each hyper-parameter, of `learning_rate`, or of a key of the config,
        such as `{'lam': [0.1, 1.0], 'client_optimizer.momentum': [0.0, 0.9]}`.
      seeds: The seeds with which each combination is trained.
      vary_data: Whether each seed has a partition and splits of its own, for data by name.
      workdir: As for `fit`. Finished runs are not repeated.
      config: As for `fit`.
      **settings: As for `fit`.

    Returns:
      The values with their scores, and the best ones.

    Raises:
      UserError: A setting is invalid, or there are no validation examples.

    Example:
      >>> import pfljax
      >>> found = pfljax.sweep("local", "digits", {"learning_rate": [1e-6, 0.1]}, rounds=2)
      >>> found.best
      {'learning_rate': 0.1}
    """
    runtime.start()
    name = settings_lib.name_of_method(method)
    data = settings_lib.take_data(data, settings)
    if vary_data and isinstance(data, FederatedDataset):
        raise UserError(_ONE_PARTITION + "vary_data.")
    directory = Workdir(workdir)
    made = settings_lib.config_of([name], config, {**settings, "seeds": tuple(seeds)})
    own = made.hparams[name]
    names, grid = {}, {}
    for key, tried in values.items():
        full = f"hparams.{name}.{key}" if key in own else key
        text = f"{full}={','.join(map(str, tried))}"
        full, parsed = sweep_lib.parse(text, made)
        names[full], grid[full] = key, parsed
    config_checks.check(made)
    with settings_lib.with_data(made, data), locks.hold(directory.path):
        found = sweep_lib.run(made, directory.path, grid, vary_data=vary_data)
    return Sweep(directory, found, names)
