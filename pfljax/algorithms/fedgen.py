"""FedGen: FedAvg whose server learns to generate features, by which clients learn absent classes.

Server: FedAvg's, the generator and its optimizer's state, how often each label occurs. Client:
nothing. Down: `w`, the generator, the labels' shares. Up: FedAvg's (`sum`); the head and the number
of examples of each class (`each`), which the generator is trained against.
Cost per client and round: one local training, with as many generated features as examples for the
head; on the server `generator_steps` through the generator and the cohort's heads.

References:
  Zhu, Hong, Zhou, "Data-Free Knowledge Distillation for Heterogeneous Federated Learning", 2021,
  https://arxiv.org/abs/2105.10056.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from pfljax import core
from pfljax.algorithms.fedavg import fedavg
from pfljax.core import averaging, linear, partition
from pfljax.errors import UserError


class FedGenServer(NamedTuple):
    """Attributes:
    average: the model and its optimizer's state.
    generator: nested dict of arrays, see `generate`.
    optimizer_state: the generator's.
    label_shares: `[C]`, of all clients' training examples; never changes.
    """

    average: averaging.ModelServer
    generator: core.Model
    optimizer_state: core.PyTree
    label_shares: jax.Array


def draw(
    key: jax.Array, label_shares: jax.Array, count: int, noise_size: int, uniform: bool
) -> tuple[jax.Array, jax.Array]:
    """Returns labels `[count]` by their shares, and noise `[count, noise_size]`, normal if not
    uniform in `[0, 1)`."""
    label_key, noise_key = jax.random.split(key)
    labels = jax.random.categorical(label_key, jnp.log(label_shares), shape=(count,))
    sample = jax.random.uniform if uniform else jax.random.normal
    return labels, sample(noise_key, (count, noise_size), label_shares.dtype)


def generate(generator: core.Model, labels: jax.Array, noise: jax.Array) -> jax.Array:
    """Returns features `[count, d]`: linear, normalized over the batch, ReLU, linear.

    The first layer has no bias: normalizing takes it out again, and Adam would make steps of the
    rounding errors in its gradient.
    """
    classes = generator["hidden"].shape[0] - noise.shape[1]
    hot = jax.nn.one_hot(labels, classes, dtype=noise.dtype)
    hidden = jnp.concatenate([noise, hot], axis=1) @ generator["hidden"]
    hidden = (hidden - jnp.mean(hidden, axis=0)) / jnp.sqrt(jnp.var(hidden, axis=0) + 1e-5)
    hidden = hidden * generator["norm"]["scale"] + generator["norm"]["bias"]
    return linear.apply(generator["features"], jax.nn.relu(hidden))


def likeness(features: jax.Array, noise: jax.Array) -> jax.Array:
    """Returns `[]`, `exp(-mean_ij |z_i - z_j| |e_i - e_j|^2)`, means over coordinates within.

    It is greatest, 1, where different noise makes the same features.
    """
    between = jnp.mean(jnp.abs(features[:, None] - features), axis=-1)
    return jnp.exp(-jnp.mean(between * jnp.mean((noise[:, None] - noise) ** 2, axis=-1)))


def fedgen(
    task: core.Task,
    local: core.LocalTraining,
    *,
    weight: float = 1.0,
    decay: float = 0.98,
    diversity: float = 1.0,
    label_weights: bool = True,
    generator_steps: int = 50,
    generator_rate: float = 3e-4,
    generator_batch: int = 32,
    noise_size: int = 32,
    hidden_size: int = 256,
    uniform_noise: bool = False,
    server_optimizer: optax.GradientTransformation = averaging.PLAIN,
) -> core.Algorithm:
    """Federated averaging with features generated for the classes that a client lacks.

        theta_k <- local training from w on L_k(theta) + weight decay^round CE(h(G(y, e)), y)
        G <- generator_steps of Adam on CE(sum_k a_ky h_k(G(y, e)), y) + diversity likeness(G)
        a_ky = n_ky / sum_j n_jy;   y by the labels' shares, e noise;   w as in FedAvg

    Args:
      task: model and loss, for classification.
      local: how clients train; a step generates as many features as a batch has places.
      weight: of the loss on generated features, 0.1 to 10; 0 is FedAvg.
      decay: what the weight is multiplied by in each round, 0.95 to 1; 1 keeps it.
      diversity: weight of the term against features that do not depend on the noise, 0 to 1.
      label_weights: weigh the clients' logits for a label by their examples with it; False by all
        their examples.
      generator_steps: of the server in a round, 20 to 1000.
      generator_rate: of Adam, 0.0001 to 0.01.
      generator_batch: features that the server generates in a step, at least 2.
      noise_size: entries of the noise.
      hidden_size: width of the generator's hidden layer, 32 to 512.
      uniform_noise: draw the noise from [0, 1); False from a normal distribution.
      server_optimizer: as in FedAvg, for the model.

    Returns:
      The method; its global model is FedAvg's.

    Notes:
      The generator normalizes over the batch, as its authors' does, and always by the batch's own
      statistics. The paper's objective has `weight` 1 and an average of logits; by label counts,
      with `decay`, the term for diversity and these sizes and rates it is used in the authors'
      code, as far as we know, which begins from a weight of 10. For a label that the cohort lacks
      all examples weigh. PFLlib has uniform noise, neither decay nor diversity, and weights by all
      examples.
    """
    average = fedavg(task, local, server_optimizer=server_optimizer)
    optimizer = optax.adam(generator_rate)

    def init_server(key, population):
        start = average.init_server(key, population)
        head, _ = partition.split(start.model, task.is_head)
        classes = task.num_classes
        if not classes or not task.num_features or not head:
            raise UserError("FedGen needs classes and a head on features; name another model.")
        keys = jax.random.split(jax.random.fold_in(key, 1))
        dtype = jnp.result_type(*jax.tree.leaves(start.model))
        generator = {
            "hidden": linear.init(keys[0], noise_size + classes, hidden_size, dtype)["kernel"],
            "norm": {"scale": jnp.ones(hidden_size, dtype), "bias": jnp.zeros(hidden_size, dtype)},
            "features": linear.init(keys[1], hidden_size, task.num_features, dtype),
        }
        counts = jnp.sum(population.class_counts, axis=0).astype(dtype)
        shares = counts / jnp.maximum(jnp.sum(counts), 1)
        return FedGenServer(start, generator, optimizer.init(generator), shares)

    def client_update(server, client, data, context):
        start = server.average.model

        def objective(model, batch, key):
            task_key, draw_key = jax.random.split(key)
            count = local.batch_size
            labels, noise = draw(draw_key, server.label_shares, count, noise_size, uniform_noise)
            logits = task.head(model, generate(server.generator, labels, noise))
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            taught = weight * decay**context.round * jnp.mean(losses)
            return task.loss(model, batch, task_key) + taught

        trained = core.train(objective, start, data, context, local)
        head, _ = partition.split(trained.model, task.is_head)
        change = core.tree.subtract(trained.model, start)
        return core.ClientOutput(
            state=client,
            sum=core.weighted(change, data.size),
            each=(head, data.class_counts),
            metrics=trained.metrics,
        )

    def server_update(server, uploads, cohort, context):
        heads, counts = uploads.each
        _, body = partition.split(server.average.model, task.is_head)
        dtype = server.label_shares.dtype
        sizes = cohort.sizes.astype(dtype)
        by_size = sizes / jnp.maximum(jnp.sum(sizes), 1)
        totals = jnp.sum(counts, axis=0)
        by_label = jnp.where(totals > 0, counts / jnp.maximum(totals, 1), by_size[:, None])
        shares = jnp.where(label_weights, by_label, by_size[:, None]).astype(dtype)  # [cohort, C]

        def objective(generator, key):
            labels, noise = draw(
                key, server.label_shares, generator_batch, noise_size, uniform_noise
            )
            features = generate(generator, labels, noise)
            logits = jax.vmap(lambda head: task.head(partition.join(head, body), features))(heads)
            together = jnp.einsum("kb,kbc->bc", shares[:, labels], logits)
            losses = optax.softmax_cross_entropy_with_integer_labels(together, labels)
            return jnp.mean(losses) + diversity * likeness(features, noise)

        def step(carry, key):
            generator, optimizer_state = carry
            slope = jax.grad(objective)(generator, key)
            updates, optimizer_state = optimizer.update(slope, optimizer_state, generator)
            return (optax.apply_updates(generator, updates), optimizer_state), ()

        carry = (server.generator, server.optimizer_state)
        keys = jax.random.split(context.key, generator_steps)
        (generator, optimizer_state), _ = jax.lax.scan(step, carry, keys)
        model = averaging.step(server.average, uploads.total, server_optimizer)
        return server._replace(average=model, generator=generator, optimizer_state=optimizer_state)

    return average._replace(
        init_server=init_server,
        client_update=client_update,
        server_update=server_update,
        personalize=lambda server, client, data, context: server.average.model,
        global_model=lambda server: server.average.model,
    )
