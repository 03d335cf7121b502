"""FedLoGe: a sparse frame, two heads and their realignment, and FedBABU with the frame as head."""

import functools
import json

import batch_norm
import federation
import identities
import jax
import jax.numpy as jnp
import numpy as np
import plain
import plain_loops
import plain_rounds
import pytest
import quadratics
import trajectories
from plain_loops import BODY, HEAD, ROUNDS, Round, World, rate_of, vector
from quadratics import ENDS, ETA, LABELED, LABELS, POINTS, SHARE, SIZES, STEPS, near, softmax

from pfljax.algorithms import ALGORITHMS
from pfljax.core import streams
from pfljax.errors import UserError
from pfljax.ops import etf, linear

FEW = {"frame_steps": 30}  # of Adam; the loops start from the same frame


def frame_of(method):
    key = streams.key_of(jax.random.key(0), streams.SERVER_INIT)
    return method.init_server(None, key).frame


def lengths(kernel):
    return np.sqrt(np.sum(np.square(kernel), axis=0))


def test_closed_form():
    task = quadratics.linear_classifier()
    method = ALGORITHMS["fedloge"](task, quadratics.LOCAL, frame_bias=True, generic_norm=0.7, **FEW)
    outcome = federation.run(
        method, data=LABELED, plan=quadratics.PLAN, rounds=2, score=task, devices=2
    )
    frame = jax.tree.map(np.asarray, frame_of(method))
    assert np.all(np.abs(frame["bias"]) > 0)
    start = task.init(jax.random.key(0))
    body, generic = (
        np.asarray(start[part][name]) for part, name in (("body", "w"), ("head", "kernel"))
    )
    own = [generic.copy() for _ in SIZES]
    data = [(POINTS[e - n : e], LABELS[e - n : e]) for e, n in zip(ENDS, SIZES, strict=True)]
    for _ in range(2):
        bodies, generics = [], []
        for k, (x, y) in enumerate(data):
            w, g, target = body, generic, np.eye(4)[y]
            for _ in range(STEPS):
                z = x @ w
                gaps = [softmax(z @ frame["kernel"] + frame["bias"]) - target]
                gaps += [softmax(z @ head) - target for head in (g, own[k])]
                w = w - ETA * x.T @ gaps[0] @ frame["kernel"].T / len(y)
                g = g - ETA * z.T @ gaps[1] / len(y)
                own[k] = own[k] - ETA * z.T @ gaps[2] / len(y)
            bodies.append(w)
            generics.append(g)
        body, generic = np.tensordot(SHARE, bodies, 1), np.tensordot(SHARE, generics, 1)
    model = outcome.server.average.params
    near(model["body"]["w"], body)
    near(model["head"]["kernel"], generic)
    near(outcome.clients["head"]["kernel"], own)
    outputs = [
        (x @ body @ (head + generic * lengths(head))).sum()
        for (x, _), head in zip(data, own, strict=True)
    ]
    near(outcome.scores["personal"]["test"]["loss"], outputs)
    common = [(x @ body @ (0.7 * generic / lengths(generic))).sum() for x, _ in data]
    near(outcome.scores["global"]["test"]["loss"], common)


def test_geometry_of_the_frame():
    key = jax.random.key(3)
    for classes in (2, 5):
        frame = etf.simplex(key, 12, classes, jnp.float32)
        wanted = np.full((classes, classes), -1 / (classes - 1))
        np.fill_diagonal(wanted, 1)
        np.testing.assert_allclose(frame.T @ frame, wanted, atol=1e-6)
    few = etf.simplex(key, 3, 5, jnp.float32)  # fewer features than classes
    assert few.shape == (3, 5)
    np.testing.assert_allclose(few.sum(axis=1), 0, atol=1e-6)
    np.testing.assert_allclose(np.linalg.eigvalsh(few @ few.T)[1:], 1.25, rtol=1e-5)
    kept = etf.random_mask(key, 12, 5, 0.6)
    assert np.sum(~kept) == 36 and np.all(np.any(kept, axis=0))
    alone = etf.random_mask(key, 12, 5, 1.0)
    np.testing.assert_array_equal(np.sum(alone, axis=0), 1)

    def least_angle(frame):
        unit = frame / lengths(frame)
        return np.arccos(np.max(unit.T @ unit - 2 * np.eye(5), axis=1))

    start = np.asarray(frame * kept)
    spread = np.asarray(etf.spread(frame, kept, 0.3, 3e-3, 2000))
    np.testing.assert_array_equal(spread[~np.asarray(kept)], 0)
    np.testing.assert_allclose(lengths(spread), 0.3, atol=0.02)
    assert least_angle(spread).mean() > least_angle(start).mean() + 0.1
    np.testing.assert_array_equal(etf.spread(frame, kept, 0.3, 0.0, 5), start)
    for degenerate in (np.zeros((4, 3)), np.ones((4, 3)), np.eye(4, 1), [[1.0, -1.0]]):
        slope = jax.grad(etf.spread_loss)(jnp.asarray(degenerate, jnp.float32), 0.1)
        assert np.all(np.isfinite(slope))


