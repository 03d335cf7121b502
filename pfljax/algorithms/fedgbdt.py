"""Federated GBDT: boosted trees of common splits, one level a round, from added histograms.

Server: the forest, the edges of the bins, the number of steps it has grown. Client: nothing.
Down: the forest and the edges. Up: for each node of the level, number of the inputs and bin the
sums of the loss's first and second derivatives (`sum`).
Cost per client and round: one pass through the forest, without a network; with trees of its own, a
pass for each of their levels per evaluation.

References:
  Granqvist, Song, Cahill, van Dalen, Pelikan, Chan, Feng, Krishnaswami, Jina, Chitnis,
  "pfl-research: Simulation Framework for Accelerating Research in Private Federated Learning",
  2024, https://arxiv.org/abs/2404.06430.
  Chen, Guestrin, "XGBoost: A Scalable Tree Boosting System", 2016,
  https://arxiv.org/abs/1603.02754 (splits and leaf values).
"""

from __future__ import annotations

import math
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp

from pfljax import core
from pfljax.algorithms.registry import checked
from pfljax.core import tree
from pfljax.ops import losses as losses_lib
from pfljax.ops import trees as trees_lib


class GBDTServer(NamedTuple):
    """Server state.

    Attributes:
      forest: The trees; those that are not grown yet have the values zero.
      edges: `[d, bins - 1]`, the edges of the bins.
      steps: `[]` int32, the number of rounds that have counted quantiles or grown a level.
    """

    forest: trees_lib.Forest
    edges: jax.Array
    steps: jax.Array


