"""FedMD: private models that learn from the mean of all clients' outputs on public examples.

Server: the initial model, the mean logits on some public examples, and which these are; it also
holds the public examples with their labels. Client: its model.
Down: the mean logits, the next public examples. Up: the logits on these, weighted equally (`sum`).
Cost per client and round: one local training, `digest_epochs` over the public examples, and a pass
over them without gradients.

References:
  Li, Wang, "FedMD: Heterogenous Federated Learning via Model Distillation", 2019,
  https://arxiv.org/abs/1910.03581 (algorithm 1).
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp

from pfljax import core
from pfljax.algorithms.registry import checked
from pfljax.ops import per_example


class FedMDServer(NamedTuple):
    """Server state; `m` public examples are scored in a round.

    Attributes:
      initial_params: The initial model of clients, trained on the public examples; constant.
      scores: `[m, C]`, the mean logits of the last cohort; zeros before the first round.
      rows: `[m]` int32, the public examples to which `scores` belong.
      next_rows: `[m]` int32, the public examples that the clients score in the coming round.
      has_scores: `[]` bool, whether a cohort has scored.
    """

    initial_params: core.Params
    scores: jax.Array
    rows: jax.Array
    next_rows: jax.Array
    has_scores: jax.Array


@checked
def fedmd(
    task: core.Task,
    local: core.LocalTraining,
    *,
    public_epochs: Annotated[int, core.at_least(0)] = 20,
    digest_epochs: Annotated[int, core.at_least(0)] = 1,
    digest_batch: Annotated[int, core.at_least(1)] = 256,
    scored_examples: Annotated[int, core.at_least(1)] = 5000,
    server_data: core.ClientData | None = None,
) -> core.Algorithm:
    """Distillation between private models, by their outputs on public examples.

        theta_0 = public_epochs of training on the loss of the public examples
        theta_k <- digest_epochs of training on mean_j |f(x_j, theta) - s_j| / C,   from theta_k
        theta_k <- local training on L_k;   s_j <- mean_k f(x_j, theta_k) for the next examples j

    Args:
      task: The model and its loss, for classification.
      local: The clients' local training; its optimizer is also that of public examples.
      public_epochs: Number of epochs on the public examples before the first round, 0 to 50.
      digest_epochs: Number of epochs in which a client learns the mean logits, 1 to 5; 0 is local
        training, from the model trained on public examples.
      digest_batch: Number of public examples in a step of these epochs.
      scored_examples: Number of random public examples that are scored in a round, at most; 100 to
        5,000.
      server_data: The public examples, with labels of the same classes as the clients'.

    Returns:
      The method; a client's state is its model. There is no global model.

    Notes:
      The paper scores at the beginning of a round with the models of its end; here clients score at
      the end of a round what the next cohort learns, which is the same with all clients in every
      round. In its first round a client trains locally, as no scores exist; the paper first trains
      it until convergence. The paper's clients have architectures of their own, which
      `config.architectures` gives them here, and each trains its model on the public examples,
      where here the server trains one for each architecture. Public examples have the classes of
      the clients. The mean absolute error of logits is that of the authors' code, as are the
      default numbers, with up to 20 `public_epochs` and early stopping there. Batch normalization
      is in training mode on public examples too, and uses running statistics in scores.
    """
    public_batches = local._replace(
        batch_size=digest_batch, epochs=digest_epochs, num_steps=0, drop_remainder=False
    )

    def some(rows):
        """Returns a view of the public examples `rows` `[m]`."""
        size = jnp.minimum(server_data.size, rows.shape[0])
        return dataclasses.replace(server_data, order=rows, size=size, max_size=rows.shape[0])

    def draw_rows(key):
        count = min(scored_examples, server_data.max_size)
        return server_data.shuffled(key).order[:count]

    def init_server(population, key):
        context = core.Context(jax.random.fold_in(key, 1), jnp.int32(0), jnp.int32(1))
        public = core.train(
            task.loss, task.init(key), server_data, context, local.for_epochs(public_epochs)
        )
        rows = draw_rows(jax.random.fold_in(key, 2))
        logits = jax.eval_shape(task.predict, public.params, server_data.take(rows).inputs)
        scores = jnp.zeros(logits.shape, logits.dtype)
        return FedMDServer(public.params, scores, rows, rows, jnp.zeros((), bool))

    def gap(params, batch, key):
        logits = task.predict(params, batch.inputs, batch.mask, key)
        return core.mean_over(jnp.mean(jnp.abs(logits - batch.targets), axis=-1), batch.mask)

    def client_update(server, client, data, context):
        taught = per_example.with_targets(some(server.rows), server.scores)
        epochs = jnp.where(server.has_scores, digest_epochs, 0)
        digested = core.train(gap, client, taught, context.child(0), public_batches, epochs=epochs)
        trained = core.train(task.loss, digested.params, data, context.child(1), local)

        def rows(batch):
            return task.predict(trained.params, batch.inputs)

        scores = per_example.collect(rows, some(server.next_rows), context.child(2), public_batches)
        scores = scores[: server.next_rows.shape[0]]
        return core.ClientOutput(
            state=trained.params, sum=core.weighted(scores, 1.0), metrics=trained.metrics
        )

    def server_update(server, uploads, cohort, context):
        return server._replace(
            scores=core.mean(uploads.total),
            rows=server.next_rows,
            next_rows=draw_rows(context.key),
            has_scores=jnp.ones((), bool),
        )

    return core.Algorithm(
        init_server=init_server,
        init_client=lambda server, profile, key: server.initial_params,
        client_update=client_update,
        server_update=server_update,
        personalize=lambda server, client, data, context: client,
    )
