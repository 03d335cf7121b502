"""FedPara: every kernel is a Hadamard product of low-rank kernels, whose factors are averaged.

Server: FedAvg's, of the factors, biases and other arrays. Client: nothing.
Down: the factors and other arrays. Up: their change, weighted by examples (`sum`).
Cost per client and round: one local training, with the product of the factors in every step.

References:
  Hyeon-Woo, Ye-Bin, Oh, "FedPara: Low-Rank Hadamard Product for Communication-Efficient Federated
  Learning", 2022, https://arxiv.org/abs/2108.06098.
"""

from __future__ import annotations

from typing import Annotated

import optax

from pfljax import core
from pfljax.algorithms.fedavg import fedavg
from pfljax.algorithms.registry import checked
from pfljax.ops import averaging, hadamard


def with_factors(
    task: core.Task,
    local: core.LocalTraining,
    gamma: float,
    rank: int,
    within: bool,
    offset: float,
) -> hadamard.Factored:
    """Returns the task whose kernels are factored by the hyper-parameters of `fedpara`."""
    rule = hadamard.rank_within if within else hadamard.rank_between

    def rank_of(shape):
        return rank or rule(shape, gamma)

    return hadamard.factored(task, local, rank_of, offset)


@checked
def fedpara(
    task: core.Task,
    local: core.LocalTraining,
    *,
    gamma: Annotated[float, core.between(0, 1)] = 0.5,
    rank: Annotated[int, core.at_least(0)] = 0,
    within: bool = False,
    server_optimizer: optax.GradientTransformation = averaging.PLAIN,
) -> core.Algorithm:
    """Federated averaging of the factors of kernels.

        W = (Y1 X1') * (Y2 X2') of rank up to R^2, for every dense layer and convolution
        R = (1 - gamma) ceil(sqrt(min(inputs, outputs))) + gamma R_max;   factors as in FedAvg

    Args:
      task: The model and its loss.
      local: The clients' local training.
      gamma: Between the least R with which a kernel may have full rank and `R_max`, the largest
        with which the factors have no more numbers than the kernel, 0.1 to 0.9 (paper: 0.1 to 0.9).
      rank: R of all kernels, 2 to 100; 0 determines it from `gamma`.
      within: Whether `gamma` is the fraction of the kernel's numbers that the factors have, as in
        the authors' code.
      server_optimizer: As in FedAvg.

    Returns:
      The method. All clients deploy the global model, whose kernels are the products.

    Notes:
      Initial factors are random, such that the products have the variance 2 / fan_in of He's
      initialization; in the authors' code every factor has that variance, with which the products
      of wide layers vanish. All kernels are factored, also of small layers, whose factors may have
      more numbers than the kernel; kernels of other shapes and embeddings stay whole. There is
      neither a tanh nor a regularizer of the factors, which are options of the paper.
    """
    factored = with_factors(task, local, gamma, rank, within, offset=0.0)
    method = fedavg(factored.task, factored.local, server_optimizer=server_optimizer)

    def global_params(server):
        return factored.compose(method.global_params(server))

    return method._replace(
        personalize=lambda server, client, data, context: global_params(server),
        global_params=global_params,
    )
