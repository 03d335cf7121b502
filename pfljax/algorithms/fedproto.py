"""FedProto: clients share the mean feature of each class instead of a model.

Server: the prototypes, a mask of the classes that have one, the initial model. Client: its model.
Down: the prototypes. Up: the mean feature of each class, weighted by examples (`sum`).
Cost per client and round: one local training and a pass without gradients; `C (d + 1)` numbers.

References:
  Tan et al., "FedProto: Federated Prototype Learning across Heterogeneous Clients", 2022,
  https://arxiv.org/abs/2105.00243 (algorithm 1).
"""

from __future__ import annotations

from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp

from pfljax import core
from pfljax.algorithms.registry import checked
from pfljax.core import tree
from pfljax.ops import losses, prototypes


class FedProtoServer(NamedTuple):
    """Server state.

    Attributes:
      initial_params: The initial model of clients, which never changes.
      prototypes: The prototypes of all classes seen so far.
    """

    initial_params: core.Params
    prototypes: prototypes.Prototypes


@checked
def fedproto(
    task: core.Task,
    local: core.LocalTraining,
    *,
    lam: Annotated[float, core.at_least(0)] = 1.0,
    prototypes_in_training: bool = False,
    weight_by_size: bool = True,
) -> core.Algorithm:
    """Private models whose features are aligned with common prototypes.

        theta_k <- local training on L_k + lam mean_i [y_i seen] ||z_i - P_{y_i}||^2 / d
        P_c <- sum_k n_kc mean(z_i: y_i = c) / sum_k n_kc,   over the clients that have class c
        predicted class of z: the nearest prototype

    Args:
      task: The model and its loss, for classification.
      local: The clients' local training.
      lam: Weight of the distance to the prototypes, 0.1 to 4; 0 is local training.
      prototypes_in_training: Whether to average the features of the training steps; False uses
        those of the trained model, in a separate pass.
      weight_by_size: Whether to average with weights `n_kc`; False weighs clients with the class
        equally.

    Returns:
      The method; a client's state is its model. It deploys the model, the prototypes and their
      mask; its outputs are negative squared distances `[B, C]`. There is no global model.

    Notes:
      The paper as printed divides the weighted mean again by the number of clients; this does not.
      Before the first prototype, the outputs are those of the head; later, a class without a
      prototype scores 1 below the others. PFLlib averages the features of training steps
      uniformly, and drops classes that the cohort lacks.
      Batch normalization is in training mode in the whole objective, and so in the features that
      `prototypes_in_training` averages; a separate pass uses the running statistics, as
      prediction does.
    """

    def init_server(population, key):
        params = task.init(key)
        dtype = tree.dtype(params)
        return FedProtoServer(params, prototypes.none(task.num_classes, task.num_features, dtype))

    def client_update(server, client, data, context):
        def objective(params, batch, key):
            features = task.features(params, batch.inputs, batch.mask, key)
            pull = prototypes.pull(server.prototypes, features, batch)
            outputs = task.head(params, features, batch.mask, key)
            return losses.of_outputs(task, outputs, batch) + lam * pull, features

        def gradient(params, total, batch, key):
            graded = jax.value_and_grad(objective, has_aux=True)
            (loss, features), slope = graded(params, batch, key)
            return loss, slope, prototypes.add_batch(total, features, batch)

        nothing = prototypes.no_sums(server.prototypes)
        trained = core.descend(gradient, client, nothing, data, context, local)
        params, total = trained.params, trained.carry
        if not prototypes_in_training:
            like, whole = server.prototypes, local.one_pass()
            total, _ = prototypes.of_client(task, params, like, data, context, whole)
        elif local.num_steps:  # Every client has seen as many examples, whatever its size.
            total = total.scaled_to(data.size)
        return core.ClientOutput(
            state=params, sum=total.weighted(weight_by_size), metrics=trained.metrics
        )

    def server_update(server, uploads, cohort, context):
        return server._replace(prototypes=prototypes.renew(server.prototypes, uploads.total))

    def predict(params, inputs, key):
        features, (means, seen) = task.features(params["model"], inputs), params["prototypes"]
        squares = jnp.sum((features[:, None] - means) ** 2, axis=-1)
        return prototypes.scores(-squares, seen, task.head(params["model"], features))

    def personalize(server, client, data, context):
        return {"model": client, "prototypes": server.prototypes}

    return core.Algorithm(
        init_server=init_server,
        init_client=lambda server, profile, key: server.initial_params,
        client_update=client_update,
        server_update=server_update,
        personalize=personalize,
        predict=predict,
    )
