"""Results of runs, comparisons and sweeps, read from their work directories."""

from __future__ import annotations

import contextlib
import copy
import pathlib
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import jax
import ml_collections
import numpy as np

from pfljax.api import settings
from pfljax.api.client_model import ClientModel, Form, Shared
from pfljax.data import FederatedDataset
from pfljax.errors import UserError
from pfljax.report import comparison as report
from pfljax.report import finished, plots, tables
from pfljax.training import single, sweep
from pfljax.training.run import reopen, results, runtime, workdir
from pfljax.training.study import architectures, config_values

if TYPE_CHECKING:
    import matplotlib.axes
    import pandas as pd


class Workdir:
    """A work directory: the user's, or a temporary one, which lives as long as this object.

    Attributes:
      path: The directory.
    """

    def __init__(self, path: str | pathlib.Path | None, parent: Workdir | None = None):
        if path is None:
            path = tempfile.mkdtemp(prefix="pfljax-")
            weakref.finalize(self, shutil.rmtree, path, ignore_errors=True)
        self.path, self._parent = pathlib.Path(path), parent
        workdir.require_usable(self.path)

    def within(self, name: str) -> Workdir:
        """Returns a directory within this one, which lives as long as one of both objects."""
        return Workdir(self.path / name, self)


class Run:
    """A finished run, or one that was interrupted; `fit` and `open_run` return it.

    Attributes:
      directory: The work directory.
      config: The config.

    Example:
      >>> import pfljax
      >>> run = pfljax.fit("ditto", "digits", rounds=4, eval_every=2, lam=0.5)
      >>> run.per_round()["round"].tolist(), len(run.per_client())
      ([0, 2, 4], 20)
      >>> run.client(3).predict(run.dataset.inputs[:5]).shape
      (5,)
    """

    def __init__(
        self,
        directory: Workdir,
        config: ml_collections.ConfigDict,
        dataset: FederatedDataset | None = None,
    ):
        self._workdir, self.config, self._dataset = directory, config, dataset
        self._kept: dict[bool, reopen.Reopened] = {}

    @property
    def directory(self) -> pathlib.Path:
        """The work directory."""
        return self._workdir.path

    @property
    def result(self) -> dict[str, Any]:
        """The content of `result.json`.

        Raises:
          UserError: The run is not finished.
        """
        return self._finished().result

    def per_round(self) -> pd.DataFrame:
        """Returns a row for each evaluation: the round, and the summaries of all metrics."""
        return _frame(self._finished().rows)

    def per_client(self) -> pd.DataFrame:
        """Returns a row for each client: its sizes, and its metrics after the last round."""
        return frame_of_clients(self._finished().clients)

    def plot(self, metric: str | None = None) -> matplotlib.axes.Axes:
        """Draws the test metric against rounds, and returns the matplotlib axes.

        Args:
          metric: The name of the metric; the score of the task by default.
        """
        found = self._finished()
        title = f"{found.result['dataset']}, {found.result['num_clients']} clients"
        return _plot({self.config.algorithm: [found]}, title, metric)

    @property
    def dataset(self) -> FederatedDataset:
        """The data set, which is loaded if it was not passed."""
        with self._opened() as opened:
            return opened.experiment.dataset

    def client(self, client: int | str, *, best: bool = False) -> ClientModel:
        """Returns the model that a client would deploy after the last round.

        A held-out client is adapted by one local update first, as in evaluations.

        Args:
          client: The name of the client, or its number.
          best: Whether to use the round with the best validation score in place of the last one,
            for a run with `keep_best=True`.

        Raises:
          UserError: There is no such client, or no checkpoint.
        """
        return self.clients([client], best=best)[0]

    def clients(
        self, clients: Sequence[int | str] | None = None, *, best: bool = False
    ) -> list[ClientModel]:
        """Returns the models of several clients.

        Args:
          clients: Their names, or numbers; None for all.
          best: As for `client`.
        """
        with self._opened(best) as opened:
            dataset = opened.experiment.dataset
            if clients is None:
                clients = list(range(dataset.num_clients))
            ids = [_number_of(client, dataset) for client in clients]
            names, found = dataset.client_names, {}
            for number in {architectures.of_client(self.config, client) for client in ids}:
                own = [i for i in ids if architectures.of_client(self.config, i) == number]
                params = opened.deployed(own)["personal"]
                shared = _shared(opened, "personal", number)
                for row, client in enumerate(own):
                    one = jax.tree.map(lambda leaf, row=row: leaf[row], params)
                    found[client] = ClientModel(shared, one, names[client] if names else client)
            return [found[client] for client in ids]

    def global_model(self, *, best: bool = False) -> ClientModel:
        """Returns the global model.

        Args:
          best: As for `client`.

        Raises:
          UserError: The method has none.
        """
        with self._opened(best) as opened:
            params = opened.deployed([0]).get("global")
            if params is None:
                raise UserError(f"{self.config.algorithm} has no global model: use client(...).")
            own = jax.tree.map(lambda leaf: leaf[0], params)
            return ClientModel(_shared(opened, "global"), own, "global")

    def evaluate(self, *, best: bool = False) -> pd.DataFrame:
        """Evaluates the models of the latest checkpoint, and returns a row for each client.

        Args:
          best: As for `client`.
        """
        with self._opened(best) as opened:
            arrays = results.client_arrays(opened.experiment, opened.evaluate())
        return frame_of_clients(arrays)

    def train(self, rounds: int) -> Run:
        """Continues the run.

        Args:
          rounds: Number of rounds in all, those that are finished included.

        Returns:
          The run after these rounds, in the same work directory.

        Raises:
          UserError: The run has more rounds already, or its steps depend on the planned number.
        """
        with self._available() as config:
            config.rounds = rounds
            single.run(config, self.directory, resume=True)
            config = copy.deepcopy(config)
        return Run(self._workdir, config, self._dataset)

    def _finished(self) -> finished.Run:
        if not (self.directory / "result.json").exists():
            raise UserError(f"{self.directory} contains no finished run: train it first.")
        return finished.read_run(self.directory)

    @contextlib.contextmanager
    def _available(self) -> Iterator[ml_collections.ConfigDict]:
        """Yields a copy of the config, with its data set available."""
        config = copy.deepcopy(self.config)
        with settings.with_data(config, self._dataset):
            yield config

    @contextlib.contextmanager
    def _opened(self, best: bool = False) -> Iterator[reopen.Reopened]:
        """Yields the run at a checkpoint, which is kept if it is in memory."""
        if best in self._kept:
            yield self._kept[best]
            return
        with (
            self._available() as config,
            reopen.reopen(self.directory, config, best=best) as opened,
        ):
            if config.engine.residence == "device":
                self._kept[best] = opened
            yield opened


