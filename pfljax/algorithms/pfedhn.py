"""pFedHN: a hypernetwork at the server generates each client's model from an embedding.

Server: the hypernetwork `h`, an embedding `v_k` of each client, their optimizer's state.
Client: nothing.
Down: `theta_k = h(v_k)`, a model; never the hypernetwork. Up: its change (`each`).
Cost per client and round: one local training; at the server a pass through the hypernetwork, which
is `hidden` times as large as a model, and one back.

References:
  Shamsian, Navon, Fetaya, Chechik, "Personalized Federated Learning using Hypernetworks", 2021,
  https://arxiv.org/abs/2103.04628 (algorithm 1).
"""

from __future__ import annotations

from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import optax

from pfljax import core
from pfljax.algorithms.registry import checked
from pfljax.core import tree
from pfljax.ops import hypernetwork, stacked


class HyperServer(NamedTuple):
    """Attributes:
    network: the hypernetwork.
    embeddings: `[N, embedding_size]`.
    optimizer_state: for both.
    """

    network: hypernetwork.Hypernetwork
    embeddings: jax.Array
    optimizer_state: core.PyTree


@checked
def pfedhn(
    task: core.Task,
    local: core.LocalTraining,
    *,
    rate: Annotated[float, core.at_least(0)] = 0.01,
    momentum: Annotated[float, core.between(0, 1)] = 0.9,
    weight_decay: Annotated[float, core.at_least(0)] = 0.001,
    clip: Annotated[float, core.above(0)] = 50.0,
    embedding_size: Annotated[int, core.at_least(0)] = 0,
    hidden: Annotated[int, core.at_least(1)] = 100,
    layers: Annotated[int, core.at_least(0)] = 3,
    linear_layer: bool = True,
    spread: Annotated[float, core.at_least(0)] = 0.1,
    joining_rounds: Annotated[int, core.at_least(0)] = 10,
) -> core.Algorithm:
    """Personal models out of one hypernetwork.

        theta_k = h(v_k);   Delta_k = local training from theta_k on L_k, less theta_k
        h <- h + rate mean_k (d theta_k / d h)^T Delta_k
        v_k <- v_k + rate (d theta_k / d v_k)^T Delta_k

    Args:
      task: The model and its loss.
      local: The clients' local training.
      rate: Learning rate of the hypernetwork and the embeddings, 0.001 to 0.1. The features of the
        last hidden layer have a squared norm of about `hidden`, so that without momentum `1 /
        hidden` moves the mean of the models about as far as FedAvg does.
      momentum: Momentum of both, 0 to 0.95; embeddings of absent clients continue to move.
      weight_decay: Weight decay of hypernetwork and embeddings, 0 to 0.01.
      clip: Maximum norm of the gradient of both together, 1 to 100; larger ones are clipped.
      embedding_size: Dimension of an embedding; 0 uses 1 + N / 4, as in the paper.
      hidden: Width of the hidden layers, 10 to 200 (paper: 100).
      layers: Number of hidden layers, 0 to 4 (paper: 3).
      linear_layer: Whether there is another layer of `hidden` features without ReLU before the
        heads.
      spread: Spread of the clients' initial models relative to their scale, 0.01 to 1.
      joining_rounds: Number of local trainings with which the embedding of a new client is
        learned for each evaluation, 1 to 50.

    Returns:
      The method; clients have no state, and deploy `h(v_k)`. There is no global model.

    Notes:
      Every array of the model has its own linear head. The paper updates one client after another;
      here the cohort's gradients of `h` are averaged with uniform weights. The initial models are
      near one draw of the task's initialization, which has a suitable scale; the paper leaves this
      open. Rate, momentum, weight decay, clipping and the linear layer follow the authors' code,
      which also clips the clients' gradients at 50 and has a weight decay of 0.00005; both are
      options of the clients' optimizer here. The embedding of a client that never took part is
      initialized to the mean, and trained with the hypernetwork frozen, by plain steps. Generated
      running variances could be negative, so batch normalization is refused.
    """
    optimizer = optax.chain(
        optax.clip_by_global_norm(clip),
        optax.add_decayed_weights(weight_decay),
        optax.sgd(rate, momentum=momentum),
    )

    def init_server(population, key):
        model_key, network_key, embedding_key = jax.random.split(key, 3)
        clients, params = population.num_clients, task.init(model_key)
        size = embedding_size or 1 + clients // 4
        network = hypernetwork.init(network_key, params, size, hidden, layers, spread, linear_layer)
        dtype = tree.dtype(params)
        embeddings = jax.random.normal(embedding_key, (clients, size), dtype)
        return HyperServer(network, embeddings, optimizer.init((network, embeddings)))

    def client_update(params, client, data, context):
        trained = core.train(task.loss, params, data, context, local)
        change = tree.subtract(trained.params, params)
        return core.ClientOutput(state=client, each=change, metrics=trained.metrics)

    def server_update(server, uploads, cohort, context):
        network, embeddings = server.network, server.embeddings
        known = embeddings[jnp.maximum(cohort.ids, 0)]
        # An empty place has no change, and so no gradient.
        network_slope, slopes = hypernetwork.pull_back(network, known, uploads.each)
        network_slope = tree.divide(network_slope, jnp.maximum(cohort.count, 1))
        embedding_slope = stacked.update_rows(jnp.zeros_like(embeddings), cohort, slopes)
        updates, optimizer_state = optimizer.update(
            (network_slope, embedding_slope), server.optimizer_state, (network, embeddings)
        )
        moved = optax.apply_updates((network, embeddings), updates)
        return HyperServer(*moved, optimizer_state)

    def personalize(server, client, data, context):
        network, embeddings = server.network, server.embeddings

        def learn(number, embedding):
            params = hypernetwork.generate(network, embedding)
            change = client_update(params, (), data, context.child(number)).each
            return embedding - rate * hypernetwork.pull_back(network, embedding, change)[1]

        seen = context.client_id < embeddings.shape[0]
        start = jnp.where(seen, embeddings[context.client_id], jnp.mean(embeddings, axis=0))
        rounds = jnp.where(seen, 0, joining_rounds)
        return hypernetwork.generate(network, jax.lax.fori_loop(0, rounds, learn, start))

    return core.Algorithm(
        init_server=init_server,
        init_client=lambda server, profile, key: (),
        client_update=client_update,
        server_update=server_update,
        personalize=personalize,
        download=lambda server, context: hypernetwork.generate(
            server.network, server.embeddings[context.client_id]
        ),
    )
