"""PeFLL: a hypernetwork generates a client's model from an embedding of its data.

Server: the embedding network `e`, the hypernetwork `h`, their optimizer's state, and two numbers
that standardize descriptors. Client: nothing.
Down: `e`, and in replies (`reply`) the model `theta_k = h(v_k)` to the descriptor `v_k`, and to the
change of the model the gradient in `v_k`. Up: the descriptor and the change (`each`), and the
gradient of `e`, with uniform weights (`sum`); never the hypernetwork.
Cost per client and round: one local training, and a pass through `e` and back for one batch; at the
server two passes through the hypernetwork and back; per evaluation a pass of `e` over all examples.

References:
  Scott, Zakerinia, Lampert, "PeFLL: Personalized Federated Learning by Learning to Learn", 2023,
  https://arxiv.org/abs/2306.05515.
"""

from __future__ import annotations

from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import optax

from pfljax import core
from pfljax.algorithms import requirements
from pfljax.algorithms.registry import ALGORITHMS, checked
from pfljax.core import tree
from pfljax.core.params import split_params
from pfljax.ops import hypernetwork, linear


class Scale(NamedTuple):
    """Attributes:
    mean: `[]`, the mean of the entries of the first descriptor.
    std: `[]`, their standard deviation, positive.
    known: `[]` bool, whether there was a round before; else each descriptor has its own scale.
    """

    mean: jax.Array
    std: jax.Array
    known: jax.Array

    def of(self, descriptors: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns `[..., 1]` each, mean and standard deviation that standardize `[..., d]`."""
        mean, std = moments(descriptors)
        return jnp.where(self.known, self.mean, mean), jnp.where(self.known, self.std, std)

    def standardize(self, descriptors: jax.Array) -> jax.Array:
        """Returns descriptors `[..., d]` with the mean subtracted, and divided by `std`."""
        mean, std = self.of(descriptors)
        return (descriptors - mean) / std


class PeFLLServer(NamedTuple):
    """Attributes:
    embedding: the embedding network, `{'body': params, 'hidden': layer, 'out': layer}`.
    network: the hypernetwork.
    scale: how descriptors are standardized.
    optimizer_state: for embedding network and hypernetwork.
    """

    embedding: core.Params
    network: hypernetwork.Hypernetwork
    scale: Scale
    optimizer_state: core.PyTree


@checked
def pefll(
    task: core.Task,
    local: core.LocalTraining,
    *,
    rate: Annotated[float, core.at_least(0)] = 2e-4,
    clip: Annotated[float, core.above(0)] = 50.0,
    embedding_size: Annotated[int, core.at_least(0)] = 0,
    embedding_hidden: Annotated[int, core.at_least(1)] = 100,
    hidden: Annotated[int, core.at_least(1)] = 100,
    layers: Annotated[int, core.at_least(0)] = 3,
    linear_layer: bool = True,
    spread: Annotated[float, core.at_least(0)] = 0.1,
    embedding: Annotated[core.Task | None, core.NETWORK] = None,
) -> core.Algorithm:
    """Learning to learn the models of clients from their data.

        u_k = mean_i e(x_i, y_i) over one batch;   v_k = (u_k - m) / s
        theta_k = h(v_k);   Delta_k = local training from theta_k on L_k, less theta_k
        (e, h) <- Adam along mean_k (d theta_k / d (e, h))^T Delta_k

    Args:
      task: The model and its loss, for classification.
      local: The clients' local training.
      rate: Learning rate of Adam for both networks, 0.0001 to 0.01 (authors' code: 0.0002, for
        5,000 rounds).
      clip: Maximum norm of the gradient of both together, 1 to 100; larger ones are clipped.
      embedding_size: Dimension of a descriptor; 0 uses 1 + N / 4, as the authors' code.
      embedding_hidden: Width of the layer of `e` in which features and label join, 10 to 200.
      hidden: Width of the hidden layers of `h`, 10 to 200 (authors' code: 100).
      layers: Number of hidden layers of `h`, 0 to 4 (authors' code: 3).
      linear_layer: Whether `h` has another layer without ReLU before the heads, as in pFedHN.
      spread: Spread of the first models around one initialization, relative to its scale, 0.01 to
        1.
      embedding: The task of the network whose body computes the features of `e`; None, in a config
        a model without a name, takes the model of `task`, which then needs a body.

    Returns:
      The method; a client, whether new or not, deploys `h(v_k)` with the mean of `e` over all of
      its training examples. There is no global model.

    Notes:
      `e` has the body of a network, then the label as one-hot vector beside its features, a layer
      with ReLU, and a linear layer; the authors join the label with the input, as planes of an
      image. The numbers m and s are constants: mean and standard deviation of the first client's
      first descriptor. The authors' code uses them in the first round too, in which each descriptor
      has its own m and s here. That code divides sums by the length of a tuple in place of a batch,
      a factor of no effect after standardization. Its logits of classes that a client's training
      data lack are 0 in tests, which raises accuracies; here all classes compete. Its clients use a
      momentum of 0.9, a weight decay of 0.00005 and a clip norm of 50, which are options of the
      clients' optimizer. The first models are near one draw of the task's initialization, as in
      pFedHN. Generated running variances could be negative, so batch normalization is refused.
    """
    if embedding is not None:
        ALGORITHMS["pefll"].require_usable(embedding)
    described = task if embedding is None else embedding
    # Clients' models may be linear; the embedding is computed from the features of a body.
    requirements.require("PeFLL", ("body",), requirements.Setting(described))
    optimizer = optax.chain(optax.clip_by_global_norm(clip), optax.adam(rate))

    def init_server(population, key):
        model_key, network_key, *keys = jax.random.split(key, 5)
        params = task.init(model_key)
        dtype, size = tree.dtype(params), embedding_size or 1 + population.num_clients // 4
        network = hypernetwork.init(network_key, params, size, hidden, layers, spread, linear_layer)
        inputs = described.num_features + task.num_classes
        parts = {
            "body": split_params(described.init(keys[0]), described.is_body)[0],
            "hidden": linear.init(keys[1], inputs, embedding_hidden, dtype),
            "out": linear.init(keys[2], embedding_hidden, size, dtype),
        }
        scale = Scale(jnp.zeros((), dtype), jnp.ones((), dtype), jnp.zeros((), bool))
        return PeFLLServer(parts, network, scale, optimizer.init((parts, network)))

    def embed(parts, batch):
        """Returns `[B, d]`, the embeddings of the examples of a batch."""
        features = described.features(parts["body"], batch.inputs)
        labels = jax.nn.one_hot(batch.targets, task.num_classes, dtype=features.dtype)
        joined = linear.apply(parts["hidden"], jnp.concatenate([features, labels], axis=1))
        return linear.apply(parts["out"], jax.nn.relu(joined))

    def reply(server, message, context):
        """Returns the model of a descriptor, or, to its change, the gradient in the descriptor."""
        descriptor = message["descriptor"]
        known = server.scale.standardize(descriptor)
        if "change" not in message:
            return hypernetwork.generate(server.network, known)
        slope = hypernetwork.pull_back(server.network, known, message["change"])[1]
        return slope / server.scale.of(descriptor)[1]

    def client_update(server, client, data, context):
        batch = one_batch(data, context.child(0), local)
        count = jnp.maximum(jnp.sum(batch.mask), 1)
        descriptor, pull_back = jax.vjp(
            lambda parts: jnp.sum(embed(parts, batch) * batch.mask[:, None], axis=0) / count,
            server.embedding,
        )
        start = context.reply({"descriptor": descriptor})
        trained = core.train(task.loss, start, data, context.child(1), local)
        change = tree.subtract(trained.params, start)
        (slope,) = pull_back(context.reply({"descriptor": descriptor, "change": change}))
        return core.ClientOutput(
            state=client,
            sum=core.weighted(slope, 1.0),
            each={"descriptor": descriptor, "change": change},
            metrics=trained.metrics,
        )

    def server_update(server, uploads, cohort, context):
        descriptors, changes = uploads.each["descriptor"], uploads.each["change"]
        known = server.scale.standardize(descriptors)
        # An empty slot has no change, and so no gradient.
        slope, _ = hypernetwork.pull_back(server.network, known, changes)
        slopes = core.mean(uploads.total), tree.divide(slope, jnp.maximum(cohort.count, 1))
        both = server.embedding, server.network
        updates, optimizer_state = optimizer.update(slopes, server.optimizer_state, both)
        lowest = jnp.argmin(jnp.where(cohort.ids < 0, cohort.num_clients, cohort.ids))
        mean, std = server.scale.of(descriptors[lowest])
        scale = Scale(mean[0], std[0], jnp.ones((), bool))
        return PeFLLServer(*optax.apply_updates(both, updates), scale, optimizer_state)

    def personalize(server, client, data, context):
        def add(total, batch, key):
            return total + jnp.sum(embed(server.embedding, batch) * batch.mask[:, None], axis=0)

        nothing = jnp.zeros_like(server.embedding["out"]["bias"])
        total = core.for_each_batch(add, nothing, data, context, local.one_pass())
        descriptor = total / jnp.maximum(data.size, 1)
        return hypernetwork.generate(server.network, server.scale.standardize(descriptor))

    return core.Algorithm(
        init_server=init_server,
        init_client=lambda server, profile, key: (),
        client_update=client_update,
        server_update=server_update,
        personalize=personalize,
        reply=reply,
    )


def one_batch(
    data: core.ClientData, context: core.Context, local: core.LocalTraining
) -> core.Batch:
    """Returns the first batch of an epoch of local training; all masked without one."""
    masked = data.take(jnp.full(local.batch_size, -1, jnp.int32))
    return core.for_each_batch(
        lambda carry, batch, key: batch, masked, data, context, local, steps=1
    )


def moments(descriptors: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns `[..., 1]` each: mean and sample standard deviation of the entries of `[..., d]`.

    A standard deviation of 0 is replaced by 1.
    """
    mean = jnp.mean(descriptors, axis=-1, keepdims=True)
    squares = jnp.sum(jnp.square(descriptors - mean), axis=-1, keepdims=True)
    variance = squares / max(descriptors.shape[-1] - 1, 1)
    return mean, jnp.sqrt(jnp.where(variance > 0, variance, 1))
