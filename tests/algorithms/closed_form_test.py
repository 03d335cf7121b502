"""Methods on quadratics, where a round can be written down.

The loss of a client with examples `x_i` is `1/2 mean_i ||theta - x_i||^2`; a full-batch gradient
step with rate `eta` is `theta <- theta - eta (theta - m_k)` with `m_k` the client's mean, so that
`E` steps give `theta - m_k` a factor `(1 - eta)^E`.
"""

import importlib
import itertools

import federation
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pfljax import core
from pfljax.algorithms import ALGORITHMS
from pfljax.core import streams
from pfljax.engine import sampling

ETA, STEPS = 0.2, 3
SIZES = np.array([4, 2, 6])
DRAW = np.random.default_rng(3)
POINTS = DRAW.normal(size=(SIZES.sum(), 4)).astype(np.float32)
ENDS = np.cumsum(SIZES)
MEANS = np.stack([POINTS[e - n : e].mean(axis=0) for e, n in zip(ENDS, SIZES, strict=True)])
DATA = federation.examples_of(POINTS, np.zeros(SIZES.sum(), np.int32), SIZES, num_classes=1)
PLAN = sampling.CohortPlan(num_clients=3, size=3)
START = np.zeros(4, np.float32)
SHARE = SIZES / SIZES.sum()


def flat(model):
    return jnp.concatenate([model["body"]["w"], model["head"]["w"]])


def quadratic() -> core.Task:
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
        head=lambda model, features, mask=None, key=None: features,
        is_head=lambda path: path[0] == "head",
        metrics=lambda outputs, batch: {
            "accuracy": jnp.sum(batch.mask),
            "loss": jnp.sum(outputs * batch.mask[:, None]),
        },
        num_classes=1,
        layers=(("body",), ("head",)),
        is_norm=lambda path: path[0] == "head",
    )


def run(name, rounds, **hyperparameters):
    local = core.LocalTraining(optax.sgd(ETA), batch_size=8, epochs=STEPS)
    algorithm = ALGORITHMS[name](quadratic(), local, **hyperparameters)
    outcome = federation.run(
        algorithm, data=DATA, plan=PLAN, rounds=rounds, score=quadratic(), devices=2
    )
    return outcome


def vector(model):
    return np.concatenate([model["body"]["w"], model["head"]["w"]], axis=-1)


def steps_towards(start, target, rate=ETA, steps=STEPS):
    return target + (1 - rate) ** steps * (start - target)


def near(a, b):
    np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6)


def test_local():
    near(vector(run("local", 2).clients), steps_towards(START, MEANS, steps=2 * STEPS))


def test_fedavg():
    w = START
    for _ in range(3):
        w = SHARE @ steps_towards(w, MEANS)
    near(vector(run("fedavg", 3).server.params), w)


def test_fedavg_with_server_momentum():
    w, velocity = START, 0
    for _ in range(3):
        change = SHARE @ steps_towards(w, MEANS) - w
        velocity = 0.5 * velocity + change
        w = w + 0.7 * velocity
    optimizer = optax.sgd(0.7, momentum=0.5)
    near(vector(run("fedavg", 3, server_optimizer=optimizer).server.params), w)


def test_fedavg_ft():
    outcome = run("fedavg_ft", 1, fine_tuning_epochs=2)
    w = SHARE @ steps_towards(START, MEANS)
    tuned = steps_towards(w, MEANS, steps=2)
    gaps = [
        (POINTS[e - n : e] - theta).sum() for e, n, theta in zip(ENDS, SIZES, tuned, strict=True)
    ]
    near(outcome.scores["personal"]["test"]["loss"], gaps)


def test_fedprox():
    mu, w = 0.5, START
    for _ in range(2):
        # The gradient (theta - m) + mu (theta - w) vanishes at (m + mu w) / (1 + mu).
        w = SHARE @ steps_towards(w, (MEANS + mu * w) / (1 + mu), rate=ETA * (1 + mu))
    near(vector(run("fedprox", 2, mu=mu).server.params), w)


def test_ditto():
    lam, w, v = 0.8, START, np.tile(START, (3, 1))
    for _ in range(2):
        v = steps_towards(v, (MEANS + lam * w) / (1 + lam), rate=ETA * (1 + lam), steps=4)
        w = SHARE @ steps_towards(w, MEANS)
    outcome = run("ditto", 2, lam=lam, personal_epochs=4)
    near(vector(outcome.server.params), w)
    near(vector(outcome.clients), v)


