"""Federated GBDT: boosting of all examples in NumPy, scikit-learn, quantiles, trees of a client."""

import dataclasses
import functools

import federation
import identities
import jax
import jax.numpy as jnp
import numpy as np
import optax
import plain_rounds
import pytest
import quadratics
from plain_loops import ROUNDS, Round, World, vector
from quadratics import LABELED, LABELS, POINTS
from sklearn import ensemble

from pfljax.algorithms import ALGORITHMS
from pfljax.engine import sampling
from pfljax.ops import trees

LARGEST = np.finfo(np.float64).max


class Plain:
    """Trees over rows of examples, each split found by trying every edge of every column."""

    def __init__(self, count, outputs, depth, **rules):
        self.depth, self.rules = depth, rules
        self.features = np.zeros((count, outputs, 2**depth - 1), int)
        self.thresholds = np.full(self.features.shape, LARGEST)
        self.values = np.zeros((count, outputs, 2**depth))

    def node(self, t, k, row, level):
        """The number of the node that a row reaches at a level."""
        node = 0
        for above in range(level):
            here = t, k, 2**above - 1 + node
            node = 2 * node + int(row[self.features[here]] > self.thresholds[here])
        return node

    def outputs(self, x, count):
        """`[n, K]`, of the first trees."""
        out = np.zeros((len(x), self.values.shape[1]))
        for i, row in enumerate(x):
            for t in range(count):
                for k in range(out.shape[1]):
                    out[i, k] += self.values[t, k, self.node(t, k, row, self.depth)]
        return out

    def ratio(self, top, h):
        return 0 if h + self.rules["lam"] == 0 else top / (h + self.rules["lam"])

    def grow(self, t, level, x, g, h, edges):
        """Splits the nodes of a level, with the derivatives `[n, K]` of all rows."""
        for k in range(g.shape[1]):
            reached = np.array([self.node(t, k, row, level) for row in x])
            for node in range(2**level):
                self.split(t, k, level, node, x, g[:, k], h[:, k], reached == node, edges)

    def split(self, t, k, level, node, x, g, h, here, edges):
        best, gain = (0, LARGEST), self.rules["min_gain"]
        for j, of_column in enumerate(edges):
            for edge in of_column:
                left, right = here & (x[:, j] <= edge), here & (x[:, j] > edge)
                if min(h[left].sum(), h[right].sum()) < self.rules["min_child_weight"]:
                    continue
                scores = [self.ratio(g[r].sum() ** 2, h[r].sum()) for r in (left, right, here)]
                found = (scores[0] + scores[1] - scores[2]) / 2
                if found > gain + 1e-12:
                    best, gain = (j, edge), found
        slot = t, k, 2**level - 1 + node
        self.features[slot], self.thresholds[slot] = best
        width = 2 ** (self.depth - level - 1)
        sides = here & (x[:, best[0]] <= best[1]), here & (x[:, best[0]] > best[1])
        for side, rows in enumerate(sides):
            start = (2 * node + side) * width
            value = -self.rules["rate"] * self.ratio(g[rows].sum(), h[rows].sum())
            self.values[t, k, start : start + width] = value

    def arrays(self):
        return self.features, self.thresholds, self.values


def softmax_derivatives(outputs, y):
    p = quadratics.softmax(outputs)
    return p - np.eye(p.shape[1])[y], p * (1 - p)


def squared_derivatives(outputs, y):
    return 2 * (outputs - y[:, None]), np.full(outputs.shape, 2.0)


def even(limit, columns, bins):
    return np.tile(-limit + 2 * limit * np.arange(1, bins) / bins, (columns, 1))


def test_closed_form():
    # One split at zero for each class, from equal probabilities of the four classes.
    task = quadratics.linear_classifier()._replace(input_shape=(4,))
    rule = {"trees": 1, "depth": 1, "bins": 2, "quantile_rounds": 0, "min_child_weight": 0.0}
    method = ALGORITHMS["fedgbdt"](task, quadratics.LOCAL, **rule, rate=0.5, lam=2.0)
    outcome = federation.run(
        method, data=LABELED, plan=quadratics.PLAN, rounds=2, score=task, devices=2
    )
    forest, n = outcome.server.forest, len(LABELS)
    for c in range(4):
        right = POINTS > 0
        terms = 0.25 - (LABELS == c)
        sums = [(terms @ side, 3 / 16 * side.sum(axis=0)) for side in (~right, right)]
        gains = sum(g**2 / (h + 2) for g, h in sums)
        j = int(np.argmax(gains))
        assert gains[j] > terms.sum() ** 2 / (n * 3 / 16 + 2)
        assert forest.features[0, c, 0] == j and forest.thresholds[0, c, 0] == 0
        values = [-0.5 * g[j] / (h[j] + 2) for g, h in sums]
        np.testing.assert_allclose(forest.values[0, c], values, rtol=1e-5)
    assert outcome.server.steps == 2  # the second round finds no tree to grow
    np.testing.assert_allclose(outcome.metrics["loss"][0], np.log(4), rtol=1e-5)
    assert outcome.metrics["loss"][1] < np.log(4) - 0.01


