"""Evaluation of every client in one program equals a plain loop over clients."""

import dataclasses
import functools

import federation
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pfljax import core
from pfljax.core import streams
from pfljax.engine import init, sampling
from pfljax.engine.evaluate import SPLITS
from pfljax.engine.round import client_context, cohort_key


@functools.cache
def examples():
    """The tiny federation, each client's rows cut in three; client 3 has one example in all."""
    whole = federation.examples()
    start, size = whole.offsets["train"], whole.sizes["train"]
    train = np.maximum(1, size // 4).astype(np.int32)
    validation = ((size - train) // 3).astype(np.int32)
    test = size - train - validation
    return dataclasses.replace(
        whole,
        offsets={"train": start, "validation": start + train, "test": start + train + validation},
        sizes={"train": train, "validation": validation, "test": test},
        max_train_size=int(train.max()),
    )


@functools.cache
def engine(name, devices):
    """Nine clients in chunks of two: neither one device nor three devices come out even."""
    return federation.run(federation.make(name), data=examples(), devices=devices, chunk=2)


def plain_loop(algorithm, outcome):
    """Scores client after client, and all of a client's examples at once."""
    data = jax.tree.map(jnp.asarray, examples())
    key, rounds = jax.random.key(0), jnp.int32(federation.NUM_ROUNDS)
    trained = {
        int(i)
        for round in range(federation.NUM_ROUNDS)
        for i in sampling.sample(federation.PLAN, cohort_key(key, round))
    }
    assert len(trained) < data.num_participants
    join = jax.jit(algorithm.client_update)
    personalize = jax.jit(algorithm.personalize)
    rows = []
    for i in range(data.num_clients):
        context = client_context(key, rounds, rounds, streams.EVALUATION, jnp.int32(i))
        own = data.of_client(jnp.int32(i))
        if i in trained:
            client = jax.tree.map(lambda leaf, i=i: leaf[i], outcome.clients)
        else:  # begins with the server's state of now
            client = init.init_client(algorithm, outcome.server, data.profile(jnp.int32(i)), key)
        if i >= data.num_participants:
            client = join(outcome.server, client, own, context.child(0)).state
        models = {"personal": personalize(outcome.server, client, own, context.child(1))}
        if algorithm.global_params is not None:
            models["global"] = algorithm.global_params(outcome.server)
        rows.append(
            {
                name: {split: score(model, i, split) for split in SPLITS}
                for name, model in models.items()
            }
        )
    return jax.tree.map(lambda *leaves: np.array(leaves), *rows)


@functools.cache
def predict_program():
    return jax.jit(federation.task().predict)


def score(model, i, split):
    data = examples()
    rows = slice(data.offsets[split][i], data.offsets[split][i] + data.sizes[split][i])
    targets = data.targets[rows]
    if len(targets) == 0:
        return {"accuracy": 0.0, "loss": 0.0}
    logits = np.asarray(predict_program()(model, data.inputs))[rows]
    losses = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(targets)), targets]
    return {"accuracy": float(np.sum(logits.argmax(axis=1) == targets)), "loss": losses.sum()}


@functools.cache
def expected(name):
    return plain_loop(federation.make(name), engine(name, 1))


def test_the_loop_has_something_to_say():
    """Sizes that differ, clients without validation or test examples, models that differ."""
    sizes = examples().sizes
    assert len(set(sizes["test"].tolist())) > 4
    assert 0 in sizes["test"] and 0 in sizes["validation"]
    assert max(sizes["test"]) > 4, "no client has more than one batch"
    scores = expected("ditto")
    assert not np.allclose(scores["personal"]["test"]["loss"], scores["global"]["test"]["loss"])
    assert "global" not in expected("local")


@pytest.mark.parametrize(
    "name, devices",
    [("fedavg_ft", 1), ("fedavg_ft", 3), ("ditto", 1), ("ditto", 3), ("local", 3)],
)
def test_sums_equal_a_plain_loop(name, devices):
    federation.assert_close(engine(name, devices).scores, expected(name), tolerance=2e-5)


@pytest.mark.parametrize("devices, ids", [(1, [7, 2, 3]), (3, [8, 1, 4, 7]), (3, [5])])
def test_chosen_clients_have_the_scores_they_have_among_all(devices, ids):
    """In the order of the ids, with client 8 held out, and devices that own none of them."""
    outcome = federation.run(
        federation.make("ditto"), data=examples(), devices=devices, chunk=2, eval_ids=np.array(ids)
    )
    wanted = jax.tree.map(lambda leaf: leaf[np.array(ids)], engine("ditto", devices).scores)
    federation.assert_close(outcome.scores, wanted)


def test_a_method_may_adapt_its_model_to_the_real_examples_of_each_batch():
    def adapt(model, inputs, mask):
        moved = core.mean_over(inputs[:, 0], mask) * jnp.array([1.0, 0.0, -1.0])
        head = model["head"]
        return {**model, "head": {**head, "bias": head["bias"] + moved}}

    algorithm = federation.make("fedavg")._replace(adapt=adapt)
    outcome = federation.run(algorithm, data=examples(), rounds=1)
    data, model = examples(), outcome.server.params
    logits = np.asarray(predict_program()(model, data.inputs))
    for i, size in enumerate(data.sizes["test"]):
        rows = data.offsets["test"][i] + np.arange(size)
        total = 0.0
        for start in range(0, size, 4):
            here = rows[start : start + 4]
            means = data.inputs[here, 0].mean() * np.array([1.0, 0.0, -1.0])
            outputs = logits[here] + means
            own = outputs[np.arange(len(here)), data.targets[here]]
            total += np.sum(np.log(np.exp(outputs).sum(axis=1)) - own)
        found = outcome.scores["personal"]["test"]["loss"][i]
        np.testing.assert_allclose(found, total, rtol=1e-4, atol=1e-5)
    assert federation.differ(outcome.scores["personal"], outcome.scores["global"])


def test_only_personalized_models_use_the_predict_of_the_method():
    """FedAvg's two models are one, so that only the answers can differ."""

    def upside_down(model, inputs, key):
        return -federation.task().predict(model, inputs)

    algorithm = federation.make("fedavg")._replace(predict=upside_down)
    scores = federation.run(algorithm, data=examples(), rounds=1).scores
    assert federation.differ(scores["personal"], scores["global"])
