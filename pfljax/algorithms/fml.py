"""FML: mutual distillation between a private model and a copy of the common one (the meme).

Server: the meme `w`. Client: its personalized model `v_k`.
Down: `w`. Up: `theta_k - w`, averaged uniformly by default (`sum`).
Cost per client and round: two local trainings.

References:
  Shen, Zhang, Jia, Zhang, Huang, Zhou, Kuang, Wu, Wu, "Federated Mutual Learning", 2020,
  https://arxiv.org/abs/2006.16765 (algorithm 1).
"""

from __future__ import annotations

from typing import Annotated

import jax
import optax

from pfljax import core
from pfljax.algorithms.registry import ALGORITHMS, checked
from pfljax.core import tree
from pfljax.ops import averaging, losses
from pfljax.ops.distillation import divergence


@checked
def fml(
    task: core.Task,
    local: core.LocalTraining,
    *,
    alpha: Annotated[float, core.between(0, 1)] = 0.5,
    beta: Annotated[float, core.between(0, 1)] = 0.5,
    detach: bool = True,
    weight_by_size: bool = False,
    meme: Annotated[core.Task | None, core.NETWORK] = None,
    server_optimizer: optax.GradientTransformation = averaging.PLAIN,
) -> core.Algorithm:
    """A private model and the meme learn from the data and from each other.

        v_k     <- local training on alpha L_k(v)     + (1 - alpha) KL(theta || v)
        theta_k <- local training on beta  L_k(theta) + (1 - beta)  KL(v || theta),   from w
        w <- w + server_optimizer(-mean_k (theta_k - w))

    Args:
      task: The personalized model and its loss, for classification.
      local: The clients' local training of both, in the same steps, with separate optimizers.
      alpha: Weight of the data in the loss of the personalized model, 0.1 to 1; 1 is local
        training.
      beta: Weight of the data in the loss of the meme, 0.1 to 1; 1 is FedAvg.
      detach: Whether the other model's predictions are constants in a divergence; False uses one
        gradient of the sum of both losses.
      weight_by_size: Whether to average with weights `n_k`; False averages uniformly.
      meme: The task of another common model; None, in a config a model without a name, has a meme
        like the personalized model.
      server_optimizer: As in FedAvg.

    Returns:
      The method; a client's state is its model, which it deploys. The meme is the global model if
      it is of `task`.

    Notes:
      PFLlib has `detach=False`, divides the divergences by the number of classes, clips the
      gradients of each model, and its defaults are `alpha` 1 and `beta` 0.
    """
    if meme is not None:
        ALGORITHMS["fml"].require_usable(meme)
    shared = task if meme is None else meme
    server_optimizer = averaging.of_trainable(server_optimizer, shared)
    of_both = local.of_models("own", meme=local.observe if meme is None else shared.observe)

    def init_server(population, key):
        return averaging.init(shared.init(key), server_optimizer)

    def init_client(server, profile, key):
        return server.params if meme is None else task.init(key)

    def objective(models, batch, key):
        """The sum of both losses, and that of the personalized model."""
        fixed = jax.lax.stop_gradient if detach else lambda x: x
        own_key, meme_key = jax.random.split(key)
        own_logits = task.predict(models["own"], batch.inputs, batch.mask, own_key)
        logits = shared.predict(models["meme"], batch.inputs, batch.mask, meme_key)
        own = alpha * losses.of_outputs(task, own_logits, batch)
        own += (1 - alpha) * divergence(fixed(logits), own_logits, batch.mask)
        other = beta * losses.of_outputs(shared, logits, batch)
        other += (1 - beta) * divergence(fixed(own_logits), logits, batch.mask)
        return own + other, own

    def client_update(server, client, data, context):
        def gradient(models, carry, batch, key):
            slope, loss = jax.grad(objective, has_aux=True)(models, batch, key)
            return loss, slope, carry

        models = {"own": client, "meme": server.params}
        separate = local.separate_optimizer(*models)
        trained = core.descend(gradient, models, (), data, context, of_both, optimizer=separate)
        change = tree.subtract(trained.params["meme"], server.params)
        return core.ClientOutput(
            state=trained.params["own"],
            sum=core.weighted(change, data.weight(weight_by_size)),
            metrics=trained.metrics,
        )

    def server_update(server, uploads, cohort, context):
        return averaging.apply(server, uploads.total, server_optimizer)

    return core.Algorithm(
        init_server=init_server,
        init_client=init_client,
        client_update=client_update,
        server_update=server_update,
        personalize=lambda server, client, data, context: client,
        global_params=None if meme is not None else lambda server: server.params,
    )