def test_trajectory_of_the_frame_and_of_the_realignment():
    theirs = trajectories.read_recent("FedLoGe.f64")
    data = trajectories.read_recent("data")
    settings = json.loads(str(theirs["meta"]))["hyperparameters"]
    close = functools.partial(np.testing.assert_allclose, rtol=1e-8, atol=1e-8)
    with jax.enable_x64(True):
        kept, rule = theirs["sse/keep"] > 0, (settings["column_norm_target"],)
        rule += (settings["etf_adam_lr"],)
        cosines = np.full((10, 10), -1 / 9) + 10 / 9 * np.eye(10)
        close(theirs["sse/etf"].T @ theirs["sse/etf"], cosines)
        numbers = [number for number in (1, 10, 100, 500) if f"sse/step{number}" in theirs]
        assert numbers[-1] == 500
        for steps in numbers:
            found = etf.spread(theirs["sse/etf"], kept, *rule, steps)
            assert found.dtype == np.float64
            close(found, theirs[f"sse/step{steps}"])
        close(etf.spread_loss(theirs["sse/etf"] * kept, rule[0]), theirs["sse/loss1"])

        def head(name):
            return {"head": {kind: theirs[f"{name}/{kind}"] for kind in ("kernel", "bias")}}

        body = {kind: theirs[f"round3/global/base/{kind}"] for kind in ("kernel", "bias")}
        model = {"body": {"Dense_0": body}, **head("round3/server/g_aux")}
        task = trajectories.task_from(model)
        method = ALGORITHMS["fedloge"](
            task,
            trajectories.local_training(0.05, 10),
            generic_norm=settings["global_row_norm"],
            class_mask=True,
        )
        server = method.init_server(None, jax.random.key(0))
        server = server._replace(average=server.average._replace(params=model))
        for kind, array in method.global_params(server)["head"].items():
            close(array, theirs[f"realigned/global_head/{kind}"])
        checked = 0
        for k in range(5):
            if f"realigned/client{k}/logits" not in theirs:
                continue
            inputs = data[f"client{k}/test_x"].astype(float)
            absent = theirs[f"realigned/client{k}/absent"]
            examples = federation.examples_of(
                inputs, 0 * inputs[:, 0].astype(int), np.array([len(inputs)]), num_classes=10
            )
            rows = jax.tree.map(jnp.asarray, examples).of_client(jnp.int32(0))
            deployed = method.personalize(server, head(f"round3/client{k}/l_head"), rows, None)
            every = {**deployed, "present": np.ones(10, bool)}
            close(method.predict(every, inputs, None), theirs[f"realigned/client{k}/logits"])
            masked = {**deployed, "present": ~absent}
            found = np.argmax(method.predict(masked, inputs, None), axis=1)
            alive = np.any(np.asarray(task.features(model, inputs)) > 0, axis=1)
            wanted = theirs[f"realigned/client{k}/masked_predictions"]
            np.testing.assert_array_equal(found[alive], wanted[alive])
            checked += 1
        assert checked


def test_the_body_is_that_of_fedbabu_whose_head_is_the_frame():
    plan = identities.ALL_CLIENTS
    ours = identities.run("fedloge", plan=plan, frame_steps=30, frame_norm=1.0, frame_rate=1e-2)
    start = federation.task().init(streams.key_of(jax.random.key(0), streams.SERVER_INIT))
    fixed = {**start, "head": jax.tree.map(jnp.asarray, ours.server.frame)}
    alike = federation.task()._replace(init=lambda key: fixed)
    body = ours.server.average.params["body"]
    babu, other = (
        identities.run("fedbabu", plan=plan, task=task).server.average.params["body"]
        for task in (alike, federation.task()._replace(init=lambda key: start))
    )
    federation.assert_close(body, babu)
    assert federation.differ(body, other)


