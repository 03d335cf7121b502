"""FedLoGe: a body trained towards a fixed sparse frame, with a generic head and private ones.

Server: the model `w`, of which the head is the generic one, and the fixed frame. Client: its head
`h_k`.
Down: `w`, the frame. Up: `theta_k - w`, weighted by examples (`sum`); `h_k` never leaves the
client.
Cost per client and round: one local training, with two more heads.

References:
  Xiao, Chen, Liu, Feng, Wu, Liu, Zhou, Yang, Liu, "FedLoGe: Joint Local and Generic Federated
  Learning under Long-tailed Data", 2024, https://arxiv.org/abs/2401.08977.
"""

from __future__ import annotations

from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import optax

from pfljax import core
from pfljax.algorithms.registry import checked
from pfljax.core import tree
from pfljax.core.params import join_params, split_params
from pfljax.ops import averaging, etf, linear
from pfljax.ops.logits import behind
from pfljax.ops.losses import cross_entropy


class FedLoGeServer(NamedTuple):
    """Server state.

    Attributes:
      average: The model with the generic head, and its optimizer's state.
      frame: `{'kernel': [d, C], 'bias': [C]}`, the classifier of local training; constant.
    """

    average: averaging.ServerState
    frame: core.Params


@checked
def fedloge(
    task: core.Task,
    local: core.LocalTraining,
    *,
    sparsity: Annotated[float, core.between(0, 1)] = 0.6,
    frame_norm: Annotated[float, core.above(0)] = 0.1,
    frame_rate: Annotated[float, core.at_least(0)] = 1e-4,
    frame_steps: Annotated[int, core.at_least(0)] = 10_000,
    frame_bias: bool = False,
    realign: bool = True,
    generic_norm: Annotated[float, core.above(0)] = 1.7,
    class_mask: bool = False,
    server_optimizer: optax.GradientTransformation = averaging.PLAIN,
) -> core.Algorithm:
    """Representations by a static sparse equiangular tight frame, and two heads on them.

        z = body(x);   M = a simplex frame with random zeros, its columns then turned apart by Adam
        body_k <- local training from body on CE(M^T z, y)
        (g_k, h_k) <- local training from (g, h_k) on CE(g(z), y) + CE(h(z), y), with z constant
        (body, g) as in FedAvg
        generic model:  columns g_c generic_norm / ||g_c||;   bias unchanged
        personalized outputs:  h_k(z) + g'(z),   columns g'_c = g_c ||h_kc||

    Args:
      task: The model, with a linear head; its loss is assumed to be the cross-entropy.
      local: The clients' local training; the private head has a separate optimizer.
      sparsity: Fraction of zeros in the frame, 0 (a full frame) to 0.8.
      frame_norm: Length of the frame's columns, 0.05 to 2.
      frame_rate: Learning rate of Adam for the frame; 0 leaves it as it is drawn.
      frame_steps: Number of steps of Adam before the first round.
      frame_bias: Whether the frame has a fixed random bias, as in the authors' code; False: none.
      realign: Whether columns are rescaled in deployed models; False deploys them as trained.
      generic_norm: Length of the columns of the deployed generic head, 0.5 to 3.
      class_mask: Whether a client never predicts a class of which it has no training example,
        which raises personalized accuracy also without better models; report it.
      server_optimizer: As in FedAvg, for the body and the generic head.

    Returns:
      The method; a client's state is its head. The global model is the generic one.

    Notes:
      The authors' code excludes the classes that are absent from a client's test examples, which
      uses their labels; `class_mask` excludes those absent from its training examples. Every column
      of the frame keeps an entry. A client's head starts from random params, as in the code.
    """
    server_optimizer = averaging.of_trainable(server_optimizer, task)
    of_models = local.of_models("model")

    def init_server(population, key):
        model = task.init(key)
        frame_key, bias_key = (jax.random.fold_in(key, number) for number in (1, 2))
        shape = (task.num_features, task.num_classes, tree.dtype(model))
        kernel = etf.sparse(frame_key, *shape, sparsity, frame_norm, frame_rate, frame_steps)
        bias = jnp.where(frame_bias, linear.init(bias_key, *shape)["bias"], 0)
        frame = {"kernel": kernel, "bias": bias}
        return FedLoGeServer(averaging.init(model, server_optimizer), frame)

    def with_head(model, head):
        return join_params(split_params(model, task.is_body)[0], head)

    def client_update(server, client, data, context):
        def objective(models, batch, key):
            mode = (batch.mask, key)
            features = task.features(models["model"], batch.inputs, *mode)
            fixed, body = jax.lax.stop_gradient((features, models["model"]))
            outputs = linear.apply(server.frame, features)
            generic = task.head(models["model"], fixed, *mode)
            private = task.head(with_head(body, models["head"]), fixed, *mode)
            return sum(cross_entropy(logits, batch) for logits in (outputs, generic, private))

        params = server.average.params
        models = {"model": params, "head": client}
        separate = local.separate_optimizer(*models)
        trained = core.train(objective, models, data, context, of_models, optimizer=separate)
        change = tree.subtract(trained.params["model"], params)
        total = core.weighted(change, data.size)
        return core.ClientOutput(trained.params["head"], total, metrics=trained.metrics)

    def server_update(server, uploads, cohort, context):
        average = averaging.apply(server.average, uploads.total, server_optimizer)
        return server._replace(average=average)

    def rescaled(model, factors):
        """Returns the model whose head has its columns multiplied by `[C]`, if `realign`."""
        head, _ = split_params(model, task.is_head)
        return with_head(model, linear.scale_columns(head, factors)) if realign else model

    def global_params(server):
        norms = linear.column_norms(split_params(server.average.params, task.is_head)[0])
        return rescaled(server.average.params, generic_norm / jnp.where(norms > 0, norms, 1))

    def personalize(server, client, data, context):
        model = rescaled(server.average.params, linear.column_norms(client))
        present = data.class_counts > 0 if class_mask else jnp.ones(task.num_classes, bool)
        return {"model": model, "head": client, "present": present}

    def predict(params, inputs, key):
        model = params["model"]
        features = task.features(model, inputs)
        outputs = task.head(model, features)
        outputs += task.head(with_head(model, params["head"]), features)
        return behind(outputs, params["present"])

    return core.Algorithm(
        init_server=init_server,
        init_client=lambda server, profile, key: split_params(task.init(key), task.is_head)[0],
        client_update=client_update,
        server_update=server_update,
        personalize=personalize,
        predict=predict,
        global_params=global_params,
    )
