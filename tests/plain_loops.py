"""The methods once more, as plain loops over clients and batches, written from the equations.

Nothing of `pfljax` is used here. A model is one vector in float64 whose entries are, in this order,
bias and kernel of the body and bias and kernel of the head. A loop yields after every round what
the server holds and what each client holds that took part so far, as vectors; where clients deploy
something else, it yields that too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

INPUTS, FEATURES, CLASSES = 5, 4, 3
SIZES = (13, 6, 9, 3)
BATCH, EPOCHS, ROUNDS = 4, 3, 3
ETA, DECAY = 0.3, 0.8  # the learning rate, and what multiplies it from round to round

BODY_BIAS, BODY_KERNEL = slice(0, 4), slice(4, 24)
HEAD_BIAS, HEAD_KERNEL = slice(24, 27), slice(27, 39)
ARRAYS = (BODY_BIAS, BODY_KERNEL, HEAD_BIAS, HEAD_KERNEL)
BODY, HEAD, MODEL = slice(0, 24), slice(24, 39), slice(0, 39)


def features(w, x):
    return jnp.tanh(x @ w[BODY_KERNEL].reshape(INPUTS, FEATURES) + w[BODY_BIAS])


def head(w, z):
    return z @ w[HEAD_KERNEL].reshape(FEATURES, CLASSES) + w[HEAD_BIAS]


def example_losses(w, x, y):
    logits = head(w, features(w, x))
    return jax.nn.logsumexp(logits, axis=1) - logits[jnp.arange(len(y)), y]


def loss(w, x, y):
    return jnp.mean(example_losses(w, x, y))


_slope, _value = jax.jit(jax.grad(loss)), jax.jit(loss)
_losses, _features = jax.jit(example_losses), jax.jit(features)


def slope(w, x, y):
    """The gradient of the mean loss; zero without examples."""
    return np.asarray(_slope(w, x, y)) if len(y) else np.zeros_like(w)


class World(NamedTuple):
    """Attributes:
    x: inputs of each client.
    y: labels of each client.
    cohorts: the clients of each round.
    params: the initial parameters of the model.
    server: the server's initial state as the engine has it, for what a method draws at random.
    clients: likewise the clients', a row for each.
    """

    x: list
    y: list
    cohorts: list
    params: np.ndarray
    server: object = None
    clients: object = None

    def batches(self, k: int, epochs: int = EPOCHS, batch: int = BATCH):
        for _ in range(epochs):
            for start in range(0, len(self.y[k]), batch):
                yield self.x[k][start : start + batch], self.y[k][start : start + batch]

    def train(self, k, w, rate, epochs=EPOCHS, part=MODEL, gradient=slope):
        """Steps along the gradient, of which only `part` moves."""
        w = w.copy()
        for x, y in self.batches(k, epochs):
            w[part] = w[part] - rate * np.asarray(gradient(w, x, y))[part]
        return w


class Round(NamedTuple):
    """Attributes:
    server: vector.
    clients: `{client: vector}` of those that took part so far.
    deployed: `{client: vector}`, which models these would deploy after the last round.
    """

    server: np.ndarray
    clients: dict
    deployed: dict | None = None


def rate_of(round: int) -> float:
    return ETA * DECAY**round


def mean(models: dict, by_size: bool = True) -> np.ndarray:
    """The mean of `{client: vector}`, by the clients' examples or uniform."""
    weights = np.array([SIZES[k] if by_size else 1 for k in models], float)
    return weights @ np.stack(list(models.values())) / weights.sum()


def by_array(rows: np.ndarray) -> np.ndarray:
    """Stacked models in the order of stacked trees, array after array."""
    return np.concatenate([rows[:, part].ravel() for part in ARRAYS])


def vector(*parts) -> np.ndarray:
    return np.concatenate([np.ravel(np.asarray(part, float)) for part in parts])


def flat(tree) -> np.ndarray:
    """All arrays of a tree in one vector."""
    return vector(*jax.tree.leaves(tree)) if jax.tree.leaves(tree) else np.zeros(0)


