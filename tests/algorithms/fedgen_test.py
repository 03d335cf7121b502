"""FedGen: features from a generator that the server trains on the clients' heads."""

import importlib
import itertools

import batch_norm
import federation
import identities
import jax
import jax.numpy as jnp
import numpy as np
import optax
import plain
import pytest
import quadratics
from quadratics import ENDS, ETA, LABELED, LABELS, PLAN, POINTS, SHARE, SIZES, STEPS, softmax

from pfljax import core
from pfljax.algorithms import ALGORITHMS
from pfljax.core import streams


@pytest.mark.parametrize("by_label, first_round", [(True, 1), (False, 0)])
def test_closed_form(by_label, first_round, monkeypatch):
    # Always the same draws; the server takes one step of Adam in each of two rounds.
    draw = np.random.default_rng(8)
    drawn = {
        n: (draw.integers(0, 4, n).astype(np.int32), draw.normal(size=(n, 3)).astype(np.float32))
        for n in (6, 5)  # of a client, of the server
    }
    module = importlib.import_module("pfljax.algorithms.fedgen")
    monkeypatch.setattr(module, "draw", lambda key, shares, count, *rest: drawn[count])
    weight, decay, diversity, rate = 0.7, 0.5, 0.3, 0.01
    task = quadratics.linear_classifier()
    algorithm = ALGORITHMS["fedgen"](
        task,
        core.LocalTraining(optax.sgd(ETA), batch_size=6, epochs=STEPS),
        weight=weight,
        decay=decay,
        first_round=first_round,
        diversity=diversity,
        label_weights=by_label,
        generator_steps=1,
        generator_rate=rate,
        generator_batch=5,
        noise_size=3,
        hidden_size=4,
    )
    outcome = federation.run(algorithm, data=LABELED, plan=PLAN, rounds=2, score=task)

    def generated(generator, labels, noise):
        hidden = jnp.concatenate([noise, jnp.eye(4)[labels]], axis=1) @ generator["hidden"]
        hidden = (hidden - hidden.mean(axis=0)) / jnp.sqrt(hidden.var(axis=0) + 1e-5)
        hidden = jax.nn.relu(hidden * generator["norm"]["scale"] + generator["norm"]["bias"])
        return hidden @ generator["features"]["kernel"] + generator["features"]["bias"]

    counts = np.asarray(LABELED.class_counts, np.float64)
    assert np.any(counts.sum(axis=0) != SIZES.sum() / 4) and np.all(counts.sum(axis=0) > 0)
    shares = counts / counts.sum(axis=0) if by_label else np.tile(SHARE[:, None], 4)

    def objective(generator, kernels):
        labels, noise = drawn[5]
        z = generated(generator, labels, noise)
        logits = sum(shares[k][labels][:, None] * (z @ kernels[k]) for k in range(3))
        loss = -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(5), labels])
        exponent = 0.0
        for i, j in itertools.product(range(5), repeat=2):
            exponent -= jnp.mean(jnp.abs(z[i] - z[j])) * jnp.mean((noise[i] - noise[j]) ** 2) / 25
        return loss + diversity * jnp.exp(exponent)

    state = algorithm.init_server(
        core.Population(SIZES, counts), streams.key_of(jax.random.key(0), streams.SERVER_INIT)
    )
    generator = state.generator
    w, kernel = (np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(state.average.params))
    first = second = jax.tree.map(jnp.zeros_like, generator)
    for round in range(2):
        labels, noise = drawn[6]
        z_g, hot_g = np.asarray(generated(generator, labels, noise)), np.eye(4)[labels]
        models = []
        for end, n in zip(ENDS, SIZES, strict=True):
            x, hot, body, head = POINTS[end - n : end], np.eye(4)[LABELS[end - n : end]], w, kernel
            for _ in range(STEPS):
                logits = (softmax(x @ body @ head) - hot) / n
                strength = weight * decay**round if round >= first_round else 0
                taught = strength * z_g.T @ (softmax(z_g @ head) - hot_g) / 6
                body, head = (
                    body - ETA * x.T @ logits @ head.T,
                    head - ETA * (body.T @ x.T @ logits + taught),
                )
            models.append((body, head))
        slope = jax.grad(objective)(generator, [head for _, head in models])
        first = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, first, slope)
        second = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g**2, second, slope)
        m_scale, v_scale = 1 - 0.9 ** (round + 1), 1 - 0.999 ** (round + 1)
        generator = jax.tree.map(
            lambda leaf, m, v, a=m_scale, b=v_scale: (
                leaf - rate * (m / a) / (jnp.sqrt(v / b) + 1e-8)
            ),
            generator,
            first,
            second,
        )
        w, kernel = (np.tensordot(SHARE, np.stack(part), 1) for part in zip(*models, strict=True))
    federation.assert_close(outcome.server.generator, generator, tolerance=2e-4)
    np.testing.assert_allclose(outcome.server.average.params["body"]["w"], w, rtol=1e-4, atol=1e-5)
    kernel_here = outcome.server.average.params["head"]["kernel"]
    np.testing.assert_allclose(kernel_here, kernel, rtol=1e-4, atol=1e-5)


def test_without_weight_is_fedavg():
    small = {"noise_size": 2, "hidden_size": 4, "generator_steps": 2}
    average = identities.run("fedavg")
    untaught = identities.run("fedgen", weight=0.0, **small)
    federation.assert_close(untaught.server.average, average.server)
    federation.assert_close(untaught.scores, average.scores)
    taught = identities.run("fedgen", weight=1.0, **small)
    assert federation.differ(taught.server.average.params, average.server.params)


def test_batch_norm_without_the_generator():
    # What is generated reaches the head only, by random draws; without weight it has no part.
    def one_round(server, clients, ids, found):
        average = batch_norm.averaged(plain.train)(server.average, clients, ids, found)
        return server._replace(average=average)

    batch_norm.check("fedgen", one_round, weight=0.0, generator_steps=0)
