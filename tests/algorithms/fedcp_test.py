"""FedCP: a policy that separates personalized from common features."""

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
import quadratics
from identities import ALL_CLIENTS
from quadratics import ENDS, ETA, LABELED, LABELS, PLAN, POINTS, SHARE, SIZES, STEPS, near

from pfljax import core
from pfljax.algorithms import ALGORITHMS
from pfljax.core import streams


def test_closed_form(monkeypatch):
    # The formulas once more, for one client after the other, with the same noise in every step.
    task, lam = quadratics.linear_classifier(), 0.8
    noise = np.random.default_rng(9).gumbel(size=(8, 2, 2)).astype(np.float32)
    module = importlib.import_module("pfljax.algorithms.fedcp")
    monkeypatch.setattr(module, "draw", lambda key, shape, dtype: noise[: shape[0]])
    local = core.LocalTraining(optax.sgd(ETA), batch_size=8, epochs=STEPS, shuffle=False)
    algorithm = ALGORITHMS["fedcp"](task, local, lam=lam)
    outcome = federation.run(algorithm, data=LABELED, plan=PLAN, rounds=2, score=task)

    def split_features(z, policy, direction, noise):
        hidden = (z * direction / jnp.linalg.norm(direction)) @ policy["linear"]["kernel"]
        hidden = hidden + policy["linear"]["bias"]
        hidden = hidden - hidden.mean(axis=1, keepdims=True)
        hidden = hidden / jnp.sqrt((hidden**2).mean(axis=1, keepdims=True) + 1e-5)
        hidden = jax.nn.relu(hidden * policy["norm"]["scale"] + policy["norm"]["bias"])
        own, common = hidden[:, :2] + noise[:, 0], hidden[:, 2:] + noise[:, 1]
        share = jnp.exp(own) / (jnp.exp(own) + jnp.exp(common))
        return share * z, (1 - share) * z

    def objective(parts, received, head_g, direction, x, y):
        w, head, policy = parts
        z, z_received = x @ w, x @ received
        own, common = split_features(z, policy, direction, noise[: len(x)])
        logits = own @ head + common @ head_g
        loss = -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(len(x)), y])
        gap = 0.0
        for i, j in itertools.product(range(len(x)), repeat=2):
            for s in (10, 15, 20, 50):
                for a, b, sign in (
                    (z[i], z[j], 1),
                    (z_received[i], z_received[j], 1),
                    (z[i], z_received[j], -2),
                ):
                    gap += sign * jnp.exp(-jnp.sum((a - b) ** 2) / (2 * s)) / len(x) ** 2
        return loss + lam * gap

    state = algorithm.init_server(None, streams.key_of(jax.random.key(0), streams.SERVER_INIT))
    w, head_g = jax.tree.leaves(state.params["model"])
    policy, heads, slope = state.params["policy"], [head_g] * 3, jax.jit(jax.grad(objective))
    for _ in range(2):
        uploads = []
        for k, (end, n) in enumerate(zip(ENDS, SIZES, strict=True)):
            x, y, direction = POINTS[end - n : end], LABELS[end - n : end], heads[k].sum(axis=1)
            parts = (w, heads[k], policy)
            for _ in range(STEPS):
                gradient = slope(parts, w, head_g, direction, x, y)
                parts = jax.tree.map(lambda leaf, g: leaf - ETA * g, parts, gradient)
            heads[k] = parts[1]
            uploads.append((parts[0], (parts[1] + head_g) / 2, parts[2]))
        w, head_g, policy = jax.tree.map(
            lambda *leaves: sum(s * leaf for s, leaf in zip(SHARE, leaves, strict=True)), *uploads
        )
    expected = {"model": {"body": {"w": w}, "head": {"kernel": head_g}}, "policy": policy}
    federation.assert_close(outcome.server.params, expected, tolerance=2e-5)
    near(outcome.clients["head"]["kernel"], np.stack(heads))
    totals = []
    for end, n, head in zip(ENDS, SIZES, heads, strict=True):  # without noise
        own, common = split_features(
            POINTS[end - n : end] @ w, policy, head.sum(axis=1), np.zeros((n, 2, 2))
        )
        totals.append(np.sum(own @ head + common @ head_g))
    np.testing.assert_allclose(outcome.scores["personal"]["test"]["loss"], totals, rtol=1e-4)