def local(world: World) -> Iterator[Round]:
    thetas = {}
    for r, cohort in enumerate(world.cohorts):
        for k in cohort:
            thetas[k] = world.train(k, thetas.get(k, world.params), rate_of(r))
        yield Round(world.params, dict(thetas), dict(thetas))


def fedavg(world: World) -> Iterator[Round]:
    w = world.params
    for r, cohort in enumerate(world.cohorts):
        w = mean({k: world.train(k, w, rate_of(r)) for k in cohort})
        yield Round(w, {})


def fedavg_ft(world: World, fine_tuning_epochs: int) -> Iterator[Round]:
    for round in fedavg(world):
        tuned = {
            k: world.train(k, round.server, rate_of(ROUNDS), fine_tuning_epochs) for k in range(4)
        }
        yield round._replace(deployed=tuned)


def fedprox(world: World, mu: float) -> Iterator[Round]:
    w = world.params
    for r, cohort in enumerate(world.cohorts):

        def gradient(theta, x, y, w=w):
            return slope(theta, x, y) + mu * (theta - w)

        w = mean({k: world.train(k, w, rate_of(r), gradient=gradient) for k in cohort})
        yield Round(w, {})


def scaffold(world: World) -> Iterator[Round]:
    w, c, controls = world.params, np.zeros_like(world.params), {}
    for r, cohort in enumerate(world.cohorts):
        models, changes = {}, []
        for k in cohort:
            own = controls.get(k, np.zeros_like(w))

            def gradient(theta, x, y, correction=c - own):
                return slope(theta, x, y) + correction

            models[k] = world.train(k, w, rate_of(r), gradient=gradient)
            steps = len(list(world.batches(k)))
            controls[k] = own - c + (w - models[k]) / (steps * rate_of(r))  # option II
            changes.append(controls[k] - own)
        w, c = mean(models, by_size=False), c + sum(changes) / len(SIZES)
        yield Round(vector(w, c), dict(controls))


def ditto(world: World, lam: float, personal_epochs: int) -> Iterator[Round]:
    w, own = world.params, {}
    for r, cohort in enumerate(world.cohorts):
        for k in cohort:

            def gradient(v, x, y, w=w):
                return slope(v, x, y) + lam * (v - w)

            own[k] = world.train(k, own.get(k, w), rate_of(r), personal_epochs, gradient=gradient)
        w = mean({k: world.train(k, w, rate_of(r)) for k in cohort})
        yield Round(w, dict(own), dict(own))


def apfl(world: World, alpha: float, alpha_rate: float) -> Iterator[Round]:
    w, own = world.params, {}
    for r, cohort in enumerate(world.cohorts):
        models = {}
        for k in cohort:
            theta, (v, share) = w, own.get(k, (w, alpha))
            for x, y in world.batches(k):
                g_common = slope(theta, x, y)
                g_mixture = slope(share * v + (1 - share) * theta, x, y)
                theta, v, share = (
                    theta - rate_of(r) * g_common,
                    v - rate_of(r) * share * g_mixture,
                    min(max(share - alpha_rate * g_mixture @ (v - theta), 0), 1),
                )
            models[k], own[k] = theta, (v, share)
        w = mean(models, by_size=False)
        deployed = {k: share * v + (1 - share) * w for k, (v, share) in own.items()}
        yield Round(w, {k: vector(*state) for k, state in own.items()}, deployed)


def pfedme(
    world: World, lam: float, inner_steps: int, inner_rate: float, beta: float, weight_decay: float
) -> Iterator[Round]:
    def update(k, w, r):
        theta, own = w, w
        for x, y in world.batches(k):
            for _ in range(inner_steps):
                pull = lam * (theta - own) + weight_decay * theta
                theta = theta - inner_rate * DECAY**r * (slope(theta, x, y) + pull)
            own = own - rate_of(r) * lam * (own - theta)
        return theta, own

    w, thetas = world.params, {}
    for r, cohort in enumerate(world.cohorts):
        models = {}
        for k in cohort:
            thetas[k], models[k] = update(k, w, r)
        w = (1 - beta) * w + beta * mean(models, by_size=False)
        yield Round(w, dict(thetas), {k: update(k, w, ROUNDS)[0] for k in range(4)})