@checked
def fedgbdt(
    task: core.Task,
    local: core.LocalTraining,
    *,
    trees: Annotated[int, core.at_least(1)] = 30,
    depth: Annotated[int, core.at_least(1)] = 3,
    bins: Annotated[int, core.at_least(2)] = 16,
    rate: Annotated[float, core.above(0)] = 0.3,
    lam: Annotated[float, core.at_least(0)] = 1.0,
    min_child_weight: Annotated[float, core.at_least(0)] = 1.0,
    min_gain: Annotated[float, core.at_least(0)] = 0.0,
    limit: Annotated[float, core.above(0)] = 3.0,
    quantile_rounds: Annotated[int, core.at_least(0)] = 1,
    own_trees: Annotated[int, core.at_least(0)] = 0,
) -> core.Algorithm:
    """Gradient boosting of decision trees, which equals that of all clients' examples together.

        F(x) = sum over trees of the value of the leaf that x reaches, for each output
        G, H = sums over a node's examples of l'(F(x_i)) and l''(F(x_i)), F of the complete trees
        gain = (G_L^2 / (H_L + lam) + G_R^2 / (H_R + lam) - G^2 / (H + lam)) / 2
        every node of a level takes the feature and edge of the greatest gain above min_gain
        value = -rate G / (H + lam)

    Args:
      task: The inputs, standardized and flattened to `d` numbers, and the loss of its outputs. The
        network is not used.
      local: The clients' local training, for the batch size.
      trees: Number of trees for each output, 10 to 300, for which `trees * depth +
        quantile_rounds` rounds are needed; later rounds change nothing.
      depth: Number of levels, 2 to 6; a round grows one.
      bins: Number of bins for each of the `d` numbers, 16 to 256.
      rate: Learning rate of the trees, 0.05 to 0.5.
      lam: Regularization of the leaves' values, 0 to 10.
      min_child_weight: The least `H` of a node, 0 to 10.
      min_gain: The gain that a split must exceed, 0 to 1.
      limit: The bins before the first round are of one width between `-limit` and `limit`, in
        standard deviations if the data set has these; the outer bins hold all beyond.
      quantile_rounds: Number of rounds before the first tree that move the edges of the bins to the
        quantiles of the inputs, 0 to 3; 0 keeps bins of one width.
      own_trees: Number of trees for each output that a client adds itself, from its own examples,
        to the model that it deploys, 0 to 30.

    Returns:
      The method; clients have no state. There is no global model that the task could evaluate.

    Notes:
      pfl-research takes the questions of a node, `x_j <= s`, from given ranges of the features, and
      may take larger cohorts for deeper levels. A classification with two classes has two trees for
      each step, which mirror one another. The loss's own derivatives are used: those of a squared
      error are twice those of libraries that halve it, and so are `lam` and `min_child_weight`. The
      values of the last level grown count in evaluation before the tree is complete.
    """
    size = math.prod(task.input_shape)
    rules = trees_lib.Rules(rate, lam, min_child_weight, min_gain)
    shapes = jax.eval_shape(task.init, jax.random.key(0))
    dtype = tree.dtype(shapes)
    example = jax.ShapeDtypeStruct((1, *task.input_shape), dtype)
    num_outputs = jax.eval_shape(task.predict, shapes, example).shape[1]

    def points_of(edges, inputs):
        return task.standardize(edges, inputs).reshape(-1, size)

    def init_server(population, key):
        forest = trees_lib.empty(trees, num_outputs, depth, dtype)
        edges = trees_lib.even_edges(limit, size, bins, dtype)
        return GBDTServer(forest, edges, jnp.zeros((), jnp.int32))

    def position(steps):
        """Returns the tree and the level that a step grows, and whether it counts quantiles."""
        grown = jnp.maximum(steps - quantile_rounds, 0)
        return grown // depth, grown % depth, steps < quantile_rounds

    def histogram_of(forest, edges, number, level, counts, data, context):
        """Returns a client's histogram for a level of a tree, and its sum of losses."""

        def step(carry, batch, key):
            histogram, losses = carry
            points = points_of(edges, batch.inputs)
            paths = forest.paths(points)
            outputs = forest.outputs(paths[-1], number)
            terms = losses_lib.derivatives(task, outputs, batch)
            terms = jnp.where(counts, jnp.array([0, 1], dtype), terms.astype(dtype))
            terms = terms * batch.mask[:, None, None]
            nodes = paths[level, :, number]
            histogram = trees_lib.add_to_histogram(
                histogram, nodes, trees_lib.bins_of(points, edges), terms
            )
            return histogram, losses + jnp.sum(task.output_losses(outputs, batch) * batch.mask)

        empty = trees_lib.no_histogram(num_outputs, depth, size, bins, dtype)
        start = empty, jnp.zeros((), dtype)
        return core.for_each_batch(step, start, data, context, local.one_pass())

    def client_update(server, client, data, context):
        where = position(server.steps)
        sent, losses = histogram_of(server.forest, server.edges, *where, data, context)
        loss = core.weighted(losses / jnp.maximum(data.size, 1), data.size > 0)
        return core.ClientOutput((), sent, metrics={"loss": loss})

    def server_update(server, uploads, cohort, context):
        number, level, counts = position(server.steps)
        of_root = uploads.total[0, 0, :, :, 1]
        moved = trees_lib.quantile_edges(server.edges, of_root, limit)
        edges = jnp.where(counts, moved, server.edges)
        grown = trees_lib.grow(server.forest, uploads.total, server.edges, number, level, rules)
        forest = tree.where(counts, server.forest, grown)
        return GBDTServer(forest, edges, server.steps + 1)

    def personalize(server, client, data, context):
        own = trees_lib.empty(own_trees, num_outputs, depth, dtype)
        forest = trees_lib.join(server.forest, own)

        def grow_level(step, forest):
            number, level = trees + step // depth, step % depth
            histogram, _ = histogram_of(forest, server.edges, number, level, False, data, context)
            return trees_lib.grow(forest, histogram, server.edges, number, level, rules)

        return jax.lax.fori_loop(0, own_trees * depth, grow_level, forest)

    def predict(params, inputs, key):
        leaves = params.paths(points_of(params.values, inputs))[-1]
        return params.outputs(leaves, params.values.shape[0])

    return core.Algorithm(
        init_server=init_server,
        init_client=lambda server, profile, key: (),
        client_update=client_update,
        server_update=server_update,
        personalize=personalize,
        predict=predict,
    )