def open_run(directory: str | pathlib.Path, data: FederatedDataset | None = None) -> Run:
    """Opens the run in a work directory.

    Args:
      directory: The work directory, of `fit` or of the command `train`.
      data: The data set, if it was passed from Python and is in no file.

    Returns:
      The run; nothing is loaded or compiled yet.

    Raises:
      UserError: The directory contains no run.

    Example:
      >>> import pfljax
      >>> run = pfljax.fit("local", "digits", rounds=2)
      >>> pfljax.open_run(run.directory).result["rounds"]
      2
    """
    runtime.start()
    opened = Workdir(directory)
    return Run(opened, workdir.config_of(opened.path), data)


class Comparison:
    """Finished runs of several methods and seeds, which `compare` returns.

    Attributes:
      config: The config.

    Example:
      >>> import pfljax
      >>> found = pfljax.compare(["local", "fedavg"], "digits", seeds=(0, 1), rounds=2)
      >>> found.table().index.tolist(), len(found.per_run()), found.diverged
      (['local', 'fedavg'], 4, [])
    """

    def __init__(
        self,
        directory: Workdir,
        config: ml_collections.ConfigDict,
        written: report.Report,
        dataset: FederatedDataset | None = None,
    ):
        self.config = config
        self._workdir, self._report, self._dataset = directory, written, dataset

    @property
    def directory(self) -> pathlib.Path:
        """The work directory, with `comparison.md`, `comparison.csv` and the plots."""
        return self._workdir.path

    @property
    def diverged(self) -> list[str]:
        """The runs that diverged, as `METHOD with seed SEED`; they have no scores."""
        return self._report.diverged

    def table(self) -> pd.DataFrame:
        """Returns the table that commands print, a row for each method, with texts as entries."""
        import pandas as pd

        columns = tables.columns_of(self._report.runs)
        rows = tables.cells(self._report.runs, columns)
        frame = pd.DataFrame(rows, columns=["method", *map(tables.heading, columns)])
        return frame.set_index("method")

    def per_run(self) -> pd.DataFrame:
        """Returns a row for each method and seed, with all numbers of `result.json`."""
        import pandas as pd

        return pd.read_csv(self.directory / "comparison.csv")

    def per_round(self) -> pd.DataFrame:
        """Returns a row for each method, seed and evaluation, with all metrics."""
        return self._stacked(lambda run: _frame(run.rows))

    def per_client(self) -> pd.DataFrame:
        """Returns a row for each method, seed and client, with its metrics after the last round."""
        return self._stacked(lambda run: frame_of_clients(run.clients))

    def plot(self, metric: str | None = None) -> matplotlib.axes.Axes:
        """Draws the test metric of all methods against rounds, and returns the matplotlib axes.

        Args:
          metric: The name of the metric; the score of the task by default.
        """
        return _plot(self._report.runs, self._report.title, metric)

    def run(self, method: str, seed: int) -> Run:
        """Returns one of the runs.

        Args:
          method: The name of the method.
          seed: The seed.

        Raises:
          UserError: There is no such run.
        """
        own = self._workdir.within(f"{method}/seed_{seed}")
        return Run(own, workdir.config_of(own.path), self._dataset)

    def _stacked(self, frame_of: Callable[[finished.Run], pd.DataFrame]) -> pd.DataFrame:
        import pandas as pd

        frames = []
        for method, seeds in self._report.runs.items():
            for each in seeds:
                if not each.diverged:
                    frame = frame_of(each)
                    frame.insert(0, "method", method)
                    frame.insert(1, "seed", each.result["seed"])
                    frames.append(frame)
        return pd.concat(frames, ignore_index=True)


