"""Spectral co-distillation: generic and personalized models learn from each other's spectra.

Server: FedAvg's. Client: its personalized model `v_k`.
Down: `w`. Up: `theta_k - w`, weighted by examples (`sum`); `v_k` never leaves the client.
Cost per client and round: two local trainings, with a Fourier transform of the weights and its
derivative in every step.

References:
  Chen, Yang, Quek, Chong, "Spectral Co-Distillation for Personalized Federated Learning", 2023,
  https://arxiv.org/abs/2401.17124.
"""

from __future__ import annotations

from typing import Annotated

import jax.numpy as jnp
import optax

from pfljax import core
from pfljax.algorithms.fedavg import fedavg
from pfljax.algorithms.registry import checked
from pfljax.core import tree
from pfljax.core.params import split_params
from pfljax.ops import averaging, spectra


@checked
def spectral_codist(
    task: core.Task,
    local: core.LocalTraining,
    *,
    generic_weight: Annotated[float, core.at_least(0)] = 0.3,
    personal_weight: Annotated[float, core.at_least(0)] = 0.4,
    beta: Annotated[float, core.at_least(0)] = 0.2,
    squared: bool = False,
    rho: Annotated[float, core.between(0, 1)] = 0.4,
    low_frequencies: bool = False,
    server_optimizer: optax.GradientTransformation = averaging.PLAIN,
) -> core.Algorithm:
    """Co-distillation of a generic and a personalized model by the spectra of their weights.

        s(theta) = the amplitudes |DFT(W)| of all arrays, over their sum;   r(theta): of a part
        theta_k <- local training from w on L_k(theta) + generic_weight KL(r(v_k) || r(theta))
        v_k <- local training from v_k on L_k(v) + personal_weight KL(s(theta_k) || s(v))
                                                 + beta ||v - theta_k||;   w as in FedAvg

    Args:
      task: The model and its loss.
      local: The clients' local training of both models.
      generic_weight: Weight of the distillation of the generic model, 0.1 to 10; with 0 it is
        FedAvg's.
      personal_weight: Weight of the distillation of the personalized model, 0.1 to 10; if `beta` is
        0 too, the personalized models are those of local training.
      beta: Weight of the distance to the generic model, 0.01 to 5 (the authors' code: 0.2, its
        description: 5).
      squared: Whether the distance is `||v - theta_k||^2 / 2`, as in Ditto; False does not square.
      rho: Fraction of the amplitudes in the distillation of the generic model, 0.1 to 1 (all).
      low_frequencies: Whether these are the lowest frequencies of each array; False takes the
        amplitudes of the first layers, as in the authors' code.
      server_optimizer: As in FedAvg.

    Returns:
      The method; a client's state is its personalized model, and the global model is FedAvg's.

    Notes:
      In the authors' code the divergences are computed outside of automatic differentiation and
      have no gradient, and the generic model is compared with the received one; it is FedAvg with
      proximal personalized models, `generic_weight=0, personal_weight=0` here. The terms here have
      the gradients of the formulas. The paper trains the personalized models while
      it waits for the server, from the generic models of the same round, as here. Running
      statistics of batch normalization are in no spectrum and in no distance.
    """
    average = fedavg(task, local, server_optimizer=server_optimizer)

    def weights_of(params):
        return split_params(params, task.is_statistic)[1]

    def distillation(teacher, fraction):
        """Returns `params -> []`, the divergence of a model's spectrum from the teacher's."""

        def spectrum(params):
            return spectra.spectrum(weights_of(params), task.layers, fraction, low_frequencies)

        target = spectrum(teacher)
        return lambda params: spectra.divergence(target, spectrum(params))

    def distance(params, other):
        gap = tree.squared_distance(weights_of(params), weights_of(other))
        # The gradient of the root at zero is zero.
        root = jnp.where(gap > 0, jnp.sqrt(jnp.where(gap > 0, gap, 1)), 0)
        return 0.5 * gap if squared else root

    def client_update(server, client, data, context):
        taught = distillation(client, rho)

        def generic_objective(params, batch, key):
            return task.loss(params, batch, key) + generic_weight * taught(params)

        generic = core.train(generic_objective, server.params, data, context.child(0), local)
        guided = distillation(generic.params, 1.0)

        def personal_objective(params, batch, key):
            pull = personal_weight * guided(params) + beta * distance(params, generic.params)
            return task.loss(params, batch, key) + pull

        personal = core.train(personal_objective, client, data, context.child(1), local)
        change = tree.subtract(generic.params, server.params)
        return core.ClientOutput(
            state=personal.params,
            sum=core.weighted(change, data.size),
            metrics={**generic.metrics, "personal_loss": personal.metrics["loss"]},
        )

    return average._replace(
        init_client=lambda server, profile, key: server.params,
        client_update=client_update,
        personalize=lambda server, client, data, context: client,
    )
