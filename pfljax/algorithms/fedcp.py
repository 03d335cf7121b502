"""FedCP: a policy network splits each example's features between a common and a private head.

Server: the model and the policy network. Client: its head.
Down: the model and the policy. Up: the changes of body, policy and of the head, which moves half
way from the common to the client's, weighted by examples (`sum`).
Cost per client and round: one local training with a second pass through the received body.

References:
  Zhang, Hua, Wang, Song, Xue, Ma, Guan, "FedCP: Separating Feature Information for Personalized
  Federated Learning via Conditional Policy", 2023, https://arxiv.org/abs/2307.01217.
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
from pfljax.ops import averaging, discrepancy, policy
from pfljax.ops.losses import cross_entropy

draw = jax.random.gumbel  # (key, shape, dtype) -> noise


@checked
def fedcp(
    task: core.Task,
    local: core.LocalTraining,
    *,
    lam: Annotated[float, core.at_least(0)] = 1.0,
    gumbel: Annotated[float, core.at_least(0)] = 1.0,
    noisy_evaluation: bool = False,
    server_optimizer: optax.GradientTransformation = averaging.PLAIN,
) -> core.Algorithm:
    """A personal head beside a common one, each with its part of an example's features.

        f(x) = h_k(s z) + g((1 - s) z),   z = body(x),   s in (0, 1)^d by the policy of z and h_k
        body_k, h_k, policy_k <- local training on CE(f) + lam MMD^2(z, z under the body received)
        (body, g, policy) <- weighted average of (body_k, (h_k + g) / 2, policy_k)

    Args:
      task: The model and its loss, for classification; the loss is assumed to be the cross-entropy.
      local: The clients' local training.
      lam: Weight of the distance of the features to those of the received body, 0.1 to 10.
      gumbel: Scale of the noise in training; 1 is the Gumbel-softmax, 0 the plain softmax.
      noisy_evaluation: Whether to add the noise in predictions too; False predicts without noise.
      server_optimizer: As in FedAvg, for body, common head and policy together.

    Returns:
      The method; a client's state is its head. It deploys its head on the common body, the common
      head, the policy and its direction. There is no global model.

    Notes:
      A client's direction `v_k`, an input of the policy, is the sum over classes of its head's
      gradient at zero; for a linear head the sum of its rows over classes, as in the paper. With
      the cross-entropy, plain SGD never changes that sum, so it is the same for all clients. It is
      unclear whether the paper has noise in training (`gumbel=0` is the plain softmax) and in
      predictions; here predictions have none, so that accuracy is deterministic. PFLlib has noise
      in both, and in its first round `v_k` is random; its common head and policy are sent to the
      cohort only. The default `lam` is PFLlib's.
      Batch normalization is in training mode in the whole objective, also in the received body: in
      the authors' code that copy is frozen, but not in evaluation mode. A head with batch
      normalization is refused: each of the two heads would need statistics of its part.
    """
    server_optimizer = averaging.of_trainable(server_optimizer, task, at=("model",))

    def init_server(population, key):
        params = task.init(key)
        first = policy.init(jax.random.fold_in(key, 1), task.num_features, tree.dtype(params))
        return averaging.init({"model": params, "policy": first}, server_optimizer)

    def init_client(server, profile, key):
        return split_params(server.params["model"], task.is_head)[0]

    def direction_of(params):
        """`[d]`, the client's `v`."""
        zero = jnp.zeros(task.num_features, tree.dtype(params))
        return jax.grad(lambda z: jnp.sum(task.head(params, z[None])))(zero)

    def deploy(server, client):
        """Everything that a client predicts with."""
        _, body = split_params(server.params["model"], task.is_head)
        own = join_params(body, client)
        common, shared = server.params["model"], server.params["policy"]
        return {"own": own, "common": common, "policy": shared, "direction": direction_of(own)}

    def outputs_of(params, inputs, key, scale, mask=None, drop_key=None):
        """The outputs, and the features before they are split; given a mask, in training mode."""
        features = task.features(params["own"], inputs, mask, drop_key)
        noise = scale * draw(key, (features.shape[0], 2, features.shape[1]), features.dtype)
        own, common = policy.separate(params["policy"], params["direction"], features, noise)
        heads = zip((params["own"], params["common"]), (own, common), strict=True)
        own, common = (task.head(of, part, mask, drop_key) for of, part in heads)
        return own + common, features

    def client_update(server, client, data, context):
        start = deploy(server, client)
        moving, fixed = split_params(start, lambda path: path[0] in ("own", "policy"))

        def objective(moving, batch, key):
            models, mode = {**moving, **fixed}, (batch.mask, key)
            outputs, features = outputs_of(models, batch.inputs, key, gumbel, *mode)
            received = task.features(fixed["common"], batch.inputs, *mode)
            pull = discrepancy.squared_mmd(features, received, batch.mask)
            return cross_entropy(outputs, batch) + lam * pull

        trained = core.train(objective, moving, data, context, local.of_models("own"))
        head, body = split_params(trained.params["own"], task.is_head)
        common, _ = split_params(fixed["common"], task.is_head)
        halfway = tree.scale(0.5, tree.add(head, common))
        shared = {"model": join_params(body, halfway), "policy": trained.params["policy"]}
        change = core.weighted(tree.subtract(shared, server.params), data.size)
        return core.ClientOutput(state=head, sum=change, metrics=trained.metrics)

    def server_update(server, uploads, cohort, context):
        return averaging.apply(server, uploads.total, server_optimizer)

    def predict(params, inputs, key):
        return outputs_of(params, inputs, key, gumbel * noisy_evaluation)[0]

    return core.Algorithm(
        init_server=init_server,
        init_client=init_client,
        client_update=client_update,
        server_update=server_update,
        personalize=lambda server, client, data, context: deploy(server, client),
        predict=predict,
    )
