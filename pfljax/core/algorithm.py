"""A method: a tuple of pure functions, each written for ONE client.

A protocol defines the arguments of each function. They have the same order everywhere: first the
server's state or the download, then the client's state, the client's data, the uploads of the
cohort, and last the context, or the key of a function that runs before the first round.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import jax

from pfljax.core import streams
from pfljax.core.client_data import ClientData
from pfljax.core.types import (
    ClientOutput,
    ClientProfile,
    Cohort,
    Context,
    Params,
    Population,
    PyTree,
    Uploads,
)


class InitServer(Protocol):
    """Initializes the state of the server before the first round."""

    def __call__(self, population: Population, key: jax.Array) -> PyTree:
        """Returns the state of the server.

        Args:
          population: The profiles of all clients that may take part in training.
          key: Typed PRNG key of this function.
        """


class InitClient(Protocol):
    """Initializes the state of a client that takes part for the first time."""

    def __call__(self, server: PyTree, profile: ClientProfile, key: jax.Array) -> PyTree:
        """Returns the state of the client; `()` for a stateless client.

        Args:
          server: The state of the server in that round.
          profile: The description of the client before it trains.
          key: Typed PRNG key of the client and of this function.
        """


class Download(Protocol):
    """Computes the download of a client in a round."""

    def __call__(self, server: PyTree, context: Context) -> PyTree:
        """Returns the download that `ClientUpdate` receives.

        Args:
          server: The state of the server.
          context: The round, and in `client_id` the client that receives.
        """


class Prepare(Protocol):
    """Computes what the cohort adds up before its clients' updates, in a first exchange."""

    def __call__(self, received: PyTree, data: ClientData, context: Context) -> PyTree:
        """Returns the client's term; the sum over the cohort is `Context.prepared` in the round.

        Args:
          received: The result of `Download`; the state of the server without one.
          data: The client's training examples.
          context: The round, and a key for this client.
        """


class Reply(Protocol):
    """Computes the server's reply to a message that a client sends in the middle of its update."""

    def __call__(self, server: PyTree, message: PyTree, context: Context) -> PyTree:
        """Returns the reply, the result of `Context.reply(message)` in `ClientUpdate`.

        Args:
          server: The state of the server.
          message: What the client sends, which the server receives individually.
          context: The round, and in `client_id` the client that receives.
        """


class ClientUpdate(Protocol):
    """Runs a client's part of a round."""

    def __call__(
        self, received: PyTree, client: PyTree, data: ClientData, context: Context
    ) -> ClientOutput:
        """Returns the client's next state, its uploads and its metrics.

        Args:
          received: The result of `Download`; the state of the server without one.
          client: The state of the client.
          data: The client's training examples.
          context: The round, and a key for this client.
        """


class ServerUpdate(Protocol):
    """Runs the server's part of a round; the engine keeps the old state for an empty cohort."""

    def __call__(
        self, server: PyTree, uploads: Uploads, cohort: Cohort, context: Context
    ) -> PyTree:
        """Returns the next state of the server.

        Args:
          server: The state of the server.
          uploads: The uploads of the cohort.
          cohort: The clients of the round.
          context: The round, and a key for the server; its `client_id` is -1.
        """


class Exchange(Protocol):
    """Updates a member of the cohort from the uploads of the others, after the server's update."""

    def __call__(
        self,
        server: PyTree,
        client: PyTree,
        data: ClientData,
        uploads: Uploads,
        cohort: Cohort,
        member: jax.Array,
        context: Context,
    ) -> PyTree:
        """Returns the next state of the client.

        Args:
          server: The state of the server after its update.
          client: The state of the client after its update.
          data: The client's training examples.
          uploads: The uploads of the cohort.
          cohort: The clients of the round.
          member: `[]` int32, the row of this client in `uploads.each` and in `cohort`.
          context: The round, and a key for this client.
        """


class Personalize(Protocol):
    """Returns the model that a client would deploy now."""

    def __call__(
        self, server: PyTree, client: PyTree, data: ClientData, context: Context
    ) -> Params:
        """Returns the params of the client's model.

        Args:
          server: The state of the server.
          client: The state of the client.
          data: The client's training examples, for methods that fine-tune.
          context: The round, and a key for this client.
        """


