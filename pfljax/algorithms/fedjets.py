"""FedJETs: a mixture of experts whose gate reads the features of a frozen, pre-trained model.

Server: the experts `w_1 ... w_M` and the gate `g` with the states of their optimizers, the common
expert, which never changes, and the anchor client of each expert. Client: nothing.
Down: the gate and the common expert, and after a message with the indices of `top` experts these
(`reply`). Up: their changes and that of the gate, weighted by examples (`sum`, M messages of which
`top` are not zero).
Cost per client and round: a local training of `top` models and the gate, and a forward pass of the
common expert over all examples and in each step; per evaluation forward passes of all experts.

References:
  Dun, Hipolito Garcia, Zheng, Awadallah, Sim, Kyrillidis, Dimitriadis, "FedJETs: Efficient
  Just-In-Time Personalization with Federated Mixture of Experts", 2023,
  https://arxiv.org/abs/2306.08586.
"""

from __future__ import annotations

from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import optax

from pfljax import core
from pfljax.algorithms.registry import checked
from pfljax.core import tree
from pfljax.errors import UserError
from pfljax.ops import anchors, averaging, linear, logits, stacked


class FedJETsServer(NamedTuple):
    """Attributes:
    experts: the experts, leaves `[M, ...]`, and the states of their optimizers.
    gate: the gate, a linear layer from features to `M` logits, and its optimizer's state.
    common: the common expert; never changes.
    anchors: `[M]` int32, the client that is paired with each expert, -1 for none; never changes.
    """

    experts: averaging.ServerState
    gate: averaging.ServerState
    common: core.Params
    anchors: jax.Array


