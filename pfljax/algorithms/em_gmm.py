"""EM-GMM: expectation-maximization of one mixture of normal distributions, from added statistics.

Server: the mixture: weights `pi_a`, means, variances and probabilities of the labels. Client: the
sums `c_k` of its responsibilities, for mixture weights of its own.
Down: the mixture. Up: the statistics of the expectation step, whitened by the mixture received,
their mean over examples weighted by examples (`sum`).
Cost per client and round: one pass without gradients and without a network.

References:
  Granqvist, Song, Cahill, van Dalen, Pelikan, Chan, Feng, Krishnaswami, Jina, Chitnis,
  "pfl-research: Simulation Framework for Accelerating Research in Private Federated Learning",
  2024, https://arxiv.org/abs/2404.06430.
"""

from __future__ import annotations

import math
from typing import Annotated

import jax
import jax.numpy as jnp

from pfljax import core
from pfljax.algorithms.registry import checked
from pfljax.core import tree
from pfljax.ops import diagonal_mixtures


@checked
def em_gmm(
    task: core.Task,
    local: core.LocalTraining,
    *,
    components: Annotated[int, core.at_least(1)] = 8,
    split_every: Annotated[int, core.at_least(1)] = 2,
    own_weight: Annotated[float, core.at_least(0)] = 0.0,
    count_scale: Annotated[float, core.above(0)] = 1.0,
    variance_scale: Annotated[float, core.above(0)] = 1.0,
    variance_floor: Annotated[float, core.between(0, 1)] = 0.01,
    least_weight: Annotated[float, core.between(0, 1)] = 0.01,
    label_floor: Annotated[float, core.between(0, 1)] = 0.01,
) -> core.Algorithm:
    """Expectation-maximization over clients, of the joint distribution of inputs and labels.

        p_k(x, y) = sum_a pi_ka N(x; mu_a, diag(v_a)) theta_a(y),   pi_ka ~ pi_a + own_weight c_ka
        q_ia ~ pi_ka N(x_i; mu_a, diag(v_a)) theta_a(y_i), sum_a q_ia = 1;   c_ka <- sum_i q_ia
        z_ia = (x_i - mu_a) / sqrt(v_a);   up: the means over the client's examples of
        count_scale q_ia [y_i = c],   q_ia z_ia / sqrt(d),
        variance_scale q_ia (z_ia^2 - 1) / sqrt(2 d)
        pi, mu, v, theta <- the estimates of maximum likelihood of the mean of these statistics
        every split_every rounds the component of greatest weight is split in two

    Args:
      task: The inputs, standardized and flattened to `d` numbers, and the classes. The network is
        not used.
      local: The clients' local training, for the batch size.
      components: Largest number of components, 4 to 64; the first round has one.
      split_every: Number of rounds from one split to the next, 1 to 10.
      own_weight: Weight of an example of the client in its own mixture weights, in which the common
        ones count 1, 0.01 to 1; 0 has the common weights for all clients, as pfl-research.
      count_scale: Factor of the responsibilities sent, 0.1 to 10.
      variance_scale: Factor of the statistics of the variances sent, 0.1 to 10.
      variance_floor: The least variance, as a share of the variance of the mixture before the round
        (pfl-research: 0.01).
      least_weight: Mixture weight below which a component is removed (pfl-research: 0.01).
      label_floor: Weight of the uniform distribution in the labels of a component, 0.001 to 0.1.

    Returns:
      The method; a client's state is `c_k` `[components]`. It deploys the mixture with its own
      weights, whose outputs are the log probabilities of the labels. The metric `loss` is the mean
      of `-log p_k(x, y)`. There is no global model that the task could evaluate.

    Notes:
      pfl-research has no labels and no weights of a client: its density of the inputs is that of
      one class. Its statistics of means and variances are not divided by `sqrt(d)` and `sqrt(2 d)`.
      The scales have no effect without clipping; with it the mean over the examples of a client is
      clipped, and all clients count equally. The responsibilities are computed once in a round,
      whatever the number of local epochs.
    """
    size = math.prod(task.input_shape)

    def points_of(mixture, inputs):
        return task.standardize(mixture, inputs).reshape(-1, size)

    def of_client(common, counts):
        weights = jnp.where(common.weights > 0, common.weights + own_weight * counts, 0)
        return common._replace(weights=weights / jnp.sum(weights))

    def init_server(population, key):
        dtype = tree.dtype(jax.eval_shape(task.init, key))
        return diagonal_mixtures.single(components, size, task.num_classes, dtype)

    def init_client(server, profile, key):
        return jnp.zeros_like(server.weights)

    def client_update(common, client, data, context):
        mixture = of_client(common, client)

        def step(totals, batch, key):
            points = points_of(common, batch.inputs)
            found = diagonal_mixtures.Statistics.of(mixture, points, batch.targets, batch.mask)
            return tree.add(totals, found)

        nothing = diagonal_mixtures.no_statistics(common), jnp.zeros((), common.means.dtype)
        found, density = core.for_each_batch(step, nothing, data, context, local.one_pass())
        counts = jnp.where(data.size > 0, jnp.sum(found.counts, axis=1), client)
        sent = found._replace(
            counts=count_scale * found.counts, second=variance_scale * found.second
        )
        sent = tree.divide(sent, jnp.maximum(data.size, 1))
        loss = core.weighted(-density / jnp.maximum(data.size, 1), data.size > 0)
        return core.ClientOutput(counts, core.weighted(sent, data.size), metrics={"loss": loss})

    def server_update(server, uploads, cohort, context):
        mean = core.mean(uploads.total)
        mean = mean._replace(counts=mean.counts / count_scale, second=mean.second / variance_scale)
        found = diagonal_mixtures.maximize(
            server,
            mean,
            least_weight=least_weight,
            variance_floor=variance_floor,
            label_floor=label_floor,
        )
        splits = (context.round + 1) % split_every == 0
        return tree.where(splits, diagonal_mixtures.split_heaviest(found), found)

    def personalize(server, client, data, context):
        return of_client(server, client)

    def predict(params, inputs, key):
        return params.log_labels(points_of(params, inputs))

    return core.Algorithm(
        init_server=init_server,
        init_client=init_client,
        client_update=client_update,
        server_update=server_update,
        personalize=personalize,
        predict=predict,
    )