def test_apfl():
    rate, w, v, alpha = 0.1, START, np.tile(START, (3, 1)), np.full((3, 1), 0.3)
    for _ in range(2):
        theta = np.tile(w, (3, 1))
        for _ in range(STEPS):
            slope = alpha * v + (1 - alpha) * theta - MEANS  # of the mixture
            moved = np.clip(alpha - rate * (slope * (v - theta)).sum(1, keepdims=True), 0, 1)
            theta, v = theta - ETA * (theta - MEANS), v - ETA * alpha * slope
            alpha = moved
        w = theta.mean(axis=0)
    outcome = run("apfl", 2, alpha=0.3, alpha_rate=rate)
    near(vector(outcome.server.params), w)
    near(vector(outcome.clients.params), v)
    near(outcome.clients.alpha, alpha[:, 0])
    assert not np.allclose(alpha, 0.3, atol=0.01)
    mixed = alpha * v + (1 - alpha) * w
    near(outcome.scores["personal"]["test"]["loss"], personal_gaps(mixed))


def test_scaffold():
    rate, w, c, c_k = 0.5, START, START, np.zeros((3, 4))
    for _ in range(3):
        theta = np.tile(w, (3, 1))
        for _ in range(STEPS):
            theta = theta - ETA * ((theta - MEANS) + c - c_k)
        new = c_k - c + (w - theta) / (STEPS * ETA)  # option II of the paper
        w = w + rate * (theta - w).mean(axis=0)
        c, c_k = c + (new - c_k).mean(axis=0), new
    outcome = run("scaffold", 3, server_optimizer=optax.sgd(rate))
    near(vector(outcome.server.average.params), w)
    near(vector(outcome.server.control), c)
    near(vector(outcome.clients), c_k)


def test_fedper():
    body, head = START[:2], np.zeros((3, 2))
    for _ in range(2):
        body = SHARE @ steps_towards(body, MEANS[:, :2])
        head = steps_towards(head, MEANS[:, 2:])
    outcome = run("fedper", 2)
    near(outcome.server.average.params["body"]["w"], body)
    near(outcome.clients["head"]["w"], head)


def test_fedbn():
    body, head = START[:2], np.zeros((3, 2))
    for _ in range(2):
        body = SHARE @ steps_towards(body, MEANS[:, :2])
        head = steps_towards(head, MEANS[:, 2:])
    outcome = run("fedbn", 2)
    near(outcome.server.average.params["body"]["w"], body)
    near(outcome.clients["head"]["w"], head)
    deployed = np.c_[np.tile(body, (3, 1)), head]
    near(outcome.scores["personal"]["test"]["loss"], personal_gaps(deployed))


def test_fedrep():
    body, head = START[:2], np.zeros((3, 2))
    for _ in range(2):
        head = steps_towards(head, MEANS[:, 2:], steps=5)
        body = SHARE @ steps_towards(body, MEANS[:, :2])
    outcome = run("fedrep", 2, head_epochs=5)
    near(outcome.server.average.params["body"]["w"], body)
    near(outcome.clients["head"]["w"], head)


def personal_gaps(thetas):
    """What the evaluation's 'loss' sums up for the models `thetas` `[clients, 4]`."""
    rows = zip(ENDS, SIZES, thetas, strict=True)
    return [(POINTS[e - n : e] - theta).sum() for e, n, theta in rows]


def test_fedbabu():
    body, head = START[:2], START[2:]
    for _ in range(2):
        body = SHARE @ steps_towards(body, MEANS[:, :2])
    outcome = run("fedbabu", 2, fine_tuning_epochs=4)
    near(outcome.server.average.params["body"]["w"], body)
    near(outcome.server.initial_head["head"]["w"], head)
    tuned = steps_towards(np.concatenate([body, head]), MEANS, steps=4)
    near(outcome.scores["personal"]["test"]["loss"], personal_gaps(tuned))


