"""Persona-Plug: a vector for each client and query, by attention over the client's own history.

Server: the model, and the plug: a query encoder and a network of values. Client: nothing, or its
head. The history is the client's training examples, which never leave it.
Down: model and plug. Up: their change, weighted by examples (`sum`).
Cost per client and round: a forward pass over the training examples, and one local training whose
steps also encode the history and attend to it.

References:
  Liu, Zhu, Wang, Wei, Min, Lu, Wang, Yin, Dou, "LLMs + Persona-Plug = Personalized LLMs", 2024,
  https://arxiv.org/abs/2409.11901.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import optax

from pfljax import core
from pfljax.algorithms.fedavg import fedavg
from pfljax.algorithms.fedper import fedper
from pfljax.algorithms.registry import checked
from pfljax.core import tree
from pfljax.ops import averaging, plug
from pfljax.ops.datastore import Datastore, store


class History(NamedTuple):
    """The training examples of a client, as the model represents them.

    Attributes:
      examples: Features, labels and mask of the examples.
      rows: `[n]` int32, the numbers of the examples, different for all examples of all clients.
    """

    examples: Datastore
    rows: jax.Array


def numbered(data: core.ClientData) -> core.ClientData:
    """Returns a view whose targets `[B, 2]` are those of `data` and the number of each example."""
    rows = jnp.arange(data.targets.shape[0], dtype=data.targets.dtype)
    return dataclasses.replace(data, targets=jnp.stack([data.targets, rows], axis=1))


def latest(data: core.ClientData, items: int) -> core.ClientData:
    """Returns a view of a client's last `items` examples, of which there are at least one slot."""
    view = data.rows(jnp.maximum(data.size - items, 0), data.size)
    return dataclasses.replace(view, max_size=max(min(items, data.max_size), 1))


@checked
def persona_plug(
    task: core.Task,
    local: core.LocalTraining,
    *,
    items: Annotated[int, core.at_least(0)] = 512,
    width: Annotated[int, core.at_least(1)] = 64,
    scale: Annotated[float, core.above(0)] = 10.0,
    private_head: bool = False,
    server_optimizer: optax.GradientTransformation = averaging.PLAIN,
) -> core.Algorithm:
    """Personal vectors from the client's history, by attention that all clients train together.

        P(x) = sum_i a_i mlp([h_i, y_i]);   a = softmax_i(scale <Q z(x), h_i>)
        h_i = z_w(x_i) / ||z_w(x_i)|| for the example (x_i, y_i) of the client, w as received
        (w, Q, mlp) as in FedAvg, on the loss of head(z(x) + P(x)), where i is never x itself

    Args:
      task: The model, for classification, its features `z` and its loss.
      local: The clients' local training, of model and plug together.
      items: Number of examples in a client's history, its last ones, 8 to 512 (code: 512); 0 is
        FedAvg.
      width: Width of the hidden layer of `mlp`, 16 to 256.
      scale: Scale of the similarities before training, 1 to 100; near 0 the weights are equal.
      private_head: Whether heads stay with the clients, as in FedPer.
      server_optimizer: As in FedAvg, for model and plug together.

    Returns:
      The method; a client deploys the model, the plug and its history. The global model is the
      model without a personal vector; there is none if heads are private.

    Notes:
      At feature level: the paper prepends `P(x)` and an instruction vector to the embedded tokens
      of a frozen language model, and the text of a history contains its label, which is an input
      of `mlp` here. The features of the history are computed once a round and are fixed in it, as
      the encoder of the paper is; `Q` starts as the identity and `mlp` at zero, so that the first
      step of the model is FedAvg's. The authors' code rescales `P(x)` to the norm of the embeddings
      of its language model; here `mlp` learns the scale.
    """
    average = fedper if private_head else fedavg

    def init(key):
        params = task.init(key)
        sizes = task.num_features, task.num_classes, width
        first = plug.init(jax.random.fold_in(key, 1), *sizes, tree.dtype(params))
        return {"model": params, "plug": first}

    def outputs_of(params, history, inputs, allowed, mask=None, key=None):
        z = task.features(params["model"], inputs, mask, key)
        labels = jax.nn.one_hot(history.targets, task.num_classes, dtype=z.dtype)
        known = history.features, labels, allowed
        personal = plug.personal_vectors(params["plug"], z, *known, scale)
        return task.head(params["model"], z + personal, mask, key)

    def method(history=None):
        """The method whose loss attends to a history."""

        def loss(params, batch, key, train=True):
            labels, rows = batch.targets.T
            others = history.examples.mask & (history.rows != rows[:, None])
            outputs = outputs_of(params, history.examples, batch.inputs, others, batch.mask, key)
            return core.mean_over(
                task.output_losses(outputs, batch._replace(targets=labels)), batch.mask
            )

        def of_model(rule):
            return lambda path: path[0] == "model" and rule(path[1:])

        whole = task._replace(
            init=init,
            loss=loss,
            is_head=of_model(task.is_head),
            is_statistic=of_model(task.is_statistic),
        )
        return average(whole, local.of_models("model"), server_optimizer=server_optimizer)

    plain = method()

    def client_update(server, client, data, context):
        deployed = personalize(server, client, data, context)
        slots = jnp.arange(deployed["history"].mask.shape[0], dtype=jnp.int32)
        rows = latest(numbered(data), items).take(slots).targets[:, 1]
        update = method(History(deployed["history"], rows)).client_update
        return update(server, client, numbered(data), context)

    def personalize(server, client, data, context):
        params = plain.personalize(server, client, data, context)
        history = store(task, params["model"], latest(data, items), context, local)
        return {**params, "history": history}

    def predict(params, inputs, key):
        history = params["history"]
        return outputs_of(params, history, inputs, history.mask[None])

    return plain._replace(
        client_update=client_update,
        personalize=personalize,
        predict=predict,
        global_params=None if private_head else lambda server: server.params["model"],
    )
