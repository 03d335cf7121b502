"""pFedPG: prompts that the server generates by cross-attention, and personal heads."""

import batch_norm
import federation
import identities
import jax
import jax.numpy as jnp
import numpy as np
import plain
import plain_loops
import plain_rounds
import quadratics
import trajectories
from plain_loops import HEAD_KERNEL, Round, rate_of
from quadratics import MEANS, near, personal_gaps, steps_towards

from pfljax import core
from pfljax.algorithms import ALGORITHMS, pfedpg
from pfljax.engine import sampling
from pfljax.ops import prompts

DRAW = np.random.default_rng(7)


def attend(generator, d):
    """The generated prompts of a descriptor, and the weights of the attention."""
    base, query, key, value = generator
    scores = d @ query @ (base @ key).T / np.sqrt(base.shape[1])
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    weights /= weights.sum(axis=1, keepdims=True)
    return base + weights @ base @ value, weights


def pull_back(generator, d, change):
    """The derivatives of `<P_n, change>` in generator and descriptor, by the chain rule."""
    base, query, key, value = generator
    weights = attend(generator, d)[1]
    of_weights = change @ (base @ value).T
    mean = np.sum(weights * of_weights, axis=1, keepdims=True)
    of_scores = weights * (of_weights - mean) / np.sqrt(base.shape[1])
    of_keys = of_scores.T @ d @ query
    of_values = weights.T @ change
    slopes = (
        change + of_keys @ key.T + of_values @ value.T,
        d.T @ of_scores @ base @ key,
        base.T @ of_keys,
        base.T @ of_values,
    )
    return slopes, of_scores @ base @ key @ query.T


def move(generator, descriptors, changes, rate):
    """A step of the server along the changes `{client: change}` of a cohort."""
    slopes = {n: pull_back(generator, descriptors[n], change) for n, change in changes.items()}
    share = rate / len(changes)
    descriptors = {
        n: d + share * slopes[n][1] if n in slopes else d for n, d in descriptors.items()
    }
    of_generator = [sum(slope[0][i] for slope in slopes.values()) for i in range(4)]
    return [x + share * g for x, g in zip(generator, of_generator, strict=True)], descriptors


def quadratic_with_prompts():
    """The quadratic task, whose first two weights are two prompts of width 1."""
    task = quadratics.quadratic()

    def of_two(function):
        def of_matrix(model, *arguments, **named):
            flat = {"body": {"w": model["body"]["prompts"][:, 0]}, "head": model["head"]}
            return function(flat, *arguments, **named)

        return of_matrix

    return task._replace(
        init=lambda key: {"body": {"prompts": jnp.zeros((2, 1))}, "head": {"w": jnp.zeros(2)}},
        is_prompt=lambda path: path[-1] == "prompts",
        losses=of_two(task.losses),
        loss=of_two(task.loss),
        predict=of_two(task.predict),
    )


def test_closed_form():
    """The third client never takes part: the mean descriptor, and one training of its head."""
    rate, rounds = 0.7, 3
    generator = [np.array([[0.5], [-1.0]]), *np.array([[[1.5]], [[0.8]], [[-1.2]]])]
    descriptors = dict(enumerate(DRAW.normal(size=(2, 2, 1))))
    task = quadratic_with_prompts()
    method = ALGORITHMS["pfedpg"](task, quadratics.LOCAL, rate=rate)

    def init_server(population, key):
        start = prompts.Generator(*(jnp.asarray(x, jnp.float32) for x in generator))
        rows = jnp.asarray(np.stack(list(descriptors.values())), jnp.float32)
        return method.init_server(population, key)._replace(generator=start, descriptors=rows)

    outcome = federation.run(
        method._replace(init_server=init_server),
        data=federation.examples_of(
            quadratics.POINTS,
            np.zeros(len(quadratics.POINTS), np.int32),
            quadratics.SIZES,
            num_classes=1,
            unseen=1,
        ),
        plan=sampling.CohortPlan(num_clients=2, size=2),
        rounds=rounds,
        score=task,
        devices=2,
    )
    heads = np.zeros((3, 2))
    start = generator, descriptors
    for _ in range(rounds):
        changes = {}
        for n in (0, 1):
            received = attend(start[0], start[1][n])[0][:, 0]
            changes[n] = (steps_towards(received, MEANS[n, :2]) - received)[:, None]
            heads[n] = steps_towards(heads[n], MEANS[n, 2:])
        start = move(*start, changes, rate)
    for ours, expected in zip(outcome.server.generator, start[0], strict=True):
        near(ours, expected)
    near(outcome.server.descriptors, np.stack(list(start[1].values())))
    near(outcome.clients["head"]["w"][:2], heads[:2])
    heads[2] = steps_towards(heads[2], MEANS[2, 2:])
    known = [*start[1].values(), np.mean(list(start[1].values()), axis=0)]
    deployed = np.stack([attend(start[0], d)[0][:, 0] for d in known])
    assert np.max(np.abs(deployed[0] - deployed[1])) > 0.05  # the descriptors count
    gaps = personal_gaps(np.concatenate([deployed, heads], axis=1))
    near(outcome.scores["personal"]["test"]["loss"], gaps)


