"""Ranking: the chosen item before items that were not chosen."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from pfljax.core import Task
from pfljax.metrics.ranking import gains, hits, num_ahead
from pfljax.models.model import Model
from pfljax.tasks.from_network import from_network
from pfljax.tasks.items import of_items, require_no_statistics


def ranking(model: Model) -> Task:
    """Returns the task of ranking the item that was chosen before others that were not.

        L(theta, batch) = mean over real examples and others k of
            -log sigmoid(f_theta(x_0) - f_theta(x_k))

    An example is `[1 + K, ...]`: the chosen item first, then K others. Targets are not read.
    Where r of the others are ranked before the chosen item, equal ones counting half, the metrics
    are: ndcg (the score), 1 / log2(2 + r) if r < 10 and else 0; hit, whether r < 10; auc,
    1 - r / K; loss.

    Args:
      model: Network with one output, of a single item.

    Returns:
      The task.

    Raises:
      UserError: The network has batch normalization.

    References:
      Rendle, Freudenthaler, Gantner, Schmidt-Thieme, "BPR: Bayesian Personalized Ranking from
      Implicit Feedback", 2009, https://arxiv.org/abs/1205.2618.
      He, Liao, Zhang, Nie, Hu, Chua, "Neural Collaborative Filtering", 2017,
      https://arxiv.org/abs/1708.05031 (one chosen item among others).
    """
    require_no_statistics(model, "A ranking")

    def head(params, features, mask=None, key=None):
        return of_items(model.head)(params, features, mask, key)[..., 0]

    def losses(scores, batch):
        return jnp.mean(jax.nn.softplus(scores[:, 1:] - scores[:, :1]), axis=-1)

    def metrics(scores, batch):
        ahead = num_ahead(scores)
        of_examples = {
            "ndcg": gains(ahead),
            "hit": hits(ahead),
            "auc": 1 - ahead / (scores.shape[1] - 1),
            "loss": losses(scores, batch),
        }
        return {name: jnp.sum(value * batch.mask) for name, value in of_examples.items()}

    items = model._replace(features=of_items(model.features), head=head, num_features=0)
    return from_network(items, losses, metrics, score="ndcg")