class Predict(Protocol):
    """Computes the outputs of a deployed model, if they are not those of `Task.predict`."""

    def __call__(self, params: Params, inputs: jax.Array, key: jax.Array) -> jax.Array:
        """Returns the outputs of a batch; for classification, logits `[B, C]`.

        Args:
          params: The result of `Personalize`.
          inputs: `[B, ...]`, the inputs of the batch.
          key: Typed PRNG key of the batch.
        """


class Adapt(Protocol):
    """Adapts a deployed model to the inputs that it is about to predict (test-time adaptation).

    The targets of these examples are not used, but a prediction then depends on the other examples
    of its batch, and so does the score of the model.
    """

    def __call__(self, params: Params, inputs: jax.Array, mask: jax.Array) -> Params:
        """Returns the params with which `Predict` or `Task.predict` computes the outputs.

        Args:
          params: The result of `Personalize`.
          inputs: `[B, ...]`, the inputs of the batch.
          mask: `[B]` bool, True for a real example.
        """


class GlobalParams(Protocol):
    """Returns the global model in the state of the server."""

    def __call__(self, server: PyTree) -> Params:
        """Returns the params of the global model.

        Args:
          server: The state of the server.
        """


class Algorithm(NamedTuple):
    """A federated method.

    The states of server and client keep their structure, shapes and dtypes from round to round;
    metrics are never in them.

    Attributes:
      init_server: The initial state of the server.
      init_client: The initial state of a client.
      client_update: A client's part of a round.
      server_update: The server's part of a round.
      personalize: The model that a client would deploy now.
      predict: The outputs of a deployed model, which `Task.metrics` scores; None if `Task.evaluate`
        scores the model.
      adapt: The adaptation of a deployed model to each batch that it predicts; None for a method
        without such an adaptation.
      global_params: The global model; None for a method without one.
      download: The download of a client; None for the parts of the server's state that
        `client_update` uses.
      prepare: The client's term of a sum over the cohort that all its clients receive before their
        updates; None without such a first exchange of messages.
      reply: The server's reply to a message of a client in the middle of its update; None without
        such messages. What only the reply uses of the server's state is not downloaded.
      exchange: The update of a client from the others of its cohort; None without such an exchange.
        With an aggregator, `uploads.total` is `()`.
      aggregators: The `aggregation.Aggregator`s that are part of these functions, in the order in
        which clients apply them; `aggregation.apply` adds one.

    Example:
      A method made of another one, whose personalized models are the mean of the global model and
      of the client's own.

      >>> from pfljax import core
      >>> from pfljax.algorithms.ditto import ditto
      >>> def halfway(task, local, *, lam: float = 0.1):
      ...     method = ditto(task, local, lam=lam)
      ...
      ...     def personalize(server, client, data, context):
      ...         own = method.personalize(server, client, data, context)
      ...         return core.tree.scale(0.5, core.tree.add(own, method.global_params(server)))
      ...
      ...     return method._replace(personalize=personalize)
      >>> import pfljax
      >>> pfljax.fit(halfway, "digits", rounds=1, lam=0.5).result["algorithm"]
      'halfway'
    """

    init_server: InitServer
    init_client: InitClient
    client_update: ClientUpdate
    server_update: ServerUpdate
    personalize: Personalize
    predict: Predict | None = None
    adapt: Adapt | None = None
    global_params: GlobalParams | None = None
    download: Download | None = None
    prepare: Prepare | None = None
    reply: Reply | None = None
    exchange: Exchange | None = None
    aggregators: tuple[Any, ...] = ()

    def update_client(
        self, server: PyTree, client: PyTree, data: ClientData, context: Context
    ) -> ClientOutput:
        """Returns the output of one client's part of a round: the download, then the update.

        Outside a round, the client prepares alone.
        """
        if not jax.tree.leaves(context.prepared):
            context = context._replace(prepared=self.prepare_client(server, data, context))
        if self.reply is not None:
            of_client = context
            context = context._replace(reply=lambda message: self.reply(server, message, of_client))
        return self.client_update(self._received(server, context), client, data, context)

    def prepare_client(self, server: PyTree, data: ClientData, context: Context) -> PyTree:
        """Returns one client's term of `Context.prepared`; `()` for a method without."""
        if self.prepare is None:
            return ()
        own = context._replace(key=streams.key_of(context.key, streams.PREPARE))
        return self.prepare(self._received(server, context), data, own)

    def _received(self, server, context):
        return server if self.download is None else self.download(server, context)
