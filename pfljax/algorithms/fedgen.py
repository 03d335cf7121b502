"""FedGen: FedAvg with a generator of features, from which clients learn absent classes.

Server: FedAvg's, the generator and its optimizer's state, the frequency of each label. Client:
nothing. Down: `w`, the generator, the label frequencies. Up: FedAvg's (`sum`); the head and the
number of examples of each class (`each`), which the generator is trained against. Cost per client
and round: one local training, with as many generated features as examples for the head; on the
server `generator_steps` through the generator and the cohort's heads.

References:
  Zhu, Hong, Zhou, "Data-Free Knowledge Distillation for Heterogeneous Federated Learning", 2021,
  https://arxiv.org/abs/2105.10056.
"""

from __future__ import annotations

from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import optax

from pfljax import core
from pfljax.algorithms.fedavg import fedavg
from pfljax.algorithms.registry import checked
from pfljax.core import tree
from pfljax.core.params import join_params, split_params
from pfljax.ops import averaging
from pfljax.ops.generator import draw, generate, likeness
from pfljax.ops.generator import init as init_generator
from pfljax.ops.minimize import minimize


class FedGenServer(NamedTuple):
    """Server state.

    Attributes:
      average: The model and its optimizer's state.
      generator: The params of the generator, see `ops.generator`.
      optimizer_state: The state of the generator's optimizer.
      label_shares: `[C]`, the label frequencies of all clients' training examples; constant.
    """

    average: averaging.ServerState
    generator: core.Params
    optimizer_state: core.PyTree
    label_shares: jax.Array


@checked
def fedgen(
    task: core.Task,
    local: core.LocalTraining,
    *,
    weight: Annotated[float, core.at_least(0)] = 1.0,
    decay: Annotated[float, core.above(0, 1)] = 0.98,
    first_round: Annotated[int, core.at_least(0)] = 1,
    diversity: Annotated[float, core.at_least(0)] = 1.0,
    label_weights: bool = True,
    generator_steps: Annotated[int, core.at_least(0)] = 50,
    generator_rate: Annotated[float, core.at_least(0)] = 3e-4,
    generator_batch: Annotated[int, core.at_least(2)] = 32,
    noise_size: Annotated[int, core.at_least(1)] = 32,
    hidden_size: Annotated[int, core.at_least(1)] = 256,
    uniform_noise: bool = False,
    server_optimizer: optax.GradientTransformation = averaging.PLAIN,
) -> core.Algorithm:
    """Federated averaging with features generated for the classes that a client lacks.

        theta_k <- local training from w on L_k(theta) + weight decay^round CE(h(G(y, e)), y)
        G <- generator_steps of Adam on CE(sum_k a_ky h_k(G(y, e)), y) + diversity likeness(G)
        a_ky = n_ky / sum_j n_jy;   y by the labels' shares, e noise;   w as in FedAvg

    Args:
      task: The model and its loss, for classification.
      local: The clients' local training; a step generates a batch of features.
      weight: Weight of the loss on generated features, 0.1 to 10; 0 is FedAvg.
      decay: Factor of the weight per round, 0.95 to 1; 1 keeps it.
      first_round: First round with that loss, 0 or 1; in round 0 the generator is untrained.
      diversity: Weight of the term that penalizes features independent of the noise, 0 to 1.
      label_weights: Whether to weight logits for a label by a client's examples with it; False by
        all.
      generator_steps: Number of generator steps of the server in a round, 20 to 1000.
      generator_rate: Learning rate of Adam for the generator, 0.0001 to 0.01.
      generator_batch: Number of features generated in a step, at least 2.
      noise_size: Dimension of the noise.
      hidden_size: Width of the generator's hidden layer, 32 to 512.
      uniform_noise: Whether to draw the noise from [0, 1); False uses a normal distribution.
      server_optimizer: As in FedAvg, for the model.

    Returns:
      The method; its global model is FedAvg's.

    Notes:
      The generator always normalizes with batch statistics. The paper's objective has `weight` 1,
      normal noise and an average of logits; weights by label, `decay`, `first_round`, diversity,
      sizes and rates follow the authors' code, except for its `weight=10`, uniform noise, Adam with
      weight decay and decreasing rate, and a term for predictions on generated features. For a
      label that the cohort lacks, all examples count. `docs/departures.md` gives PFLlib's settings.
    """
    server_optimizer = averaging.of_trainable(server_optimizer, task)
    average = fedavg(task, local, server_optimizer=server_optimizer)
    optimizer = optax.adam(generator_rate)

    def init_server(population, key):
        start = average.init_server(population, key)
        key, dtype = jax.random.fold_in(key, 1), tree.dtype(start.params)
        sizes = (noise_size, task.num_classes, hidden_size, task.num_features)
        generator = init_generator(key, *sizes, dtype)
        shares = core.shares(jnp.sum(population.class_counts, axis=0), dtype)
        return FedGenServer(start, generator, optimizer.init(generator), shares)

    def sample(key, server, count):
        return draw(key, server.label_shares, count, noise_size, uniform_noise)

    def client_update(server, client, data, context):
        start = server.average.params
        strength = jnp.where(context.round < first_round, 0, weight * decay**context.round)

        def objective(params, batch, key):
            task_key, draw_key = jax.random.split(key)
            labels, noise = sample(draw_key, server, local.batch_size)
            features = generate(server.generator, labels, noise)
            # In training mode, as the loss below.
            mode = (jnp.ones(labels.shape, bool), draw_key)
            logits = task.head(params, features, *mode)
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return task.loss(params, batch, task_key) + strength * jnp.mean(losses)

        trained = core.train(objective, start, data, context, local)
        total = core.weighted(tree.subtract(trained.params, start), data.size)
        each = (split_params(trained.params, task.is_head)[0], data.class_counts)
        return core.ClientOutput(state=client, sum=total, each=each, metrics=trained.metrics)

    def server_update(server, uploads, cohort, context):
        heads, counts = uploads.each
        _, body = split_params(server.average.params, task.is_head)
        by_size = core.shares(cohort.sizes, server.label_shares.dtype)
        by_label, totals = core.shares(counts, by_size.dtype), jnp.sum(counts, axis=0)
        by_label = jnp.where(totals > 0, by_label, by_size[:, None])
        shares = jnp.where(label_weights, by_label, by_size[:, None])  # [cohort, C]

        def objective(generator, key):
            labels, noise = sample(key, server, generator_batch)
            features = generate(generator, labels, noise)
            logits = jax.vmap(lambda head: task.head(join_params(head, body), features))(heads)
            together = jnp.einsum("kb,kbc->bc", shares[:, labels], logits)
            losses = optax.softmax_cross_entropy_with_integer_labels(together, labels)
            return jnp.mean(losses) + diversity * likeness(features, noise)

        keys, state = jax.random.split(context.key, generator_steps), server.optimizer_state
        generator, state = minimize(objective, server.generator, optimizer, state, keys)
        params = averaging.apply(server.average, uploads.total, server_optimizer)
        return server._replace(average=params, generator=generator, optimizer_state=state)

    return average._replace(
        init_server=init_server,
        client_update=client_update,
        server_update=server_update,
        personalize=lambda server, client, data, context: server.average.params,
        global_params=lambda server: server.average.params,
    )