def is_head_kernel(path):
    return path == ("head", "kernel")


def test_batch_norm():
    """The matrix of the head takes the part of the prompts."""
    rate = 0.6
    task = batch_norm.TASK._replace(is_prompt=is_head_kernel)

    def one_round(server, clients, ids, found):
        generator, rows = list(server.generator), dict(enumerate(server.descriptors))
        changes = {}
        for k in ids:
            received = attend(generator, rows[k])[0]
            head = {**clients[k]["head"], "kernel": received}
            trained = plain.train({**clients[k], "head": head}, *plain.examples(k))
            changes[k] = np.asarray(trained["head"]["kernel"]) - received
            clients[k] = {**trained, "head": {"bias": trained["head"]["bias"]}}
        generator, rows = move(generator, rows, changes, rate)
        rows = np.stack(list(rows.values()))
        return server._replace(generator=prompts.Generator(*generator), descriptors=rows)

    def personal(server, client, x, y):
        k = next(k for k in range(9) if np.array_equal(x, plain.examples(k)[0]))
        rows = server.descriptors
        kernel = attend(server.generator, rows[k] if k < 8 else rows.mean(axis=0))[0]
        return {**client, "head": {**client["head"], "kernel": kernel}}

    batch_norm.check("pfedpg", one_round, personal=personal, task=task, rate=rate)


def test_plain_loop():
    rate = 0.8

    def loop(world):
        generator = [np.asarray(x) for x in world.server.generator]
        rows, own = dict(enumerate(np.asarray(world.server.descriptors))), {}
        for r, cohort in enumerate(world.cohorts):
            changes = {}
            for k in cohort:
                received = attend(generator, rows[k])[0]
                start = own.get(k, plain_loops.flat(world.server.initial_head))
                start = np.concatenate([start, received.ravel()])
                trained = world.train(k, start, rate_of(r))
                changes[k] = trained[HEAD_KERNEL].reshape(received.shape) - received
                own[k] = trained[: HEAD_KERNEL.start]
            generator, rows = move(generator, rows, changes, rate)
            deployed = {
                k: np.concatenate([head, attend(generator, rows[k])[0].ravel()])
                for k, head in own.items()
            }
            yield Round(plain_loops.vector(*generator, *rows.values()), dict(own), deployed)

    plain_rounds.check(
        "pfedpg",
        loop,
        {"rate": rate},
        lambda server: (server.generator, server.descriptors),
    )


def test_a_round_from_common_prompts_is_fedper():
    """With values of zero a step of rate 1 is the mean of the prompts, for clients of one size."""
    fixed = federation.prompt_task().init(jax.random.key(7))
    task = federation.prompt_task()._replace(init=lambda key: fixed)
    options = {
        "task": task,
        "data": identities.twins(),
        "plan": sampling.CohortPlan(num_clients=5, size=5),
        "rounds": 1,
    }
    average = identities.run("fedper", **options)
    common, personal = (identities.run("pfedpg", spread=spread, **options) for spread in (0.0, 1.0))
    base = prompts.access(task).split(average.server.average.params)[0]
    federation.assert_close(common.server.generator.base, base)
    federation.assert_close(common.clients, average.clients)
    assert federation.differ(personal.server.generator.base, base)
    assert federation.differ(common.server.generator.base, prompts.access(task).split(fixed)[0])


def test_the_generator_of_a_trajectory():
    """The generated prompts, and the steps of the server along given changes of four clients."""
    theirs = trajectories.read_recent("pFedPG-generator.f64")
    names = ("P", "q", "k", "v")

    def of(prefix):
        return prompts.Generator(*(jnp.asarray(theirs[f"{prefix}/{name}"]) for name in names))

    with jax.enable_x64(True):
        generator, rows = of("init"), jnp.asarray(theirs["init/d"])
        task = federation.task()._replace(
            init=lambda key: {"prompts": generator.base, "head": jnp.zeros(3)},
            is_prompt=lambda path: path == ("prompts",),
        )
        method = ALGORITHMS["pfedpg"](task, federation.local_training(), rate=0.1)
        server = pfedpg.PromptServer(generator, rows, {"head": jnp.zeros(3)})
        cohort = core.Cohort(jnp.arange(4), jnp.full(4, 5), 4)
        update = jax.jit(
            lambda server, each: method.server_update(
                server, core.Uploads((), each), cohort, core.Context(jax.random.key(0), 0, 4)
            )
        )
        for r in range(4):
            sent = jnp.stack(
                [
                    method.download(server, core.Context(jax.random.key(0), r, 4, n))
                    for n in range(4)
                ]
            )
            same(sent, theirs[f"round{r}/prompts"])
            server = update(server, jnp.asarray(theirs[f"tape/round{r}/delta"]))
            jax.tree.map(same, server.generator, of(f"round{r}/params"))
            same(server.descriptors, theirs[f"round{r}/params/d"])


def same(ours, theirs):
    assert ours.dtype == np.float64
    np.testing.assert_allclose(ours, theirs, rtol=1e-8, atol=1e-8)
