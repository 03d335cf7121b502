"""pFedGate: a private gate selects and scales blocks of the common model, within a budget.

Server: FedAvg's. Client: its gate `h_k`, a small network with running statistics.
Down: `w`. Up: the change of the blocks that were selected in the round, weighted by examples
(`sum`). The metric `upload_bytes` counts these blocks; the download is counted as the whole model.
Cost per client and round: one local training, with the gate and a sorting of its scores in every
step; per evaluation a pass of the gate over all examples. No product is smaller for the weights
that are zero.

References:
  Chen, Yao, Gao, Ding, Li, "Efficient Personalized Federated Learning via Sparse Model-Adaptation",
  2023, https://arxiv.org/abs/2305.02776.
"""

from __future__ import annotations

from typing import Annotated

import jax
import jax.numpy as jnp
import optax

from pfljax import core
from pfljax.aggregation import messages
from pfljax.algorithms.fedavg import fedavg
from pfljax.algorithms.registry import checked
from pfljax.core import tree
from pfljax.ops import averaging, gates


@checked
def pfedgate(
    task: core.Task,
    local: core.LocalTraining,
    *,
    density: Annotated[float, core.above(0, 1)] = 0.5,
    blocks: Annotated[int, core.at_least(1)] = 5,
    rate_factor: Annotated[float, core.at_least(0)] = 1.0,
    released: bool = False,
    server_optimizer: optax.GradientTransformation = averaging.PLAIN,
) -> core.Algorithm:
    """Sparse personalized models, of blocks that a gate selects by the inputs.

        t = mean_i h_k(x_i) over a batch;   g = max(t, floor)
        m = 1 for the blocks of the largest g, up to `density` of the weights, else 0
        theta = w t (m + g - [g]) block by block,   [g] constant
        floor = min(max(1 / blocks, 0.1), density)
        (w_k, h_k) <- local training from (w, h_k) on L_k(theta);   w as in FedAvg
        deployed: the same theta, with the mean over all training examples for t

    Args:
      task: The model and its loss, on inputs that are one array of numbers.
      local: The clients' local training of model and gate; they have separate optimizers.
      density: Fraction of the weights that are kept, of dense layers and of all other arrays, 0.25
        to 1 (paper: 0.25, 0.3, 0.5, 1); 1 keeps all blocks. One block of each array is always kept.
      blocks: Number of blocks of an array, 2 to 20 (authors' code: 5).
      rate_factor: Learning rate of the gate, as a factor of the clients' rate, 0.1 to 10 (the paper
        tunes both rates); 0 keeps the initial gates.
      released: Whether to follow the authors' code: blocks other than the first of each array fill
        `density - floor` of their weights, blocks that are not selected have no gradient, and a
        client deploys, for each batch, the blocks that its inputs select. Then the score depends on
        the size and the order of the batches.
      server_optimizer: As in FedAvg.

    Returns:
      The method; a client's state is its gate, which it never sends. There is no global model.

    Notes:
      The knapsack is solved greedily by scores rounded to tenths, with a budget for dense layers
      and one for all others, as in the authors' code, in which equal scores have no fixed order.
      One layer gives both `t` and `g`; separate ones, and turns of gate and model, are options of
      the code that are omitted here. It clips the gradients of gate and model at a norm of 10 each,
      an option of the clients' optimizer here. The average is over the cohort; the code has all
      clients in it, absent ones with the models of their last training. Running statistics of the
      model are never gated. An input without an axis of channels is one channel.
    """
    layout = gates.divide(task, blocks)
    average = fedavg(task, local, server_optimizer=server_optimizer)
    floor = jnp.minimum(max(1 / blocks, 0.1), density)
    if released:
        budget = gates.budget_of_others(layout, density - floor)
    else:
        budget = gates.budget(layout, density)
    optimizer = optax.partition(
        {"model": local.optimizer, "gate": optax.chain(local.optimizer, optax.scale(rate_factor))},
        {"model": "model", "gate": "gate"},
    )

    def gated(model, raw):
        """Returns the model whose blocks have the scores `raw` `[L]`, and which it keeps."""
        score = jnp.where(raw >= floor, raw, floor.astype(raw.dtype))
        kept = gates.keep(layout, jax.lax.stop_gradient(score), budget)
        factors = raw * (kept + score - jax.lax.stop_gradient(score))
        if released:
            factors = jnp.where(kept, factors, 0)
        return gates.multiply(layout, factors, model), kept

    def of_batch(models, inputs, mask, in_training):
        """Returns the model for the inputs of a batch, and the blocks that it keeps."""
        inputs = task.standardize(models["model"], inputs)
        rows = gates.scores(models["gate"], inputs, mask if in_training else None)
        total = jnp.sum(rows * mask[:, None], axis=0)
        return gated(models["model"], gates.mean_scores(models["gate"], total, jnp.sum(mask)))

    def observe(models, batch):
        inputs = task.standardize(models["model"], batch.inputs)
        seen = {"gate": gates.observe(models["gate"], inputs, batch.mask)}
        if local.observe is not None:
            model, _ = of_batch(models, batch.inputs, batch.mask, in_training=True)
            seen["model"] = local.observe(model, batch)
        return seen

    def init_client(server, profile, key):
        dtype = tree.dtype(server.params)
        return gates.init(key, task.input_shape, layout.num_blocks, dtype)

    def client_update(server, client, data, context):
        def objective(models, batch, key):
            model, kept = of_batch(models, batch.inputs, batch.mask, in_training=True)
            return task.loss(model, batch, key), kept

        def gradient(models, carry, batch, key):
            selected, kept_weights, steps = carry
            (loss, kept), slope = jax.value_and_grad(objective, has_aux=True)(models, batch, key)
            kept_weights += jnp.sum(kept * layout.sizes) / layout.num_weights
            return loss, slope, (selected | kept, kept_weights, steps + 1)

        zero = jnp.zeros((), jnp.result_type(float))
        trained = core.descend(
            gradient,
            {"model": server.params, "gate": client},
            (jnp.zeros(layout.num_blocks, bool), zero, zero),
            data,
            context,
            local._replace(observe=observe),
            optimizer=optimizer,
        )
        selected, kept_weights, steps = trained.carry
        change = tree.subtract(trained.params["model"], server.params)
        upload = core.weighted(gates.multiply(layout, selected, change), data.size)
        kept_share = core.weighted(kept_weights / jnp.maximum(steps, 1), steps > 0)
        size = messages.size(upload, ())
        return core.ClientOutput(
            state=trained.params["gate"],
            sum=upload,
            metrics={**trained.metrics, "kept": kept_share},
            size=size._replace(
                numbers=size.numbers - jnp.sum(jnp.where(selected, 0, layout.sizes)),
                other_bits=size.other_bits + layout.num_blocks,  # which blocks these are
            ),
        )

    def personalize(server, client, data, context):
        if released:
            return {"model": server.params, "gate": client}

        def add(total, batch, key):
            inputs = task.standardize(server.params, batch.inputs)
            return total + jnp.sum(gates.scores(client, inputs) * batch.mask[:, None], axis=0)

        nothing = jnp.zeros_like(client["bn"]["bias"])
        total = core.for_each_batch(add, nothing, data, context, local.one_pass())
        return gated(server.params, gates.mean_scores(client, total, data.size))[0]

    def adapt(params, inputs, mask):
        return of_batch(params, inputs, mask, in_training=False)[0]

    return average._replace(
        init_client=init_client,
        client_update=client_update,
        personalize=personalize,
        adapt=adapt if released else None,
        global_params=None,
    )
