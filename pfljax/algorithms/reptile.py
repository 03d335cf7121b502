"""Reptile: a common model from which a client's fine-tuning starts, moved towards trained models.

Server: the model `w`. Client: nothing.
Down: `w`. Up: `theta_k - w`, with uniform weights (`sum`).
Cost per client and round: one local training; per evaluation `fine_tuning_epochs` more.

References:
  Nichol, Achiam, Schulman, "On First-Order Meta-Learning Algorithms", 2018,
  https://arxiv.org/abs/1803.02999 (the batched version of algorithm 1).
"""

from __future__ import annotations

from typing import Annotated

from pfljax import core
from pfljax.algorithms.fedavg_ft import fedavg_ft
from pfljax.algorithms.registry import checked
from pfljax.core import tree
from pfljax.ops import averaging


@checked
def reptile(
    task: core.Task,
    local: core.LocalTraining,
    *,
    epsilon: Annotated[float, core.above(0)] = 1.0,
    annealing: Annotated[float, core.between(0, 1)] = 1.0,
    fine_tuning_epochs: Annotated[int, core.at_least(0)] = 1,
) -> core.Algorithm:
    """First-order meta-learning by averaging, evaluated after fine-tuning.

        w <- w + epsilon (1 - annealing t / T) mean_k (theta_k - w),   t the round of T
        theta_k = local training from w on L_k;   deployed: fine-tuning from w on L_k

    Args:
      task: The model and its loss.
      local: The clients' local training and fine-tuning.
      epsilon: Step of the server in the first round, 0.1 to 1.
      annealing: How far that step falls during the run: 1 linearly to zero, as in the paper's
        experiments; 0 for a constant step, which with `epsilon=1` is FedAvg with fine-tuning and
        uniform weights.
      fine_tuning_epochs: Number of epochs of fine-tuning before an evaluation, 1 to 20; 0
        evaluates the common model.

    Returns:
      The method; its server state is FedAvg's.

    Notes:
      The paper's tasks are the clients. Its inner optimizer is Adam without momentum, here
      that of the config. Running statistics are averaged, whatever `epsilon`.
    """
    tuned = fedavg_ft(task, local, fine_tuning_epochs=fine_tuning_epochs)

    def client_update(server, client, data, context):
        trained = core.train(task.loss, server.params, data, context, local)
        change = tree.subtract(trained.params, server.params)
        return core.ClientOutput(
            state=client, sum=core.weighted(change, 1.0), metrics=trained.metrics
        )

    def server_update(server, uploads, cohort, context):
        step = epsilon * (1 - annealing * context.round / context.num_rounds)
        change = averaging.scale_trainable(step, core.mean(uploads.total), task)
        return averaging.apply(server, core.weighted(change, 1.0), averaging.PLAIN)

    return tuned._replace(client_update=client_update, server_update=server_update)