def perfedavg(
    world: World, alpha: float, hessian_free: bool, delta: float, adaptation_steps: int
) -> Iterator[Round]:
    parts = 3 if hessian_free else 2
    w = world.params
    for r, cohort in enumerate(world.cohorts):
        inner_rate = alpha * DECAY**r

        def meta_gradient(theta, x, y, inner_rate=inner_rate):
            ends = [len(y) * part // parts for part in range(parts + 1)]
            pieces = [slice(a, b) for a, b in zip(ends[:-1], ends[1:], strict=True)]
            *hessian, inner, outer = [(x[piece], y[piece]) for piece in pieces]
            v = slope(theta - inner_rate * slope(theta, *inner), *outer)
            for batch in hessian:
                ahead, behind = slope(theta + delta * v, *batch), slope(theta - delta * v, *batch)
                v = v - inner_rate * (ahead - behind) / (2 * delta)
            return v

        models = {k: world.train(k, w, rate_of(r), gradient=meta_gradient) for k in cohort}
        w = mean(models, by_size=False)
        deployed = {}
        for k in range(4):
            deployed[k] = w
            batches = list(world.batches(k, adaptation_steps, batch=math.ceil(BATCH / parts)))
            for x, y in batches[:adaptation_steps]:
                deployed[k] = deployed[k] - alpha * DECAY**ROUNDS * slope(deployed[k], x, y)
        yield Round(w, {}, deployed)


def fedper(world: World) -> Iterator[Round]:
    body, heads = world.params[BODY], {}
    for r, cohort in enumerate(world.cohorts):
        models = {
            k: world.train(k, vector(body, heads.get(k, world.params[HEAD])), rate_of(r))
            for k in cohort
        }
        heads |= {k: theta[HEAD] for k, theta in models.items()}
        body = mean(models)[BODY]
        deployed = {k: vector(body, own) for k, own in heads.items()}
        yield Round(vector(body, world.params[HEAD]), dict(heads), deployed)


def fedrep(world: World, head_epochs: int, weight_by_size: bool) -> Iterator[Round]:
    body, heads = world.params[BODY], {}
    for r, cohort in enumerate(world.cohorts):
        models = {}
        for k in cohort:
            theta = vector(body, heads.get(k, world.params[HEAD]))
            theta = world.train(k, theta, rate_of(r), head_epochs, part=HEAD)
            models[k] = world.train(k, theta, rate_of(r), part=BODY)
        heads |= {k: theta[HEAD] for k, theta in models.items()}
        body = mean(models, weight_by_size)[BODY]
        yield Round(vector(body, world.params[HEAD]), dict(heads))


def fedbabu(world: World, fine_tuning_epochs: int) -> Iterator[Round]:
    w = world.params
    for r, cohort in enumerate(world.cohorts):
        w = mean({k: world.train(k, w, rate_of(r), part=BODY) for k in cohort})
        tuned = {k: world.train(k, w, rate_of(ROUNDS), fine_tuning_epochs) for k in range(4)}
        yield Round(w, {}, tuned)


def fedala(
    world: World, eta: float, share: float, first_passes: int, settled: float
) -> Iterator[Round]:
    w, states = world.params, {}

    def aggregate(k, state, w):
        theta, weights, started = state
        gap = w[HEAD] - theta[HEAD]
        if not np.any(gap):
            return vector(w[BODY], theta[HEAD]), weights, started
        count = min(max(math.floor(share * SIZES[k]), 1), SIZES[k])
        losses = []
        for passes in range(1, 2 if started else first_passes + 1):
            total, batches = 0.0, range(0, count, BATCH)
            for start in batches:
                rows = slice(start, min(start + BATCH, count))
                x, y = world.x[k][rows], world.y[k][rows]
                mixture = vector(w[BODY], theta[HEAD] + weights * gap)
                total += float(_value(mixture, x, y))
                weights = np.clip(weights - eta * slope(mixture, x, y)[HEAD] * gap, 0, 1)
            losses.append(total / len(batches))
            if passes > 10 and np.std(losses[-10:]) < settled:
                break
        return vector(w[BODY], theta[HEAD] + weights * gap), weights, True

    for r, cohort in enumerate(world.cohorts):
        models = {}
        for k in cohort:
            start = states.get(k, (w, np.ones_like(w[HEAD]), False))
            mixture, weights, started = aggregate(k, start, w)
            models[k] = world.train(k, mixture, rate_of(r))
            states[k] = models[k], weights, started
        w = mean(models)
        deployed = {k: aggregate(k, state, w)[0] for k, state in states.items()}
        yield Round(w, {k: vector(*state) for k, state in states.items()}, deployed)


def fedem(world: World, learners: int, absent_count: bool) -> Iterator[Round]:
    initial = [np.asarray(leaf) for leaf in jax.tree.leaves(world.server.average.params)]
    thetas = np.concatenate([leaf.reshape(learners, -1) for leaf in initial], axis=1)
    shares = {}
    for r, cohort in enumerate(world.cohorts):
        models, received = {}, thetas
        for k in cohort:
            pi = shares.get(k, np.full(learners, 1 / learners))

            def responsibilities(x, y, received=received, pi=pi):
                losses = np.stack([np.asarray(_losses(theta, x, y)) for theta in received])
                q = pi[:, None] * np.exp(-losses)
                return q / q.sum(axis=0)

            own = received.copy()
            for x, y in world.batches(k):
                q = responsibilities(x, y)
                for m in range(learners):
                    slopes = np.stack(
                        [slope(own[m], x[i : i + 1], y[i : i + 1]) for i in range(len(y))]
                    )
                    own[m] = own[m] - rate_of(r) * q[m] @ slopes / len(y)
            models[k] = own
            shares[k] = responsibilities(world.x[k], world.y[k]).mean(axis=1)
        counted = sum(SIZES) if absent_count else sum(SIZES[k] for k in cohort)
        thetas = received + sum(SIZES[k] * (models[k] - received) for k in cohort) / counted
        yield Round(vector(by_array(thetas), sum(SIZES)), dict(shares))


def fedfomo(world: World, validation_share: float) -> Iterator[Round]:
    """Every client weighs its own model and all models that others have uploaded."""
    models, affinity = np.tile(world.params, (4, 1)), np.eye(4)
    uploaded, states = np.zeros(4, bool), {}
    for r, cohort in enumerate(world.cohorts):
        trained, gains = {}, {}
        for k in cohort:
            cut = SIZES[k] - math.floor(validation_share * SIZES[k])
            model, before = states.get(k, (world.params, world.params))
            x, y = world.x[k][cut:], world.y[k][cut:]
            base = float(_value(before, x, y)) if len(y) else 0.0
            candidates = {j: models[j] for j in range(4) if uploaded[j]} | {k: model}
            gains[k] = {}
            for j, theta in candidates.items():
                distance = np.linalg.norm(theta - before)
                if distance > 0 and len(y):
                    gains[k][j] = (base - float(_value(theta, x, y))) / (distance + 1e-5)
            helpful = {j: gain for j, gain in gains[k].items() if gain > 0}
            start = model
            if helpful:
                start = sum(gain * candidates[j] for j, gain in helpful.items())
                start = start / sum(helpful.values())
            theta = start.copy()
            for _ in range(EPOCHS):
                for at in range(0, cut, BATCH):
                    rows = slice(at, min(at + BATCH, cut))
                    theta = theta - rate_of(r) * slope(theta, world.x[k][rows], world.y[k][rows])
            trained[k], states[k] = theta, (theta, start)
        for k in cohort:
            models[k], uploaded[k] = trained[k], True
            for j, gain in gains[k].items():
                affinity[k, j] += gain
        server = vector(by_array(models), uploaded, affinity, world.params)
        yield Round(server, {k: vector(*state) for k, state in states.items()})


def apple(
    world: World, relation_rate: float, mu: float, duration: float, epsilon: float
) -> Iterator[Round]:
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(world.server.cores)]
    cores = np.concatenate([leaf.reshape(4, -1) for leaf in leaves], axis=1)
    sizes = np.array(SIZES, float)
    shares, relations = sizes / sizes.sum(), {}
    for r, cohort in enumerate(world.cohorts):
        last = duration * ROUNDS
        pull = mu * epsilon ** (r / last) if r < last else 0.0
        trained = {}
        for k in cohort:
            seen, p = cores.copy(), relations.get(k, shares)
            for x, y in world.batches(k):
                g = slope(p @ seen, x, y)
                step = seen @ g + pull * (p - shares)
                seen[k] = seen[k] - rate_of(r) * 4 * p[k] * g
                p = p - relation_rate * step
            trained[k], relations[k] = seen[k], p
        for k in cohort:
            cores[k] = trained[k]
        deployed = {k: p @ cores for k, p in relations.items()}
        yield Round(vector(by_array(cores), shares), dict(relations), deployed)


