"""FedPer: a common body and private heads, or more private layers, trained jointly.

Server: the body. Client: its head. Down: the body. Up: the body's change, weighted (`sum`).
Cost per client and round: one local training.

References:
  Arivazhagan, Aggarwal, Singh, Choudhary, "Federated Learning with Personalization Layers", 2019,
  https://arxiv.org/abs/1912.00818.
"""

from __future__ import annotations

from typing import NamedTuple

import optax

from pfljax import core
from pfljax.algorithms.registry import checked
from pfljax.core import tree
from pfljax.core.params import in_layers, join_params, split_params
from pfljax.errors import UserError
from pfljax.ops import averaging


class BodyServer(NamedTuple):
    """Server state.

    Attributes:
      average: The common body and its optimizer's state.
      initial_head: The initial head of clients, which never changes.
    """

    average: averaging.ServerState
    initial_head: core.Params


@checked
def fedper(
    task: core.Task,
    local: core.LocalTraining,
    *,
    private: str = "",
    server_optimizer: optax.GradientTransformation = averaging.PLAIN,
) -> core.Algorithm:
    """Personal heads on a common body.

        (body_k, h_k) <- local training from (body, h_k) on L_k
        body <- body + server_optimizer(-sum_k n_k (body_k - body) / sum_k n_k)

    Args:
      task: The model and its loss.
      local: The clients' local training.
      private: Layers that are private beside the head, separated by commas, such as 'Dense_1' or,
        for all layers of a name, 'Attention'; '' for the head alone.
      server_optimizer: As in FedAvg, for the body.

    Returns:
      The method; a client's state is its head. There is no global model.

    Raises:
      UserError: The model has no layer of a name in `private`, or no layer that is not private.

    Notes:
      Layers in `private` belong to the head, and not to the body, in all of the above; the paper
      calls them personalization layers, and takes the last ones of a network.
      Running statistics belong to the body or head of their layer; those of the body are averaged,
      and not changed by the server optimizer.
    """
    server_optimizer = averaging.of_trainable(server_optimizer, task)
    task = with_private_layers(task, private, "hparams.fedper.private")

    def init_server(population, key):
        head, body = split_params(task.init(key), task.is_head)
        return BodyServer(averaging.init(body, server_optimizer), head)

    def init_client(server, profile, key):
        return server.initial_head

    def client_update(server, client, data, context):
        body = server.average.params
        trained = core.train(task.loss, join_params(body, client), data, context, local)
        new_head, new_body = split_params(trained.params, task.is_head)
        change = core.weighted(tree.subtract(new_body, body), data.size)
        return core.ClientOutput(state=new_head, sum=change, metrics=trained.metrics)

    def server_update(server, uploads, cohort, context):
        return server._replace(
            average=averaging.apply(server.average, uploads.total, server_optimizer)
        )

    return core.Algorithm(
        init_server=init_server,
        init_client=init_client,
        client_update=client_update,
        server_update=server_update,
        personalize=lambda server, client, data, context: join_params(
            server.average.params, client
        ),
    )


def with_private_layers(task: core.Task, layers: str, key: str) -> core.Task:
    """Returns the task with listed layers in its head.

    Args:
      task: The model.
      layers: Names of layers, separated by commas, see `core.params.in_layers`; '' for none.
      key: The key of the config that lists them, for error messages.

    Raises:
      UserError: The model has no layer of a name, or no layer is left for the body.
    """
    names = [name.strip() for name in layers.split(",") if name.strip()]
    for name in names:
        if not any(in_layers([name])((*path, "")) for path in task.layers):
            known = ", ".join(sorted({part for path in task.layers for part in path}))
            raise UserError(
                f"{key} lists {name!r}, which is no layer of the model; list names among {known}."
            )
    is_listed = in_layers(names)
    if names and all(task.is_head(path) or is_listed((*path, "")) for path in task.layers):
        raise UserError(
            f"{key} leaves no layer to share, as it lists all beside the head; list fewer, or use "
            "the method local."
        )
    return task._replace(is_head=lambda path: task.is_head(path) or is_listed(path))