RULE = {"trees": 4, "depth": 3, "bins": 9, "limit": 4.5, "quantile_rounds": 0}
RULE |= {"min_gain": 0.0, "rate": 0.3}
KINDS = {"regression": 1, "binary": 2, "multi-class": 3}


@functools.cache
def table(kind):
    """240 rows of three whole numbers from -4 to 4, and targets whose mean is that of no tree."""
    draw, outputs = np.random.default_rng(0), KINDS[kind]
    x = draw.integers(-4, 5, (240, 3)).astype(float)
    score = x[:, 0] + 2 * (x[:, 1] > 1) * x[:, 2] + 0.3 * draw.normal(size=240)
    if kind == "regression":
        return x, score - score.mean()
    y = np.empty(240, np.int32)
    y[np.argsort(score)] = np.arange(240) * outputs // 240
    return x, y


def task_of(kind):
    def losses(outputs, batch):
        if kind == "regression":
            return (outputs[:, 0] - batch.targets) ** 2
        return optax.softmax_cross_entropy_with_integer_labels(outputs, batch.targets)

    def predict(params, inputs, mask=None, key=None):
        return jnp.zeros((inputs.shape[0], KINDS[kind]), inputs.dtype)

    return plain_rounds.task()._replace(
        input_shape=(3,), output_losses=losses, predict=predict, num_classes=KINDS[kind]
    )


def own_rule(kind):
    """A least number of ten rows for the squared error, whose second derivative is 2."""
    more = (4.0, 20.0) if kind == "regression" else (1.0, 1e-3)
    return {**RULE, "lam": more[0], "min_child_weight": more[1]}


@functools.cache
def federated(kind):
    x, y = table(kind)
    sizes = np.array([100, 30, 70, 40])
    data = federation.examples_of(x, np.zeros(240, np.int32), sizes, num_classes=1)
    data = dataclasses.replace(data, targets=y)
    with jax.enable_x64(True):
        local = federation.local_training(batch_size=16)
        method = ALGORITHMS["fedgbdt"](task_of(kind), local, **own_rule(kind))
        plan = sampling.CohortPlan(4, 4)
        return federation.run(method, data=data, plan=plan, rounds=12, score=task_of(kind), chunk=2)


def examples_of_outcome(kind):
    """`[n, K]`, the outputs of the forest that the rounds have grown."""
    forest = Plain(4, KINDS[kind], 3)
    forest.features, forest.thresholds, forest.values = federated(kind).server.forest
    return forest.outputs(table(kind)[0], 4)


@pytest.mark.parametrize("kind", KINDS)
def test_with_all_clients_is_boosting_of_all_examples(kind):
    x, y = table(kind)
    rules = {name: own_rule(kind)[name] for name in trees.Rules._fields}
    slope = squared_derivatives if kind == "regression" else softmax_derivatives
    plain, edges = Plain(4, KINDS[kind], 3, **rules), even(4.5, 3, 9)
    for t in range(4):
        g, h = slope(plain.outputs(x, t), y)
        for level in range(3):
            plain.grow(t, level, x, g, h, edges)
    outcome = federated(kind)
    for ours, wanted in zip(outcome.server.forest, plain.arrays(), strict=True):
        np.testing.assert_allclose(ours, wanted, rtol=1e-10, atol=1e-10)
    assert outcome.server.forest.values.dtype == np.float64
    assert np.all(np.abs(plain.values).max(axis=2) > 0.01)


@pytest.mark.parametrize("kind", KINDS)
def test_with_all_clients_is_the_boosting_of_scikit_learn(kind):
    (x, y), ours = table(kind), examples_of_outcome(kind)
    same = {"max_depth": 3, "max_iter": 4, "max_leaf_nodes": None, "early_stopping": False}
    if kind == "regression":  # the squared error is halved there
        theirs = ensemble.HistGradientBoostingRegressor(
            learning_rate=0.3, l2_regularization=2.0, min_samples_leaf=10, **same
        )
        theirs = theirs.fit(x, y).predict(x)
        ours = ours[:, 0]
    else:
        # Two trees that mirror one another take two steps where one tree takes one.
        rate = 0.6 if kind == "binary" else 0.3
        theirs = ensemble.HistGradientBoostingClassifier(
            learning_rate=rate, l2_regularization=1.0, min_samples_leaf=1, **same
        )
        theirs = theirs.fit(x, y).decision_function(x)
        if kind == "binary":
            ours = ours[:, 1] - ours[:, 0]
        else:
            ours, theirs = (z - z.mean(axis=1, keepdims=True) for z in (ours, theirs))
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    assert np.ptp(ours) > 0.5