def pfedhn(
    world: World, rate: float, momentum: float, weight_decay: float, clip: float
) -> Iterator[Round]:
    network = jax.tree.map(np.asarray, world.server.network)
    embeddings = np.asarray(world.server.embeddings)

    def generate(network, v):
        for layer in network["hidden"]:
            v = jnp.maximum(v @ layer["kernel"] + layer["bias"], 0)
        v = v @ network["linear"]["kernel"] + network["linear"]["bias"]
        kernels, biases = (jax.tree.leaves(network["heads"][kind]) for kind in ("kernel", "bias"))
        return jnp.concatenate(
            [
                jnp.tensordot(v, kernel, 1).ravel() + bias.ravel()
                for kernel, bias in zip(kernels, biases, strict=True)
            ]
        )

    velocity = jax.tree.map(np.zeros_like, (network, embeddings))
    for r, cohort in enumerate(world.cohorts):
        of_network, of_embeddings = [], np.zeros_like(embeddings)
        for k in cohort:
            theta, back = jax.vjp(generate, network, embeddings[k])
            change = world.train(k, np.asarray(theta), rate_of(r)) - np.asarray(theta)
            slopes, of_embeddings[k] = back(-change)
            of_network.append(slopes)
        of_network = jax.tree.map(lambda *leaves: sum(leaves) / len(leaves), *of_network)
        gradient = (of_network, of_embeddings)
        norm = np.linalg.norm(flat(gradient))
        gradient = jax.tree.map(lambda g, norm=norm: np.asarray(g) * min(1, clip / norm), gradient)
        parameters = (network, embeddings)
        velocity = jax.tree.map(
            lambda v, g, p: momentum * v + g + weight_decay * p, velocity, gradient, parameters
        )
        network, embeddings = jax.tree.map(lambda p, v: p - rate * v, parameters, velocity)
        deployed = {k: np.asarray(generate(network, embeddings[k])) for k in range(4)}
        yield Round(flat(((network, embeddings), velocity)), {}, deployed)


