"""PFL-DA: private bodies map the clients' inputs to features for one common head.

Server: the common head `g`, the initial body. Client: its body `b_k` and its head `h_k`.
Down: `g`. Up: the change of `g`, weighted by examples (`sum`).
Cost per client and round: one local training, and one of the client's head alone, which needs
another forward pass.

References:
  Shi, Kontar, "Personalized Federated Learning via Domain Adaptation with an Application to
  Distributed 3D Printing", 2023, https://par.nsf.gov/biblio/10404518.
"""

from __future__ import annotations

from typing import Annotated, NamedTuple

import optax

from pfljax import core
from pfljax.algorithms.fedper import fedper
from pfljax.algorithms.registry import checked
from pfljax.core import tree
from pfljax.core.params import join_params, split_params
from pfljax.ops import averaging


class PFLDAClient(NamedTuple):
    """Attributes:
    body: `b_k`, which maps inputs to features.
    head: `h_k`, which predicts from them.
    """

    body: core.Params
    head: core.Params


@checked
def pflda(
    task: core.Task,
    local: core.LocalTraining,
    *,
    lam: Annotated[float, core.at_least(0)] = 1.0,
    server_optimizer: optax.GradientTransformation = averaging.PLAIN,
) -> core.Algorithm:
    """Domain adaptation of the clients' inputs to a common head.

        h_k <- local training on L_k(b_k, h) + lam/2 ||h - g||^2 from h_k, the body fixed
        (b_k, g_k) <- local training on L_k(b, g) from (b_k, g)
        g <- g + server_optimizer(-sum_k n_k (g_k - g) / sum_k n_k)

    Args:
      task: The model and its loss.
      local: The clients' local training, the same for both steps.
      lam: Weight of the proximal term of `h_k`, 0.01 to 10; bodies and `g` do not depend on it.
      server_optimizer: As in FedAvg, for the common head.

    Returns:
      The method; a client deploys `(b_k, h_k)`. There is no global model.

    Notes:
      The rounds of `(b_k, g)` are FedPer's with body and head exchanged. We know the paper from its
      abstract and from PFLlib: the order of the steps and the default `lam` are PFLlib's, and the
      term is the squared distance. `h_k` starts as the `g` that the client first receives. The body
      has changed after `h_k` was trained when both are deployed. A frozen body keeps its running
      statistics.
    """
    exchanged = task._replace(is_head=task.is_body)
    together = fedper(exchanged, local, server_optimizer=server_optimizer)

    def init_client(server, profile, key):
        return PFLDAClient(together.init_client(server, profile, key), server.average.params)

    def client_update(server, client, data, context):
        common = server.average.params

        def objective(params, batch, key):
            head, _ = split_params(params, task.is_head)
            pull = lam / 2 * tree.squared_distance(head, common)
            return task.loss(params, batch, key) + pull

        tuned = core.train(
            objective,
            join_params(client.body, client.head),
            data,
            context.child(0),
            local,
            trainable=task.is_head,
        )
        output = together.client_update(server, client.body, data, context.child(1))
        head, _ = split_params(tuned.params, task.is_head)
        metrics = {**output.metrics, "head_loss": tuned.metrics["loss"]}
        return output._replace(state=PFLDAClient(output.state, head), metrics=metrics)

    return together._replace(
        init_client=init_client,
        client_update=client_update,
        personalize=lambda server, client, data, context: join_params(client.body, client.head),
    )
