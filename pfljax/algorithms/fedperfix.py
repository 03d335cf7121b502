"""FedPerfix: adapters of keys and values are private beside the head of a vision Transformer.

Server: the Transformer without adapters and head. Client: its adapters and head. Down: the common
part. Up: its change, weighted by examples (`sum`).
Cost per client and round: one local training.

References:
  Sun, Mendieta, Luo, Wu, Chen, "FedPerfix: Towards Partial Model Personalization of Vision
  Transformers in Federated Learning", 2023, https://arxiv.org/abs/2308.09160.
"""

from __future__ import annotations

import optax

from pfljax import core
from pfljax.algorithms.fedper import fedper, with_private_layers
from pfljax.algorithms.registry import checked
from pfljax.ops import averaging


@checked
def fedperfix(
    task: core.Task,
    local: core.LocalTraining,
    *,
    private: str = "",
    server_optimizer: optax.GradientTransformation = averaging.PLAIN,
) -> core.Algorithm:
    """Personal adapters and heads in a common Transformer.

        (q, k, v) = z W + b + s (0, P_k, P_v),   (P_k, P_v) = tanh(z D_k + d_k) U_k + u_k
        W, b and all else: as in FedAvg;   D_k, d_k, U_k, u_k and the head stay with client k

    Args:
      task: The model, with adapters in the attention of each block, and its loss.
      local: The clients' local training, of all params together.
      private: More layers that are private, as in FedPer.
      server_optimizer: As in FedAvg, for the common part.

    Returns:
      The method: FedPer with adapters and head as its head. There is no global model.

    Raises:
      UserError: As in FedPer, for `private`.

    Notes:
      The width r of the adapters and the factor s belong to the model: `config.model.adapter_width`
      (64 to 512; the authors' scripts: 256 beside a width of 384) and `config.model.adapter_scale`
      (0.5 to 2; the scripts: 1.5). Other arrays whose path has the name 'adapter' are personal too.
      The authors' code has the last block of the Transformer personal as well in its runs on
      CIFAR-100 only, which `private` can list, and evaluates the clients of a round before the
      average; here clients deploy their part with the new average. The initial personal part is the
      same for all clients.
    """

    def is_personal(path):
        return task.is_head(path) or task.is_adapter(path)

    split = task._replace(is_head=is_personal)
    split = with_private_layers(split, private, "hparams.fedperfix.private")
    return fedper(split, local, server_optimizer=server_optimizer)
