"""GPFL: features for a global and for a personalized condition, guided by common class embeddings.

Server: the body, class embeddings and a conditional valve. Client: its head and two conditions.
Down: body, embeddings and valve. Up: their changes, weighted by examples (`sum`).
Cost per client and round: one local training.

References:
  Zhang, Hua, Wang, Song, Xue, Ma, Cao, Guan, "GPFL: Simultaneously Learning Global and Personalized
  Feature Information for Personalized Federated Learning", 2023,
  https://arxiv.org/abs/2308.10279.
"""

from __future__ import annotations

from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import optax

from pfljax import core
from pfljax.algorithms.fedper import BodyServer
from pfljax.algorithms.registry import checked
from pfljax.core import tree
from pfljax.core.params import join_params, split_params
from pfljax.ops import averaging, similarity, valve
from pfljax.ops.losses import cross_entropy


class GPFLClient(NamedTuple):
    """Private state of a client.

    Attributes:
      head: Its head.
      generic: `[d]`, the condition of global features.
      personal: `[d]`, the condition of personalized features.
    """

    head: core.Params
    generic: jax.Array
    personal: jax.Array


@checked
def gpfl(
    task: core.Task,
    local: core.LocalTraining,
    *,
    lam: Annotated[float, core.at_least(0)] = 0.01,
    mu: Annotated[float, core.at_least(0)] = 0.1,
    server_optimizer: optax.GradientTransformation = averaging.PLAIN,
) -> core.Algorithm:
    """Global and personalized features of one body, by a conditional valve V.

        z = body(x),   z_G = V(z, q_G),   z_P = V(z, q_P),   f = h_k(z_P)
        (body_k, E_k, V_k), h_k <- local training from (body, E, V), h_k on
            CE(f, y) + CE(cos(z_G, E), y) + lam sqrt(sum_i ||z_G,i - E_{y_i}||^2)
            + mu/2 (||E_k||^2 + ||V_k||^2),   with the E received in the term of lam
        q_G = mean_c E_kc,   q_P = sum_c n_kc E_kc / n_k,   for the next round;   0 at first
        (body, E, V) <- weighted average of (body_k, E_k, V_k)

    Args:
      task: The model and its loss, for classification; the loss is assumed to be the cross-entropy.
      local: The clients' local training of model, embeddings and valve, with separate optimizers.
      lam: Weight of the distance of global features to the embeddings received, 0.0001 to 0.1.
      mu: Weight decay of embeddings and valve, 0 to 1.
      server_optimizer: As in FedAvg, for body, embeddings and valve.

    Returns:
      The method. A client deploys its head on the common body, the valve and its condition `q_P`.
      There is no global model.

    Notes:
      The distance is the norm of all gaps of a batch, as in the authors' code and in PFLlib, which
      are one. There, and so here, the conditions come from the embeddings that the client itself
      has trained, and are zero in its first round; the defaults are the authors' for small
      networks. PFLlib's own defaults are `lam` 1 and `mu` 0, and it counts classes without the
      batch that it drops.
    """
    server_optimizer = averaging.of_trainable(server_optimizer, task, at=("model",))
    of_model = local.of_models("model")

    def init_server(population, key):
        head, body = split_params(task.init(key), task.is_head)
        dtype, size = tree.dtype(body), task.num_features
        embedding_key, valve_key = jax.random.split(jax.random.fold_in(key, 1))
        shared = {
            "model": body,
            "embedding": jax.random.normal(embedding_key, (task.num_classes, size), dtype),
            "valve": valve.init(valve_key, size, dtype),
        }
        return BodyServer(averaging.init(shared, server_optimizer), head)

    def init_client(server, profile, key):
        zero = jnp.zeros_like(server.average.params["embedding"][0])
        return GPFLClient(server.initial_head, zero, zero)

    def client_update(server, client, data, context):
        received = server.average.params

        def objective(models, batch, key):
            model, embedding, mode = models["model"], models["embedding"], (batch.mask, key)
            features = task.features(model, batch.inputs, *mode)
            generic = valve.apply(models["valve"], features, client.generic)
            personal = valve.apply(models["valve"], features, client.personal)
            loss = cross_entropy(task.head(model, personal, *mode), batch)
            gaps = (generic - received["embedding"][batch.targets]) * batch.mask[:, None]
            guided = cross_entropy(similarity.cosines(generic, embedding), batch)
            guided += lam * similarity.length(gaps)
            decayed = tree.squared_norm((embedding, models["valve"]))
            return loss + guided + mu / 2 * decayed

        models = {**received, "model": join_params(received["model"], client.head)}
        trained = core.train(
            objective,
            models,
            data,
            context,
            of_model,
            optimizer=local.separate_optimizer(*models),
        )
        head, body = split_params(trained.params["model"], task.is_head)
        shared = {**trained.params, "model": body}
        embedding = shared["embedding"]
        fractions = core.shares(data.class_counts, embedding.dtype)
        state = GPFLClient(head, jnp.mean(embedding, axis=0), fractions @ embedding)
        change = core.weighted(tree.subtract(shared, received), data.size)
        return core.ClientOutput(state=state, sum=change, metrics=trained.metrics)

    def server_update(server, uploads, cohort, context):
        return server._replace(
            average=averaging.apply(server.average, uploads.total, server_optimizer)
        )

    def personalize(server, client, data, context):
        shared = server.average.params
        model = join_params(shared["model"], client.head)
        return {"model": model, "valve": shared["valve"], "condition": client.personal}

    def predict(params, inputs, key):
        features = task.features(params["model"], inputs)
        features = valve.apply(params["valve"], features, params["condition"])
        return task.head(params["model"], features)

    return core.Algorithm(
        init_server=init_server,
        init_client=init_client,
        client_update=client_update,
        server_update=server_update,
        personalize=personalize,
        predict=predict,
    )