def cut_means(points, parts):
    """The mean of each of `parts` pieces of a client's examples, in stored order."""
    cuts = [i * len(points) // parts for i in range(parts + 1)]
    return [points[a:b].mean(axis=0) for a, b in zip(cuts, cuts[1:], strict=False)]


@pytest.mark.parametrize("hessian_free", [False, True])
def test_perfedavg(hessian_free):
    # On a quadratic the gradient after the inner step is (1 - alpha) (theta - m1) + m1 - m2; the
    # Hessian is the identity, so that its term is a factor 1 - alpha.
    alpha, w = 0.3, START
    sizes = np.array([4, 3, 5])
    ends = np.cumsum(sizes)
    points = [POINTS[e - n : e] for e, n in zip(ends, sizes, strict=True)]
    data = federation.examples_of(
        POINTS[: ends[-1]], np.zeros(ends[-1], np.int32), sizes, num_classes=1
    )
    parts = 3 if hessian_free else 2
    for _ in range(2):
        models = []
        for own in points:
            *_, m1, m2 = cut_means(own, parts)
            theta = w
            for _ in range(STEPS):
                gradient = (1 - alpha) * (theta - m1) + m1 - m2
                theta = theta - ETA * (1 - alpha if hessian_free else 1) * gradient
            models.append(theta)
        w = np.mean(models, axis=0)
    local = core.LocalTraining(optax.sgd(ETA), batch_size=6, epochs=STEPS, shuffle=False)
    outcome = federation.run(
        ALGORITHMS["perfedavg"](quadratic(), local, alpha=alpha, hessian_free=hessian_free),
        data=data,
        plan=PLAN,
        rounds=2,
        score=quadratic(),
    )
    # The finite differences lose digits of float32.
    np.testing.assert_allclose(vector(outcome.server.params), w, rtol=1e-3, atol=1e-4)
    w = vector(outcome.server.params)
    first = np.stack([own[: 6 // parts].mean(axis=0) for own in points])
    gaps = [
        (own - theta).sum()
        for own, theta in zip(points, steps_towards(w, first, rate=alpha, steps=1), strict=True)
    ]
    near(outcome.scores["personal"]["test"]["loss"], gaps)


def test_pfedme():
    lam, inner_rate, beta, w = 2.0, 0.1, 1.5, START
    for _ in range(2):
        own = theta = np.tile(w, (3, 1))
        for _ in range(STEPS):
            # The gradient (theta - m) + lam (theta - w) vanishes at (m + lam w) / (1 + lam).
            middle, rate = (MEANS + lam * own) / (1 + lam), inner_rate * (1 + lam)
            theta = steps_towards(theta, middle, rate=rate, steps=4)
            own = own - ETA * lam * (own - theta)
        w = (1 - beta) * w + beta * own.mean(axis=0)
    outcome = run("pfedme", 2, lam=lam, inner_steps=4, inner_rate=inner_rate, beta=beta)
    near(vector(outcome.server.params), w)
    near(vector(outcome.clients), theta)
    near(outcome.scores["personal"]["test"]["loss"], personal_gaps(theta))


def linear_features() -> core.Task:
    """Features `x W`, a head that never matters, and no loss but what a method adds."""
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
    )


@pytest.mark.parametrize("by_size", [True, False])
def test_fedproto(by_size):
    # Nobody has class 3; the second client lacks class 0, the first class 2.
    labels, lam, rounds = np.array([0, 0, 0, 1, 1, 2, 0, 1, 1, 2, 2, 0]), 0.7, 3
    own = [(POINTS[e - n : e], labels[e - n : e]) for e, n in zip(ENDS, SIZES, strict=True)]
    task = linear_features()
    w = [np.asarray(task.init(None)["body"]["w"], np.float64)] * 3
    prototypes, seen = np.zeros((4, 2)), np.zeros(4, bool)
    for _ in range(rounds):
        sums, weights = np.zeros((4, 2)), np.zeros(4)
        for k, (x, y) in enumerate(own):
            for _ in range(STEPS):
                gap = (x @ w[k] - prototypes[y]) * seen[y][:, None]
                w[k] = w[k] - ETA * lam * 2 / gap.size * x.T @ gap
            for c in np.unique(y):
                weight = np.sum(y == c) if by_size else 1
                sums[c] += weight * (x @ w[k])[y == c].mean(axis=0)
                weights[c] += weight
        seen = weights > 0
        prototypes[seen] = sums[seen] / weights[seen][:, None]
    assert list(seen) == [True, True, True, False]

    local = core.LocalTraining(optax.sgd(ETA), batch_size=8, epochs=STEPS)
    data = federation.examples_of(POINTS, labels.astype(np.int32), SIZES, num_classes=4)
    outcome = federation.run(
        ALGORITHMS["fedproto"](task, local, lam=lam, weight_by_size=by_size),
        data=data,
        plan=PLAN,
        rounds=rounds,
        score=task,
        devices=2,
    )
    near(outcome.server.prototypes.means, prototypes)
    np.testing.assert_array_equal(outcome.server.prototypes.seen, seen)
    near(outcome.clients["body"]["w"], np.stack(w))
    right, outputs = [], []
    for (x, y), matrix in zip(own, w, strict=True):
        distances = (((x @ matrix)[:, None] - prototypes[:3]) ** 2).sum(axis=-1)
        right.append(np.sum(distances.argmin(axis=1) == y))
        outputs.append(-distances.sum() - (distances.max(axis=1) + 1).sum())  # class 3 behind all
    near(outcome.scores["personal"]["test"]["accuracy"], right)
    near(outcome.scores["personal"]["test"]["loss"], outputs)


@pytest.mark.parametrize("layers", [1, 2])
def test_fedala(layers):
    eta, most, upper = 2.0, 14, slice(4 - 2 * layers, 4)
    w, theta, weights = START, np.zeros((3, 4)), np.ones((3, 4))
    spread = [
        np.mean((POINTS[e - n : e] - m) ** 2, axis=0)
        for e, n, m in zip(ENDS, SIZES, MEANS, strict=True)
    ]

    def mix(k, passes):
        """The mixture of client `k`; one full batch is a pass over all examples."""
        losses = []
        gap = w[upper] - theta[k, upper]
        mixed = w.copy()
        mixed[upper] = theta[k, upper] + weights[k, upper] * gap
        while len(losses) < passes:
            losses.append(0.5 * np.sum((mixed - MEANS[k]) ** 2 + spread[k]))
            slope = (mixed - MEANS[k])[upper] * gap
            weights[k, upper] = np.clip(weights[k, upper] - eta * slope, 0, 1)
            mixed[upper] = theta[k, upper] + weights[k, upper] * gap
            if len(losses) > 10 and np.std(losses[-10:]) < settled:
                break
        return mixed, len(losses)

    settled, counts = 0.02, []
    for round in range(3):
        passes = 0 if round == 0 else most if round == 1 else 1
        mixed, count = zip(*(mix(k, passes) for k in range(3)), strict=True)
        counts.append(count)
        theta = steps_towards(np.stack(mixed), MEANS)
        w = SHARE @ theta
    assert counts[1] != (11, 11, 11) and counts[1] != (most,) * 3, "nothing of interest happens"
    outcome = run(
        "fedala", 3, eta=eta, share=1.0, layers=layers, first_passes=most, settled=settled
    )
    near(vector(outcome.server.params), w)
    near(vector(outcome.clients.params), theta)
    learned = (
        vector(outcome.clients.weights) if layers == 2 else outcome.clients.weights["head"]["w"]
    )
    near(learned, weights[:, upper])
    deployed = [mix(k, 1)[0] for k in range(3)]
    near(outcome.scores["personal"]["test"]["loss"], personal_gaps(deployed))


@pytest.mark.parametrize("tau, beta", [(0.5, 4.0), (0.5, 0.5), (1.0, 4.0)])
def test_fedcac(tau, beta):
    # Each of the two arrays has two entries: one is critical, or (tau = 1) both.
    w, u, critical, sizes = START, np.zeros((3, 4)), np.zeros((3, 4), bool), set()
    for round in range(3):
        start = np.where(critical, u, w)
        theta = steps_towards(start, MEANS)
        scores = np.abs((theta - start) * theta).reshape(3, 2, 2)
        ranks = np.argsort(np.argsort(scores, axis=-1), axis=-1)
        critical = (ranks >= (1 if tau < 1 else 0)).reshape(3, 4)
        apart = np.abs(critical[:, None].astype(int) - critical).sum(axis=-1)
        overlap = 1 - apart / (2 * critical.sum(axis=-1)[:, None])
        others = overlap[~np.eye(3, dtype=bool)]
        threshold = others.mean() + (round + 1) / beta * (others.max() - others.mean())
        group = (overlap >= threshold - 1e-9) | np.eye(3, dtype=bool)
        sizes |= set(group.sum(axis=1).tolist())
        u = (group / group.sum(axis=1, keepdims=True)) @ theta
        w = SHARE @ theta
    # Groups change; after beta all are alone; where all overlap alike, all stay together.
    assert sizes == {(0.5, 4.0): {1, 2, 3}, (0.5, 0.5): {1}, (1.0, 4.0): {3}}[tau, beta]
    outcome = run("fedcac", 3, tau=tau, beta=beta)
    near(vector(outcome.server.average.params), w)
    np.testing.assert_array_equal(vector(outcome.clients.critical), critical)
    near(vector(outcome.clients.params), u)
    near(outcome.scores["personal"]["test"]["loss"], personal_gaps(np.where(critical, u, w)))


def starting_apart() -> core.Task:
    """The quadratic task with a random start."""

    def init(key):
        w = jax.random.normal(key, (4,))
        return {"body": {"w": w[:2]}, "head": {"w": w[2:]}}

    return quadratic()._replace(init=init)


def run_apart(name, *, rounds=1, eta=ETA, data=DATA, plan=PLAN, **hyperparameters):
    """Runs a method from a random start, which is where it ends with `eta` 0."""
    local = core.LocalTraining(optax.sgd(eta), batch_size=8, epochs=STEPS)
    task = starting_apart()
    algorithm = ALGORITHMS[name](task, local, **hyperparameters)
    return federation.run(algorithm, data=data, plan=plan, rounds=rounds, score=task, devices=2)


def test_fedem():
    learners, rounds = 3, 2
    own = [POINTS[e - n : e] for e, n in zip(ENDS, SIZES, strict=True)]

    theta = vector(
        run_apart("fedem", eta=0.0, learners=learners).server.average.params
    )  # where the learners begin
    assert np.ptp(theta, axis=0).min() > 0.1
    pi = np.full((3, learners), 1 / learners)
    for _ in range(rounds):
        total = np.zeros_like(theta)
        for k, x in enumerate(own):
            losses = 0.5 * ((x[:, None] - theta) ** 2).sum(axis=-1)
            q = pi[k] * np.exp(-losses)
            q = q / q.sum(axis=1, keepdims=True)
            pi[k] = q.mean(axis=0)
            target = q.T @ x / q.sum(axis=0)[:, None]
            rate = ETA * pi[k][:, None]  # the Hessian of a learner's loss is its share of q
            total += SHARE[k] * steps_towards(theta, target, rate=rate)
        theta = total
    outcome = run_apart("fedem", rounds=rounds, learners=learners)
    near(vector(outcome.server.average.params), theta)
    near(outcome.clients, pi)
    logs = []
    for x, weights in zip(own, pi, strict=True):
        scores = np.exp(x[:, None] - theta)
        logs.append(np.log(weights @ (scores / scores.sum(axis=-1, keepdims=True))).sum())
    near(outcome.scores["personal"]["test"]["loss"], logs)


def test_fedfomo():
    # Without shuffling, the last half of a client's examples weighs models.
    points = POINTS + np.float32(0.7)
    own = [points[e - n : e] for e, n in zip(ENDS, SIZES, strict=True)]
    targets = [x[: len(x) // 2].mean(axis=0) for x in own]
    model, before, affinity = np.zeros((3, 4)), np.zeros((3, 4)), np.eye(3)
    positive = []
    for round in range(3):
        sent = model.copy()
        for k, x in enumerate(own):
            held_out = x[len(x) // 2 :]

            def loss(theta, held_out=held_out):
                return 0.5 * ((held_out - theta) ** 2).sum(axis=-1).mean()

            gain = np.zeros(3)
            for j in range(3 if round else 0):  # nobody has uploaded a model before
                distance = np.linalg.norm(sent[j] - before[k])
                gain[j] = (loss(before[k]) - loss(sent[j])) / (distance + 1e-5)
            affinity[k] += gain
            weights = np.maximum(gain, 0)
            positive.append((weights > 0).sum())
            before[k] = weights @ sent / weights.sum() if weights.sum() > 0 else model[k]
            model[k] = steps_towards(before[k], targets[k])
    assert {0, 1} < set(positive), "nothing of interest happens"
    algorithm = ALGORITHMS["fedfomo"](
        quadratic(),
        core.LocalTraining(optax.sgd(ETA), batch_size=8, epochs=STEPS, shuffle=False),
        models=3,
        validation_share=0.5,
    )
    data = federation.examples_of(points, np.zeros(len(points), np.int32), SIZES, num_classes=1)
    outcome = federation.run(
        algorithm, data=data, plan=PLAN, rounds=3, score=quadratic(), devices=2
    )
    near(vector(outcome.server.models), model)
    near(vector(outcome.clients.params), model)
    near(vector(outcome.clients.before), before)
    near(outcome.server.affinity, affinity)
    gaps = [(x - theta).sum() for x, theta in zip(own, model, strict=True)]
    near(outcome.scores["personal"]["test"]["loss"], gaps)


@pytest.mark.parametrize("exponential", [False, True])
def test_apple(exponential):
    rate, mu, rounds, epsilon = 0.1, 0.5, 3, 0.01
    start = vector(run_apart("local", eta=0.0).clients)[0]
    cores, relations = np.tile(start, (3, 1)), np.tile(SHARE, (3, 1))
    for done in np.arange(rounds) / 2.4:
        factor = epsilon**done if exponential else 0.5 * (1 + np.cos(np.pi * done))
        factor = factor if done < 1 else 0
        sent = cores.copy()
        for k in range(3):
            seen, p = sent.copy(), relations[k]
            for _ in range(STEPS):
                g = p @ seen - MEANS[k]
                step = seen @ g + factor * mu * (p - SHARE)
                seen[k] = seen[k] - 3 * ETA * p[k] * g
                p = p - rate * step
            cores[k], relations[k] = seen[k], p
    assert done < 1
    outcome = run_apart(
        "apple",
        rounds=rounds,
        one_core=True,
        relation_rate=rate,
        mu=mu,
        duration=0.8,
        exponential=exponential,
        epsilon=epsilon,
    )
    near(vector(outcome.server.cores), cores)
    near(outcome.clients, relations)
    near(outcome.scores["personal"]["test"]["loss"], personal_gaps(relations @ cores))


def test_pfedhn():
    # Without hidden layers the model of an embedding v is `bias + v @ kernel`. The third client
    # never takes part.
    rate, momentum, decay, clip, rounds, joining = 0.2, 0.5, 0.3, 1.4, 3, 4
    settings = {"layers": 0, "embedding_size": 2, "spread": 0.5, "joining_rounds": joining}
    settings |= {"linear_layer": False, "weight_decay": decay, "clip": clip}
    settings["data"] = federation.examples_of(
        POINTS, np.zeros(len(POINTS), np.int32), SIZES, num_classes=1, unseen=1
    )
    settings["plan"] = sampling.CohortPlan(num_clients=2, size=2)
    start = run_apart("pfedhn", eta=0.0, **{**settings, "weight_decay": 0.0}).server
    heads = start.network["heads"]
    kernel, bias = vector(heads["kernel"]), vector(heads["bias"])
    embeddings = start.embeddings
    assert np.std(kernel) > 0.01
    velocity, norms = [0, 0, 0], []
    for _ in range(rounds):
        theta = bias + embeddings @ kernel
        change = steps_towards(theta, MEANS[:2]) - theta
        slopes = change.mean(axis=0), embeddings.T @ change / 2, change @ kernel.T
        norms.append(np.sqrt(sum(np.sum(g**2) for g in slopes)))
        shortened = [g * min(1, clip / norms[-1]) for g in slopes]
        arrays = bias, kernel, embeddings
        velocity = [
            momentum * v + g - decay * x
            for v, g, x in zip(velocity, shortened, arrays, strict=True)
        ]
        bias, kernel, embeddings = (x + rate * v for x, v in zip(arrays, velocity, strict=True))
    assert min(norms) < clip < max(norms), "some gradients should be clipped, and some not"
    outcome = run_apart("pfedhn", rounds=rounds, rate=rate, momentum=momentum, **settings)
    near(vector(outcome.server.network["heads"]["bias"]), bias)
    near(vector(outcome.server.network["heads"]["kernel"]), kernel)
    near(outcome.server.embeddings, embeddings)
    unseen = embeddings.mean(axis=0)
    for _ in range(joining):
        theta = bias + unseen @ kernel
        unseen = unseen + rate * (steps_towards(theta, MEANS[2]) - theta) @ kernel.T
    deployed = bias + np.stack([*embeddings, unseen]) @ kernel
    near(outcome.scores["personal"]["test"]["loss"], personal_gaps(deployed))


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


LABELS = np.array([0, 0, 1, 3, 1, 2, 0, 1, 3, 2, 2, 0]).astype(np.int32)
LABELED = federation.examples_of(POINTS, LABELS, SIZES, num_classes=4)


def softmax(logits):
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def leading_ranks(matrix, energy):
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    share = np.cumsum(values**2) / max(np.sum(values**2), 1e-30)
    rank = min(1 + np.sum(share <= energy), len(values))
    return left[:, :rank] * values[:rank] @ right[:rank], rank


def test_fedkd():
    # The gradient of KL(p || softmax(f)) in f is softmax(f) - p, as for the cross-entropy.
    task, weight, hidden, energies = (
        linear_classifier(),
        0.7,
        1.3,
        (0.6, 0.75),
    )  # halfway, and the end
    local = core.LocalTraining(optax.sgd(ETA), batch_size=8, epochs=STEPS)
    algorithm = ALGORITHMS["fedkd"](
        task, local, distillation=weight, hidden=hidden, energy_start=0.45, energy_end=0.75
    )
    server = algorithm.init_server(None, jax.random.key(0))
    start = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(server.params)]  # W, K
    clients = []
    for k in range(3):
        key = streams.key_of(jax.random.key(0), streams.CLIENT_INIT, k)
        bridge = algorithm.init_client(server, None, key).bridge
        clients.append([*start, np.asarray(bridge, np.float64)])
    shared, ranks = start, []
    for energy in energies:
        changes = []
        for k, (end, n) in enumerate(zip(ENDS, SIZES, strict=True)):
            x, hot = POINTS[end - n : end], np.eye(4)[LABELS[end - n : end]]
            (w, head, bridge), (w_g, head_g) = clients[k], shared
            for _ in range(STEPS):
                z, z_g = x @ w, x @ w_g
                p, p_g = softmax(z @ head), softmax(z_g @ head_g)
                scale = -np.sum(hot * (np.log(p) + np.log(p_g))) / n
                logits = (p - hot + weight / scale * (p - p_g)) / n
                logits_g = (p_g - hot + weight / scale * (p_g - p)) / n
                gap = hidden * (z - z_g @ bridge) / (n * scale)  # times 2 / d, which is 1
                w, head, w_g, head_g, bridge = (
                    w - ETA * x.T @ (logits @ head.T + gap),
                    head - ETA * z.T @ logits,
                    w_g - ETA * x.T @ (logits_g @ head_g.T - gap @ bridge.T),
                    head_g - ETA * z_g.T @ logits_g,
                    bridge + ETA * z_g.T @ gap,
                )
            clients[k] = [w, head, bridge]
            cut = [
                leading_ranks(new - old, energy)
                for new, old in zip((w_g, head_g), shared, strict=True)
            ]
            changes.append([matrix for matrix, _ in cut])
            ranks.append([rank for _, rank in cut])
        means = [np.mean(matrices, axis=0) for matrices in zip(*changes, strict=True)]
        cut = [leading_ranks(matrix, energy) for matrix in means]
        shared = [old + matrix for old, (matrix, _) in zip(shared, cut, strict=True)]
    assert {1, 2} == set(np.ravel(ranks)), "the test should cut some and keep some"
    outcome = federation.run(algorithm, data=LABELED, plan=PLAN, rounds=2, score=task, devices=2)
    for ours, expected in zip(jax.tree.leaves(outcome.server.params), shared, strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)
    states = [outcome.clients.mentor["body"]["w"], outcome.clients.mentor["head"]["kernel"]]
    for ours, *expected in zip((*states, outcome.clients.bridge), *clients, strict=True):
        np.testing.assert_allclose(ours, np.stack(expected), rtol=1e-4, atol=1e-5)
    sent = [4 * (sum(min(7 * rank, 8) for rank in row) + 1) for row in ranks]  # and the weight
    near(outcome.metrics["upload_bytes"], np.mean(np.reshape(sent, (2, 3)), axis=1))


@pytest.mark.parametrize("by_label, first_round", [(True, 1), (False, 0)])
def test_fedgen(by_label, first_round, monkeypatch):
    # Always the same draws; the server takes one step of Adam in each of two rounds.
    draw = np.random.default_rng(8)
    drawn = {
        n: (draw.integers(0, 4, n).astype(np.int32), draw.normal(size=(n, 3)).astype(np.float32))
        for n in (6, 5)  # of a client, of the server
    }
    module = importlib.import_module("pfljax.algorithms.fedgen")
    monkeypatch.setattr(module, "draw", lambda key, shares, count, *rest: drawn[count])
    weight, decay, diversity, rate = 0.7, 0.5, 0.3, 0.01
    task = linear_classifier()
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


def test_fedcp(monkeypatch):
    # The formulas once more, for one client after the other, with the same noise in every step.
    task, lam = linear_classifier(), 0.8
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


def personal_means() -> core.Task:
    """Linear features, and a head whose first row goes to the mean of the client's inputs."""

    def losses(model, batch, key, train=True):
        return 0.5 * jnp.sum((model["head"]["kernel"][0] - batch.inputs) ** 2, axis=-1)

    def loss(model, batch, key, train=True):
        gaps = losses(model, batch, key)
        return jnp.sum(gaps * batch.mask) / jnp.maximum(jnp.sum(batch.mask), 1)

    return linear_features()._replace(losses=losses, loss=loss)


def test_fedpac():
    # Two clients: a_1^2 V_1 + a_2^2 (V_2 + ||H_1 - H_2||^2) is least at weights inverse to these.
    labels, lam, sizes = np.array([0, 0, 1, 1, 0, 1, 2, 1, 1, 2]).astype(np.int32), 0.7, [4, 6]
    task, points = personal_means(), [POINTS[:4], POINTS[4:10]]
    own = [(points[0], labels[:4]), (points[1], labels[4:])]
    body = np.asarray(task.init(None)["body"]["w"], np.float64)
    heads, prototypes, seen = np.ones((2, 4)), np.zeros((4, 2)), np.zeros(4, bool)
    for _ in range(3):
        bodies, sums, counts, shares, variances = [], np.zeros((4, 2)), np.zeros(4), [], []
        for k, (x, y) in enumerate(own):
            z, members = x @ body, np.eye(4)[y]
            shares.append(members.T @ z / len(y))
            variances.append(((z**2).sum() / len(y) - (shares[k] ** 2).sum()) / len(y))
            heads[k] = steps_towards(heads[k], x.mean(axis=0), steps=2)
            w = body
            for _ in range(STEPS):
                gap = (x @ w - prototypes[y]) * seen[y][:, None]
                w = w - ETA * lam * 2 / gap.size * x.T @ gap
            bodies.append(w)
            sums, counts = sums + members.T @ (x @ w), counts + members.sum(axis=0)
        body = (4 * bodies[0] + 6 * bodies[1]) / 10
        seen = counts > 0
        prototypes[seen] = sums[seen] / counts[seen][:, None]
        others = variances[::-1] + ((shares[0] - shares[1]) ** 2).sum()
        from_other = variances / (variances + others)
        heads = heads + from_other[:, None] * (heads[::-1] - heads)
    local = core.LocalTraining(optax.sgd(ETA), batch_size=8, epochs=STEPS)
    outcome = federation.run(
        ALGORITHMS["fedpac"](task, local, lam=lam, head_epochs=2),
        data=federation.examples_of(POINTS[:10], labels, np.array(sizes), num_classes=4),
        plan=sampling.CohortPlan(num_clients=2, size=2),
        rounds=3,
        score=task,
        devices=2,
    )
    near(outcome.server.average.params["body"]["w"], body)
    near(outcome.server.prototypes.means, prototypes)
    near(outcome.clients["head"]["kernel"][:, 0], heads)
    assert np.all((0.01 < from_other) & (from_other < 0.5)), "the test mixes nothing"


def test_every_method_has_a_closed_form_here():
    tested = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    assert set(ALGORITHMS) <= tested


def test_learning_rate_schedule():
    local = core.LocalTraining(
        optax.sgd(ETA), batch_size=8, schedule=lambda round: jnp.power(0.5, round)
    )
    algorithm = ALGORITHMS["local"](quadratic(), local)
    outcome = federation.run(algorithm, data=DATA, plan=PLAN, rounds=3, score=quadratic())
    theta = START
    for round in range(3):
        theta = steps_towards(theta, MEANS, rate=ETA * 0.5**round, steps=1)
    near(vector(outcome.clients), theta)
    assert jax.tree.leaves(outcome.clients)[0].shape[0] == 3