def fedbn(world: World) -> Iterator[Round]:
    """FedPer, where the arrays of the head are called normalization."""
    return fedper(world)


def pull(w, x, y, means, seen):
    """`mean_i [y_i seen] ||z_i - P_{y_i}||^2 / d`."""
    gaps = jnp.mean((features(w, x) - means[y]) ** 2, axis=1)
    return jnp.mean(gaps * seen[y])


_pulled = jax.jit(
    jax.grad(lambda w, x, y, means, seen, lam: loss(w, x, y) + lam * pull(w, x, y, means, seen))
)


def class_means(world: World, models: dict, means, seen):
    """The prototypes after a round, by the clients' examples of each class."""
    means, seen = means.copy(), seen.copy()
    for c in range(CLASSES):
        own = [
            np.asarray(_features(theta, world.x[k][world.y[k] == c]))
            for k, theta in models.items()
            if np.any(world.y[k] == c)
        ]
        if own:
            means[c], seen[c] = np.concatenate(own).mean(axis=0), 1
    return means, seen


def fedproto(world: World, lam: float) -> Iterator[Round]:
    means, seen, thetas = np.zeros((CLASSES, FEATURES)), np.zeros(CLASSES), {}
    for r, cohort in enumerate(world.cohorts):
        for k in cohort:

            def gradient(theta, x, y, means=means, seen=seen):
                return _pulled(theta, x, y, means, seen, lam)

            start = thetas.get(k, world.params)
            thetas[k] = world.train(k, start, rate_of(r), gradient=gradient)
        means, seen = class_means(world, {k: thetas[k] for k in cohort}, means, seen)
        yield Round(vector(world.params, means, seen), dict(thetas))