def test_only_with_the_mask_are_absent_classes_excluded():
    y = [plain.examples(k)[1] for k in range(9)]
    lacking = [k for k in range(9) if len(set(y[k])) < 3]
    task, data = federation.task(), jax.tree.map(jnp.asarray, federation.examples())
    server = identities.run(
        "fedloge", plan=identities.ALL_CLIENTS, frame_steps=30, frame_norm=1.0, frame_rate=1e-2
    ).server
    predicted = {}
    for mask in (False, True):
        method = ALGORITHMS["fedloge"](task, federation.local_training(), class_mask=mask)
        client = method.init_client(server, None, jax.random.key(1))
        for k in lacking:
            model = method.personalize(server, client, data.of_client(jnp.int32(k)), None)
            outputs = method.predict(model, data.inputs, None)
            assert np.all(np.isfinite(outputs))
            predicted[mask, k] = set(np.argmax(outputs, axis=1).tolist())
    assert all(predicted[True, k] <= set(y[k].tolist()) for k in lacking)
    assert any(not predicted[False, k] <= set(y[k].tolist()) for k in lacking)


def test_a_head_with_another_array_is_refused():
    task = federation.task()._replace(is_head=lambda path: "head" in path or "bias" in path)
    with pytest.raises(UserError, match="^FedLoGe needs a head that is one linear"):
        ALGORITHMS["fedloge"](task, federation.local_training())


def test_batch_norm():
    def objective(model, x, y, frame):
        z = plain.features(model, x, True)
        heads = jax.lax.stop_gradient(z)
        loss = jnp.mean(plain.entropies(z @ frame["kernel"] + frame["bias"], y))
        return loss + jnp.mean(plain.entropies(plain.head(model, heads), y))

    def private(head, x, y, model):
        z = jax.lax.stop_gradient(plain.features(model, x, True))
        return jnp.mean(plain.entropies(plain.head(head, z), y))

    def one_round(server, clients, ids, found):
        trained = []
        for k in ids:
            model, own = server.average.params, clients[k]
            for _ in range(plain.EPOCHS):
                for x, y in plain.batches(*plain.examples(k)):
                    slope = plain.gradient(private)(own, x, y, model)
                    own = plain.axpy(-plain.RATE, slope, own)
                    slope = plain.gradient(objective)(model, x, y, server.frame)
                    model = plain.step(model, slope, x)
            trained.append(jax.tree.map(np.asarray, model))
            clients[k] = jax.tree.map(np.asarray, own)
        return server._replace(average=batch_norm.fed_average(server.average, trained, ids))

    def personal(server, client, x, y):
        model = server.average.params
        scaled = model["head"]["kernel"] * lengths(client["head"]["kernel"])
        model = {**model, "head": {**model["head"], "kernel": scaled}}
        return {"model": model, "head": client, "present": np.ones(3, bool)}

    batch_norm.check("fedloge", one_round, personal=personal, frame_bias=True, **FEW)


def test_plain_loop():
    def entropy(outputs, y):
        return -jnp.mean(jax.nn.log_softmax(outputs)[jnp.arange(len(y)), y])

    @jax.jit
    @jax.grad
    def slope(models, x, y, frame):
        w, own = models
        z = plain_loops.features(w, x)
        fixed = jax.lax.stop_gradient(z)
        outputs = (linear.apply(frame, z), plain_loops.head(w, fixed), plain_loops.head(own, fixed))
        return sum(entropy(logits, y) for logits in outputs)

    def kernel(w):
        return w[plain_loops.HEAD_KERNEL].reshape(4, 3)

    def loop(world: World):
        w, frame = world.params, world.server.frame
        # The head of each client, in the place of the head of a whole model.
        biases, kernels = (np.asarray(world.clients["head"][name]) for name in ("bias", "kernel"))
        own = {}
        for r, cohort in enumerate(world.cohorts):
            models = {}
            for k in cohort:
                head = own.get(k, vector(np.zeros(24), biases[k], kernels[k]))
                models[k] = w
                for x, y in world.batches(k):
                    step = slope((models[k], head), x, y, frame)
                    models[k] = models[k] - rate_of(r) * np.asarray(step[0])
                    head = head - rate_of(r) * np.asarray(step[1])
                own[k] = head
            w = plain_loops.mean(models)
            heads = {k: head[HEAD] for k, head in own.items()}
            deployed = {}
            for k in own if r == ROUNDS - 1 else ():
                scaled = kernel(w) * lengths(kernel(own[k]))
                model = vector(w[BODY], w[plain_loops.HEAD_BIAS], scaled)
                deployed[k] = vector(heads[k], model, np.ones(3))
            yield Round(vector(w, frame["bias"], frame["kernel"]), heads, deployed)

    plain_rounds.check("fedloge", loop, FEW)
