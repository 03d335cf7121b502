"""PGFed and PGFedMo written from the paper: on quadratics, with batch normalization, in batches.

PGFed is the case without `beta`.
"""

from __future__ import annotations

from collections.abc import Iterator

import batch_norm
import jax
import numpy as np
import plain
import plain_loops
from plain_loops import Round, World, mean, rate_of, slope
from quadratics import ENDS, ETA, MEANS, POINTS, SHARE, SIZES, START, STEPS

# The loss of each client of `quadratics` at its own mean.
LEAST = np.array(
    [
        0.5 * ((POINTS[e - n : e] - m) ** 2).sum(axis=1).mean()
        for e, n, m in zip(ENDS, SIZES, MEANS, strict=True)
    ]
)


def on_quadratics(
    rounds: int, mu: float, rate: float, exact: bool = False, beta: float = 0.0
) -> tuple:
    """Rounds with all clients on the quadratic task.

    Returns:
      The model, the clients' models, their gradients, the constants, the weights, the gradients of
      the others' losses in the last round, and the smallest weight of all steps.
    """
    w, g, constants, alpha = START, np.zeros((3, 4)), np.zeros(3), np.full((3, 3), 1 / 3)
    extra, lowest = None, np.inf
    for round in range(rounds):
        new = mu * alpha @ g
        extra = new if round < 2 else beta * extra + (1 - beta) * new
        slopes = g if exact else np.tile(g.mean(axis=0), (3, 1))
        theta, alpha = np.tile(w, (3, 1)), alpha.copy()
        for _ in range(STEPS):
            if round:
                alpha = np.maximum(alpha - rate * mu * (constants + theta @ slopes.T), 0)
                lowest = min(lowest, alpha.min())
            theta = theta - ETA * (theta - MEANS + extra)
        g = theta - MEANS
        constants = LEAST + 0.5 * (g**2).sum(axis=1) - (g * theta).sum(axis=1)
        w = SHARE @ theta
    return w, theta, g, constants, alpha, extra, lowest


def _dot(a, b):
    return sum(float(np.vdot(x, y)) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True))


def _loss_and_gradient(model, x, y):
    """The mean loss of batches in training mode, and its gradient."""
    parts = [(len(v), plain.gradient(plain.loss)(model, u, v)) for u, v in plain.batches(x, y)]
    value = sum(len(v) * float(plain.loss(model, u, v)) for u, v in plain.batches(x, y))
    return value / len(y), plain.average([g for _, g in parts], [n for n, _ in parts])


def with_batch_norm(mu: float, rate: float, beta: float | None = None) -> batch_norm.PlainRound:
    """A round of `mlp_bn`; a client's state is its model, or PGFedMo's with a `beta`."""

    def one_round(server, clients, ids, found):
        g = [jax.tree.map(lambda leaf, j=j: leaf[j], server.gradients) for j in range(8)]
        last = np.flatnonzero(server.last)
        alpha, constants, new = server.weights.copy(), server.constants.copy(), list(g)
        if not len(last):
            alpha[:] = 1 / len(ids)
        trained = []
        for k in ids:
            x, y = plain.examples(k)
            model, extra = server.average.params, jax.tree.map(np.zeros_like, g[0])
            if len(last):
                extra = plain.combine(mu * server.weights[k, last], [g[j] for j in last])
                middle = plain.average([g[j] for j in last], np.ones(len(last)))
                if beta is not None and clients[k].known:
                    extra = plain.combine([1 - beta, beta], [extra, clients[k].auxiliary])
            for _ in range(plain.EPOCHS):
                for u, v in plain.batches(x, y):
                    if len(last):
                        others = server.constants[last] + _dot(middle, model)
                        alpha[k, last] = np.maximum(alpha[k, last] - rate * mu * others, 0)
                    direction = plain.axpy(1.0, plain.gradient(plain.loss)(model, u, v), extra)
                    model = plain.step(model, direction, u)
            trained.append(jax.tree.map(np.asarray, model))
            value, new[k] = _loss_and_gradient(model, x, y)
            constants[k] = value - _dot(new[k], model)
            if beta is None:
                clients[k] = trained[-1]
            else:
                known = clients[k].known | bool(len(last))
                clients[k] = type(clients[k])(trained[-1], extra, known)
        return server._replace(
            average=batch_norm.fed_average(server.average, trained, ids),
            gradients=jax.tree.map(lambda *rows: np.stack(rows), *new),
            constants=constants,
            weights=alpha,
            last=np.isin(np.arange(8), ids),
        )

    return one_round


def in_batches(
    world: World, mu: float, rate: float, exact: bool = False, beta: float | None = None
) -> Iterator[Round]:
    """Rounds of a part of the clients, in batches."""
    w, own, kept = world.params, {}, {}
    g, constants, last = np.zeros((4, len(w))), np.zeros(4), []
    alpha = np.full((4, 4), 1 / len(world.cohorts[0]))
    for r, cohort in enumerate(world.cohorts):
        sent, known, weights = g.copy(), constants.copy(), alpha.copy()
        for k in cohort:
            extra, row, slopes = np.zeros_like(w), alpha[k], sent[last]
            if last:
                extra = mu * weights[k, last] @ sent[last]
                if beta is not None and k in kept:
                    extra = (1 - beta) * extra + beta * kept[k]
                kept[k] = extra
                if not exact:
                    slopes = np.tile(slopes.mean(axis=0), (len(last), 1))

            def gradient(theta, x, y, row=row, last=last, known=known, slopes=slopes, extra=extra):
                others = known[last] + slopes @ theta
                row[last] = np.maximum(row[last] - rate * mu * others, 0)
                return slope(theta, x, y) + extra

            theta = own[k] = world.train(k, w, rate_of(r), gradient=gradient)
            g[k] = slope(theta, world.x[k], world.y[k])
            value = float(plain_loops.loss(theta, world.x[k], world.y[k]))
            constants[k] = value - g[k] @ theta
        w, last = mean({k: own[k] for k in cohort}), sorted(cohort)
        present = np.isin(range(4), last)
        server = plain_loops.vector(w, plain_loops.by_array(g), constants, alpha, present)
        states = dict(own)
        if beta is not None:
            nothing = np.zeros_like(w)
            states = {
                k: plain_loops.vector(theta, kept.get(k, nothing), k in kept)
                for k, theta in own.items()
            }
        yield Round(server, states, dict(own))
