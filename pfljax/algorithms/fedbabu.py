"""FedBABU: a common body trained with a frozen head, then fine-tuned by each client.

Server: the body, and the initial head. Client: nothing.
Down: the body. Up: the body's change, weighted by examples (`sum`).
Cost per client and round: one local training of the body; per evaluation `fine_tuning_epochs` more.

References:
  Oh, Kim, Yun, "FedBABU: Toward Enhanced Representation for Federated Image Classification", 2022,
  https://arxiv.org/abs/2106.06042 (algorithm 1).
"""

from __future__ import annotations

from typing import Annotated

import optax

from pfljax import core
from pfljax.algorithms.fedper import fedper
from pfljax.algorithms.registry import checked
from pfljax.core import tree
from pfljax.core.params import join_params, split_params
from pfljax.ops import averaging


@checked
def fedbabu(
    task: core.Task,
    local: core.LocalTraining,
    *,
    fine_tuning_epochs: Annotated[int, core.at_least(0)] = 5,
    server_optimizer: optax.GradientTransformation = averaging.PLAIN,
) -> core.Algorithm:
    """Body averaging with one frozen head, evaluated after fine-tuning.

        body_k = local training on L_k(b, h) from body, with h the initial head
        body <- body + server_optimizer(-sum_k n_k (body_k - body) / sum_k n_k)
        theta_k = fine_tuning_epochs of training on L_k from (body, h), for evaluation only

    Args:
      task: The model and its loss.
      local: The clients' local training and fine-tuning.
      fine_tuning_epochs: Number of epochs of fine-tuning, body and head together, before
        an evaluation, 1 to 20; 0 evaluates the common model.
      server_optimizer: As in FedAvg, for the body.

    Returns:
      The method; its server state is FedPer's, and its global model the body with the initial head.

    Notes:
      Clients fine-tune from the aggregated body, at every evaluation. PFLlib fine-tunes
      once, after the last round, from the body that the client trained itself in that round; the
      last aggregate is never used. Its rounds before that are those of `fine_tuning_epochs=0`.
      The head's trainable parameters are frozen. Its running statistics, if any, are treated as
      part of the body, as they depend on its features.
    """
    whole = task
    task = whole._replace(is_head=lambda path: whole.is_head(path) and not whole.is_statistic(path))

    def common_model(server):
        return join_params(server.average.params, server.initial_head)

    def client_update(server, client, data, context):
        params = common_model(server)
        trained = core.train(task.loss, params, data, context, local, trainable=task.is_body)
        _, body = split_params(trained.params, task.is_head)
        change = core.weighted(tree.subtract(body, server.average.params), data.size)
        return core.ClientOutput(state=client, sum=change, metrics=trained.metrics)

    def personalize(server, client, data, context):
        params = common_model(server)
        return core.train(task.loss, params, data, context, local, epochs=fine_tuning_epochs).params

    joint = fedper(task, local, server_optimizer=server_optimizer)
    return joint._replace(
        init_client=lambda server, profile, key: (),
        client_update=client_update,
        personalize=personalize,
        global_params=common_model,
    )
