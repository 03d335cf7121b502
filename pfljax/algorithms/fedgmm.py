"""FedGMM: a mixture over inputs and labels, of common normal distributions and common learners.

Server: the learners `theta_b` and the state of their optimizers, the normal distributions
`N(mu_a, Sigma_a)`, a fixed encoder. Client: its mixture weights `pi_k`. Down: all of the server's.
Up: the learners' changes, weighted by examples and `pi_k`, and the moments of the distributions
(`sum`). Cost per client and round: a local training of all learners, and for the responsibilities
another forward pass of each; another pass without gradients. M2 times FedAvg's messages.

References:
  Wu, Zhang, Yu, Liu, Gu, Zhou, Chen, Cheng, "Personalized Federated Learning under Mixture of
  Distributions", 2023, https://arxiv.org/abs/2305.01068.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import optax

from pfljax import core
from pfljax.algorithms.registry import ALGORITHMS, checked
from pfljax.core import tree
from pfljax.ops import averaging, mixtures, stacked


class FedGMMServer(NamedTuple):
    """Server state.

    Attributes:
      average: The learners and their optimizers' states, leaves `[M2, ...]`.
      components: The normal distributions, `[M1, d]` and `[M1, d, d]`.
      encoder: `{'params', 'projection'}`: the encoder, and a random orthonormal basis
        `[features, d]`; constant.
    """

    average: averaging.ServerState
    components: mixtures.Components
    encoder: core.Params


@checked
def fedgmm(
    task: core.Task,
    local: core.LocalTraining,
    *,
    components: Annotated[int, core.at_least(1)] = 3,
    learners: Annotated[int, core.at_least(1)] = 3,
    dimensions: Annotated[int, core.at_least(1)] = 32,
    ridge: Annotated[float, core.above(0)] = 0.1,
    released: bool = False,
    encoder: Annotated[core.Task | None, core.NETWORK] = None,
    server_optimizer: optax.GradientTransformation = averaging.PLAIN,
) -> core.Algorithm:
    """Expectation-maximization over clients, of the joint distribution of inputs and labels.

        z = P^T encoder(x);   q_iab ~ pi_kab N(z_i; mu_a, Sigma_a) exp(-l(theta_b; i)), sum_ab q = 1
        pi_k <- mean_i q_i;   theta_kb <- local training from theta_b on mean_i q_ib l(theta; i)
        theta_b as in FedAvg, with the weights n_k pi_kb in place of n_k
        mu_a = sum_ki q_ia z_i / sum_ki q_ia
        Sigma_a = sum_ki q_ia (z_i - mu_a) (z_i - mu_a)^T / sum_ki q_ia + ridge I
        probabilities of x:  sum_ab w_ab softmax(f_b(x)),   w_ab ~ pi_kab N(z; mu_a, Sigma_a)

    Args:
      task: The model of a learner and its losses, for classification.
      local: The clients' local training of all learners.
      components: Number of normal distributions, the paper's M1, 2 to 5; 1 takes no
        account of the inputs, as FedEM.
      learners: Number of learners, the paper's M2, 2 to 5; 1 is FedAvg.
      dimensions: Largest dimension of `z`, 8 to 64; an encoder with more features is projected.
      ridge: Multiple of the identity in the covariances, 0.01 to 1.
      released: Whether to follow the authors' code: clients estimate means and covariances, with
        `ridge` added to the sums of `q` too, which are averaged with the weights `n_k pi_ka`;
        predictions take `pi` for its logarithm. False has the estimates of all examples together.
      encoder: The task of another network, with random params, whose features are `z`; None, in a
        config a model without a name, is the model of the learners.
      server_optimizer: As in FedAvg, for each learner.

    Returns:
      The method; a client's state is `pi_k` `[M1, M2]`. It deploys all models with `pi_k`; its
      outputs are log probabilities. There is no global model.

    Notes:
      The paper's encoder is pre-trained on ImageNet, with principal components of the pooled
      embeddings; neither is available here, and the encoder and its projection are random. The
      model `logistic` as encoder takes the inputs themselves. The responsibilities `q` are fixed in
      local training, and computed as in FedEM. A held-out client learns `pi_k` in one step from
      uniform weights. Absent clients keep theirs, and have no part in the averages.
    """
    if encoder is not None:
        ALGORITHMS["fedgmm"].require_usable(encoder)
    embedding = task if encoder is None else encoder
    server_optimizer = averaging.of_trainable(server_optimizer, task)
    of_learners = local
    if local.observe is not None:
        of_learners = local._replace(observe=jax.vmap(local.observe, in_axes=(0, None)))

    def init_server(population, key):
        models = jax.vmap(task.init)(jax.random.split(key, learners))
        keys = jax.random.split(jax.random.fold_in(key, learners), 3)  # none is a learner's
        average = averaging.init_stacked(models, server_optimizer)
        basis = mixtures.projection(keys[0], embedding.num_features, dimensions, tree.dtype(models))
        common = mixtures.initial(keys[1], components, basis.shape[1], basis.dtype)
        fixed = {"params": embedding.init(keys[2]), "projection": basis}
        return FedGMMServer(average, common, fixed)

    def points_of(fixed, inputs):
        return embedding.features(fixed["params"], inputs) @ fixed["projection"]

    def client_update(server, client, data, context):
        received, common = server.average.params, server.components

        def responsibilities(batch, key):
            """Returns `[M1, M2, B]`; each example's add up to 1."""
            densities = common.log_densities(points_of(server.encoder, batch.inputs))
            losses = stacked.losses(task, received, batch, key, train=False)
            scores = jnp.log(client)[..., None] + densities[:, None] - losses
            return jnp.exp(scores - jax.nn.logsumexp(scores, axis=(0, 1)))

        def objective(models, batch, key):
            weights = jnp.sum(responsibilities(batch, key), axis=0)
            losses = weights * stacked.losses(task, models, batch, key)
            return core.mean_over(jnp.sum(losses, axis=0), batch.mask)

        def count(carry, batch, key):
            total, moments = carry
            weights = responsibilities(batch, key) * batch.mask
            points = points_of(server.encoder, batch.inputs)
            moments = moments.add(points, jnp.sum(weights, axis=1), common.means)
            return total + jnp.sum(weights, axis=2), moments

        nothing = (jnp.zeros_like(client), mixtures.no_moments(common))
        total, sent = core.for_each_batch(count, nothing, data, context.child(0), local.one_pass())
        mixture = jnp.where(data.size > 0, total / jnp.maximum(data.size, 1), client)
        if released:
            own = sent.components(common, ridge, added=ridge)
            sent = averaging.weighted_stacked(own, jnp.sum(total, axis=1))
        trained = core.train(objective, received, data, context.child(1), of_learners)
        change = tree.subtract(trained.params, received)
        changes = averaging.weighted_stacked(change, jnp.sum(total, axis=0))
        return core.ClientOutput(mixture, (changes, sent), metrics=trained.metrics)

    def server_update(server, uploads, cohort, context):
        changes, received = uploads.total
        average = averaging.apply_stacked(server.average, changes, server_optimizer)
        if released:
            mean = jax.vmap(core.mean)(received)
            common = mixtures.keep_where(received.weight > 0, mean, server.components)
        else:
            common = received.components(server.components, ridge, added=0.0)
        return server._replace(average=average, components=common)

    def personalize(server, client, data, context):
        common = {"components": server.components, "encoder": server.encoder}
        return {"learners": server.average.params, "mixture": client, **common}

    def predict(params, inputs, key):
        densities = params["components"].log_densities(points_of(params["encoder"], inputs))
        logs = params["mixture"] if released else jnp.log(params["mixture"])
        scores = jax.nn.logsumexp(logs[..., None] + densities[:, None], axis=0)
        outputs = jax.vmap(task.predict, in_axes=(0, None))(params["learners"], inputs)
        shares = jax.nn.log_softmax(scores, axis=0)[..., None]
        return jax.nn.logsumexp(shares + jax.nn.log_softmax(outputs, axis=-1), axis=0)

    def init_client(server, profile, key):
        uniform = 1 / (components * learners)
        return jnp.full((components, learners), uniform, tree.dtype(server.components))

    return core.Algorithm(
        init_server=init_server,
        init_client=init_client,
        client_update=client_update,
        server_update=server_update,
        personalize=personalize,
        predict=predict,
    )


def log_density(
    params: core.Params, features: Callable[[core.Params, jax.Array], jax.Array], inputs: jax.Array
) -> jax.Array:
    """Returns `[B]`, the log density of inputs under the mixture of a client, over all labels.

        log p_k(z) = log sum_ab pi_kab N(z; mu_a, Sigma_a)

    Args:
      params: The models that the client deploys.
      features: `(params, inputs) -> [B, features]` of the encoder.
      inputs: `[B, ...]`.
    """
    fixed = params["encoder"]
    densities = params["components"].log_densities(
        features(fixed["params"], inputs) @ fixed["projection"]
    )
    shares = jnp.log(jnp.sum(params["mixture"], axis=1))
    return jax.nn.logsumexp(shares[:, None] + densities, axis=0)
