"""pFedPara: of the two low-rank kernels of a Hadamard product, one is common and one is personal.

Server: the first factors, biases and other arrays, and the initial second factors.
Client: its second factors. Down: the common part. Up: its change, weighted by examples (`sum`).
Cost per client and round: one local training, with the product of the factors in every step.

References:
  Hyeon-Woo, Ye-Bin, Oh, "FedPara: Low-Rank Hadamard Product for Communication-Efficient Federated
  Learning", 2022, https://arxiv.org/abs/2108.06098.
"""

from __future__ import annotations

from typing import Annotated

import optax

from pfljax import core
from pfljax.algorithms.fedpara import with_factors
from pfljax.algorithms.fedper import fedper
from pfljax.algorithms.registry import checked
from pfljax.ops import averaging, hadamard


@checked
def pfedpara(
    task: core.Task,
    local: core.LocalTraining,
    *,
    gamma: Annotated[float, core.between(0, 1)] = 0.5,
    rank: Annotated[int, core.at_least(0)] = 0,
    within: bool = False,
    server_optimizer: optax.GradientTransformation = averaging.PLAIN,
) -> core.Algorithm:
    """Personal factors beside common ones in every kernel.

        W_k = (Y1 X1') * (Y2k X2k' + 1),   trained jointly;   R as in FedPara
        X1, Y1, biases and all else: as in FedAvg;   X2k, Y2k stay with client k

    Args:
      task: The model and its loss.
      local: The clients' local training.
      gamma: As in FedPara.
      rank: As in FedPara.
      within: As in FedPara.
      server_optimizer: As in FedAvg, for the common part.

    Returns:
      The method: FedPer with the second factors as head. A client deploys the model whose kernels
      are the products. There is no global model.

    Notes:
      The initial second factors are the same for all clients. The initial kernels have the variance
      2 / fan_in, as in FedPara, and all factors one variance. Biases, normalization and embeddings
      are common.
    """
    factored = with_factors(task, local, gamma, rank, within, offset=1.0)
    split = factored.task._replace(is_head=hadamard.is_second)
    method = fedper(split, factored.local, server_optimizer=server_optimizer)

    def personalize(server, client, data, context):
        return factored.compose(method.personalize(server, client, data, context))

    return method._replace(personalize=personalize)
