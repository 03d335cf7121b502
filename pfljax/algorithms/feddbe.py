"""FedDBE: a private bias on the features, whose common part is pulled towards a global mean.

Server: FedAvg's, and the global mean of the features. Client: its bias `b_k`.
Down: `w` and the mean. Up: `theta_k - w`, in the first round the mean of the client's features
instead, weighted by examples (`sum`).
Cost per client and round: one local training.

References:
  Zhang, Hua, Cao, Wang, Song, Xue, Ma, Guan, "Eliminating Domain Bias for Federated Learning in
  Representation Space", 2023, https://arxiv.org/abs/2311.14975 (FedAvg with DBE).
"""

from __future__ import annotations

from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import optax

from pfljax import core
from pfljax.algorithms.registry import checked
from pfljax.core import tree
from pfljax.ops import averaging
from pfljax.ops.losses import cross_entropy


class FedDBEServer(NamedTuple):
    """Server state.

    Attributes:
      average: The model and its optimizer's state.
      mean: `[d]`, the global mean of the features; zeros before the first round.
      known: `[]` bool, whether `mean` has been computed.
    """

    average: averaging.ServerState
    mean: jax.Array
    known: jax.Array


@checked
def feddbe(
    task: core.Task,
    local: core.LocalTraining,
    *,
    kappa: Annotated[float, core.at_least(0)] = 50.0,
    momentum: Annotated[float, core.between(0, 1)] = 1.0,
    server_optimizer: optax.GradientTransformation = averaging.PLAIN,
) -> core.Algorithm:
    """Federated averaging with a personalized bias of the features.

        z = body(x),   r <- (1 - momentum) r + momentum mean_i z_i at each step, r = 0 at first
        (theta_k, b_k) <- local training from (w, b_k)
                          on CE(head(z + b), y) + kappa/2 ||r - m||^2 / d
        w as in FedAvg;   m = sum_k n_k r_k / sum_k n_k, after the first round

    Args:
      task: The model and its loss, for classification; the loss is assumed to be the cross-entropy.
      local: The clients' local training of model and bias; they have separate optimizers.
      kappa: Weight of the distance to the global mean, 1 to 100; 0 leaves the bias only. Large
        values need a small learning rate.
      momentum: Weight of the current batch in the mean of the client's features, 0.1 to 1.
      server_optimizer: As in FedAvg.

    Returns:
      The method; a client's state is its bias `[d]`. It deploys the global model and its bias; the
      global model has none.

    Notes:
      The first round is the paper's initialization: clients train as in FedAvg, without bias and
      distance, and only the means of their features are used, which are `m` from then on. With
      partial participation it is the mean of the first cohort; in PFLlib all clients take part in
      it. Later gradients go through the features of the current batch only. The distance is halved
      as in the authors' code; the paper has the mean squared error. `kappa` and `momentum` are the
      authors'; those of PFLlib are 0 and 0.1.
    """
    server_optimizer = averaging.of_trainable(server_optimizer, task)
    of_model = local.of_models("model")

    def init_server(population, key):
        average = averaging.init(task.init(key), server_optimizer)
        mean = jnp.zeros(task.num_features, tree.dtype(average.params))
        return FedDBEServer(average, mean, jnp.zeros((), bool))

    def client_update(server, client, data, context):
        def objective(models, mean, batch, key):
            model, mode = models["model"], (batch.mask, key)
            features = task.features(model, batch.inputs, *mode)
            outputs = task.head(model, features + models["bias"], *mode)
            here = jnp.sum(features * batch.mask[:, None], axis=0) / jnp.maximum(
                jnp.sum(batch.mask), 1
            )
            mean = (1 - momentum) * mean + momentum * here
            distance = jnp.mean((mean - server.mean) ** 2) / 2
            loss = cross_entropy(outputs, batch)
            return loss + jnp.where(server.known, kappa, 0) * distance, mean

        def gradient(models, mean, batch, key):
            graded = jax.value_and_grad(objective, has_aux=True)
            (loss, mean), slope = graded(models, mean, batch, key)
            return loss, {**slope, "bias": slope["bias"] * server.known}, mean

        models = {"model": server.average.params, "bias": client}
        trained = core.descend(
            gradient,
            models,
            jnp.zeros_like(server.mean),
            data,
            context,
            of_model,
            optimizer=local.separate_optimizer(*models),
        )
        change = tree.subtract(trained.params["model"], server.average.params)
        sent = {
            "change": tree.where(server.known, change, tree.zeros_like(change)),
            "mean": jnp.where(server.known, 0, trained.carry),
        }
        return core.ClientOutput(
            state=trained.params["bias"],
            sum=core.weighted(sent, data.size),
            metrics=trained.metrics,
        )

    def server_update(server, uploads, cohort, context):
        total = uploads.total
        change = core.Weighted(total.value["change"], total.weight)
        moved = averaging.apply(server.average, change, server_optimizer)
        first = core.mean(total)["mean"]
        return FedDBEServer(
            average=tree.where(server.known, moved, server.average),
            mean=jnp.where(server.known, server.mean, first),
            known=jnp.ones_like(server.known),
        )

    def predict(params, inputs, key):
        features = task.features(params["model"], inputs)
        return task.head(params["model"], features + params["bias"])

    return core.Algorithm(
        init_server=init_server,
        init_client=lambda server, profile, key: jnp.zeros_like(server.mean),
        client_update=client_update,
        server_update=server_update,
        personalize=lambda server, client, data, context: {
            "model": server.average.params,
            "bias": client,
        },
        predict=predict,
        global_params=lambda server: server.average.params,
    )
