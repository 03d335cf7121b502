"""FedRoD: a generic head trained on a balanced loss, and a private head on the empirical one.

Server: FedAvg's. Client: its personalized head `g_k`.
Down: `w`. Up: `theta_k - w`, weighted by examples (`sum`); `g_k` never leaves the client.
Cost per client and round: one local training, and that of a head.

References:
  Chen, Chao, "On Bridging Generic and Personalized Federated Learning for Image Classification",
  2022, https://arxiv.org/abs/2107.00778 (algorithm 1, linear personalized heads).
"""

from __future__ import annotations

from typing import Annotated

import jax
import jax.numpy as jnp
import optax

from pfljax import core
from pfljax.algorithms.fedavg import fedavg
from pfljax.algorithms.registry import checked
from pfljax.core import tree
from pfljax.core.params import join_params, split_params
from pfljax.ops import averaging
from pfljax.ops.losses import cross_entropy

_ABSENT = -1e9  # In place of log 0: finite, and without effect for gamma = 0.


@checked
def fedrod(
    task: core.Task,
    local: core.LocalTraining,
    *,
    gamma: Annotated[float, core.at_least(0)] = 1.0,
    server_optimizer: optax.GradientTransformation = averaging.PLAIN,
) -> core.Algorithm:
    """A balanced global model, and on its features a head for each client.

        z = body(x),   f = h(z),   n_kc: number of the client's examples of class c
        (body_k, h_k) <- local training from w on CE(f + gamma log n_k, y)
        g_k <- local training on CE(f + g(z), y), with z and f constant;   w as in FedAvg
        personalized outputs: h(z) + g_k(z)

    Args:
      task: The model and its loss, for classification; the loss is assumed to be the cross-entropy.
      local: The clients' local training of both; they have separate optimizers.
      gamma: Exponent of the class counts, 0 to 1; 1 is the balanced softmax, with 0 the global
        model is FedAvg's.
      server_optimizer: As in FedAvg.

    Returns:
      The method; its server state is FedAvg's, and a client's state is its head. It deploys the
      global model and its head, whose outputs are added.

    Notes:
      A client without examples of a class removes it from the balanced softmax. A client's head
      starts from the head of the global model that it receives first; PFLlib starts from the
      initial one. Both parts take a step on the same batch, at the same params. The paper's second
      version, whose server holds a hypernetwork that maps class counts to personalized heads, is
      not implemented. PFLlib counts classes without the batch that it drops.
    """
    average = fedavg(task, local, server_optimizer=server_optimizer)
    of_model = local.of_models("model")

    def init_client(server, profile, key):
        return split_params(server.params, task.is_head)[0]

    def outputs_of(models, inputs, *mode):
        """The outputs of the global model and those of the client's head, `[B, C]` each."""
        features = task.features(models["model"], inputs, *mode)
        _, body = split_params(models["model"], task.is_head)
        fixed, own = jax.lax.stop_gradient((body, features)), models["head"]
        personal = task.head(join_params(fixed[0], own), fixed[1], *mode)
        return task.head(models["model"], features, *mode), personal

    def client_update(server, client, data, context):
        counts = data.class_counts.astype(tree.dtype(server.params))
        prior = gamma * jnp.where(counts > 0, jnp.log(jnp.maximum(counts, 1)), _ABSENT)

        def objective(models, batch, key):
            generic, personal = outputs_of(models, batch.inputs, batch.mask, key)
            balanced = cross_entropy(generic + prior, batch)
            return balanced + cross_entropy(jax.lax.stop_gradient(generic) + personal, batch)

        models = {"model": server.params, "head": client}
        separate = local.separate_optimizer(*models)
        trained = core.train(objective, models, data, context, of_model, optimizer=separate)
        change = tree.subtract(trained.params["model"], server.params)
        return core.ClientOutput(
            state=trained.params["head"],
            sum=core.weighted(change, data.size),
            metrics=trained.metrics,
        )

    def personalize(server, client, data, context):
        return {"model": server.params, "head": client}

    return average._replace(
        init_client=init_client,
        client_update=client_update,
        personalize=personalize,
        predict=lambda params, inputs, key: sum(outputs_of(params, inputs)),
    )