def fedpac(world: World, lam: float, head_epochs: int) -> Iterator[Round]:
    means, seen, heads = np.zeros((CLASSES, FEATURES)), np.zeros(CLASSES), {}
    body = world.params[BODY]
    for r, cohort in enumerate(world.cohorts):
        models, statistics = {}, {}
        for k in cohort:
            theta = vector(body, heads.get(k, world.params[HEAD]))
            z, n = np.asarray(_features(theta, world.x[k])), SIZES[k]
            shares = np.stack([z[world.y[k] == c].sum(axis=0) / n for c in range(CLASSES)])
            variance = (np.sum(z**2) / n - np.sum(shares**2)) / n
            statistics[k] = shares, variance

            def gradient(theta, x, y, means=means, seen=seen):
                return _pulled(theta, x, y, means, seen, lam)

            theta = world.train(k, theta, rate_of(r), head_epochs, part=HEAD)
            models[k] = world.train(k, theta, rate_of(r), part=BODY, gradient=gradient)
        means, seen = class_means(world, models, means, seen)
        body = mean(models)[BODY]
        for k, other in (cohort, cohort[::-1]):  # of two heads the best mixture has a closed form
            (own_shares, own_variance), (shares, variance) = statistics[k], statistics[other]
            gap = variance + np.sum((own_shares - shares) ** 2)
            weight = gap / (own_variance + gap)
            heads[k] = weight * models[k][HEAD] + (1 - weight) * models[other][HEAD]
        server = vector(body, world.params[HEAD], means, seen)
        yield Round(server, dict(heads), {k: vector(body, own) for k, own in heads.items()})


def cut_ranks(w, energy: float) -> np.ndarray:
    """Keeps of both kernels the least singular values that hold more than `energy`."""
    w = w.copy()
    for part, shape in ((BODY_KERNEL, (INPUTS, FEATURES)), (HEAD_KERNEL, (FEATURES, CLASSES))):
        left, values, right = np.linalg.svd(w[part].reshape(shape), full_matrices=False)
        held = np.cumsum(values**2)
        rank = min(1 + np.sum(held <= energy * held[-1]), len(values))
        w[part] = (left[:, :rank] * values[:rank] @ right[:rank]).ravel()
    return w


def fedkd(
    world: World, distillation: float, hidden: float, energy_start: float, energy_end: float
) -> Iterator[Round]:
    def taught(w, x, y, other_logits, other_features, bridge, scale, own_side):
        """The loss of one model while the other one is constant."""
        z = features(w, x)
        logs, target = jax.nn.log_softmax(head(w, z)), jax.nn.log_softmax(other_logits)
        divergence = jnp.mean(jnp.sum(jnp.exp(target) * (target - logs), axis=1))
        gap = z - other_features @ bridge if own_side else other_features - z @ bridge
        distance = jnp.mean(jnp.mean(gap**2, axis=1))
        return loss(w, x, y) + (distillation * divergence + hidden * distance) / scale

    of_mentor = jax.jit(lambda *args: jax.grad(taught)(*args, True))
    of_mentee = jax.jit(lambda *args: jax.grad(taught, argnums=(0, 5))(*args, False))
    logits = jax.jit(lambda w, x: head(w, features(w, x)))

    w, states = world.params, {}
    for r, cohort in enumerate(world.cohorts):
        energy = energy_start + (energy_end - energy_start) * (r + 1) / ROUNDS
        changes = {}
        for k in cohort:
            mentor, bridge = states.get(k, (w, np.asarray(world.clients.bridge[k])))
            mentee = w
            for x, y in world.batches(k):
                scale = float(_value(mentor, x, y) + _value(mentee, x, y))
                g = of_mentor(mentor, x, y, logits(mentee, x), _features(mentee, x), bridge, scale)
                g_mentee, g_bridge = of_mentee(
                    mentee, x, y, logits(mentor, x), _features(mentor, x), bridge, scale
                )
                mentor, mentee, bridge = (
                    old - rate_of(r) * np.asarray(step)
                    for old, step in ((mentor, g), (mentee, g_mentee), (bridge, g_bridge))
                )
            states[k] = mentor, bridge
            changes[k] = cut_ranks(mentee - w, energy)
        w = w + cut_ranks(mean(changes, by_size=False), energy)
        yield Round(w, {k: vector(*state) for k, state in states.items()})