class Sweep:
    """The values of a sweep with their scores, which `sweep` returns.

    Attributes:
      best: The best values by validation, `{key: value}`; None if all runs diverged.
      at_the_edge: The keys whose best value is the smallest or the largest that was tried.
      each_client: The test score if each client has the values with its own best validation score,
        both after the last round; NaN if a run diverged.

    Example:
      >>> import pfljax
      >>> found = pfljax.sweep("ditto", "digits", {"lam": [0.1, 1.0]}, rounds=2)
      >>> found.table().columns.tolist(), list(found.best)
      (['lam', 'validation_accuracy', 'test_accuracy'], ['lam'])
    """

    def __init__(self, directory: Workdir, found: sweep.Sweep, names: dict[str, str]):
        self._workdir, self._found, self._names = directory, found, names
        self.best = found.best and self._named(found.best.settings)
        self.each_client = found.each_client
        self.at_the_edge = [names[key] for key in found.at_the_edge]

    @property
    def directory(self) -> pathlib.Path:
        """The work directory."""
        return self._workdir.path

    def table(self) -> pd.DataFrame:
        """Returns a row for each combination of values, the best one first."""
        return _frame(
            [
                {
                    **self._named(one.settings),
                    f"validation_{self._found.score}": one.validation,
                    f"test_{self._found.score}": one.test,
                }
                for one in self._found.settings
            ]
        )

    def _named(self, values: dict[str, Any]) -> dict[str, Any]:
        return {self._names[key]: value for key, value in values.items()}


def _frame(rows: list[dict[str, Any]]) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame(rows)


def frame_of_clients(arrays: dict[str, np.ndarray]) -> pd.DataFrame:
    """Returns the arrays of `clients.npz` with one number for each client as columns."""
    frame = _frame({name: array for name, array in arrays.items() if array.ndim == 1})
    if "client_name" in frame:
        frame.insert(1, "client_name", frame.pop("client_name"))
    return frame


def _shared(opened: reopen.Reopened, kind: str, number: int = 0) -> Shared:
    """Returns what models of a run share.

    Args:
      opened: The run.
      kind: 'personal' or 'global'.
      number: The number of their architecture; 0 for a run with one.
    """
    built = opened.experiment
    frozen = built.inputs.frozen[number] if built.config.architectures else built.inputs.frozen
    # A trained model does not need the params with which its training started.
    frozen = () if built.config.init_from else jax.tree.map(np.asarray, frozen)
    config = architectures.each(built.config)[number]
    return Shared(config, Form.of(built.dataset), frozen, kind)


def _number_of(client: int | str, dataset: FederatedDataset) -> int:
    """Returns the number of a client, which is given by its name or by its number."""
    if isinstance(client, str):
        if client not in dataset.client_names:
            hint = config_values.suggest(client, dataset.client_names)
            raise UserError(f"The data set {dataset.name} has no client {client!r}.{hint}")
        return dataset.client_names.index(client)
    if not 0 <= client < dataset.num_clients:
        raise UserError(
            f"The data set {dataset.name} has the clients 0 to {dataset.num_clients - 1}, and no "
            f"client {client}."
        )
    return int(client)


def _plot(
    runs: dict[str, list[finished.Run]], title: str, metric: str | None
) -> matplotlib.axes.Axes:
    """Draws curves with pyplot, so that notebooks show them."""
    import matplotlib.pyplot as plt

    picture = plt.figure(figsize=plots.size_of_curves(runs), layout="constrained")
    return plots.draw_curves(picture, runs, title, metric)
