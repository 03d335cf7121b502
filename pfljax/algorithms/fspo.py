"""FSPO: a common model that reads some labelled examples of a client before it predicts.

Server: the model and the reader. Client: nothing.
Down: model and reader. Up: their changes, weighted by examples (`sum`).
Cost per client and round: one local training; per evaluation a pass over the labelled examples.

References:
  Singh, Hsu, Hsu, Mitchell, Ermon, Hashimoto, Sharma, Finn, "FSPO: Few-Shot Preference Optimization
  of Synthetic Preference Data in LLMs Elicits Effective Personalization to Real Users", 2025,
  https://arxiv.org/abs/2502.19312.
"""

from __future__ import annotations

from typing import Annotated

import jax
import jax.numpy as jnp
import optax

from pfljax import core
from pfljax.algorithms.fedavg import fedavg
from pfljax.algorithms.perfedavg import part
from pfljax.algorithms.registry import checked
from pfljax.core import tree
from pfljax.ops import averaging, losses


@checked
def fspo(
    task: core.Task,
    local: core.LocalTraining,
    *,
    width: Annotated[int, core.at_least(1)] = 16,
    scale: Annotated[float, core.at_least(0)] = 1.0,
    shots: Annotated[int, core.at_least(0)] = 0,
    weight_by_size: bool = True,
    server_optimizer: optax.GradientTransformation = averaging.PLAIN,
) -> core.Algorithm:
    """Meta-learning of how labelled examples of a client change its predictions.

        M(c) = mean_{i in c} (K z_i) s_i^T,   s_i = -dL(f(x_i), y_i) / df(x_i),   z = body(x)
        f(x | c) = f(x) + scale (Q z)^T M(c)
        (theta, K, Q) <- local training on the loss of f(. | b1) on b2, a batch in parts b1, b2
        (theta, K, Q) <- weighted average of the clients'

    Args:
      task: The model and its loss; for a preference, `s` is positive for the preferred answer.
      local: The clients' local training; half of a batch is read, and the other half predicted.
      width: Number of rows of `K` and `Q`, 4 to 64.
      scale: Factor on what is read, 0.1 to 10; 0 is FedAvg on `b2`.
      shots: Number of labelled examples that a client's deployed model has read, drawn at random
        from its training examples once; 0 for all of them.
      weight_by_size: Whether to average with weights `n_k`; False averages uniformly.
      server_optimizer: As in FedAvg, for model and reader together.

    Returns:
      The method; its server state is FedAvg's. A client deploys the common model, `Q` and `M` of
      its labelled examples. There is no global model.

    Notes:
      The paper fine-tunes a language model on texts of 4 or 8 labelled pairs and a new pair, with
      the loss of IPO. Here the network reads by one linear attention over the labelled examples, so
      that any number of them is a matrix of constant size; the values are the gradients of the
      loss, so that the method fits every task whose loss follows from the outputs, and its first
      step is that of Per-FedAvg on the head where `K^T Q` is the identity. The loss is the task's,
      IPO with `config.preference.loss=ipo`; there is no description of the user, and no training of
      the preferred answers before. `Q` starts at zero. A single example is predicted without
      labelled ones. Batch normalization is refused: the two parts have statistics of their own.
    """

    def init_server(population, key):
        params = task.init(key)
        shape, dtype = (task.num_features, width), tree.dtype(params)
        keys = jax.random.normal(jax.random.fold_in(key, 1), shape, dtype)
        reader = {"key": keys / jnp.sqrt(task.num_features), "query": jnp.zeros(shape, dtype)}
        return averaging.init({"model": params, **reader}, server_optimizer)

    def read(params, batch, key=None):
        """Returns the sum `[width, outputs]` of M over the real examples of a batch."""
        mode = () if key is None else (batch.mask, key)
        features = task.features(params["model"], batch.inputs, *mode)
        outputs = task.head(params["model"], features, *mode)

        def total(outputs):
            return jnp.sum(jnp.where(batch.mask, task.output_losses(outputs, batch), 0))

        labels = -jax.grad(total)(outputs)
        return (features @ params["key"]).T @ labels.reshape(len(labels), -1)

    def predict_with(params, memory, inputs, *mode):
        features = task.features(params["model"], inputs, *mode)
        outputs = task.head(params["model"], features, *mode)
        return outputs + scale * (features @ params["query"] @ memory).reshape(outputs.shape)

    def objective(params, batch, key):
        labelled, new = part(batch, 0, 2), part(batch, 1, 2)
        label_key, new_key = jax.random.split(key)
        count = jnp.maximum(jnp.sum(labelled.mask), 1)
        memory = read(params, labelled, label_key) / count
        outputs = predict_with(params, memory, new.inputs, new.mask, new_key)
        return losses.of_outputs(task, outputs, new)

    def client_update(server, client, data, context):
        trained = core.train(objective, server.params, data, context, local)
        change = tree.subtract(trained.params, server.params)
        total = core.weighted(change, data.weight(weight_by_size))
        return core.ClientOutput(state=client, sum=total, metrics=trained.metrics)

    def personalize(server, client, data, context):
        few = data.shuffled(context.client_key).rows(0, jnp.minimum(data.size, shots))
        labelled = few if shots else data
        nothing = jnp.zeros_like(read(server.params, data.take(jnp.zeros(1, jnp.int32))))

        def add(total, batch, key):
            return total + read(server.params, batch)

        total = core.for_each_batch(add, nothing, labelled, context, local.one_pass())
        model = {name: server.params[name] for name in ("model", "query")}
        return {**model, "memory": total / jnp.maximum(labelled.size, 1)}

    def predict(params, inputs, key):
        return predict_with(params, params["memory"], inputs)

    average = fedavg(task, local, server_optimizer=server_optimizer)
    return average._replace(
        init_server=init_server,
        client_update=client_update,
        personalize=personalize,
        predict=predict,
        global_params=None,
    )
