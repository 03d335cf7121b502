"""FedRoD: a generic head trained on a balanced loss, and personalized heads on the empirical one.

Server: the model `w`, or with a hypernetwork that too. Client: its personalized head `g_k`, or
nothing. Down: the server's models. Up: their changes, weighted by examples (`sum`); `g_k` never
leaves the client.
Cost per client and round: one local training, and that of a head.

References:
  Chen, Chao, "On Bridging Generic and Personalized Federated Learning for Image Classification",
  2022, https://arxiv.org/abs/2107.00778 (linear personalized heads, or a hypernetwork).
"""

from __future__ import annotations

from typing import Annotated

import jax
import jax.numpy as jnp
import optax

from pfljax import core
from pfljax.algorithms.registry import checked
from pfljax.core import tree
from pfljax.core.params import join_params, split_params
from pfljax.ops import averaging, hypernetwork
from pfljax.ops.losses import cross_entropy

_ABSENT = -1e9  # In place of log 0: finite, and without effect for gamma = 0.
_SPREAD = 0.1  # Of the heads that an untrained hypernetwork generates, relative to the initial one.


@checked
def fedrod(
    task: core.Task,
    local: core.LocalTraining,
    *,
    gamma: Annotated[float, core.at_least(0)] = 1.0,
    generated: bool = False,
    hidden: Annotated[int, core.at_least(1)] = 16,
    server_optimizer: optax.GradientTransformation = averaging.PLAIN,
) -> core.Algorithm:
    """A balanced global model, and on its features a head for each client.

        z = body(x),   f = h(z),   n_kc: number of the client's examples of class c
        (body_k, h_k) <- local training from w on CE(f + gamma log n_k, y)
        g_k <- local training on CE(f + g(z), y), with z and f constant;   w as in FedAvg
        or g_k = H(n_k / sum_c n_kc), and H <- local training on the same loss, averaged like w
        personalized outputs: h(z) + g_k(z)

    Args:
      task: The model and its loss, for classification; the loss is assumed to be the cross-entropy.
      local: The clients' local training of both; they have separate optimizers.
      gamma: Exponent of the class counts, 0 to 1; 1 is the balanced softmax, with 0 the global
        model is FedAvg's.
      generated: Whether a common hypernetwork `H` generates the personalized heads from the
        fractions of the classes.
      hidden: Width of the hypernetwork's hidden layer.
      server_optimizer: As in FedAvg, for the model and the hypernetwork.

    Returns:
      The method; a client's state is its head, or `()` if heads are generated. It deploys the
      global model and its head, whose outputs are added.

    Notes:
      A client without examples of a class removes it from the balanced softmax. A client's head
      starts from the head of the global model that it receives first; PFLlib starts from the
      initial one. Both parts take a step on the same batch, at the same params. The paper has both
      kinds of heads; PFLlib has linear ones, and counts classes without the batch that it drops.
    """
    server_optimizer = averaging.of_trainable(server_optimizer, task, at=("model",))
    of_model = local.of_models("model")

    def init_server(population, key):
        shared = {"model": task.init(key)}
        if generated:
            head, _ = split_params(shared["model"], task.is_head)
            key = jax.random.fold_in(key, 1)
            shared["hypernetwork"] = hypernetwork.init(
                key, head, task.num_classes, hidden, layers=1, spread=_SPREAD
            )
        return averaging.init(shared, server_optimizer)

    def init_client(server, profile, key):
        return () if generated else split_params(server.params["model"], task.is_head)[0]

    def head_of(models, counts):
        """The personalized head, of the models of the server and of the client."""
        if not generated:
            return models["head"]
        fractions = core.shares(counts, tree.dtype(models["model"]))
        return hypernetwork.generate(models["hypernetwork"], fractions)

    def outputs_of(model, head, inputs, *mode):
        """The outputs of the global model and those of a personalized head, `[B, C]` each."""
        features = task.features(model, inputs, *mode)
        _, body = split_params(model, task.is_head)
        body, fixed = jax.lax.stop_gradient((body, features))
        personal = task.head(join_params(body, head), fixed, *mode)
        return task.head(model, features, *mode), personal

    def client_update(server, client, data, context):
        counts = data.class_counts.astype(tree.dtype(server.params))
        prior = gamma * jnp.where(counts > 0, jnp.log(jnp.maximum(counts, 1)), _ABSENT)

        def objective(models, batch, key):
            head = head_of(models, data.class_counts)
            generic, personal = outputs_of(models["model"], head, batch.inputs, batch.mask, key)
            balanced = cross_entropy(generic + prior, batch)
            return balanced + cross_entropy(jax.lax.stop_gradient(generic) + personal, batch)

        models = server.params if generated else {**server.params, "head": client}
        separate = local.separate_optimizer(*models)
        trained = core.train(objective, models, data, context, of_model, optimizer=separate)
        shared = {name: trained.params[name] for name in server.params}
        return core.ClientOutput(
            state=() if generated else trained.params["head"],
            sum=core.weighted(tree.subtract(shared, server.params), data.size),
            metrics=trained.metrics,
        )

    def server_update(server, uploads, cohort, context):
        return averaging.apply(server, uploads.total, server_optimizer)

    def personalize(server, client, data, context):
        models = {**server.params, "head": client}
        return {"model": models["model"], "head": head_of(models, data.class_counts)}

    def predict(params, inputs, key):
        return sum(outputs_of(params["model"], params["head"], inputs))

    return core.Algorithm(
        init_server=init_server,
        init_client=init_client,
        client_update=client_update,
        server_update=server_update,
        personalize=personalize,
        predict=predict,
        global_params=lambda server: server.params["model"],
    )