def refined(edges, x, limit):
    """Edges at the quantiles, if examples are spread evenly within the bins that they had."""
    out = []
    for j, of_column in enumerate(edges):
        counts = np.bincount(np.searchsorted(of_column, x[:, j], "left"), minlength=len(edges[0]))
        bounds = np.concatenate([[-limit], of_column, [limit]])
        wanted = []
        for k in range(1, len(bounds) - 1):
            left = len(x) * k / (len(bounds) - 1)
            b = 0
            while left > counts[b]:
                left, b = left - counts[b], b + 1
            wanted.append(bounds[b] + (bounds[b + 1] - bounds[b]) * left / counts[b])
        out.append(wanted)
    return np.array(out)


@pytest.mark.parametrize("quantile_rounds", [0, 1])
def test_plain_loop(quantile_rounds):
    rules = {"rate": 0.4, "lam": 0.7, "min_child_weight": 0.3, "min_gain": 0.01}

    def loop(world: World):
        plain, edges = Plain(3, 3, 2, **rules), even(2.5, 5, 6)
        for r, cohort in enumerate(world.cohorts):
            x = np.concatenate([world.x[k] for k in cohort])
            y = np.concatenate([world.y[k] for k in cohort])
            if r < quantile_rounds:
                edges = refined(edges, x, 2.5)
            else:
                t, level = divmod(r - quantile_rounds, 2)
                plain.grow(t, level, x, *softmax_derivatives(plain.outputs(x, t), y), edges)
            deployed = {}
            for k in range(4) if r == ROUNDS - 1 else ():
                own = Plain(4, 3, 2, **rules)
                for whole, part in zip(own.arrays(), plain.arrays(), strict=True):
                    whole[:3] = part
                g, h = softmax_derivatives(own.outputs(world.x[k], 3), world.y[k])
                for level in range(2):
                    own.grow(3, level, world.x[k], g, h, edges)
                assert np.abs(own.values[3]).max() > 0.01
                deployed[k] = vector(*own.arrays())
            yield Round(vector(*plain.arrays(), edges, r + 1), {}, deployed)

    shape = {"trees": 3, "depth": 2, "bins": 6, "limit": 2.5, "own_trees": 1}
    plain_rounds.check("fedgbdt", loop, {**shape, **rules, "quantile_rounds": quantile_rounds})


def test_edges_move_to_the_quantiles():
    draw = np.random.default_rng(1)
    x = np.stack([np.clip(draw.exponential(size=4000) - 1, -2.9, 2.9), draw.normal(size=4000)], 1)
    edges, points = trees.even_edges(3.0, 2, 8, jnp.float32), jnp.asarray(x, jnp.float32)
    wanted = np.quantile(x, np.arange(1, 8) / 8, axis=0).T
    gaps = [np.abs(edges - wanted).max()]
    for _ in range(3):
        binned = trees.bins_of(points, edges)
        counts = jax.vmap(lambda column: jnp.bincount(column, length=8), 1)(binned)
        edges = trees.quantile_edges(edges, counts.astype(jnp.float32), 3.0)
        gaps.append(np.abs(edges - wanted).max())
    assert gaps[0] > 1 and gaps[1] < 0.35 and gaps[3] < 0.03


def test_noise_in_the_histograms_leaves_the_forest_finite():
    histogram = jax.random.normal(jax.random.key(0), (2, 4, 3, 8, 2))
    edges, forest = trees.even_edges(3.0, 3, 8, jnp.float32), trees.empty(2, 2, 3, jnp.float32)
    grow = jax.jit(trees.grow)
    for lam, least in ((1.0, 1.0), (0.0, 0.0)):
        rules = trees.Rules(0.3, lam, least, 0.0)
        for level in range(3):
            forest = grow(forest, histogram, edges, jnp.int32(1), jnp.int32(level), rules)
        assert all(np.all(np.isfinite(leaf)) for leaf in forest)
    assert np.any(forest.values[1]) and not np.any(forest.values[0])
    # Two columns that are mirror images have one gain, and the order of a sum has no effect on it.
    sums = jnp.abs(histogram[:, :, :1]).at[..., 0].multiply(jnp.array([1, -1, 1, 1, -1, 1, 1, 1.0]))
    both = jnp.concatenate([sums[:, :, :, ::-1], sums], axis=2)
    rules = trees.Rules(0.3, 1.0, 0.0, 0.0)
    forest = grow(forest, both, edges[:2], jnp.int32(0), jnp.int32(2), rules)
    assert np.all(forest.features[0, :, 3:] == 0) and np.any(forest.values[0])
    negative = trees.quantile_edges(edges, histogram[0, 0, :, :, 0], 3.0)
    assert np.all(np.isfinite(negative)) and np.all(np.diff(negative, axis=1) >= 0)


def test_batch_norm_of_a_network_changes_nothing():
    # The network is not used.
    plain, norm = (
        identities.run("fedgbdt", trees=2, depth=2, task=federation.task(name))
        for name in ("mlp", "mlp_bn")
    )
    federation.assert_close(plain.server, norm.server, 1e-6)
