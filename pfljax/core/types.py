"""The types of tasks, and of the arguments and results of a method's functions.

A *method* (`Algorithm` of `core/algorithm.py`) is a tuple of pure functions written for ONE client.
The engine adds the client axis with `vmap` and the device axis with `pmap`, so that a whole
federated round becomes one XLA program; methods contain neither.

Shapes in the docstrings: `N` clients in the population, `C` classes, `B` examples in a batch, `[]`
a scalar. *Params* are a nested dict of arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pfljax.core.client_data import Batch

PyTree = Any
Params = Any  # nested dict of arrays: the weights of a model
Path = tuple[str, ...]  # path of an array in params, e.g. ('head', 'kernel')


class ClientProfile(NamedTuple):
    """The description of a client before it trains.

    Attributes:
      id: `[]` int32, the index of the client.
      size: `[]` int32, the number of training examples.
      class_counts: `[C]` int32, the number of training examples of each label; None if no function
        of the method uses them.
    """

    id: jax.Array
    size: jax.Array
    class_counts: jax.Array | None


class Population(NamedTuple):
    """The profiles of all `N` clients that may take part, stacked.

    Attributes:
      sizes: `[N]` int32, the number of training examples of each client.
      class_counts: `[N, C]` int32; None if no function of the method uses them.
    """

    sizes: jax.Array
    class_counts: jax.Array | None

    @property
    def num_clients(self) -> int:
        return self.sizes.shape[0]


class Cohort(NamedTuple):
    """The clients of one round.

    Attributes:
      ids: `[cohort]` int32; -1 marks a padding slot (also for a client that dropped out).
      sizes: `[cohort]` int32, numbers of training examples; 0 in a padding slot.
      num_clients: `N`, the size of the population (static).
    """

    ids: jax.Array
    sizes: jax.Array
    num_clients: int

    @property
    def count(self) -> jax.Array:
        """`[]` int32, the number of clients that took part."""
        return jnp.sum(self.ids >= 0)

    def rank(self, client_id: jax.Array) -> jax.Array:
        """Returns `[...]` int32, the number of clients of the cohort with a smaller id.

        It does not depend on the slots, and so not on the devices.

        Args:
          client_id: `[...]` int32, one client or several.
        """
        before = (self.ids >= 0) & (self.ids < jnp.asarray(client_id)[..., None])
        return jnp.sum(before, axis=-1, dtype=jnp.int32)


class Context(NamedTuple):
    """The round and client for which a function runs; schedules are functions of it, and traced.

    Attributes:
      key: Typed PRNG key, different for each client, round and function; see `core.streams`.
      round: `[]` int32, counted from 0.
      num_rounds: `[]` int32, the planned length of the run.
      client_id: `[]` int32, the client that the function is evaluated for; -1 for the server.
      client_key: Typed PRNG key of the client, the same in every round and evaluation of a run;
        None for the server.
      rank: `[]` int32, the `Cohort.rank` of the client, which numbers the clients of the cohort
        from 0; -1 for the server, and outside of rounds.
      prepared: The sum of `Algorithm.prepare` over the cohort, in `client_update` and
        `server_update`; `()` for a method without.
      reply: `message -> reply`, the server's reply (`Algorithm.reply`) in `client_update`, which
        may send several messages; `()` for a method without, and elsewhere.

    Example:
      >>> context = Context(jax.random.key(0), jnp.int32(3), jnp.int32(10), client_id=7)
      >>> one, other = (jax.random.uniform(context.child(index).key) for index in (0, 1))
      >>> bool(one != other), int(context.child(0).round)
      (True, 3)
    """

    key: jax.Array
    round: jax.Array
    num_rounds: jax.Array
    client_id: jax.Array | int = -1
    client_key: jax.Array | None = None
    rank: jax.Array | int = -1
    prepared: PyTree = ()
    reply: Callable[[PyTree], PyTree] | tuple[()] = ()

    def child(self, index: int) -> Context:
        """Returns the context with an independent key: one child for each use of randomness."""
        return self._replace(key=jax.random.fold_in(self.key, index))


class Uploads(NamedTuple):
    """The uploads of a cohort, as received by the server.

    Attributes:
      total: The sum of the cohort's `ClientOutput.sum`.
      each: The cohort's `ClientOutput.each`, stacked `[cohort, ...]` in the order of `Cohort.ids`;
        zeros in padding slots; `()` if the method uploads nothing there.
    """

    total: PyTree
    each: PyTree


class ClientOutput(NamedTuple):
    """The result of a client's update.

    Attributes:
      state: The next private state of the client, which never leaves it.
      sum: The upload that is summed over the cohort; the server needs only the total, so that every
        aggregator can be used and secure aggregation could be added.
      each: The upload that the server receives individually: costs cohort x message and reveals
        individual messages; `()` unless the method compares clients.
      metrics: Scalars, of which the engine reports the mean over the cohort; or `Weighted` scalars,
        for a mean over those clients only that have something to report.
      size: Number of bits of the upload, an `aggregation.Size`, if an aggregator determines it;
        None if the shapes of `sum` and `each` determine it.

    Example:
      >>> from pfljax import core
      >>> upload = core.weighted({"w": jnp.ones(2)}, jnp.float32(3.0))
      >>> output = ClientOutput(state=(), sum=upload, metrics={"loss": jnp.float32(0.5)})
      >>> output.sum.value["w"].tolist(), output.each
      ([3.0, 3.0], ())
    """

    state: PyTree
    sum: PyTree = ()
    each: PyTree = ()
    metrics: dict[str, PyTree] = {}
    size: PyTree = None


class Task(NamedTuple):
    """The model and data of a method: the network, its loss and its metrics.

    Batch normalization has two modes. In training mode it uses the statistics of the batch's real
    examples: in `losses` and `loss` unless `train=False`, in the other functions if they get the
    batch's `mask` `[B]`. Otherwise it uses the running statistics of the model. All terms of a
    training objective get the mask, so that the whole objective is in one mode; code that evaluates
    a model omits it. Likewise dropout drops if a function gets a `key`, and in `losses` and `loss`
    unless `train=False`.

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
        over examples, or, if there is a metric 'count', over the units that it counts, such as
        tokens. They score outputs that a method computes itself (`Algorithm.predict`), and in
        `evaluate` those of `predict`. None for a task whose metrics do not follow from its outputs.
      num_classes: `C`; 0 for a task without classes.
      num_features: `d`; 0 for a task whose features are not one vector per example.
      input_shape: The shape of an example, for methods that apply a network of their own to the
        inputs; `()` if examples are ids or dicts of arrays.
      standardize: `(params, inputs [B, ...]) -> [B, ...]`, the inputs as the network receives them,
        in the dtype of the params.
      layers: The paths of the layers in the params, in the order in which inputs pass them.
      is_norm: `path -> bool`, whether the array at `path` belongs to a normalization layer: scale,
        bias, running statistics.
      is_adapter: `path -> bool`, whether the array at `path` belongs to an adapter, a small module
        or array beside the layers of the model.
      is_prompt: `path -> bool`, whether the array at `path` has prompts, trained tokens `[K, d]`
        that are inserted into the sequence of a Transformer.
      class_features: `params -> [C, d]`, a row of features for each class, with which the features
        of an example are compared (two towers); None for other models.
      is_statistic: `path -> bool`, whether the array at `path` is a running statistic. Gradients do
        not change running statistics: training steps update them, and a server averages them.
      observe: `(params, batch) -> statistics`, the running statistics after a training step on the
        batch, at their paths in the params; None for a model without any. Pass it to
        `LocalTraining` so that running statistics are updated.
      output_losses: `(outputs, batch) -> [B]`, the losses of outputs that a method has computed, so
        `losses = output_losses after predict`; None for a task whose losses do not follow from the
        outputs. Methods that also use features or logits compute the loss from these
        (`ops.losses`), as a second pass through the model would cost as much as the first.
      score: The metric by which models are selected and compared.
      lower_is_better: The names of the metrics of which a smaller value is better.
      params_metrics: `(params, batch, key) -> {name: []}`, the same sums if `evaluate` should not
        compute them from the outputs of a whole batch: because a loss draws random numbers, or
        because the outputs would not fit into memory. None computes them from the outputs.
      client_metrics: `{name: (outputs [n, ...], targets [n, ...], mask [n]) -> []}`, metrics of all
        outputs of a client in a split, after `decode`, which are no means over examples; NaN for a
        client for which a metric is undefined. See `pfljax.metrics.Metric`.
      decode: `outputs -> outputs` in the form that `client_metrics` take: numbers in the units of
        the targets for a task that standardizes its targets.
      encode: `targets [B] -> [B, 1]`, the outputs of a model without error, in the units of its
        outputs; None for a task that does not predict numbers.

    Example:
      >>> from pfljax import models, tasks
      >>> task = tasks.classification(models.mlp((4,), 3, widths=(8,)), num_classes=3)
      >>> params = task.init(jax.random.key(0))
      >>> task.predict(params, jnp.zeros((2, 4))).shape, task.num_features
      ((2, 3), 8)
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
    input_shape: tuple[int, ...] = ()
    standardize: Callable[[Params, Any], Any] = lambda params, inputs: inputs
    layers: tuple[Path, ...] = ()
    is_norm: Callable[[Path], bool] = lambda path: False
    is_adapter: Callable[[Path], bool] = lambda path: False
    is_prompt: Callable[[Path], bool] = lambda path: False
    class_features: Callable[[Params], jax.Array] | None = None
    is_statistic: Callable[[Path], bool] = lambda path: False
    observe: Callable[[Params, Batch], Params] | None = None
    output_losses: Callable[[jax.Array, Batch], jax.Array] | None = None
    score: str = "accuracy"
    lower_is_better: tuple[str, ...] = ("loss",)
    params_metrics: Callable[[Params, Batch, jax.Array], dict[str, jax.Array]] | None = None
    client_metrics: Mapping[str, Callable[..., jax.Array]] = MappingProxyType({})
    decode: Callable[[jax.Array], jax.Array] = lambda outputs: outputs
    encode: Callable[[jax.Array], jax.Array] | None = None

    def __hash__(self) -> int:
        """Returns the hash of all but `client_metrics`; a mapping has none."""
        return hash(tuple(self._replace(client_metrics=())))

    @property
    def more_is_better(self) -> bool:
        """Whether a larger score is better."""
        return self.score not in self.lower_is_better

    def evaluate(self, params: Params, batch: Batch, key: jax.Array) -> dict[str, jax.Array]:
        """Returns the metrics of a model on a batch.

        Args:
          params: Weights of the model.
          batch: `B` examples of one client.
          key: Typed PRNG key for tasks with random losses.

        Returns:
          `{name: []}`, sums over the batch's real examples, as `metrics` returns them.
        """
        if self.params_metrics is not None:
            return self.params_metrics(params, batch, key)
        return self.metrics(self.predict(params, batch.inputs), batch)

    def of_params(self, whole: Callable[[Params], Params]) -> Task:
        """Returns the task for other params, of which a function makes those of this task.

        `init` and the rules for paths stay as they are.

        Args:
          whole: `other params -> params of this task`.
        """

        def of(function):
            def composed(params, *args, **kwargs):
                return function(whole(params), *args, **kwargs)

            return None if function is None else composed

        names = (
            *("losses", "loss", "predict", "features", "head", "class_features"),
            *("standardize", "observe", "params_metrics"),
        )
        return self._replace(**{name: of(getattr(self, name)) for name in names})

    def is_body(self, path: Path) -> bool:
        """Whether the array at `path` does not belong to the head."""
        return not self.is_head(path)


class FederatedState(NamedTuple):
    """The state of a run between rounds, and the content of a checkpoint.

    Attributes:
      server: The method's server state, replicated on every device.
      clients: The clients' private states, stacked and sharded over the devices.
      round: `[]` int32, the number of finished rounds.
      key: The run's typed PRNG key, which never changes.
      joined: `[num_clients]` bool, whether a client's private state has been initialized; the
        others are initialized when they first take part. `()` for stateless clients, or if the
        table of rows contains this information.
    """

    server: PyTree
    clients: PyTree
    round: jax.Array
    key: jax.Array
    joined: jax.Array | tuple[()] = ()