def fedcp(world: World, lam: float) -> Iterator[Round]:
    policy = flat(world.server.params["policy"])
    sizes = np.cumsum([2 * FEATURES, 2 * FEATURES**2, 2 * FEATURES])

    def split(policy, direction, z):
        bias, kernel, shift, scale = jnp.split(policy, sizes)
        u = z * direction / jnp.sqrt(jnp.sum(direction**2))
        hidden = u @ kernel.reshape(FEATURES, 2 * FEATURES) + bias
        hidden = hidden - hidden.mean(axis=1, keepdims=True)
        hidden = hidden / jnp.sqrt((hidden**2).mean(axis=1, keepdims=True) + 1e-5)
        pairs = jax.nn.relu(hidden * scale + shift).reshape(-1, 2, FEATURES)
        shares = jnp.exp(pairs) / jnp.exp(pairs).sum(axis=1, keepdims=True)
        return shares[:, 0] * z, shares[:, 1] * z

    def kernel_mean(a, b):
        squares = jnp.sum((a[:, None] - b) ** 2, axis=-1)
        return sum(jnp.mean(jnp.exp(-squares / (2 * s))) for s in (10, 15, 20, 50))

    def objective(moving, x, y, direction, received):
        w, policy = moving
        z, before = features(w, x), features(received, x)
        own, common = split(policy, direction, z)
        outputs = head(w, own) + head(received, common)
        losses = jax.nn.logsumexp(outputs, axis=1) - outputs[jnp.arange(len(y)), y]
        mmd = kernel_mean(z, z) + kernel_mean(before, before) - 2 * kernel_mean(z, before)
        return jnp.mean(losses) + lam * mmd

    gradient = jax.jit(jax.grad(objective))
    w, heads = world.params, {}
    for r, cohort in enumerate(world.cohorts):
        models = {}
        for k in cohort:
            theta, own_policy = vector(w[BODY], heads.get(k, w[HEAD])), policy
            direction = theta[HEAD_KERNEL].reshape(FEATURES, CLASSES).sum(axis=1)
            for x, y in world.batches(k):
                steps = gradient((theta, own_policy), x, y, direction, w)
                theta, own_policy = (
                    old - rate_of(r) * np.asarray(step)
                    for old, step in zip((theta, own_policy), steps, strict=True)
                )
            heads[k] = theta[HEAD]
            models[k] = vector(theta[BODY], (theta[HEAD] + w[HEAD]) / 2, own_policy)
        shared = mean(models)
        w, policy = shared[MODEL], shared[MODEL.stop :]
        yield Round(shared, dict(heads))


