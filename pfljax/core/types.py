"""The vocabulary of pfljax: what a task is, and what the functions of a method take and return.

A *method* (`Algorithm` of `core/algorithm.py`) is a tuple of pure functions written for ONE client.
The engine adds the client axis with `vmap` and the device axis with `pmap`, so that a whole
federated round becomes one XLA program; no method knows of either.

Shapes in the docstrings: `N` clients in the population, `C` classes, `B`
examples in a batch, `[]` a scalar. A *model* is a nested dict of arrays.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pfljax.core.client_data import Batch

PyTree = Any
Params = Any  # nested dict of arrays: the weights of a model
Path = tuple[str, ...]  # path of an array in params, e.g. ('head', 'kernel')


class ClientProfile(NamedTuple):
    """What is known of one client before it trains.

    Attributes:
      id: `[]` int32.
      size: `[]` int32, training examples.
      class_counts: `[C]` int32, training examples of each label; None where no function of the
        method reads them.
    """

    id: jax.Array
    size: jax.Array
    class_counts: jax.Array | None


class Population(NamedTuple):
    """The profiles of all `N` clients that may take part, stacked.

    Attributes:
      sizes: `[N]` int32.
      class_counts: `[N, C]` int32; None where no function of the method reads them.
    """

    sizes: jax.Array
    class_counts: jax.Array | None

    @property
    def num_clients(self) -> int:
        return self.sizes.shape[0]


class Cohort(NamedTuple):
    """The clients of one round.

    Attributes:
      ids: `[cohort]` int32; -1 marks an empty place (padding, or a client that dropped out).
      sizes: `[cohort]` int32, training examples; 0 in an empty place.
      num_clients: `N`, the size of the population (static).
    """

    ids: jax.Array
    sizes: jax.Array
    num_clients: int

    @property
    def count(self) -> jax.Array:
        """`[]` int32, the number of clients that took part."""
        return jnp.sum(self.ids >= 0)


class Context(NamedTuple):
    """Where and when a function runs: schedules and annealing are functions of it, traced.

    Attributes:
      key: typed PRNG key, of its own for each client, round and function; see `core.streams`.
      round: `[]` int32, counted from 0.
      num_rounds: `[]` int32, the planned length of the run.
      client_id: `[]` int32, the client for which the function runs; -1 for the server.
      client_key: typed PRNG key of the client, the same in every round and evaluation of a run;
        None for the server.
    """

    key: jax.Array
    round: jax.Array
    num_rounds: jax.Array
    client_id: jax.Array | int = -1
    client_key: jax.Array | None = None

    def child(self, index: int) -> Context:
        """The same moment with an independent key: one child for each use of randomness."""
        return self._replace(key=jax.random.fold_in(self.key, index))


class Uploads(NamedTuple):
    """What the server sees of a round.

    Attributes:
      total: the sum of the cohort's `ClientOutput.sum`.
      each: the cohort's `ClientOutput.each`, stacked `[cohort, ...]` in the order of
        `Cohort.ids`; zeros in empty places; `()` where the method uploads nothing there.
    """

    total: PyTree
    each: PyTree


class ClientOutput(NamedTuple):
    """What a client's update leaves behind.

    Attributes:
      state: the client's next private state; never leaves the client.
      sum: added up over the cohort; the server needs only the total, so that every aggregator can
        be used and secure aggregation could be added.
      each: one row per client, seen by the server: costs cohort x message and reveals
        individual messages; `()` unless the method compares clients.
      metrics: scalars, of which the engine reports the mean over the cohort; or `Weighted` scalars,
        for a mean over those clients only that have something to report.
      size: number of bits of what is uploaded, an `aggregation.Size`, where an aggregator decides
        it; None where the shapes of `sum` and `each` tell it.
    """

    state: PyTree
    sum: PyTree = ()
    each: PyTree = ()
    metrics: dict[str, PyTree] = {}
    size: PyTree = None


class Task(NamedTuple):
    """All that a method may know about model and data.

    Batch normalization has two modes. In training mode it uses the statistics of the batch's real
    examples: in `losses` and `loss` unless `train=False`, in the other functions where they are
    given the batch's `mask` `[B]`. Otherwise it uses the running statistics of the model. A term of
    a training objective takes the mask, so that the whole objective is in one mode; whoever judges
    a model that is not being trained leaves it out. Likewise dropout drops where a function is
    given a `key`, and in `losses` and `loss` unless `train=False`.

    Attributes:
      init: `key -> params`.
      losses: `(params, batch, key, train=True) -> [B]`, the loss of each example, masked or not.
      loss: `(params, batch, key, train=True) -> []`, the mean of the losses over the batch's real
        examples.
      predict: `(params, inputs, mask=None, key=None) -> outputs` (for classification, logits
        `[B, C]`).
      features: `(params, inputs, mask=None, key=None) -> [B, d]`, the input of the head.
      head: `(params, features, mask=None, key=None) -> outputs`, so `predict = head after
        features`.
      is_head: `path -> bool`, whether the array at `path` belongs to the head.
      metrics: `(outputs, batch) -> {name: []}`, sums over the batch's real examples. Their mean is
        over examples, or where there is a metric 'count', over what that counts, such as tokens.
        They score outputs that a method computes itself (`Algorithm.predict`), and in `evaluate`
        those of `predict`. None for a task whose outputs do not give its metrics.
      num_classes: `C`; 0 for a task without classes.
      num_features: `d`; 0 for a task whose features are not rows of numbers.
      layers: where the layers stand in a model, in the order in which inputs pass them.
      is_norm: `path -> bool`, whether the array at `path` belongs to a normalization layer: scale,
        bias, running statistics.
      is_statistic: `path -> bool`, whether the array at `path` is a running statistic. No gradient
        moves one: a training step observes it, and a server averages it.
      observe: `(params, batch) -> statistics`, the running statistics that a training step on the
        batch leaves behind, at their paths in the model; None for a model without any. Whoever
        makes a `LocalTraining` hands it on, so that training keeps them.
      score: the metric by which models are selected and compared.
      more_is_better: whether a larger score is a better one.
      params_metrics: `(params, batch, key) -> {name: []}`, the same sums where `evaluate` shall not
        compute them from the outputs of a whole batch: because a loss draws random numbers, or
        because the outputs would not fit into memory. None computes them from the outputs.
    """

    init: Callable[[jax.Array], Params]
    losses: Callable[..., jax.Array]
    loss: Callable[..., jax.Array]
    predict: Callable[..., jax.Array]
    features: Callable[..., jax.Array]
    head: Callable[..., jax.Array]
    is_head: Callable[[Path], bool]
    metrics: Callable[[jax.Array, Batch], dict[str, jax.Array]] | None
    num_classes: int
    num_features: int = 0
    layers: tuple[Path, ...] = ()
    is_norm: Callable[[Path], bool] = lambda path: False
    is_statistic: Callable[[Path], bool] = lambda path: False
    observe: Callable[[Params, Batch], Params] | None = None
    score: str = "accuracy"
    more_is_better: bool = True
    params_metrics: Callable[[Params, Batch, jax.Array], dict[str, jax.Array]] | None = None

    def evaluate(self, params: Params, batch: Batch, key: jax.Array) -> dict[str, jax.Array]:
        """Returns the metrics of a model on a batch.

        Args:
          params: Weights of the model.
          batch: `B` examples of one client.
          key: Typed PRNG key, of which tasks draw whose losses are random.

        Returns:
          `{name: []}`, sums over the batch's real examples, as `metrics` returns them.
        """
        if self.params_metrics is not None:
            return self.params_metrics(params, batch, key)
        return self.metrics(self.predict(params, batch.inputs), batch)

    def is_body(self, path: Path) -> bool:
        """Whether the array at `path` does not belong to the head."""
        return not self.is_head(path)


class FederatedState(NamedTuple):
    """Everything a run carries from round to round, and all that a checkpoint holds.

    Attributes:
      server: the method's server state, the same on every device.
      clients: the clients' private states, stacked and spread over the devices.
      round: `[]` int32, the number of rounds done.
      key: the run's typed PRNG key; never changes.
      joined: `[num_clients]` bool, whose private state counts; the others' begins when they first
        take part. `()` where clients have no state, or where their table of rows says it.
    """

    server: PyTree
    clients: PyTree
    round: jax.Array
    key: jax.Array
    joined: jax.Array | tuple[()] = ()
