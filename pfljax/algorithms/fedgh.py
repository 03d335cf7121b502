"""FedGH: private bodies under a common head, which the server trains on class means of features.

Server: the head. Client: its body. Down: the head. Up: the mean feature of each class (`each`).
Cost per client and round: one local training and a pass without gradients; `C (d + 1)` numbers up.

References:
  Yi, Wang, Liu, Shi, Yu, "FedGH: Heterogeneous Federated Learning with Generalized Global Header",
  2023, https://arxiv.org/abs/2303.13137 (algorithm 1).
"""

from __future__ import annotations

from typing import Annotated, NamedTuple

import jax.numpy as jnp
import optax

from pfljax import core
from pfljax.algorithms.registry import checked
from pfljax.core import tree
from pfljax.core.params import join_params, split_params
from pfljax.ops import prototypes
from pfljax.ops.losses import cross_entropy


class FedGHServer(NamedTuple):
    """Server state.

    Attributes:
      head: The common head.
      initial_body: The initial body of clients, which never changes.
    """

    head: core.Params
    initial_body: core.Params


def as_examples(each: prototypes.Prototypes, cohort: core.Cohort) -> core.ClientData:
    """Returns the class means of a cohort as examples, in the order of clients and classes.

    Args:
      each: The class means `[cohort, C, d]`, and `[cohort, C]` bool, which of them exist.
      cohort: The clients of the round.

    Returns:
      A view whose size is the number of existing means; its targets are their classes.
    """
    clients, classes, _ = each.means.shape
    real = (each.seen & (cohort.ids >= 0)[:, None]).ravel()
    targets = jnp.tile(jnp.arange(classes, dtype=jnp.int32), clients)
    owners = jnp.repeat(cohort.ids, classes)
    return core.ClientData(
        inputs=each.means.reshape(clients * classes, -1),
        targets=targets,
        offset=jnp.int32(0),
        size=jnp.sum(real, dtype=jnp.int32),
        class_counts=None,
        max_size=clients * classes,
        order=jnp.lexsort((targets, owners, ~real)).astype(jnp.int32),
    )


@checked
def fedgh(
    task: core.Task,
    local: core.LocalTraining,
    *,
    server_rate: Annotated[float, core.at_least(0)] = 0.01,
    server_batch: Annotated[int, core.at_least(1)] = 1,
    server_epochs: Annotated[int, core.at_least(1)] = 1,
) -> core.Algorithm:
    """Private bodies, and a common head that is trained on their features.

        (body_k, h_k) <- local training from (body_k, h) on L_k;   h_k is discarded
        R_kc = mean(body_k(x_i): y_i = c)
        h <- server_epochs of SGD on CE(h(R_kc), c) over the cohort's clients k and their classes c

    Args:
      task: The model and its loss, for classification; the server uses the cross-entropy.
      local: The clients' local training.
      server_rate: Learning rate of the head at the server, 0.01 to 1; 0 keeps the initial head.
      server_batch: Number of class means in a step of the server.
      server_epochs: Number of passes of the server over the class means.

    Returns:
      The method; a client's state is its body, which it deploys under the common head. There is no
      global model.

    Notes:
      All bodies of one network start from the same params; `config.architectures` gives clients
      different networks with features of one width, as in the paper. The order of the class means
      is random, unless `local` keeps the stored order. In the authors' code the optimizer does not
      hold the params of the server's head, so that the head is never trained. PFLlib uses the
      clients' batch size and a rate of 1; its server starts every round from the head that the
      first client has trained, as both are one object.
    """

    def init_server(population, key):
        head, body = split_params(task.init(key), task.is_head)
        return FedGHServer(head, body)

    def client_update(server, client, data, context):
        start = join_params(client, server.head)
        trained = core.train(task.loss, start, data, context.child(0), local)
        dtype = tree.dtype(start)
        none = prototypes.none(task.num_classes, task.num_features, dtype)
        total, _ = prototypes.of_client(
            task, trained.params, none, data, context.child(1), local.for_epochs(1)
        )
        return core.ClientOutput(
            state=split_params(trained.params, task.is_head)[1],
            each=prototypes.Prototypes(total.means, total.counts > 0),
            metrics=trained.metrics,
        )

    def server_update(server, uploads, cohort, context):
        def objective(head, batch, key):
            params = join_params(server.initial_body, head)
            outputs = task.head(params, batch.inputs, batch.mask, key)
            return cross_entropy(outputs, batch)

        settings = core.LocalTraining(
            optax.sgd(server_rate),
            batch_size=server_batch,
            epochs=server_epochs,
            shuffle=local.shuffle,
        )
        means = as_examples(uploads.each, cohort)
        trained = core.train(objective, server.head, means, context, settings)
        return server._replace(head=trained.params)

    return core.Algorithm(
        init_server=init_server,
        init_client=lambda server, profile, key: server.initial_body,
        client_update=client_update,
        server_update=server_update,
        personalize=lambda server, client, data, context: join_params(client, server.head),
    )
