"""DPL: the global model, corrected by how a client's labels differ from those that it expects.

Server: FedAvg's. Client: nothing, or its head. Down and up: FedAvg's.
Cost per client and round: one local training; per evaluation a forward pass over the training
examples, of which those with the largest differences are kept, and their similarities to each
example.

References:
  Qiu, Zhao, Zhang, Bai, Wang, Cheng, Feng, Chua, "Measuring What Makes You Unique: Difference-Aware
  User Modeling for Enhancing LLM Personalization", 2025, https://arxiv.org/abs/2503.02450.
"""

from __future__ import annotations

from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import optax

from pfljax import core
from pfljax.algorithms.fedavg import fedavg
from pfljax.algorithms.fedper import fedper
from pfljax.algorithms.registry import checked
from pfljax.ops import averaging, retrieval, similarity
from pfljax.ops.datastore import Datastore, store


class Memory(NamedTuple):
    """The examples of a client whose labels differ most from the expected ones.

    Attributes:
      features: `[K, d]`, the features.
      differences: `[K, C]`, the label as a row of a one-hot encoding, minus the probabilities.
      mask: `[K]` bool, True for a real example.
    """

    features: jax.Array
    differences: jax.Array
    mask: jax.Array


def remember(datastore: Datastore, probabilities: jax.Array, items: int) -> Memory:
    """Returns the examples with the largest differences, the largest first.

    Args:
      datastore: The client's examples.
      probabilities: `[n, C]`, those of the model for the examples.
      items: Number of examples, `K`.
    """
    labels = jax.nn.one_hot(datastore.targets, probabilities.shape[1], dtype=probabilities.dtype)
    differences = labels - probabilities
    sizes = jnp.where(datastore.mask, jnp.sum(differences**2, axis=1), -jnp.inf)
    best = retrieval.top_k(sizes, items)
    features, differences = (
        jnp.where(best.exists[:, None], rows[best.indices], 0)
        for rows in (datastore.features, differences)
    )
    return Memory(features, differences, best.exists)


def correction(
    memory: Memory, features: jax.Array, scale: float | jax.Array, prior: float | jax.Array
) -> jax.Array:
    """Returns `[B, C]`, the differences of similar examples; zero without any.

        sum_i a_i d_i;   a_i = s_i / (prior + sum_j s_j),   s_i = exp((cosine(z, z_i) - 1) / scale)

    Args:
      memory: The client's examples.
      features: `[B, d]`, the features `z` of the examples to classify.
      scale: The scale of the similarities.
      prior: The weight of examples without a difference.
    """
    gaps = similarity.cosines(features, memory.features) - 1
    similarities = jnp.where(memory.mask, jnp.exp(gaps / scale), 0)
    total = prior + jnp.sum(similarities, axis=1, keepdims=True)
    return similarities @ memory.differences / total


@checked
def dpl(
    task: core.Task,
    local: core.LocalTraining,
    *,
    items: Annotated[int, core.at_least(0)] = 64,
    lam: Annotated[float, core.at_least(0)] = 2.0,
    scale: Annotated[float, core.above(0)] = 1.0,
    prior: Annotated[float, core.above(0)] = 1.0,
    private_head: bool = False,
    server_optimizer: optax.GradientTransformation = averaging.PLAIN,
) -> core.Algorithm:
    """Federated averaging, and a memory of a client's differences at evaluation.

        w as in FedAvg;   d_i = y_i - softmax(f_w(x_i)) for the examples of the client
        outputs of x:  f_w(x) + lam sum_i a_i(x) d_i over the `items` examples of largest ||d_i||
        a_i(x) = s_i / (prior + sum_j s_j),   s_i = exp((cosine(z(x), z(x_i)) - 1) / scale)

    Args:
      task: The model, for classification, its features `z` and its loss.
      local: The clients' local training.
      items: Number of examples in the memory, 8 to 512; 0 is FedAvg.
      lam: Weight of the differences, 0.5 to 8; 0 is FedAvg. With two classes and equal weights, 2
        is a Newton step of a constant of the client's own, where the probabilities are 1/2.
      scale: Scale of the similarities, 0.03 to 3; for large ones all examples count alike.
      prior: Weight of no difference, as a number of examples, 0.1 to 10.
      private_head: Whether heads stay with the clients; with `lam=0` that is FedPer.
      server_optimizer: As in FedAvg.

    Returns:
      The method; its states are FedAvg's, or with private heads FedPer's. A client deploys the
      global model, or the one with its head, and its memory.

    Notes:
      At feature level. The paper compares a user's text on an item with the texts of other users,
      which it clusters (`ops.retrieval.comparators`), and has a language model describe the
      differences. Here no client sees the labels of others: the model that all train together
      stands for them, so that a difference is the residual of a label. Selecting the largest
      differences raises their mean: with fewer items than examples, choose `lam` by validation.
    """
    average = (fedper if private_head else fedavg)(task, local, server_optimizer=server_optimizer)

    def personalize(server, client, data, context):
        model = average.personalize(server, client, data, context)
        datastore = store(task, model, data, context, local)
        probabilities = jax.nn.softmax(task.head(model, datastore.features), axis=-1)
        return {"model": model, "memory": remember(datastore, probabilities, items)}

    def predict(params, inputs, key):
        z = task.features(params["model"], inputs)
        change = correction(params["memory"], z, scale, prior)
        return task.head(params["model"], z) + lam * change

    return average._replace(personalize=personalize, predict=predict)
