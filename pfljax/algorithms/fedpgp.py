"""FedPGP: prompts that are the sum of common ones and of a low-rank part of the client.

Server: the common prompts, their optimizer's state, and the neutral prompts. Client: the factors
`U_k` and `V_k` of its part.
Down: the common and the neutral prompts, the latter always the same; never the frozen towers. Up:
the change of the common prompts, weighted by examples (`sum`).
Cost per client and round: one local training, with three passes through the tower of the classes in
a step.

References:
  Cui, Li, Wang, Shi, "Harmonizing Generalization and Personalization in Federated Prompt Learning",
  2024, https://arxiv.org/abs/2405.09771.
"""

from __future__ import annotations

from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import optax

from pfljax import core
from pfljax.algorithms.registry import checked
from pfljax.core import tree
from pfljax.ops import averaging, prompts
from pfljax.ops.similarity import cosine


class PGPServer(NamedTuple):
    """Server state.

    Attributes:
      average: The common params, with the prompts `[K, d]`, and their optimizer's state.
      neutral: `[K, d]`, the initial prompts, which never change.
    """

    average: averaging.ServerState
    neutral: jax.Array


@checked
def fedpgp(
    task: core.Task,
    local: core.LocalTraining,
    *,
    mu: Annotated[float, core.at_least(0)] = 1.0,
    tau: Annotated[float, core.above(0)] = 0.5,
    rank: Annotated[int, core.at_least(0)] = 8,
    server_optimizer: optax.GradientTransformation = averaging.PLAIN,
) -> core.Algorithm:
    """Prompts with a common and a low-rank personal part, and a contrast between both.

        p_k = p + U_k V_k,   U_k [K, rank], V_k [rank, d]
        (p, U_k, V_k) <- local training on
            L_k(p_k) + mu mean_c -log(e^(a_c / tau) / (e^(a_c / tau) + e^(b_c / tau)))
        a_c = cos(z_c(neutral), z_c(p)),   b_c = cos(z_c(p), z_c(p_k))
        p <- p + server_optimizer(-sum_k n_k (change of p at k) / sum_k n_k)

    Args:
      task: The model, with prompts in the tower of the classes, whose features of class c are
        `z_c`, and its loss.
      local: The clients' local training, of `p`, `U_k` and `V_k` together.
      mu: Weight of the contrast, 0.1 to 10 (code: 1, its script: 0.5); 0 removes it.
      tau: Temperature of the contrast, 0.1 to 1 (code: 0.5).
      rank: Rank of the personal part, 1 to 16 (8; the code's flag: 4); 0 for common prompts only,
        which with `mu=0` are FedAvg's.
      server_optimizer: As in FedAvg, for the common prompts.

    Returns:
      The method; a client deploys the common prompts with its part. There is no global model.

    Notes:
      The number of prompts belongs to the model: `config.adapter.length` (code: 16). Each client
      draws `U_k` with the variance 1 / rank, and `V_k` is zero, so that all start with the common
      prompts. Neutral are the initial prompts; in the authors' code, the embeddings of a text that
      says nothing of a class, by default several times 'X'. Other params that are trained beside
      the prompts are common. All clients deploy the new common prompts, also those that were
      absent.
    """
    split, join = prompts.access(task)

    def add_own(common, client):
        return common + client["u"] @ client["v"] if rank else common

    def init_server(population, key):
        params = task.init(key)
        return PGPServer(averaging.init(params, server_optimizer), split(params)[0])

    def init_client(server, profile, key):
        if not rank:
            return ()
        length, width = server.neutral.shape
        dtype = server.neutral.dtype
        u = jax.random.normal(key, (length, rank), dtype) * rank**-0.5
        return {"u": u, "v": jnp.zeros((rank, width), dtype)}

    def client_update(server, client, data, context):
        def objective(models, batch, key):
            common, others = split(models["common"])
            params = join(add_own(common, models["own"]), others)
            neutral, shared, personal = (
                task.class_features(model)
                for model in (join(server.neutral, others), models["common"], params)
            )
            # The neutral features are fixed: only frozen params and neutral prompts make them.
            gap = cosine(shared, personal) - cosine(jax.lax.stop_gradient(neutral), shared)
            contrast = jnp.mean(jax.nn.softplus(gap / tau))
            return task.loss(params, batch, key) + mu * contrast

        start = {"common": server.average.params, "own": client}
        trained = core.train(objective, start, data, context, local)
        change = tree.subtract(trained.params["common"], start["common"])
        return core.ClientOutput(
            state=trained.params["own"],
            sum=core.weighted(change, data.size),
            metrics=trained.metrics,
        )

    def server_update(server, uploads, cohort, context):
        return server._replace(
            average=averaging.apply(server.average, uploads.total, server_optimizer)
        )

    def personalize(server, client, data, context):
        common, others = split(server.average.params)
        return join(add_own(common, client), others)

    return core.Algorithm(
        init_server=init_server,
        init_client=init_client,
        client_update=client_update,
        server_update=server_update,
        personalize=personalize,
    )
