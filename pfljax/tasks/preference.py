"""Preference: the chosen one of two answers."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from pfljax.core import Params, Task
from pfljax.core.params import split_params
from pfljax.errors import UserError
from pfljax.models.model import Model
from pfljax.ops.preference import LOSSES, wins
from pfljax.tasks.from_network import Statistic, from_network
from pfljax.tasks.items import of_items, require_no_statistics


def preference(
    model: Model,
    *,
    loss: str = "bradley_terry",
    beta: float | jax.Array = 0.1,
    smoothing: float | jax.Array = 0.1,
    reference: Params | None = None,
    mean: Statistic = 0.0,
    std: Statistic = 1.0,
) -> Task:
    """Returns the task of predicting which of two answers was chosen.

        m = f_theta(x_0) - f_theta(x_1) = <head, body(x_0) - body(x_1)>
        L(theta, batch) = mean over real examples of loss(m - m_reference)

    An example is `[2, ...]`, the chosen answer first. Targets are not read. Outputs are the
    margins `[B]`, and features the differences `[B, d]`, so that the outputs change their sign if
    the answers are swapped. Metrics: accuracy (the score), the fraction of positive margins, zero
    counting half; loss. With the loss 'bradley_terry' this is `ranking` with one other item.

    Args:
      model: Network with one output, of a single answer, and a linear head.
      loss: A key of `ops.preference.LOSSES`; outputs are the rewards of Bradley-Terry, and
        otherwise log-probabilities up to a constant.
      beta: Strength of the divergence to the reference, for 'dpo', 'cdpo' and 'ipo'.
      smoothing: Probability of a wrong label, for 'cdpo'.
      reference: Params of the reference, constant; arrays of adapters may be missing, which are
        then not applied. None for a reference with equal outputs for all answers.
      mean: Subtracted from the stored inputs, as in `from_network`.
      std: Divides the inputs after that.

    Returns:
      The task.

    Raises:
      UserError: The network has batch normalization, or its head is not one linear layer.
    """
    require_no_statistics(model, "A preference")
    shapes = jax.eval_shape(model.init, jax.eval_shape(jax.random.key, 0))
    head_arrays, _ = split_params(
        shapes, lambda path: model.is_head(path) and not model.is_adapter(path)
    )
    if {leaf.shape for leaf in jax.tree.leaves(head_arrays)} - {(1,)} != {(model.num_features, 1)}:
        raise UserError(
            "A preference needs a head that is one linear layer with one output; choose another "
            "model."
        )

    def features(params, inputs, mask=None, key=None):
        both = of_items(model.features)(params, inputs, mask, key)
        return both[:, 0] - both[:, 1]

    def head(params, differences, mask=None, key=None):
        # The bias of a linear head, which two answers have in common, is its output at zero.
        bias = model.head(params, jnp.zeros_like(differences[:1]), None, None)
        return (model.head(params, differences, mask, key) - bias)[..., 0]

    def losses(margins, batch):
        if reference is not None:
            given = jax.lax.stop_gradient(task.predict(reference, batch.inputs))
            margins = margins - given
        return LOSSES[loss](margins, beta, smoothing)

    def metrics(margins, batch):
        return {
            "accuracy": jnp.sum(jnp.where(batch.mask, wins(margins), 0)),
            "loss": jnp.sum(jnp.where(batch.mask, losses(margins, batch), 0)),
        }

    shape = (2, *model.input_shape) if model.input_shape else ()
    of_pair = model._replace(features=features, head=head, input_shape=shape)
    task = from_network(of_pair, losses, metrics, score="accuracy", mean=mean, std=std)
    return task