def test_draws_noise_in_training_only():
    quiet = identities.run("fedcp", rounds=1, plan=ALL_CLIENTS)
    noisy = identities.run("fedcp", rounds=1, plan=ALL_CLIENTS, noisy_evaluation=True)
    federation.assert_close(noisy.server, quiet.server)
    federation.assert_close(noisy.clients, quiet.clients)
    assert federation.differ(noisy.scores, quiet.scores)
    # At a rate of zero nothing moves, so that the same models are evaluated, with other keys.
    still = identities.run(
        "fedcp", rounds=1, local=federation.local_training(optimizer=optax.sgd(0.0))
    )
    federation.assert_close(still.scores, still.untrained_scores)
    noiseless = identities.run("fedcp", rounds=1, plan=ALL_CLIENTS, gumbel=0.0)
    assert federation.differ(noiseless.server.params, quiet.server.params)


def test_predicts_as_the_model_before_the_first_round_where_the_head_is_linear():
    # The two parts of the features add up to them, and both heads are the same at first.
    def head(model, features, mask=None, key=None):
        return features @ model["head"]["kernel"]

    def predict(model, inputs, mask=None, key=None):
        return head(model, task.features(model, inputs))

    task = federation.task()
    without_bias = task._replace(head=head, predict=predict)
    ours, average = (
        identities.run(name, task=without_bias, rounds=1) for name in ("fedcp", "fedavg")
    )
    ours_then, theirs_then = (
        jax.tree.map(lambda leaf: leaf[:8], outcome.untrained_scores["personal"])  # without joining
        for outcome in (ours, average)
    )
    federation.assert_close(ours_then, theirs_then, tolerance=1e-5)
    assert federation.differ(ours.scores["personal"], average.scores["personal"])


def test_batch_norm():
    lam = 2.0

    def mmd(a, b):
        def kernel(p, q):
            squares = jnp.sum((p[:, None] - q[None]) ** 2, axis=-1)
            return jnp.mean(sum(jnp.exp(-squares / (2 * s)) for s in (10, 15, 20, 50)))

        return kernel(a, a) + kernel(b, b) - 2 * kernel(a, b)

    def outputs(own, common, policy, direction, x, train):
        z = plain.features(own, x, train)
        hidden = z * direction / jnp.linalg.norm(direction)
        hidden = hidden @ policy["linear"]["kernel"] + policy["linear"]["bias"]
        mean, var = (f(hidden, axis=1, keepdims=True) for f in (jnp.mean, jnp.var))
        hidden = (hidden - mean) / jnp.sqrt(var + 1e-5)
        hidden = jax.nn.relu(hidden * policy["norm"]["scale"] + policy["norm"]["bias"])
        share = jax.nn.softmax(hidden.reshape(len(x), 2, -1), axis=1)
        return plain.head(own, share[:, 0] * z) + plain.head(common, share[:, 1] * z), z

    def objective(own, policy, x, y, common, direction):
        out, z = outputs(own, common, policy, direction, x, True)
        return jnp.mean(plain.entropies(out, y)) + lam * mmd(z, plain.features(common, x, True))

    slopes = jax.jit(jax.grad(objective, argnums=(0, 1)))

    def one_round(server, clients, ids, found):
        common, trained = server.params["model"], []
        for k in ids:
            x, y = plain.examples(k)
            own, policy = {**common, **clients[k]}, server.params["policy"]
            direction = jnp.sum(own["head"]["kernel"], axis=1)
            for _ in range(plain.EPOCHS):
                for u, v in plain.batches(x, y):
                    of_own, of_policy = slopes(own, policy, u, v, common, direction)
                    own = plain.step(own, of_own, u)
                    policy = plain.axpy(-plain.RATE, of_policy, policy)
            clients[k] = {"head": own["head"]}
            half = plain.combine((0.5, 0.5), (own["head"], common["head"]))
            trained.append({"model": {"body": own["body"], "head": half}, "policy": policy})
        return batch_norm.fed_average(server, trained, ids)

    batch_norm.check("fedcp", one_round, gumbel=0.0, lam=lam)