def fedcac(world: World, tau: float, beta: float) -> Iterator[Round]:
    w, states = world.params, {}
    for r, cohort in enumerate(world.cohorts):
        models, critical = {}, {}
        for k in cohort:
            own, mask = states.get(k, (w, np.zeros_like(w, bool)))
            start = np.where(mask, own, w)
            models[k] = world.train(k, start, rate_of(r))
            scores = np.abs((models[k] - start) * models[k])
            critical[k] = np.zeros_like(mask)
            for part in ARRAYS:
                count = math.floor(tau * scores[part].size)
                largest = np.argsort(scores[part])[::-1][:count]
                critical[k][part.start + largest] = scores[part][largest] > 0
        overlaps = {
            (i, j): 1 - np.sum(critical[i] != critical[j]) / (2 * np.sum(critical[i]))
            for i in cohort
            for j in cohort
            if i != j
        }
        middle = np.mean(list(overlaps.values()))
        threshold = middle + (r + 1) / beta * (max(overlaps.values()) - middle)
        for k in cohort:
            group = [j for j in cohort if j == k or overlaps[k, j] >= threshold - 1e-6]
            states[k] = np.mean([models[j] for j in group], axis=0), critical[k]
        w = mean(models)
        deployed = {k: np.where(mask, own, w) for k, (own, mask) in states.items()}
        yield Round(w, {k: vector(*state) for k, state in states.items()}, deployed)


def fedgen(
    world: World,
    weight: float,
    decay: float,
    first_round: int,
    diversity: float,
    generator_steps: int,
    generator_rate: float,
    drawn: dict,
) -> Iterator[Round]:
    """`drawn` are labels and noise for a client's step and for one of the server."""

    def generate(generator, labels, noise):
        hidden = jnp.concatenate([noise, jnp.eye(CLASSES)[labels]], axis=1) @ generator["hidden"]
        hidden = (hidden - hidden.mean(axis=0)) / jnp.sqrt(hidden.var(axis=0) + 1e-5)
        hidden = jax.nn.relu(hidden * generator["norm"]["scale"] + generator["norm"]["bias"])
        return hidden @ generator["features"]["kernel"] + generator["features"]["bias"]

    def cross_entropy(logits, labels):
        return jnp.mean(jax.nn.logsumexp(logits, axis=1) - logits[jnp.arange(len(labels)), labels])

    def of_generator(generator, heads, shares):
        labels, noise = drawn["server"]
        z, count = generate(generator, labels, noise), len(labels)
        logits = sum(a[labels][:, None] * head(w, z) for a, w in zip(shares, heads, strict=True))
        exponent = sum(
            jnp.mean(jnp.abs(z[i] - z[j])) * np.mean((noise[i] - noise[j]) ** 2)
            for i in range(count)
            for j in range(count)
        )
        return cross_entropy(logits, labels) + diversity * jnp.exp(-exponent / count**2)

    server_slope = jax.jit(jax.grad(of_generator))
    generator = jax.tree.map(np.asarray, world.server.generator)
    counts = np.array([np.bincount(y, minlength=CLASSES) for y in world.y], float)
    labels, noise = drawn["client"]
    first = second = jax.tree.map(np.zeros_like, generator)
    w, steps = world.params, 0
    generated_slope = jax.jit(jax.grad(lambda theta, z: cross_entropy(head(theta, z), labels)))
    for r, cohort in enumerate(world.cohorts):
        strength = weight * decay**r if r >= first_round else 0.0
        z = np.asarray(generate(generator, labels, noise))

        def gradient(theta, x, y, z=z, strength=strength):
            return slope(theta, x, y) + strength * np.asarray(generated_slope(theta, z))

        models = {k: world.train(k, w, rate_of(r), gradient=gradient) for k in cohort}
        totals, sizes = counts[cohort].sum(axis=0), [SIZES[k] for k in cohort]
        shares = np.stack(
            [
                np.where(totals > 0, counts[k] / np.maximum(totals, 1), SIZES[k] / sum(sizes))
                for k in cohort
            ]
        )
        for _ in range(generator_steps):
            steps += 1
            g = server_slope(generator, [models[k] for k in cohort], shares)
            first = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * np.asarray(g), first, g)
            second = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * np.asarray(g) ** 2, second, g)
            scales = 1 - 0.9**steps, 1 - 0.999**steps
            generator = jax.tree.map(
                lambda p, m, v, scales=scales: (
                    p - generator_rate * (m / scales[0]) / (np.sqrt(v / scales[1]) + 1e-8)
                ),
                generator,
                first,
                second,
            )
        w = mean(models)
        yield Round(vector(w, flat(generator), counts.sum(axis=0) / counts.sum()), {})
