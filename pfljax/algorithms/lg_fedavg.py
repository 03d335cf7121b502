"""LG-FedAvg: a common head on private bodies, which learn local representations.

Server: the head. Client: its body. Down: the head. Up: the head's change, weighted (`sum`).
Cost per client and round: one local training.

References:
  Liang, Liu, Ziyin, Allen, Auerbach, Brent, Salakhutdinov, Morency, "Think Locally, Act Globally:
  Federated Learning with Local and Global Representations", 2020,
  https://arxiv.org/abs/2001.01523 (algorithm 1, without auxiliary losses).
"""

from __future__ import annotations

import optax

from pfljax import core
from pfljax.algorithms.fedper import fedper
from pfljax.algorithms.registry import checked
from pfljax.ops import averaging


@checked
def lg_fedavg(
    task: core.Task,
    local: core.LocalTraining,
    *,
    server_optimizer: optax.GradientTransformation = averaging.PLAIN,
) -> core.Algorithm:
    """Federated averaging of the head only.

        (body_k, h_k) <- local training from (body_k, h) on L_k
        h <- h + server_optimizer(-sum_k n_k (h_k - h) / sum_k n_k)

    Args:
      task: The model and its loss.
      local: The clients' local training.
      server_optimizer: As in FedAvg, for the head.

    Returns:
      The method: FedPer with body and head exchanged. A client's state is its body, the server's is
      FedPer's. There is no global model.

    Notes:
      All bodies start from the same params, as in PFLlib; the authors' code starts from a model
      that FedAvg has trained for some rounds, which `config.init_from` does here. The paper allows
      other losses for the body, such as adversarial ones, and predicts for new clients with the
      mean of all clients' outputs; neither is part of this method.
    """
    return fedper(task._replace(is_head=task.is_body), local, server_optimizer=server_optimizer)
