"""Local: every client trains alone, the baseline without federation.

Server: the initial model, which never changes. Client: its model `theta_k`.
Down and up: nothing. Cost per client and round: one local training.
"""

from __future__ import annotations

from pfljax import core
from pfljax.algorithms.registry import checked


@checked
def local(task: core.Task, local: core.LocalTraining) -> core.Algorithm:
    """Local training without communication.

        theta_k <- local training from theta_k on L_k

    All clients start from the same model. Only the clients of a round's cohort train in it, so
    that a comparison at partial participation gives every method the same work.

    Args:
      task: The model and its loss.
      local: The clients' local training.

    Returns:
      The method; its server state is the initial model, and a client's state is its model.
    """

    def init_server(population, key):
        return task.init(key)

    def init_client(server, profile, key):
        return server

    def client_update(server, client, data, context):
        trained = core.train(task.loss, client, data, context, local)
        return core.ClientOutput(state=trained.params, metrics=trained.metrics)

    def server_update(server, uploads, cohort, context):
        return server

    return core.Algorithm(
        init_server=init_server,
        init_client=init_client,
        client_update=client_update,
        server_update=server_update,
        personalize=lambda server, client, data, context: client,
    )
