"""pFedPG: the server generates each client's prompts from a descriptor of the client.

Server: the generator (common prompts and the matrices of a cross-attention) and a descriptor of
each client. Client: its head.
Down: the prompts `P_n`; never the generator, nor the frozen Transformer. Up: their change (`each`).
Cost per client and round: one local training of prompts and head, through the frozen Transformer.

References:
  Yang, Wang, Wang, "Efficient Model Personalization in Federated Learning via Client-Specific
  Prompt Generation", 2023, https://arxiv.org/abs/2308.15367.
"""

from __future__ import annotations

from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp

from pfljax import core
from pfljax.algorithms.registry import checked
from pfljax.core import tree
from pfljax.ops import hypernetwork, prompts, stacked


class PromptServer(NamedTuple):
    """Attributes:
    generator: the common prompts `[K, d]`, and three matrices `[d, d]`.
    descriptors: `[N, K, d]`.
    initial_head: the initial head of clients, which never changes.
    """

    generator: prompts.Generator
    descriptors: jax.Array
    initial_head: core.Params


@checked
def pfedpg(
    task: core.Task,
    local: core.LocalTraining,
    *,
    rate: Annotated[float, core.at_least(0)] = 1.0,
    spread: Annotated[float, core.at_least(0)] = 1.0,
) -> core.Algorithm:
    """Personal prompts out of one generator, and personal heads, on a frozen Transformer.

        P_n = P + softmax(d_n q (P k)^T / sqrt(d)) P v
        (P'_n, h_n) <- local training from (P_n, h_n) on L_n;   Delta_n = P'_n - P_n
        phi <- phi + rate / |S| sum_n (d P_n / d phi)^T Delta_n,   phi = (P, q, k, v)
        d_n <- d_n + rate / |S| (d P_n / d d_n)^T Delta_n          for n in the cohort S

    Args:
      task: The model, with prompts in a frozen Transformer, and its loss.
      local: The clients' local training, of prompts and head together.
      rate: Learning rate of generator and descriptors, 0.01 to 10; 1 moves the common prompts about
        as far as the mean of the clients' prompts moves.
      spread: Spread of the initial prompts around the common ones, relative to their scale, 0 to 2;
        with 0 all clients start with the same prompts.

    Returns:
      The method; a client's state is its head, with all else that is trained and is no prompt. A
      client deploys the prompts that the server now generates, with its head. There is no global
      model.

    Notes:
      The number of prompts belongs to the model: `config.adapter.length`, by default 10. We know
      the paper in part: the direction of the update and the cross-attention to common prompts; the
      residual form, one head of attention, and plain descent of the server are ours. There is no
      code of the authors; an unofficial one moves the generator against the clients' changes, and
      trains the clients' prompts without the generated ones. Prompts are inserted once, before the
      first block, and a client that never took part has the mean of the descriptors.
    """
    split, join = prompts.access(task)

    def init_server(population, key):
        model_key, generator_key, descriptor_key = jax.random.split(key, 3)
        base, head = split(task.init(model_key))
        shape = population.num_clients, *base.shape
        descriptors = jax.random.normal(descriptor_key, shape, base.dtype)
        return PromptServer(prompts.init(generator_key, base, spread), descriptors, head)

    def download(server, context):
        descriptors, number = server.descriptors, context.client_id
        seen = number < descriptors.shape[0]
        descriptor = jnp.where(seen, descriptors[number], jnp.mean(descriptors, axis=0))
        return prompts.generate(server.generator, descriptor)

    def client_update(received, client, data, context):
        trained = core.train(task.loss, join(received, client), data, context, local)
        own, head = split(trained.params)
        return core.ClientOutput(state=head, each=own - received, metrics=trained.metrics)

    def server_update(server, uploads, cohort, context):
        generator, descriptors = server.generator, server.descriptors
        known = descriptors[jnp.maximum(cohort.ids, 0)]
        # A padding slot has no change, and so no gradient.
        slope, slopes = hypernetwork.pull_back(
            generator, known, uploads.each, generate=prompts.generate
        )
        step = rate / jnp.maximum(cohort.count, 1)
        moved = tree.add_scale((generator, known), -step, (slope, slopes))
        return server._replace(
            generator=moved[0], descriptors=stacked.update_rows(descriptors, cohort, moved[1])
        )

    return core.Algorithm(
        init_server=init_server,
        init_client=lambda server, profile, key: server.initial_head,
        client_update=client_update,
        server_update=server_update,
        personalize=lambda server, client, data, context: join(download(server, context), client),
        download=download,
    )
