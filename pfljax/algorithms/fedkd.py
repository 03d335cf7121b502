"""FedKD: a private mentor and a shared mentee teach each other; what is sent is of low rank.

Server: the mentee. Client: its mentor, and a matrix that maps the mentee's features to its own.
Down: the mentee, moved by a compressed change. Up: its compressed change (`sum`).
Cost per client and round: two local trainings, a singular value decomposition of each matrix. How
many singular values are sent is not seen in shapes, so that traffic counts the whole mentee: what
a client would send of it is the metric `sent`, the share of its numbers.

References:
  Wu, Wu, Lyu, Huang, Xie, "Communication-Efficient Federated Learning via Knowledge Distillation",
  2022, https://arxiv.org/abs/2108.13323.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from pfljax import core
from pfljax.core import linear, tree
from pfljax.errors import UserError


class FedKDServer(NamedTuple):
    """Attributes:
    model: the mentee.
    """

    model: core.Model


class FedKDClient(NamedTuple):
    """Attributes:
    mentor: the client's own model, with which it predicts.
    bridge: `[d of the mentee, d of the mentor]`.
    """

    mentor: core.Model
    bridge: jax.Array


def compress(model: core.Model, energy: jax.Array) -> tuple[core.Model, jax.Array]:
    """Replaces every matrix by the least of its leading singular values that hold `energy`.

    Args:
      model: nested dict of arrays; one with more than two axes is a matrix of its last, and one
        with fewer is left as it is.
      energy: `[]`, share of the sum of the squared singular values that must be exceeded; where
        all of them do not exceed it, all are kept, and the first one always is.

    Returns:
      The model, and `[]`, how many numbers describe it.
    """

    def one(leaf):
        if leaf.ndim < 2:
            return leaf, leaf.size
        left, values, right = jnp.linalg.svd(leaf.reshape(-1, leaf.shape[-1]), full_matrices=False)
        held = jnp.cumsum(values**2)
        held_before = jnp.concatenate([jnp.zeros_like(held[:1]), held[:-1]])
        kept = held_before <= energy * held[-1]
        numbers = jnp.sum(kept) * (left.shape[0] + right.shape[1] + 1)
        return ((left * (values * kept)) @ right).reshape(leaf.shape), jnp.minimum(
            numbers, leaf.size
        )

    leaves, structure = jax.tree.flatten(model)
    leaves, numbers = zip(*map(one, leaves), strict=True)
    return jax.tree.unflatten(structure, leaves), sum(numbers)


def divergence(target: jax.Array, logits: jax.Array, mask: jax.Array) -> jax.Array:
    """Returns `[]`, the mean of `KL(softmax(target) || softmax(logits))` over real examples."""
    target, logits = jax.nn.log_softmax(target), jax.nn.log_softmax(logits)
    each = jnp.sum(jnp.exp(target) * (target - logits), axis=-1)
    return jnp.sum(each * mask) / jnp.maximum(jnp.sum(mask), 1)


def fedkd(
    task: core.Task,
    local: core.LocalTraining,
    *,
    distillation: float = 1.0,
    hidden: float = 1.0,
    energy_start: float = 0.95,
    energy_end: float = 0.98,
    detach: bool = True,
    compress_models: bool = False,
    weight_by_size: bool = False,
    mentee: core.Task | None = None,
) -> core.Algorithm:
    """Mutual distillation of a private and a shared model, the latter sent by its leading ranks.

        per batch, with logits f, features z, and both losses of the task D = L(theta) + L(g):
        L(theta) + (distillation KL(g || theta) + hidden ||z_theta - z_g A||^2 / d) / D -> theta
        L(g)     + (distillation KL(theta || g) + hidden ||z_theta - z_g A||^2 / d) / D -> g, A
        w <- w + C(mean_k C(g_k - w)),   C cuts to the ranks that hold the energy
        energy_start + (energy_end - energy_start) round / num_rounds

    Args:
      task: model and loss of the mentor, for classification.
      local: how clients train; mentor, mentee and matrix each have an optimizer of this kind.
      distillation: weight of the divergence between the predictions, 0 to 10.
      hidden: weight of the distance between the features, 0 to 10; where both are 0, the mentor
        trains alone beside FedAvg's mentee.
      energy_start: share of the squared singular values to be exceeded at first, 0.5 to 1; 1 sends
        all.
      energy_end: the same at the end.
      detach: each model descends on its own loss, the other's part in it and D being constants;
        False lets both descend on the sum of the losses, with a gradient through everything.
      compress_models: cut the ranks of the mentees themselves, `w <- C(mean_k C(g_k))`; False cuts
        those of their changes.
      weight_by_size: average with weights `n_k`; False averages uniformly.
      mentee: the task of a smaller model to be shared; None shares a model like the mentor.

    Returns:
      The method; a client deploys its mentor. The mentee is the global model if it is of `task`.

    Notes:
      The paper sends a gradient in each round; here the change over local training takes its place.
      It does not say whether D is a constant; otherwise a model would gain from a greater loss. Its
      distance of attention maps is left out. PFLlib takes `detach=False` and `compress_models=True`
      and the divergence over the number of classes; where only all singular values together hold
      the energy it sends a matrix of zeros, which is not reproduced.
    """
    shared = task if mentee is None else mentee
    of_both = local.of_models(*("mentor", "mentee") if mentee is None else ("mentor",))

    def energy_at(context):
        progress = context.round / jnp.maximum(context.num_rounds, 1)
        return energy_start + (energy_end - energy_start) * progress

    def init_server(key, population):
        if not task.num_classes or not task.num_features or not shared.num_features:
            raise UserError("FedKD needs classes and a head on features; name another model.")
        return FedKDServer(shared.init(key))

    def init_client(server, profile, key):
        mentor_key, bridge_key = jax.random.split(key)
        mentor = server.model if mentee is None else task.init(mentor_key)
        dtype = jnp.result_type(*jax.tree.leaves(mentor))
        bridge = linear.init(bridge_key, shared.num_features, task.num_features, dtype)
        return FedKDClient(mentor, bridge["kernel"])

    def objective(models, batch, key):
        """The sum of both losses, and the mentor's."""
        fixed = jax.lax.stop_gradient if detach else lambda x: x
        mentor_key, mentee_key = jax.random.split(key)
        own = task.loss(models["mentor"], batch, mentor_key)
        other = shared.loss(models["mentee"], batch, mentee_key)
        scale = fixed(jnp.maximum(own + other, 1e-8))

        features = task.features(models["mentor"], batch.inputs)
        mapped = shared.features(models["mentee"], batch.inputs) @ models["bridge"]
        logits = task.predict(models["mentor"], batch.inputs)
        shared_logits = shared.predict(models["mentee"], batch.inputs)

        def distance(a, b):
            each = jnp.mean((a - b) ** 2, axis=-1)
            return jnp.sum(each * batch.mask) / jnp.maximum(jnp.sum(batch.mask), 1)

        own += (
            distillation * divergence(fixed(shared_logits), logits, batch.mask)
            + hidden * distance(features, fixed(mapped))
        ) / scale
        other += (
            distillation * divergence(fixed(logits), shared_logits, batch.mask)
            + hidden * distance(fixed(features), mapped)
        ) / scale
        return own + other, own

    def client_update(server, client, data, context):
        def gradient(models, carry, batch, key):
            slope, loss = jax.grad(objective, has_aux=True)(models, batch, key)
            return loss, slope, carry

        models = {"mentor": client.mentor, "mentee": server.model, "bridge": client.bridge}
        each = optax.partition(
            dict.fromkeys(models, local.optimizer), {name: name for name in models}
        )
        trained = core.descend(gradient, models, (), data, context, of_both, optimizer=each)
        models, energy = trained.model, energy_at(context)
        if compress_models:
            compressed, numbers = compress(models["mentee"], energy)
            change = tree.subtract(compressed, server.model)
        else:
            change, numbers = compress(tree.subtract(models["mentee"], server.model), energy)
        whole = sum(leaf.size for leaf in jax.tree.leaves(change))
        weight = jnp.where(weight_by_size, data.size, 1)
        return core.ClientOutput(
            state=FedKDClient(models["mentor"], models["bridge"]),
            sum=core.weighted(change, weight),
            metrics={**trained.metrics, "sent": numbers / whole},
        )

    def server_update(server, uploads, cohort, context):
        change, energy = core.mean(uploads.total), energy_at(context)
        if compress_models:
            return FedKDServer(compress(tree.add(server.model, change), energy)[0])
        return FedKDServer(tree.add(server.model, compress(change, energy)[0]))

    return core.Algorithm(
        init_server=init_server,
        init_client=init_client,
        client_update=client_update,
        server_update=server_update,
        personalize=lambda server, client, data, context: client.mentor,
        global_model=None if mentee is not None else lambda server: server.model,
    )
