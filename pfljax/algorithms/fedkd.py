"""FedKD: mutual distillation of a private mentor and a shared mentee, sent with low rank.

Server: the mentee. Client: its mentor, and a matrix that maps the mentee's features to its own.
Down: the mentee, moved by a compressed change. Up: its compressed change (`sum`).
Cost per client and round: two local trainings, a singular value decomposition of each matrix. The
metric `upload_bytes` counts the ranks sent up; the download is counted as the whole mentee.

References:
  Wu, Wu, Lyu, Huang, Xie, "Communication-Efficient Federated Learning via Knowledge Distillation",
  2022, https://arxiv.org/abs/2108.13323.
"""

from __future__ import annotations

from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp

from pfljax import aggregation, core
from pfljax.algorithms.registry import ALGORITHMS, checked
from pfljax.core import tree
from pfljax.ops import averaging, linear, losses
from pfljax.ops.distillation import distance, divergence


class FedKDClient(NamedTuple):
    """Private state of a client.

    Attributes:
      mentor: The private model, which predicts.
      bridge: `[d of the mentee, d of the mentor]`, the map between features.
    """

    mentor: core.Params
    bridge: jax.Array


@checked
def fedkd(
    task: core.Task,
    local: core.LocalTraining,
    *,
    distillation: Annotated[float, core.at_least(0)] = 1.0,
    hidden: Annotated[float, core.at_least(0)] = 1.0,
    energy_start: Annotated[float, core.between(0, 1)] = 0.95,
    energy_end: Annotated[float, core.between(0, 1)] = 0.98,
    detach: bool = True,
    compress_models: bool = False,
    weight_by_size: bool = False,
    mentee: Annotated[core.Task | None, core.NETWORK] = None,
) -> core.Algorithm:
    """Mutual distillation of a private and a shared model, the latter sent by its leading ranks.

        per batch, with logits f, features z, and both losses of the task D = L(theta) + L(g):
        L(theta) + (distillation KL(g || theta) + hidden ||z_theta - z_g A||^2 / d) / D -> theta
        L(g)     + (distillation KL(theta || g) + hidden ||z_theta - z_g A||^2 / d) / D -> g, A
        w <- w + C(mean_k C(g_k - w)),   C cuts to the ranks that hold the energy
        energy_start + (energy_end - energy_start) (round + 1) / num_rounds

    Args:
      task: The model of the mentor and its loss, for classification.
      local: The clients' local training; mentor, mentee and matrix have separate optimizers.
      distillation: Weight of the divergence between the predictions, 0 to 10.
      hidden: Weight of the distance between the features, 0 to 10; if both are 0, the mentor trains
        alone.
      energy_start: Fraction of the squared singular values to exceed in the first round, 0.5 to 1
        (all).
      energy_end: The same in the last round.
      detach: Whether the other model's part in a loss and D are constants; False uses one gradient
        of all.
      compress_models: Whether to truncate the ranks of the mentees, `w <- C(mean_k C(g_k))`,
        instead of those of their changes.
      weight_by_size: Whether to average with weights `n_k`; False averages uniformly.
      mentee: The task of a smaller shared model; None, in a config a model without a name,
        shares a model like the mentor.

    Returns:
      The method; a client deploys its mentor. The mentee is the global model if it is of `task`.

    Notes:
      The change over local training is sent instead of the paper's gradient, as in the authors'
      code; the distance of attention maps is omitted. The paper leaves open whether D is constant
      (otherwise a model would gain from a larger loss) and which losses train A; the authors' code
      and PFLlib have `detach=False`, and zeros for a matrix whose energy needs all singular values.
      PFLlib also has `compress_models=True`, and the divergence over the number of classes.
      Batch normalization is in training mode in the whole objective; running statistics of both
      models are kept, and the mentee's are averaged.
    """
    if mentee is not None:
        ALGORITHMS["fedkd"].require_usable(mentee)
    shared = task if mentee is None else mentee
    of_both = local.of_models("mentor", mentee=local.observe if mentee is None else shared.observe)

    def init_server(population, key):
        return averaging.init(shared.init(key), averaging.PLAIN)

    def init_client(server, profile, key):
        mentor_key, bridge_key = jax.random.split(key)
        mentor = server.params if mentee is None else task.init(mentor_key)
        bridge = linear.init(bridge_key, shared.num_features, task.num_features, tree.dtype(mentor))
        return FedKDClient(mentor, bridge["kernel"])

    def objective(models, batch, key):
        """The sum of both losses, and the mentor's."""
        fixed = jax.lax.stop_gradient if detach else lambda x: x
        mentor_key, mentee_key = jax.random.split(key)
        features = task.features(models["mentor"], batch.inputs, batch.mask, mentor_key)
        logits = task.head(models["mentor"], features, batch.mask, mentor_key)
        mapped = shared.features(models["mentee"], batch.inputs, batch.mask, mentee_key)
        shared_logits = shared.head(models["mentee"], mapped, batch.mask, mentee_key)
        mapped = mapped @ models["bridge"]
        own = losses.of_outputs(task, logits, batch)
        other = losses.of_outputs(shared, shared_logits, batch)
        scale = fixed(jnp.maximum(own + other, 1e-8))

        def learned(logits, target, features, mapped):
            taught = distillation * divergence(target, logits, batch.mask)
            return taught + hidden * distance(features, mapped, batch.mask)

        own += learned(logits, fixed(shared_logits), features, fixed(mapped)) / scale
        other += learned(shared_logits, fixed(logits), fixed(features), mapped) / scale
        return own + other, own

    def client_update(server, client, data, context):
        def gradient(models, carry, batch, key):
            slope, loss = jax.grad(objective, has_aux=True)(models, batch, key)
            return loss, slope, carry

        models = {"mentor": client.mentor, "mentee": server.params, "bridge": client.bridge}
        separate = local.separate_optimizer(*models)
        trained = core.descend(gradient, models, (), data, context, of_both, optimizer=separate)
        models = trained.params
        base = tree.zeros_like(server.params) if compress_models else server.params
        state = FedKDClient(models["mentor"], models["bridge"])
        sent = tree.subtract(models["mentee"], base)
        total = core.weighted(sent, data.weight(weight_by_size))
        return core.ClientOutput(state=state, sum=total, metrics=trained.metrics)

    def server_update(server, uploads, cohort, context):
        received = core.mean(uploads.total)
        if compress_models:
            params = tree.where(uploads.total.weight > 0, received, server.params)
        else:
            params = tree.add(server.params, received)
        return server._replace(params=params)

    algorithm = core.Algorithm(
        init_server=init_server,
        init_client=init_client,
        client_update=client_update,
        server_update=server_update,
        personalize=lambda server, client, data, context: client.mentor,
        global_params=None if mentee is not None else lambda server: server.params,
    )
    ranks = aggregation.low_rank(energy_start=energy_start, energy_end=energy_end)
    return aggregation.apply(algorithm, ranks)
