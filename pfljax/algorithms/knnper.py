"""kNN-Per: the global model, mixed with the labels of a client's most similar examples.

Server: FedAvg's. Client: nothing, or its head. Down and up: FedAvg's.
Cost per client and round: one local training; per evaluation a forward pass over the training
examples, whose features are kept for it, and their distances to the features of each example.

References:
  Marfoq, Neglia, Kameni, Vidal, "Personalized Federated Learning through Local Memorization", 2022,
  https://arxiv.org/abs/2111.09360.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Annotated

import jax
import jax.numpy as jnp
import optax

from pfljax import core
from pfljax.algorithms.fedavg import fedavg
from pfljax.algorithms.fedper import fedper
from pfljax.algorithms.registry import checked
from pfljax.ops import averaging
from pfljax.ops.datastore import Datastore, store


def neighbours(
    datastore: Datastore,
    features: jax.Array,
    k: int,
    scale: float | jax.Array,
    encode: Callable[[jax.Array], jax.Array],
) -> jax.Array:
    """Returns `[B, C]`, the weighted mean of the targets of the nearest examples.

    The weights sum to 1; all are zero if the datastore is empty.

    Args:
      datastore: The client's examples.
      features: `[B, d]`, the features of the examples to predict.
      k: Number of neighbours.
      scale: The distance at which the weight of a neighbour is `1 / e`.
      encode: `targets [n] -> [n, C]`, the rows of which the mean is taken.
    """
    known = datastore.features
    # The neighbours are found by one matrix product; their distances are then computed exactly.
    products = features @ known.T
    score = jnp.where(datastore.mask, 2 * products - jnp.sum(known**2, axis=1), -jnp.inf)
    _, nearest = jax.lax.top_k(score, min(k, known.shape[0]))
    distance = jnp.sqrt(jnp.sum((features[:, None] - known[nearest]) ** 2, axis=-1))
    exists = datastore.mask[nearest]
    least = jnp.min(jnp.where(exists, distance, jnp.inf), axis=1, keepdims=True)
    weights = jnp.where(exists, jnp.exp((jnp.where(exists, least, 0) - distance) / scale), 0)
    total = jnp.sum(weights, axis=1, keepdims=True)
    weights = weights / jnp.where(total > 0, total, 1)
    rows = encode(datastore.targets).astype(weights.dtype)
    return jnp.einsum("bk,bkc->bc", weights, rows[nearest])


@checked
def knnper(
    task: core.Task,
    local: core.LocalTraining,
    *,
    k: Annotated[int, core.at_least(1)] = 10,
    lam: Annotated[float, core.between(0, 1)] = 0.5,
    scale: Annotated[float, core.above(0)] = 1.0,
    private_head: bool = False,
    server_optimizer: optax.GradientTransformation = averaging.PLAIN,
) -> core.Algorithm:
    """Federated averaging, and a mixture with nearest neighbours at evaluation.

        w as in FedAvg;   probabilities of x:  lam p_knn + (1 - lam) softmax(f_w(x))
        p_knn(y) ~ sum exp(-||z(x) - z(x_i)|| / scale) over those of the k nearest with y_i = y

    For a regression, the mixture is of numbers: of the mean of the neighbours' targets, with the
    same weights, and of `f_w(x)`.

    Args:
      task: The model, for classification or regression, its features `z` and its loss.
      local: The clients' local training.
      k: Number of neighbours among the client's training examples, 5 to 20 (paper: 10).
      lam: Weight of the neighbours, 0.1 to 0.9; 0 is FedAvg.
      scale: Scale of the distances, 0.1 to 10 (paper: 1).
      private_head: Whether heads stay with the clients; with `lam=0` that is FedPer.
      server_optimizer: As in FedAvg.

    Returns:
      The method; its states are FedAvg's, or with private heads FedPer's. A client deploys the
      global model, or the one with its head, and its datastore; its outputs are log probabilities,
      or numbers.

    Notes:
      The paper chooses `lam` for each client on validation examples, among 0, 0.1, ..., 1; here
      all clients have the same one. A client with fewer than k examples uses all of them, and one
      without any the global model. Probabilities of zero are raised to the smallest positive
      number. Features are in evaluation mode. Regression is not in the paper.
    """
    average = (fedper if private_head else fedavg)(task, local, server_optimizer=server_optimizer)
    encode = task.encode or functools.partial(jax.nn.one_hot, num_classes=task.num_classes)

    def personalize(server, client, data, context):
        model = average.personalize(server, client, data, context)
        return {"model": model, "datastore": store(task, model, data, context, local)}

    def predict(params, inputs, key):
        features = task.features(params["model"], inputs)
        common = task.head(params["model"], features)
        near = neighbours(params["datastore"], features, k, scale, encode)
        weight = lam * jnp.any(params["datastore"].mask)
        if not task.num_classes:
            return weight * near + (1 - weight) * common
        mixture = weight * near + (1 - weight) * jax.nn.softmax(common, axis=-1)
        return jnp.log(jnp.maximum(mixture, jnp.finfo(mixture.dtype).tiny))

    return average._replace(personalize=personalize, predict=predict)
