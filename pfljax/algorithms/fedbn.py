"""FedBN: normalization layers are private to each client, and everything else is common.

Server: the model without normalization. Client: its normalization layers, running statistics
included. Down: the common part. Up: its change, weighted by examples (`sum`).
Cost per client and round: one local training.

References:
  Li, Jiang, Zhang, Kamp, Dou, "FedBN: Federated Learning on Non-IID Features via Local Batch
  Normalization", 2021, https://arxiv.org/abs/2102.07623 (algorithm 1).
"""

from __future__ import annotations

import optax

from pfljax import core
from pfljax.algorithms.fedper import fedper
from pfljax.algorithms.registry import checked
from pfljax.ops import averaging


@checked
def fedbn(
    task: core.Task,
    local: core.LocalTraining,
    *,
    server_optimizer: optax.GradientTransformation = averaging.PLAIN,
) -> core.Algorithm:
    """Federated averaging of everything but normalization.

        (theta_k, b_k) <- local training from (w, b_k) on L_k
        w <- w + server_optimizer(-sum_k n_k (theta_k - w) / sum_k n_k)

    Args:
      task: The model and its loss; the model identifies its normalization layers.
      local: The clients' local training.
      server_optimizer: As in FedAvg, for the common part.

    Returns:
      The method: FedPer with normalization layers as head. A client's state is its normalization
      layers `b_k`, the server's is FedPer's. There is no global model.

    Notes:
      FedAvg averages the same arrays, running statistics included. PFLlib detects the layers by
      'bn' in their names, and never sends running statistics, whatever the method. The paper
      averages uniformly, over clients of one size.
    """
    return fedper(task._replace(is_head=task.is_norm), local, server_optimizer=server_optimizer)