@checked
def fedjets(
    task: core.Task,
    local: core.LocalTraining,
    *,
    experts: Annotated[int, core.at_least(1)] = 5,
    top: Annotated[int, core.at_least(1)] = 2,
    anchor_weight: Annotated[float, core.at_least(0)] = 1.0,
    anchored: bool = True,
    server_optimizer: optax.GradientTransformation = averaging.PLAIN,
) -> core.Algorithm:
    """A federated mixture of experts, for new clients without labels too.

        g(x): logits of the gate from the features of the common expert
        H_k = the `top` largest entries of mean_i softmax(g(x_i)), with the own expert of an anchor
        p(y | x) = sum_m softmax(g(x))_m softmax(f(x, w_m))_y,   over m in H_k, or in the `top`
            largest of g(x) for predictions
        theta, g <- local training from w and g on mean_i -log p(y_i | x_i), of anchors
            + anchor_weight mean_i -log softmax(g(x_i))_own
        w_m <- w_m + server_optimizer(-mean change of clients with m in H_k);   g as in FedAvg

    Args:
      task: The model and its loss, for classification.
      local: The clients' local training of experts and gate.
      experts: Number of experts, the paper's M, 5 to 10; 1 is FedAvg.
      top: Number of experts that a client trains and that predict an example, 1 to `experts`
        (paper: 2).
      anchor_weight: Weight of the loss by which anchor clients train the gate, 0 to 1.
      anchored: Whether each expert has an anchor client.
      server_optimizer: As in FedAvg, for each expert and for the gate.

    Returns:
      The method; all clients deploy the experts with the gate, whatever data they have. There is no
      global model.

    Raises:
      UserError: `top` is larger than `experts`.

    Notes:
      The common expert is the first model of the task: set `config.init_from` to one that was
      trained on public examples; the paper reports that routing fails with a weak one, and the
      random default is one. All experts start from that file too, and otherwise differ. The body of
      the paper was not at hand: the loss, the linear gate and the weight of the anchors are ours.
      Anchor clients are chosen by the labels of all clients; they are sampled like the others,
      while in the paper they are a fixed fraction of each round. An expert that no client trains
      keeps its params. The common expert is counted in each download, and does not change. Batch
      normalization of the common expert uses its running statistics.
    """
    if top > experts:
        raise UserError(
            f"fedjets: top is {top} and experts is {experts}; set hparams.fedjets.top to at most "
            "the number of experts."
        )
    of_experts = averaging.of_trainable(server_optimizer, task)
    observe = local.observe and jax.vmap(local.observe, in_axes=(0, None))
    of_mixture = local.of_models(experts=observe)

    def init_server(population, key):
        common_key, expert_key, gate_key = jax.random.split(key, 3)
        models = jax.vmap(task.init)(jax.random.split(expert_key, experts))
        gate = linear.init(gate_key, task.num_features, experts, tree.dtype(models))
        chosen = anchors.choose(population.class_counts, experts)
        return FedJETsServer(
            averaging.init_stacked(models, of_experts),
            averaging.init(gate, server_optimizer),
            task.init(common_key),
            jnp.where(anchored, chosen, -1),
        )

    def gate_logits(gate, common, inputs):
        return linear.apply(gate, jax.lax.stop_gradient(task.features(common, inputs)))

    def log_mixture(models, weights, inputs, mask=None, key=None):
        """Returns `[B, C]` log probabilities; `weights` are logits `[B, K]` of the K models."""
        outputs = jax.vmap(lambda params: task.predict(params, inputs, mask, key))(models)
        logs = jax.nn.log_softmax(weights, axis=-1).T[..., None] + jax.nn.log_softmax(outputs)
        return jax.nn.logsumexp(logs, axis=0)

    def client_update(server, client, data, context):
        gate, common = server.gate.params, server.common
        is_own = server.anchors == context.client_id

        def add(total, batch, key):
            shares = jax.nn.softmax(gate_logits(gate, common, batch.inputs))
            return total + jnp.sum(shares * batch.mask[:, None], axis=0)

        nothing = jnp.zeros(experts, tree.dtype(gate))
        total = core.for_each_batch(add, nothing, data, context.child(0), local.one_pass())
        _, held = jax.lax.top_k(jnp.where(is_own, jnp.inf, total), top)

        def objective(models, batch, key):
            weights = gate_logits(models["gate"], common, batch.inputs)
            logs = log_mixture(models["experts"], weights[:, held], batch.inputs, batch.mask, key)
            picked = jnp.take_along_axis(logs, batch.targets[:, None], axis=1)[:, 0]
            own = jnp.sum(jax.nn.log_softmax(weights) * is_own, axis=1)
            return -core.mean_over(picked + anchor_weight * own, batch.mask)

        start = {"experts": context.reply(held), "gate": gate}
        trained = core.train(objective, start, data, context.child(1), of_mixture)
        change = tree.subtract(trained.params, start)
        changes = jax.tree.map(
            lambda leaf: jnp.zeros((experts, *leaf.shape[1:]), leaf.dtype).at[held].set(leaf),
            change["experts"],
        )
        weights = jnp.zeros(experts, nothing.dtype).at[held].set(data.size)
        return core.ClientOutput(
            state=client,
            sum={
                "experts": averaging.weighted_stacked(changes, weights),
                "gate": core.weighted(change["gate"], data.size),
            },
            metrics=trained.metrics,
        )

    def server_update(server, uploads, cohort, context):
        total = uploads.total
        return server._replace(
            experts=averaging.apply_stacked(server.experts, total["experts"], of_experts),
            gate=averaging.apply(server.gate, total["gate"], server_optimizer),
        )

    def personalize(server, client, data, context):
        gate = server.gate.params
        return {"experts": server.experts.params, "gate": gate, "common": server.common}

    def predict(params, inputs, key):
        weights = gate_logits(params["gate"], params["common"], inputs)
        least = jax.lax.top_k(weights, top)[0][:, -1:]
        return log_mixture(params["experts"], logits.among(weights, weights >= least), inputs)

    return core.Algorithm(
        init_server=init_server,
        init_client=lambda server, profile, key: (),
        client_update=client_update,
        server_update=server_update,
        personalize=personalize,
        predict=predict,
        reply=lambda server, message, context: stacked.take(server.experts.params, message),
    )
