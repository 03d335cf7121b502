"""FedRep: a common body and private heads, trained one after the other.

Server: the body. Client: its head. Down: the body. Up: the body's change, weighted (`sum`).
Cost per client and round: one local training of the body, `head_epochs` cheap ones of the head.

References:
  Collins, Hassani, Mokhtari, Shakkottai, "Exploiting Shared Representations for Personalized
  Federated Learning", 2021, https://arxiv.org/abs/2102.07078 (algorithm 1).
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


def head_then_body(
    task: core.Task,
    objective: core.Objective,
    params: core.Params,
    data: core.ClientData,
    context: core.Context,
    local: core.LocalTraining,
    head_epochs: int,
) -> core.Trained:
    """Trains the head on the task's loss for `head_epochs`, then the body on `objective`.

    Both are in training mode, the frozen part too. A frozen body keeps its running statistics, and
    those of a frozen head are observed, as the features that it reads change with the body.
    """
    tuned = core.train(
        task.loss,
        params,
        data,
        context.child(0),
        local,
        epochs=head_epochs,
        trainable=task.is_head,
    )
    trained = core.train(
        objective,
        tuned.params,
        data,
        context.child(1),
        local,
        trainable=lambda path: task.is_body(path) or task.is_statistic(path),
    )
    metrics = {**trained.metrics, "head_loss": tuned.metrics["loss"]}
    return trained._replace(metrics=metrics)


@checked
def fedrep(
    task: core.Task,
    local: core.LocalTraining,
    *,
    head_epochs: Annotated[int, core.at_least(1)] = 10,
    weight_by_size: bool = True,
    server_optimizer: optax.GradientTransformation = averaging.PLAIN,
) -> core.Algorithm:
    """Personal heads on a common body, in alternation.

        h_k <- head_epochs of training on L_k(body, h), the body fixed
        body_k <- local training on L_k(b, h_k) from body, the head fixed
        body <- body + server_optimizer(-sum_k n_k (body_k - body) / sum_k n_k)

    Args:
      task: The model and its loss.
      local: The clients' local training; its epochs are those of the body.
      head_epochs: Number of epochs of the head, 1 to 15 (paper: 10).
      weight_by_size: Whether to average with weights `n_k`; False averages uniformly, as in the
        paper.
      server_optimizer: As in FedAvg, for the body.

    Returns:
      The method; its states are those of FedPer.

    Notes:
      The paper's clients have equal sizes. The authors' code averages uniformly where it partitions
      images, and by examples where the clients' sizes differ, like PFLlib. The code trains with
      momentum 0.5 and weight decay 0.0001, which are options of the clients' optimizer here. Batch
      normalization uses batch statistics in both trainings; the running statistics of the body
      change in the body's training only.
    """
    together = fedper(task, local, server_optimizer=server_optimizer)

    def client_update(server, client, data, context):
        body = server.average.params
        start = join_params(body, client)
        trained = head_then_body(task, task.loss, start, data, context, local, head_epochs)
        new_head, new_body = split_params(trained.params, task.is_head)
        change = core.weighted(tree.subtract(new_body, body), data.weight(weight_by_size))
        return core.ClientOutput(state=new_head, sum=change, metrics=trained.metrics)

    return together._replace(client_update=client_update)
