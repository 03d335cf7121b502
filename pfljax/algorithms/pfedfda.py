"""pFedFDA: a common body, and classifiers from normal distributions of the features of each class.

Server: the body, the distributions `G` of the features, the initial head, which is not trained.
Client: nothing.
Down: the body, `G`. Up: the body's change and the client's distributions, weighted by examples
(`sum`).
Cost per client and round: one local training of the body, a pass without gradients, two eigenvalue
decompositions of `d x d` matrices; per evaluation the pass and three decompositions.

References:
  McLaughlin, Su, "Personalized Federated Learning via Feature Distribution Adaptation", 2024,
  https://arxiv.org/abs/2411.00329.
"""

from __future__ import annotations

from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import optax

from pfljax import core
from pfljax.algorithms.fedper import fedper
from pfljax.algorithms.registry import checked
from pfljax.core import tree
from pfljax.core.params import join_params, split_params
from pfljax.ops import averaging, gaussians, linear, per_example

# Added to the fraction of each class, of which the logarithm is taken.
_LEAST_FRACTION = 1e-4


class PFedFDAServer(NamedTuple):
    """Server state.

    Attributes:
      average: The body and its optimizer's state.
      initial_head: The head of the model, in place of which the classifiers are used; constant.
      gaussians: The distributions `G`: the mean `[C, d]` of each class, the covariance `[d, d]`.
    """

    average: averaging.ServerState
    initial_head: core.Params
    gaussians: gaussians.Gaussians


@checked
def pfedfda(
    task: core.Task,
    local: core.LocalTraining,
    *,
    single_beta: bool = False,
    least_examples: Annotated[int, core.at_least(1)] = 3,
    ridge: Annotated[float, core.above(0)] = 0.1,
    server_optimizer: optax.GradientTransformation = averaging.PLAIN,
) -> core.Algorithm:
    """Generative classifiers that interpolate between a client's features and all clients'.

        h(G)(z) = (z^T S^-1 m_c - m_c^T S^-1 m_c / 2 + log p_kc)_c,   G = (m, S)
        body_k = local training on the cross-entropy of h(G), which is fixed
        F_k = the class means and the covariance of the client's features by body_k
        G_k = beta_k F_k + (1 - beta_k) G,   beta_k the best in cross-validation with two folds
        body <- body + server_optimizer(-sum_k n_k (body_k - body) / sum_k n_k)
        G <- sum_k n_k G_k / sum_k n_k;   deployed: h(G_k) of the new body and the new G

    Args:
      task: The model and its loss, for classification; only its features are used.
      local: The clients' local training of the body.
      single_beta: Whether means and covariance have the same `beta_k`; False chooses two.
      least_examples: Number of examples from which on a class of a client has its own mean, 1 to
        10; a class with fewer takes that of `G`.
      ridge: Multiple of the identity that is added to the client's covariance, 0.01 to 1.
      server_optimizer: As in FedAvg, for the body.

    Returns:
      The method; clients have no state. A client deploys the body and a linear classifier of its
      features. There is no global model.

    Notes:
      The authors' code adds an identity and 0.0001 in every entry to the covariance, where 0.0001
      times the identity may have been meant; the default of `ridge` is ours, between the two
      (`docs/departures.md`), and wants to be tuned. The weights are found by ten damped
      Newton steps from 1/2; the code takes at most ten of L-BFGS. There, features are collected in
      all local steps, by the body before each step and in training mode, folds are random, and all
      clients take part in the last round. From that code are: a mean from three examples on,
      uniform initial means in [0, 1] and the identity as initial covariance, class fractions raised
      by 0.0001, and covariances shrunk by 0.0001. Here folds take the examples of a class in turn,
      without classes of one example. Batch normalization is in training mode in local training, and
      uses running statistics in the features of distributions.
    """
    together = fedper(task, local, server_optimizer=server_optimizer)
    server_optimizer = averaging.of_trainable(server_optimizer, task)

    def init_server(population, key):
        start = together.init_server(population, key)
        size, dtype = task.num_features, tree.dtype(start.average.params)
        means = jax.random.uniform(jax.random.fold_in(key, 1), (task.num_classes, size), dtype)
        initial = gaussians.Gaussians(means, jnp.eye(size, dtype=dtype))
        return PFedFDAServer(start.average, start.initial_head, initial)

    def log_priors_of(data, common):
        return jnp.log(core.shares(data.class_counts, common.means.dtype) + _LEAST_FRACTION)

    def adapted(model, data, context, common):
        """Returns `G_k`, with features of `model`."""

        def rows(batch):
            return task.features(model, batch.inputs), batch.targets, batch.mask

        sample = gaussians.Sample(*per_example.collect(rows, data, context, local))
        rule = (least_examples, ridge, single_beta)
        return gaussians.adapt(sample, common, log_priors_of(data, common), *rule)

    def client_update(server, client, data, context):
        body, common = server.average.params, server.gaussians
        head = gaussians.classifier(common, log_priors_of(data, common))

        def objective(model, batch, key):
            features = task.features(model, batch.inputs, batch.mask, key)
            logits = linear.apply(head, features)
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.targets)
            return core.mean_over(losses, batch.mask)

        start = join_params(body, server.initial_head)
        trained = core.train(
            objective, start, data, context.child(0), local, trainable=task.is_body
        )
        _, new_body = split_params(trained.params, task.is_head)
        own = adapted(trained.params, data, context.child(1), common)
        change = core.weighted(tree.subtract(new_body, body), data.size)
        total = (change, core.weighted(own, data.size))
        return core.ClientOutput(state=client, sum=total, metrics=trained.metrics)

    def server_update(server, uploads, cohort, context):
        change, total = uploads.total
        average = averaging.apply(server.average, change, server_optimizer)
        mean = tree.where(total.weight > 0, core.mean(total), server.gaussians)
        return server._replace(average=average, gaussians=mean)

    def personalize(server, client, data, context):
        model, common = join_params(server.average.params, server.initial_head), server.gaussians
        own = adapted(model, data, context, common)
        return {"model": model, "head": gaussians.classifier(own, log_priors_of(data, common))}

    def predict(params, inputs, key):
        return linear.apply(params["head"], task.features(params["model"], inputs))

    return together._replace(
        init_server=init_server,
        init_client=lambda server, profile, key: (),
        client_update=client_update,
        server_update=server_update,
        personalize=personalize,
        predict=predict,
    )
