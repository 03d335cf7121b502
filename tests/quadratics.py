"""Quadratic and linear tasks, on which a round of a method can be written down.

The loss of a client with examples `x_i` is `1/2 mean_i ||theta - x_i||^2`; a full-batch gradient
step with rate `eta` is `theta <- theta - eta (theta - m_k)` with `m_k` the client's mean, so that
`E` steps give `theta - m_k` a factor `(1 - eta)^E`.
"""

from __future__ import annotations

import federation
import jax
import jax.numpy as jnp
import numpy as np
import optax

from pfljax import core
from pfljax.algorithms import ALGORITHMS
from pfljax.engine import sampling
from pfljax.engine.examples import Examples

ETA, STEPS = 0.2, 3  # the learning rate, and the local steps of a round
SIZES = np.array([4, 2, 6])
DRAW = np.random.default_rng(3)
POINTS = DRAW.normal(size=(SIZES.sum(), 4)).astype(np.float32)
ENDS = np.cumsum(SIZES)
MEANS = np.stack([POINTS[e - n : e].mean(axis=0) for e, n in zip(ENDS, SIZES, strict=True)])
DATA = federation.examples_of(POINTS, np.zeros(SIZES.sum(), np.int32), SIZES, num_classes=1)
PLAN = sampling.CohortPlan(num_clients=3, size=3)
START = np.zeros(4, np.float32)
SHARE = SIZES / SIZES.sum()
LABELS = np.array([0, 0, 1, 3, 1, 2, 0, 1, 3, 2, 2, 0]).astype(np.int32)
LABELED = federation.examples_of(POINTS, LABELS, SIZES, num_classes=4)


def flat(model: core.Params) -> jax.Array:
    """The four weights of the quadratic task in one vector, inside compiled programs."""
    return jnp.concatenate([model["body"]["w"], model["head"]["w"]])


def quadratic() -> core.Task:
    """The quadratic task; its body is the first half of `theta`, and its head the second."""

    def losses(model, batch, key, train=True):
        return 0.5 * jnp.sum((flat(model) - batch.inputs) ** 2, axis=-1)

    def loss(model, batch, key, train=True):
        gaps = losses(model, batch, key)
        return jnp.sum(gaps * batch.mask) / jnp.maximum(jnp.sum(batch.mask), 1)

    return core.Task(
        init=lambda key: {"body": {"w": jnp.zeros(2)}, "head": {"w": jnp.zeros(2)}},
        losses=losses,
        loss=loss,
        predict=lambda model, inputs, mask=None, key=None: inputs - flat(model),
        features=lambda model, inputs, mask=None, key=None: inputs,
        head=lambda model, features, mask=None, key=None: features - flat(model),
        is_head=lambda path: path[0] == "head",
        metrics=lambda outputs, batch: {
            "accuracy": jnp.sum(batch.mask),
            "loss": jnp.sum(outputs * batch.mask[:, None]),
        },
        num_classes=1,
        layers=(("body",), ("head",)),
        is_norm=lambda path: path[0] == "head",
        output_losses=lambda outputs, batch: 0.5 * jnp.sum(outputs**2, axis=-1),
    )


LOCAL = core.LocalTraining(optax.sgd(ETA), batch_size=8, epochs=STEPS, learning_rate=ETA)


def run(
    name: str, rounds: int, *, local: core.LocalTraining = LOCAL, **hyperparameters
) -> federation.Outcome:
    """Runs a method on the quadratic task, with all clients in every round, on two devices."""
    algorithm = ALGORITHMS[name](quadratic(), local, **hyperparameters)
    return federation.run(
        algorithm, data=DATA, plan=PLAN, rounds=rounds, score=quadratic(), devices=2
    )


def vector(model: core.Params) -> np.ndarray:
    """The four weights of the quadratic task, or of stacked ones `[..., 4]`, on the host."""
    return np.concatenate([model["body"]["w"], model["head"]["w"]], axis=-1)


def steps_towards(
    start: np.ndarray, target: np.ndarray, rate: float = ETA, steps: int = STEPS
) -> np.ndarray:
    """Where gradient steps on `1/2 ||theta - target||^2` lead from `start`."""
    return target + (1 - rate) ** steps * (start - target)


def near(a, b) -> None:
    """Asserts that two arrays are equal, to the rounding of some float32 steps."""
    np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6)


def personal_gaps(thetas: np.ndarray) -> list[np.ndarray]:
    """The sums that the metric 'loss' has for the personalized models `thetas` `[clients, 4]`."""
    rows = zip(ENDS, SIZES, thetas, strict=True)
    return [(POINTS[e - n : e] - theta).sum() for e, n, theta in rows]


def linear_features() -> core.Task:
    """Features `x W`, a head of ones, and a loss of zero, to which a method adds its terms."""
    start = np.random.default_rng(5).normal(size=(4, 2)).astype(np.float32)
    return core.Task(
        init=lambda key: {"body": {"w": jnp.array(start)}, "head": {"kernel": jnp.ones((2, 4))}},
        losses=lambda model, batch, key, train=True: (
            jnp.sum(model["head"]["kernel"]) * 0 * batch.mask
        ),
        loss=lambda model, batch, key, train=True: jnp.sum(model["head"]["kernel"]) * 0,
        predict=lambda model, inputs, mask=None, key=None: (
            inputs @ model["body"]["w"] @ model["head"]["kernel"]
        ),
        features=lambda model, inputs, mask=None, key=None: inputs @ model["body"]["w"],
        head=lambda model, features, mask=None, key=None: features @ model["head"]["kernel"],
        is_head=lambda path: path[0] == "head",
        metrics=lambda outputs, batch: {
            "accuracy": jnp.sum((jnp.argmax(outputs, axis=-1) == batch.targets) * batch.mask),
            "loss": jnp.sum(outputs * batch.mask[:, None]),
        },
        num_classes=4,
        num_features=2,
        output_losses=lambda outputs, batch: 0 * batch.mask,
    )


def quadratic_from_random_weights() -> core.Task:
    """The quadratic task with a random start."""

    def init(key):
        w = jax.random.normal(key, (4,))
        return {"body": {"w": w[:2]}, "head": {"w": w[2:]}}

    return quadratic()._replace(init=init)


def run_from_random_weights(
    name: str,
    *,
    rounds: int = 1,
    eta: float = ETA,
    data: Examples = DATA,
    plan: sampling.CohortPlan = PLAN,
    **hyperparameters,
) -> federation.Outcome:
    """Runs a method from random weights; a run with `eta=0` returns these weights unchanged."""
    local = core.LocalTraining(optax.sgd(eta), batch_size=8, epochs=STEPS)
    task = quadratic_from_random_weights()
    algorithm = ALGORITHMS[name](task, local, **hyperparameters)
    return federation.run(algorithm, data=data, plan=plan, rounds=rounds, score=task, devices=2)


def linear_classifier() -> core.Task:
    """Four classes from `x W K`, with the cross-entropy."""
    task = linear_features()
    kernel = np.random.default_rng(6).normal(size=(2, 4)).astype(np.float32)

    def losses(model, batch, key, train=True):
        logits = task.predict(model, batch.inputs)
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch.targets)

    def loss(model, batch, key, train=True):
        each = losses(model, batch, key)
        return jnp.sum(each * batch.mask) / jnp.maximum(jnp.sum(batch.mask), 1)

    def init(key):
        return {**task.init(key), "head": {"kernel": jnp.array(kernel)}}

    return task._replace(init=init, losses=losses, loss=loss)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities `[n, C]` of logits, in NumPy."""
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)
